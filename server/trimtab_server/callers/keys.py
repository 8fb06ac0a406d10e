"""Make an API key, and its entry for the server's keys file.

  trimtab key --name search --encoders all-minilm-l6-v2 >> keys.toml

The entry goes to standard output and holds only the key's hash. The key itself is shown once, on standard
error. The server's option `auth.keys` names the file, which is re-read when it changes: remove an entry to
revoke its key.
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
PREFIX = "trimtab_"  # lets secret scanners recognise it in repositories and logs


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="the key's owner; also the tenant of its calls")
    parser.add_argument(
        "--encoders", nargs="+", default=["*"], metavar="NAME",
        help="the encoders that it may use; patterns such as 'news-*' work; default: all",
    )  # fmt: skip
    parser.add_argument("--admin", action="store_true", help="it may also load and unload them")
    parser.add_argument("--days", type=float, help="days until it expires; default: never")


def run(options: argparse.Namespace) -> int:
    given = "".join([options.name, *options.encoders])
    if not is_key_name(options.name) or not given.isprintable() or any(sign in given for sign in '"\\'):
        raise InvalidArgument(f"a name must be {KEY_NAMES}, without quotation marks and backslashes")
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
