"""Authentication of calls: by API keys, of which only hashes are stored, and by JSON Web Tokens.

Both arrive as the metadata `authorization: Bearer ...`. A key is 256 random bits, so a plain SHA-256 reveals
nothing about it (slow hashes are for passwords, which can be guessed).
"""

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from trimtab.errors import ConfigError, Unauthenticated
from trimtab_server.callers.access import (
    KEY_NAMES,
    NAME_CHARACTERS,
    TOKENS,
    Caller,
    is_key_name,
    is_name,
)
from trimtab_server.callers.refreshed import WatchedFiles
from trimtab_server.config import Auth, Jwt

Metadata = Iterable[tuple[str, str | bytes]]

SHA256 = re.compile(r"[0-9a-f]{64}")
# RFC 7519: clocks differ a little.
LEEWAY_SECONDS = 30
# Verified tokens are cached until they expire: verifying one takes public-key arithmetic.
REMEMBERED = 4096
REFUSED = "the credentials are missing, wrong or expired: send metadata `authorization: Bearer KEY-OR-TOKEN`"


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of the keys file: the key's owner, its SHA-256, what it opens, and when it expires."""

    name: str
    sha256: str
    encoders: tuple[str, ...]
    admin: bool = False
    expires: datetime | None = None

    def __post_init__(self) -> None:
        if not is_key_name(self.name):
            raise ValueError(f"the name of key {self.name[:NAME_CHARACTERS]!r} must be {KEY_NAMES}")
        if not SHA256.fullmatch(self.sha256):
            raise ValueError(f"the sha256 of key {self.name!r} is not 64 lower-case hexadecimal digits")
        if self.expires is not None and self.expires.tzinfo is None:
            raise ValueError(f"expires of key {self.name!r} has no time zone, as in 2027-01-01T00:00:00Z")


class _KeysFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: tuple[Key, ...] = ()


class _Claims(msgspec.Struct, frozen=True):
    """The claims that we read of a verified token; it may hold others."""

    sub: str
    exp: float
    trimtab_encoders: tuple[str, ...] = ()
    trimtab_admin: bool = False


class Authenticator:
    """Finds the caller for given credentials. `now` is the time since 1970, in seconds."""

    def __init__(self, auth: Auth, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._keys = _watch_keys(auth.keys) if auth.keys else None
        self._tokens = _Tokens(auth.jwt, now) if auth.jwt else None

    def identify(self, metadata: Metadata) -> Caller:
        """The caller; Unauthenticated if the credentials are missing, wrong or expired.

        The message is the same in all cases, and repeats nothing that was sent.
        """
        given = next((value for key, value in metadata if key == "authorization"), "")
        scheme, _, secret = str(given).partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Unauthenticated(REFUSED)
        caller = self._by_key(secret) or (self._tokens.caller(secret) if self._tokens else None)
        if caller is None:
            raise Unauthenticated(REFUSED)
        return caller

    def _by_key(self, secret: str) -> Caller | None:
        if self._keys is None:
            return None
        digest = hashlib.sha256(secret.encode()).hexdigest()
        found = self._keys.get().get(digest)
        if found is None or not hmac.compare_digest(found.sha256, digest):
            return None
        if found.expires is not None and found.expires.timestamp() <= self._now():
            return None
        return Caller(found.name, found.encoders, found.admin)


def _watch_keys(path: Path) -> WatchedFiles[dict[str, Key]]:
    def read() -> dict[str, Key]:
        try:
            keys = msgspec.toml.decode(path.read_bytes(), type=_KeysFile).key
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return {key.sha256: key for key in keys}

    return WatchedFiles("auth.keys", (path,), read)


class _Tokens:
    """JSON Web Tokens (RFC 7519) of one issuer for one audience, by PyJWT."""

    def __init__(self, settings: Jwt, now: Callable[[], float]) -> None:
        try:
            import jwt
        except ModuleNotFoundError:
            raise ConfigError("auth.jwt needs PyJWT: pip install 'trimtab[auth]'") from None
        self._jwt, self._settings, self._now = jwt, settings, now
        path = settings.keys

        def read() -> dict[str, Any]:
            """The public keys by id; for a PEM file, one key with an empty id."""
            content = path.read_bytes()
            if content.lstrip().startswith(b"-----BEGIN PUBLIC KEY-----"):
                return {"": content}
            try:
                if msgspec.json.decode(content) == {"keys": []}:  # from here on, no token is accepted
                    return {}
                keys = jwt.PyJWKSet.from_json(content.decode()).keys
            except (jwt.PyJWTError, ValueError) as error:
                raise ValueError(f"{path} is neither a JWK set nor a public key in PEM: {error}") from None
            return {key.key_id or "": key for key in keys if key.key_type != "oct"}

        self._keys = WatchedFiles("auth.jwt.keys", (path,), read)
        self._remembered: dict[str, tuple[Caller, float, object]] = {}

    def caller(self, token: str) -> Caller | None:
        """The caller that the token names; None if it is invalid or expired."""
        keys = self._keys.get()
        known = self._remembered.get(token)
        if known is not None and known[1] > self._now() and known[2] is keys:
            return known[0]
        self._remembered.pop(token, None)
        claims = self._verified(token, keys)
        if claims is None:
            return None
        caller = Caller(f"{TOKENS}{claims.sub}", claims.trimtab_encoders, claims.trimtab_admin)
        if len(self._remembered) >= REMEMBERED:
            self._remembered.clear()
        self._remembered[token] = (caller, claims.exp, keys)
        return caller

    def _verified(self, token: str, keys: dict[str, Any]) -> _Claims | None:
        settings = self._settings
        try:
            key = keys.get(self._jwt.get_unverified_header(token).get("kid", "")) or keys.get("")
            if key is None:
                return None
            claims = self._jwt.decode(
                token, key,
                algorithms=list(settings.algorithms), issuer=settings.issuer, audience=settings.audience,
                leeway=LEEWAY_SECONDS, options={"require": ["exp", "sub", "iss", "aud"]},
            )  # fmt: skip
            found = msgspec.convert(claims, _Claims)
            return found if is_name(found.sub) else None
        except (self._jwt.PyJWTError, msgspec.ValidationError, ValueError, TypeError):
            return None
