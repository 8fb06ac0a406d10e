"""Which calls a port allows, and who makes them: decided before a message is read."""

from collections.abc import Callable

from trimtab.errors import PermissionDenied, TrimtabError
from trimtab_server.callers.access import ANYONE, Caller
from trimtab_server.callers.auth import Authenticator, Metadata

_KSERVE = "/inference.GRPCInferenceService/"
# Health needs no credentials: load balancers have none, and it reveals only names and states.
OPEN = "/grpc.health.v1.Health/"
ADMIN = frozenset({f"{_KSERVE}RepositoryModelLoad", f"{_KSERVE}RepositoryModelUnload"})
# What else the admin port offers.
BESIDE_ADMIN = frozenset({f"{_KSERVE}RepositoryIndex"})


class Guard:
    """Authorises calls. Without an `authenticator`, every caller is ANYONE.

    `admin`: True if this is the admin port, False if another port is, None if there is none. `refused` is
    called with the status of each refused call.
    """

    def __init__(
        self, authenticator: Authenticator | None, admin: bool | None, refused: Callable[[str], None]
    ) -> None:
        self._authenticator = authenticator
        self._admin = admin
        self._refused = refused

    @property
    def reads_metadata(self) -> bool:
        """Whether `admit` needs the call's metadata, which holds the credentials."""
        return self._authenticator is not None

    def open_to_all(self, method: str) -> bool:
        """Whether `admit` lets everybody call this method as ANYONE."""
        if self._authenticator is not None and not method.startswith(OPEN):
            return False
        try:
            return self._admit(method, ()) is ANYONE
        except TrimtabError:
            return False

    def admit(self, method: str, metadata: Metadata) -> Caller:
        """The call's caller; Unauthenticated or PermissionDenied if the call is not allowed."""
        try:
            return self._admit(method, metadata)
        except TrimtabError as error:
            self._refused(error.code.name)
            raise

    def _admit(self, method: str, metadata: Metadata) -> Caller:
        if method.startswith(OPEN):
            return ANYONE
        caller = self._authenticator.identify(metadata) if self._authenticator else ANYONE
        if method in ADMIN:
            if self._admin is False:
                raise PermissionDenied(
                    "encoders can be loaded and unloaded only at the server's admin address"
                )
            caller.check_admin()
        elif self._admin and method not in BESIDE_ADMIN:
            raise PermissionDenied("the admin address is only for loading and unloading encoders")
        return caller
