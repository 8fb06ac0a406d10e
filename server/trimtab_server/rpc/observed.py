"""Calls as they are seen from outside, where that is wanted: an id, a span and a line of the log for each."""

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import grpc
import grpc.aio

from trimtab.errors import code_of
from trimtab_server.callers import access
from trimtab_server.observing import logs
from trimtab_server.observing.tracing import Tracing

REQUEST_ID = "x-request-id"
# An id that a client chose goes into the log: nothing in it may pass for another line, or for another field.
GIVEN = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class Observed(grpc.aio.ServerInterceptor):
    """The outermost interceptor: it sees what the boundary refuses, too.

    `ids`: whether every call gets one, for the lines of the log; otherwise those alone that are traced.
    """

    def __init__(self, tracing: Tracing | None, *, ids: bool) -> None:
        self._tracing = tracing
        self._ids = ids

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method, metadata = handler_call_details.method, handler_call_details.invocation_metadata
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith("/grpc."):
            return handler
        tracing = self._tracing if self._tracing and self._tracing.wants(metadata) else None
        if not tracing and not self._ids:
            return handler
        given = next((str(value) for key, value in metadata if key == REQUEST_ID), "")
        number = given if GIVEN.fullmatch(given) else secrets.token_hex(8)
        # Boundary answers all calls by a coroutine that writes what it streams: one of these is there.
        inner = handler.unary_unary or handler.stream_stream or handler.unary_stream or handler.stream_unary

        async def call(request: Any, context: Any) -> Any:
            begun = time.perf_counter()
            with tracing.call(method, metadata) if tracing else nullcontext() as span:
                ids = {"request_id": number}
                if span is not None and span.is_recording():
                    ids["trace_id"] = f"{span.get_span_context().trace_id:032x}"
                    span.set_attribute("trimtab.request_id", number)
                logs.call.set(ids)
                code = grpc.StatusCode.CANCELLED  # unless it ends by itself
                try:
                    answer = await inner(request, context)
                    code = _code(context)
                    return answer
                except grpc.aio.AbortError:
                    code = _code(context)
                    raise
                finally:
                    if tracing and span is not None:
                        tracing.ended(span, code)
                    if logs.calls.isEnabledFor(logging.INFO):
                        _write(method, code, time.perf_counter() - begun)

        return handler._replace(**{_kind(handler): call})


def _kind(handler: Any) -> str:
    if handler.request_streaming:
        return "stream_stream" if handler.response_streaming else "stream_unary"
    return "unary_stream" if handler.response_streaming else "unary_unary"


def _code(context: Any) -> grpc.StatusCode:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return grpc.StatusCode[code_of(code).name] if code else grpc.StatusCode.OK


def _write(method: str, code: grpc.StatusCode, seconds: float) -> None:
    fields = {
        "method": method,
        "code": code.name,
        "seconds": round(seconds, 6),
        "caller": access.current().name,
    }
    logs.calls.info("%s %s in %.6f s", method, code.name, seconds, extra={"fields": fields})
