"""The sender of a call, for all that senders share: room, turns, quotas."""

from typing import Any, NamedTuple, TypeAlias

import grpc.aio

from trimtab_server.callers.access import ANYONE, Caller

TENANT_CHARACTERS = 128

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Sender(NamedTuple):
    """The sender of a call: its tenant ("" if it names none), and its connection, by gRPC's name for the
    peer."""

    tenant: str
    peer: str

    @property
    def flow(self) -> str:
        """The flow that the call belongs to: its tenant, or its connection if it has none."""
        return self.tenant or self.peer


class Tenants:
    """Reads a call's tenant from its credentials, or from the metadata key that the configuration names.

    Tenants share the devices fairly. Without credentials, a caller can claim to be any tenant: if callers are
    not trusted, let a gateway set the key.
    """

    def __init__(self, header: str) -> None:
        self._header = header.lower()  # as gRPC sends it

    def of(self, caller: Caller, context: Context) -> Sender:
        """The sender of a call."""
        named = caller is not ANYONE or self._header
        return Sender(self._tenant(caller, context) if named else "", context.peer())

    def _tenant(self, caller: Caller, context: Context) -> str:
        if caller is not ANYONE:
            return caller.name
        if not self._header:
            return ""
        metadata = context.invocation_metadata() or ()
        return next((str(value) for key, value in metadata if key == self._header), "")[:TENANT_CHARACTERS]
