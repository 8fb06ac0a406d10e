"""Errors on their way to a client: their status, what is told of them, and when to retry."""

import logging
import uuid
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from trimtab.errors import Code, InternalError, ResourceExhausted, TrimtabError

log = logging.getLogger(__name__)

# gRPC's headers hold 8 KiB by default, and a character may take 12 bytes in them.
MESSAGE_CHARACTERS = 500
# Where clients look for a google.rpc.Status.
DETAILS = "grpc-status-details-bin"
# Codes that another server might not have answered with.
OVERLOADED = frozenset({Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INTERNAL})

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def as_trimtab_error(error: Exception) -> TrimtabError:
    """`error` itself if it is ours; otherwise it is logged, and an InternalError names its id.

    Its traceback and causes are dropped: they hold the request, often in a cycle, and hundreds of megabytes
    may gather until Python collects those.
    """
    known = error if isinstance(error, TrimtabError) else None
    if known is None or isinstance(known, InternalError):
        number = uuid.uuid4().hex[:12]
        log.error("internal error %s", number, exc_info=error)
        what = str(error) if isinstance(error, InternalError) else "a fault of the server"
        known = InternalError(f"{what} (error {number}; the server's log tells more)")
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return known


async def abort(context: Context, error: TrimtabError) -> NoReturn:
    """End a call with the error's status; on overload, say when to retry.

    gRPC's own retries read that from the pushback, other code and other clients from google.rpc's RetryInfo.
    If a retry would come after the call's deadline, the pushback says not to retry: the caller should know
    now.
    """
    message = shorten(str(error))
    trailers = tuple(context.trailing_metadata() or ())
    if error.retry_after or isinstance(error, ResourceExhausted):
        left = context.time_remaining()
        too_late = left is not None and error.retry_after >= left
        pushback = -1 if too_late else round(error.retry_after * 1000)
        trailers = (*trailers, ("grpc-retry-pushback-ms", str(pushback)))
        if pushback > 0:
            trailers = (*trailers, (DETAILS, _retry_info(error.code, message, pushback)))
    await context.abort(grpc.StatusCode[error.code.name], message, trailers)
    raise AssertionError  # context.abort always raises


def _retry_info(code: Code, message: str, milliseconds: int) -> bytes:
    """A google.rpc.Status; its code and message must be the call's own, or clients refuse to read it."""
    delay = Duration()
    delay.FromMilliseconds(milliseconds)
    status = Status(code=code, message=message)
    status.details.add().Pack(RetryInfo(retry_delay=delay))
    packed: bytes = status.SerializeToString()
    return packed


def shorten(message: str) -> str:
    """The message, cut to fit into a header: it may repeat what the caller sent, of any length."""
    return message if len(message) <= MESSAGE_CHARACTERS else message[:MESSAGE_CHARACTERS] + "..."
