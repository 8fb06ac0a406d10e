"""Whom a call is from, for whatever is shared: room, turns, quotas."""

from typing import Any, NamedTuple, TypeAlias

import grpc.aio

from trimtab_server.callers.access import ANYONE, Caller

TENANT_CHARACTERS = 128

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Sender(NamedTuple):
    """Whom a call is from: the tenant, "" where it names none, and the connection as gRPC calls it."""

    tenant: str
    peer: str

    @property
    def flow(self) -> str:
        """With whom it takes turns: with its tenant's other calls, or its connection's where it has none."""
        return self.tenant or self.peer


class Tenants:
    """Reads a call's tenant off its credentials, or its metadata, by the key that the configuration names.

    Between tenants the devices are shared fairly. Without credentials, whoever sets the key can be any of
    them: let a gateway set it where callers are not trusted.
    """

    def __init__(self, header: str) -> None:
        self._header = header.lower()  # as gRPC sends it

    def of(self, caller: Caller, context: Context) -> Sender:
        """Whom a call is from."""
        return Sender(self._tenant(caller, context), context.peer())

    def _tenant(self, caller: Caller, context: Context) -> str:
        if caller is not ANYONE:
            return caller.name
        if not self._header:
            return ""
        metadata = context.invocation_metadata() or ()
        return next((str(value) for key, value in metadata if key == self._header), "")[:TENANT_CHARACTERS]
