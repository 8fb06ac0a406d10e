"""Where gRPC meets the server: one interceptor wraps every method of every service."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from trimtab_server.fronts.grpc.entrance import Entrance
from trimtab_server.fronts.grpc.messages import LARGE, SMALL_BYTES
from trimtab_server.fronts.grpc.method import Method, Unknown


class Boundary(grpc.aio.ServerInterceptor):
    """Turns trimtab.errors into gRPC statuses, and anything else into INTERNAL with an id that is also in the
    log."""

    def __init__(self, entrance: Entrance, max_texts: int, max_message_bytes: int) -> None:
        self._entrance = entrance
        self._max_texts, self._max_message_bytes = max_texts, max_message_bytes
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        self._entrance.turns.arrived()
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:  # not cached: callers can invent any name
                return grpc.stream_stream_rpc_method_handler(Unknown(self._entrance, method).called)
            most = self._max_message_bytes if method in LARGE else SMALL_BYTES
            self._wrapped[method] = Method(self._entrance, method, handler, self._max_texts, most).handler()
        return self._wrapped[method]
