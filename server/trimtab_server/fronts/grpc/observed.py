"""Observes calls, if configured: each gets an id, a span and a line in the log."""

import logging
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import grpc
import grpc.aio

from trimtab.errors import code_of
from trimtab_server.observing import logs
from trimtab_server.observing.tracing import Tracing

REQUEST_ID = "x-request-id"
# A client's own id goes into the log: it must not look like another line or another field.
GIVEN = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class ObservedCall:
    """An observed call: its id from the start, and its caller's name once that is known."""

    __slots__ = ("caller", "request_id")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.caller = ""


UNOBSERVED = ObservedCall("")  # shared by all calls that are not observed


class CallObserver:
    """Observes calls of any kind from beginning to end, including refused ones.

    `ids`: whether every call gets an id, for the log; otherwise only traced calls do.
    """

    def __init__(self, tracing: Tracing | None, *, ids: bool) -> None:
        self._tracing = tracing
        self._ids = ids

    @contextmanager
    def call(self, method: str, context: Any) -> Iterator[ObservedCall]:
        """While a call lasts."""
        metadata = context.invocation_metadata() or ()
        tracing = self._tracing if self._tracing and self._tracing.wants(metadata) else None
        if not tracing and not self._ids:
            yield UNOBSERVED
            return
        given = next((str(value) for key, value in metadata if key == REQUEST_ID), "")
        call = ObservedCall(given if GIVEN.fullmatch(given) else secrets.token_hex(8))
        begun = time.perf_counter()
        with tracing.call(method, metadata) if tracing else nullcontext() as span:
            ids = {"request_id": call.request_id}
            if span is not None and span.is_recording():
                ids["trace_id"] = f"{span.get_span_context().trace_id:032x}"
                span.set_attribute("trimtab.request_id", call.request_id)
            logs.call.set(ids)
            code = grpc.StatusCode.CANCELLED  # unless it ends by itself
            try:
                yield call
                code = _code(context)
            except grpc.aio.AbortError:
                code = _code(context)
                raise
            finally:
                if tracing and span is not None:
                    tracing.ended(span, code)
                if logs.calls.isEnabledFor(logging.INFO):
                    _write(method, code, time.perf_counter() - begun, call.caller)


def _code(context: Any) -> grpc.StatusCode:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return grpc.StatusCode[code_of(code).name] if code else grpc.StatusCode.OK


def _write(method: str, code: grpc.StatusCode, seconds: float, caller: str) -> None:
    fields = {
        "method": method,
        "code": code.name,
        "seconds": round(seconds, 6),
        "caller": caller,
    }
    logs.calls.info("%s %s in %.6f s", method, code.name, seconds, extra={"fields": fields})
