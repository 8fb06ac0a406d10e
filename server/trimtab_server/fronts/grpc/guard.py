"""Which calls a port lets in, and whom they are from: decided before a message is read."""

from collections.abc import Callable

from trimtab.errors import PermissionDenied, TrimtabError
from trimtab_server.callers.access import ANYONE, Caller
from trimtab_server.callers.auth import Authenticator, Metadata

_KSERVE = "/inference.GRPCInferenceService/"
# Health asks for no credentials: those who balance have none, and it tells of names and states alone.
OPEN = "/grpc.health.v1.Health/"
ADMIN = frozenset({f"{_KSERVE}RepositoryModelLoad", f"{_KSERVE}RepositoryModelUnload"})
# What the port for admins offers beside them.
BESIDE_ADMIN = frozenset({f"{_KSERVE}RepositoryIndex"})


class Guard:
    """Lets calls in: as ANYONE's, where there is no `authenticator`.

    `admin`: True where this is the port for admins, False where there is another one for them, None where
    there is no such port. `refused` is told the status of each call that is not let in.
    """

    def __init__(
        self, authenticator: Authenticator | None, admin: bool | None, refused: Callable[[str], None]
    ) -> None:
        self._authenticator = authenticator
        self._admin = admin
        self._refused = refused

    @property
    def reads_metadata(self) -> bool:
        """Whether a call's metadata must be given: the credentials stand there."""
        return self._authenticator is not None

    def admit(self, method: str, metadata: Metadata) -> Caller:
        """Whom the call is from; Unauthenticated or PermissionDenied where it may not come in."""
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
                raise PermissionDenied("encoders are loaded and unloaded at the server's admin address alone")
            caller.check_admin()
        elif self._admin and method not in BESIDE_ADMIN:
            raise PermissionDenied("the admin address is for loading and unloading encoders alone")
        return caller
