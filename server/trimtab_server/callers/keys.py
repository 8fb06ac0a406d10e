"""Make an API key, and the entry of the keys file that lets the server know it.

  trimtab key --name search --encoders all-minilm-l6-v2 >> keys.toml

The entry goes to standard output, and has the key's hash alone; the key itself is shown on standard error,
once. `auth.keys` of the server's configuration names the file, which is read again when it changes: an entry
that is taken out of it opens nothing any more.
"""

import argparse
import hashlib
import secrets
import sys
from datetime import UTC, datetime, timedelta

from trimtab.errors import InvalidArgument
from trimtab_server.callers.access import KEY_NAMES, is_key_name

SUMMARY = "make an API key for callers of a server"
EXTRA = None

BYTES = 32
PREFIX = "trimtab_"  # by which scanners of repositories and logs know it


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name", required=True, help="whose key it is; also the tenant that its calls are of"
    )
    parser.add_argument(
        "--encoders", nargs="+", default=["*"], metavar="NAME",
        help="the encoders that it opens; patterns such as 'news-*' are taken; default: all",
    )  # fmt: skip
    parser.add_argument("--admin", action="store_true", help="it may load and unload them")
    parser.add_argument("--days", type=float, help="how long it is good; default: until it is taken out")


def run(options: argparse.Namespace) -> int:
    given = "".join([options.name, *options.encoders])
    if not is_key_name(options.name) or not given.isprintable() or any(sign in given for sign in '"\\'):
        raise InvalidArgument(f"a name must be {KEY_NAMES}, and have no quotation marks and backslashes")
    key = PREFIX + secrets.token_urlsafe(BYTES)
    encoders = ", ".join(f'"{name}"' for name in options.encoders)
    lines = [
        "[[key]]",
        f'name = "{options.name}"',
        f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"',
        f"encoders = [{encoders}]",
    ]
    if options.admin:
        lines.append("admin = true")
    if options.days is not None:
        expires = datetime.now(UTC) + timedelta(days=options.days)
        lines.append(f"expires = {expires:%Y-%m-%dT%H:%M:%SZ}")
    sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stderr.write(f"{key}\n")
    return 0
