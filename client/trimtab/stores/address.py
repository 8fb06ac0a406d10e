"""The address of a store, as one string:

    faiss:FOLDER                          options behind `#?`
    qdrant:FOLDER#COLLECTION              Qdrant embedded in its client
    qdrant+http://HOST:PORT#COLLECTION    a server; qdrant+https with TLS
    postgresql://USER@HOST/DATABASE#TABLE
    vectors.npy, vectors.parquet

What a store does not record itself follows a `?` in the fragment: `#docs?text=body&space=0123456789abcdef`.
Passwords belong in PGPASSWORD or ~/.pgpass, Qdrant's key in QDRANT_API_KEY. If the address contains one
anyway, it is never shown.
"""

import os
import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from trimtab.errors import ConfigError

_QDRANT_SERVERS = {"qdrant+http": "http", "qdrant+https": "https"}
_POSTGRES = {"postgresql", "postgres"}
KEY_VARIABLE = "QDRANT_API_KEY"
SECRET_VARIABLES = (KEY_VARIABLE, "PGPASSWORD")
_LARGEST = 1_000_000  # the largest integer in an option
_SECRETS = re.compile(r"(?i)(password|passwd|api[-_]?key|token|secret)=[^&\s'\"]*")
KINDS = "faiss:FOLDER, qdrant:FOLDER#COLLECTION, qdrant+http://HOST:PORT#COLLECTION, "
KINDS += "postgresql://USER@HOST/DATABASE#TABLE, FILE.npy or FILE.parquet"


@dataclass(frozen=True, slots=True)
class Address:
    """A store's address, taken apart.

    kind: faiss, qdrant, qdrant-server, postgresql, npy or parquet.
    location: the folder, file or URL, with credentials if the caller gave any.
    item: the collection or table; empty for the others.
    options: what follows the `?`.
    name: its name in messages, without credentials.
    """

    kind: str
    location: str = field(repr=False)
    item: str
    options: dict[str, str]
    name: str
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def take(self, *known: str) -> dict[str, str]:
        """The options; ConfigError if one is not in `known`."""
        for option in self.options:
            if option not in known:
                raise ConfigError(f"{self.name} has no option {option!r}; it has {', '.join(known)}")
        return self.options

    def scrub(self, message: object) -> str:
        """A library's message without the secrets of this address and of the environment."""
        text = _SECRETS.sub(r"\1=***", str(message))
        for secret in (*self.secrets, *filter(None, map(os.environ.get, SECRET_VARIABLES))):
            text = text.replace(secret, "***")
        return " ".join(text.split())


def parse(url: str) -> Address:
    """An address as a user writes it. ConfigError, which repeats no credentials, if it is invalid."""
    body, _, fragment = url.rpartition("#") if "#" in url else (url, "", "")
    item, _, query = fragment.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    scheme, colon, rest = body.partition(":")
    if colon and scheme == "faiss":
        return _folder("faiss", rest, item, options, needs_item=False)
    if colon and scheme == "qdrant":
        return _folder("qdrant", rest, item, options, needs_item=True)
    if colon and scheme in _QDRANT_SERVERS:
        return _server("qdrant-server", f"{_QDRANT_SERVERS[scheme]}:{rest}", scheme, item, options)
    if colon and scheme in _POSTGRES:
        return _server("postgresql", body, "postgresql", item, options)
    suffix = body.lower().rpartition(".")[2]
    if "://" not in body and suffix in {"npy", "parquet", "pq"}:
        kind = "npy" if suffix == "npy" else "parquet"
        return _folder(kind, body, item, options, needs_item=False)
    shown = f"{scheme}:..." if colon else body
    raise ConfigError(f"{shown!r} is no store; a store is {KINDS}")


def whole(value: str, what: str) -> int:
    """The value of an option that is an integer from 1; ConfigError names `what` it belongs to."""
    if not (value.isascii() and value.isdecimal() and 1 <= int(value) <= _LARGEST):
        raise ConfigError(f"{what} is {value!r}; give a whole number from 1 to {_LARGEST:,}")
    return int(value)


def _folder(kind: str, path: str, item: str, options: dict[str, str], *, needs_item: bool) -> Address:
    prefix = "" if kind in {"npy", "parquet"} else f"{kind}:"
    name = f"{prefix}{path}" + (f"#{item}" if item else "")
    if not path:
        raise ConfigError(f"{name!r} names no folder; a store is {KINDS}")
    if needs_item != bool(item):
        wrong = "names no collection: add #COLLECTION" if needs_item else "takes no #NAME"
        raise ConfigError(f"{name!r} {wrong}")
    return Address(kind, path, item, options, name)


def _server(kind: str, location: str, scheme: str, item: str, options: dict[str, str]) -> Address:
    parts = _split(location)
    host = parts.netloc.rpartition("@")[2]
    name = f"{scheme}://{host}{parts.path}#{item}"
    if not item:
        wanted = "table: add #TABLE" if kind == "postgresql" else "collection: add #COLLECTION"
        raise ConfigError(f"'{scheme}://{host}{parts.path}' names no {wanted}")
    secrets = [parts.password, unquote(parts.password)] if parts.password else []
    secrets += [value for key, value in parse_qsl(parts.query) if _SECRETS.match(f"{key}=")]
    return Address(kind, location, item, options, name, tuple(secret for secret in secrets if secret))


def _split(location: str) -> SplitResult:
    """The parts of a URL. The error for an ambiguous URL repeats nothing of it."""
    try:
        parts = urlsplit(location)
        sound = bool(parts.netloc) and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound or "@" in parts.path + parts.query + parts.fragment or parts.fragment:
        raise ConfigError(
            "the URL of a store cannot be read: #, /, ? and @ in a password are written %23, %2F, %3F and "
            f"%40. A store is {KINDS}"
        )
    return parts
