"""Who calls, and what they may do: carried beside a call, so that no layer hands it on.

Without credentials in the configuration everybody is ANYONE, who may do everything.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase

from trimtab.errors import PermissionDenied

# What callers with tokens are called begins so, and no key's name does: they share no tenant, quota or cache.
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
        return self is ANYONE or any(fnmatchcase(encoder, pattern) for pattern in self.encoders)


ANYONE = Caller("", ("*",), admin=True)

_current: ContextVar[Caller] = ContextVar("caller")


def enter(caller: Caller) -> None:
    """Set the caller for the rest of this task, and for tasks that it starts."""
    _current.set(caller)


def current() -> Caller:
    """The caller of this task."""
    return _current.get(ANYONE)


def entered() -> bool:
    """Whether this task's caller was set."""
    return _current.get(None) is not None


def check_encoder(name: str) -> None:
    """PermissionDenied if the caller may not use the encoder; the same whether or not it exists."""
    caller = current()
    if not caller.may_use(name):
        raise PermissionDenied(
            f"{caller.name} may not use encoder {name!r}: its key or token does not allow it"
        )


def check_admin() -> None:
    """PermissionDenied if the caller may not change what is served."""
    caller = current()
    if not caller.admin:
        raise PermissionDenied(
            f"{caller.name} may not load or unload encoders: its key or token is not an admin's"
        )
