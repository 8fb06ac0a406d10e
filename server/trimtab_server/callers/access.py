"""Who calls, and what they may do.

A front end identifies the caller and passes it on as an argument. What needs a caller cannot be called
without one, so a missing caller is never mistaken for somebody.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from trimtab.errors import PermissionDenied

# The prefix of the names of callers with tokens. No key's name may have it, so the two never share a tenant,
# quota or cache.
TOKENS = "jwt:"
NAME_CHARACTERS = 255  # OpenID Connect's bound of a `sub`
KEY_NAMES = f"1 to {NAME_CHARACTERS} printable characters, and not begin with {TOKENS!r}"


def is_name(name: str) -> bool:
    """Whether this can name a caller, in logs and quotas."""
    return 0 < len(name) <= NAME_CHARACTERS and name.isprintable()


def is_key_name(name: str) -> bool:
    """Whether this can name a key's caller."""
    return is_name(name) and not name.startswith(TOKENS)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call. `encoders`: names, or patterns such as "news-*". `admin`: may load and unload."""

    name: str
    encoders: tuple[str, ...]
    admin: bool = False

    def may_use(self, encoder: str) -> bool:
        """Whether this caller may see and use an encoder."""
        return "*" in self.encoders or any(fnmatchcase(encoder, pattern) for pattern in self.encoders)

    def check_encoder(self, name: str) -> None:
        """PermissionDenied if the caller may not use the encoder; the same whether or not it exists."""
        if not self.may_use(name):
            raise PermissionDenied(
                f"{self.name} may not use encoder {name!r}: its key or token does not allow it"
            )

    def check_admin(self) -> None:
        """PermissionDenied if the caller may not change what is served."""
        if not self.admin:
            raise PermissionDenied(
                f"{self.name} may not load or unload encoders: its key or token is not an admin's"
            )


# Every caller, if the configuration has no credentials.
ANYONE = Caller("", ("*",), admin=True)
# The server's own work, such as the poller's. No caller can have its name: theirs are printable.
SERVER = Caller("\0server", ("*",), admin=True)
