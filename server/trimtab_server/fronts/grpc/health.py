"""grpc.health.v1: the server as a whole under "", each encoder under NAME and NAME/VERSION.

The package's own servicer stops notifying all watchers of a service when one of them leaves, and starts as
SERVING; so this is our own.
"""

import asyncio
from typing import Any

from grpc_health.v1 import health_pb2

from trimtab.errors import NotFound
from trimtab_server.fronts.grpc.intake import OpenCall

Status = health_pb2.HealthCheckResponse


class Health:
    """The states of all services, for checks and watches."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {"": False}
        self._draining = False
        self._watchers: set[asyncio.Event] = set()

    @property
    def serving(self) -> bool:
        """Whether the server as a whole serves."""
        return self._serving[""]

    def set(self, service: str, serving: bool) -> None:
        """Set whether a service serves. Once the server drains, none does."""
        self._serving[service] = serving and not self._draining
        for watcher in self._watchers:
            watcher.set()

    def drain(self) -> None:
        """Report NOT_SERVING for everything from now on, and end all watches."""
        self._draining = True
        for service in self._serving:
            self.set(service, False)

    async def Check(self, request: health_pb2.HealthCheckRequest, opened: OpenCall) -> Status:
        if request.service not in self._serving:
            raise NotFound(f"no service {request.service!r} here; '' asks for the server as a whole")
        return Status(status=self._status(request.service))

    async def Watch(self, request: health_pb2.HealthCheckRequest, opened: OpenCall) -> None:
        service, changed = request.service, asyncio.Event()
        del request
        self._watchers.add(changed)
        last = None
        try:
            while True:
                changed.clear()
                status = self._status(service)
                if status != last:
                    await opened.write(Status(status=status))
                    last = status
                if self._draining:
                    return
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _status(self, service: str) -> Any:
        serving = self._serving.get(service)
        if serving is None:
            return Status.SERVICE_UNKNOWN
        return Status.SERVING if serving else Status.NOT_SERVING
