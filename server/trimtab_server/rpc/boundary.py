"""Where gRPC meets the server: messages that do not parse, and errors on their way out.

One interceptor wraps every method of every service, so that no servicer handles either by itself.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from trimtab.errors import (
    Code,
    InternalError,
    InvalidArgument,
    ResourceExhausted,
    TrimtabError,
    Unavailable,
    Unimplemented,
)
from trimtab_server.callers import access
from trimtab_server.observing.load import TRAILER, Load
from trimtab_server.rpc.bounds import bounded
from trimtab_server.rpc.guard import Guard
from trimtab_server.rpc.intake import Call, Intake
from trimtab_server.rpc.pace import CHEAP, NOTHING, TAKEN_BACK, Pace
from trimtab_server.rpc.senders import Tenants
from trimtab_server.rpc.unread import Unread

log = logging.getLogger(__name__)

# Calls that are no work of the server's: asking after its health, or what it serves.
UNCOUNTED = ("/grpc.",)
# The calls whose messages hold texts; those of all others have room in this.
LARGE = frozenset(
    {
        "/trimtab.v1.EncoderService/Embed",
        "/trimtab.v1.EncoderService/EmbedStream",
        "/trimtab.v1.EncoderService/Rescore",
        "/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ModelStreamInfer",
    }
)
SMALL_BYTES = 16 << 10
# gRPC's headers hold 8 KiB by default, and a character may take 12 bytes in them.
MESSAGE_CHARACTERS = 500
# How gzip's output begins, which is never a protobuf, and zlib's, which next to never is.
COMPRESSED = (b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
# Where clients look for a google.rpc.Status.
DETAILS = "grpc-status-details-bin"
# What another server may not have answered with.
OVERLOADED = frozenset(
    {
        Code.RESOURCE_EXHAUSTED,
        Code.UNAVAILABLE,
        Code.DEADLINE_EXCEEDED,
        Code.INTERNAL,
    }
)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Boundary(grpc.aio.ServerInterceptor):
    """Turns trimtab.errors into gRPC statuses, and anything else into INTERNAL with an id of the log.

    It also knows which calls are in flight, and turns away new ones while the server drains: gRPC's own
    stop cancels calls that have arrived and are not taken up yet, and a client may not retry those.

    Where there is a guard, a call that it does not let in is answered before its message is read. Where the
    load is known, each call of one message is answered with a report of it; streams stay where they are.
    """

    def __init__(
        self,
        intake: Intake,
        unread: Unread,
        tenants: Tenants,
        max_texts: int,
        guard: Guard | None = None,
        load: Load | None = None,
    ) -> None:
        self._intake = intake
        self._unread = unread
        self._tenants = tenants
        self._max_texts = max_texts
        self._guard = guard
        self._load = load
        self._pace = Pace()
        self._wrapped: dict[str, Any] = {}
        self._draining = False
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self, seconds: float) -> None:
        """Take no new calls, and wait until those in flight are answered, or for so many seconds."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        if self._guard is not None:
            try:
                access.enter(self._guard.admit(method, handler_call_details.invocation_metadata))
            except Exception as error:
                return self._refusal(as_trimtab_error(error))
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:  # and not remembered
                return self._refusal(Unimplemented("this server has no such method: see docs/protocols.md"))
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def _wrap(self, method: str, handler: Any) -> Any:
        counted = not method.startswith(UNCOUNTED)
        serialize = handler.response_serializer
        most = None if method in LARGE else SMALL_BYTES
        parse = parse_with(bounded(handler.request_deserializer, self._max_texts), most)
        # As handlers of streams, which are called before a message is read.
        if handler.response_streaming:
            kind, inner = grpc.stream_stream_rpc_method_handler, handler.stream_stream or handler.unary_stream
        else:
            kind, inner = grpc.stream_unary_rpc_method_handler, handler.stream_unary or handler.unary_unary
        single = not (handler.request_streaming or handler.response_streaming)
        load = self._load if counted and single else None

        def report(context: Context, error: TrimtabError | None = None) -> None:
            if load is not None:
                load.called(overloaded=error is not None and error.code in OVERLOADED)
                context.set_trailing_metadata(((TRAILER, load.report()),))

        async def answer(call: Call, context: Context) -> Any:
            if self._guard is not None and not access.entered():
                raise InternalError("the call's credentials were not looked at")
            # Nothing here keeps a message: a call that watches needs it no longer than it is looked at.
            if handler.request_streaming:
                messages = _messages(call, context, parse)
                if method not in LARGE:
                    messages = self._each_paced(messages, context.peer())
                answered = inner(messages, context)
            else:
                answered = inner(await _message(call, context, parse), context)
            if hasattr(answered, "__aiter__"):  # a servicer that yields its answers, such as reflection
                async for each in answered:
                    await context.write(each)
                return None
            response = await answered
            if response is not None:  # otherwise they were written, and counted, one by one
                response = serialize(response)
                account = self._unread.account(*self._tenants.of(context))
                context.add_done_callback(lambda _: account.close())  # type: ignore[arg-type]
                account.add(len(response))
                account.send()
            report(context)
            return response

        async def called(requests: Any, context: Context) -> Any:
            peer = context.peer()
            try:
                with self._open(peer, counted) as call:
                    async with self._paced(method, peer, call):
                        return await answer(call, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                # A client that has gone, or is going while it is written to: nobody to tell, nothing to mend.
                if context.done() or isinstance(error, grpc.aio.InternalError):
                    return None
                # No local of this frame may name the error, whose traceback names the frame, and all that the
                # call holds: that would stay until the next collection.
                error = as_trimtab_error(error)
                report(context, error)
                await abort(context, error)

        return kind(
            called, response_serializer=lambda each: each if isinstance(each, bytes) else serialize(each)
        )

    def _refusal(self, error: TrimtabError) -> Any:
        """Answers a call of any kind with the error, before a message is read."""

        async def refuse(requests: Any, context: Context) -> None:
            await self._pace.wait(context.peer(), NOTHING)
            await abort(context, error)

        return grpc.stream_stream_rpc_method_handler(refuse)

    @contextlib.asynccontextmanager
    async def _paced(self, method: str, peer: str, call: Call) -> AsyncIterator[None]:
        """The call is answered, at its connection's pace where it costs the client nothing."""
        if method not in LARGE:
            await self._pace.wait(peer, CHEAP)
        cost = NOTHING
        try:
            yield
        except asyncio.CancelledError:
            cost = TAKEN_BACK
            raise
        finally:
            if not call.understood:
                await self._pace.wait(peer, cost)

    async def _each_paced(self, messages: AsyncIterator[Any], peer: str) -> AsyncIterator[Any]:
        """Messages of a stream that each cost the client nothing, as calls of their own would."""
        async for message in messages:
            await self._pace.wait(peer, CHEAP)
            yield message

    @contextlib.contextmanager
    def _open(self, peer: str, counted: bool) -> Iterator[Call]:
        """A call is open: Unavailable while the server drains, ResourceExhausted where it has no room."""
        if self._draining and counted:
            raise Unavailable("the server is draining: try another one")
        with self._intake.opened(access.current().name or peer, peer) as call:
            self._calls += counted
            self._idle.clear()
            try:
                yield call
            finally:
                self._calls -= counted
                if not self._calls:
                    self._idle.set()


def as_trimtab_error(error: Exception) -> TrimtabError:
    """`error` itself where it is ours; otherwise it is logged, and an InternalError names its id.

    Where it was raised, and from what, is forgotten: that holds the request, and often in a cycle, which
    Python looks for when hundreds of megabytes may have come together.
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
    """End a call with the error's status; overload says when to try again.

    gRPC's own retries read that as a pushback; other code, and clients by other makers, as google.rpc's
    RetryInfo. Where it would end after the call's deadline, the pushback says not to try again: the caller
    should hear of it now.
    """
    message = shorten(str(error))
    trailers = tuple(context.trailing_metadata() or ())
    if isinstance(error, ResourceExhausted):
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


def deadline_of(context: Context) -> float | None:
    """The call's deadline on time.monotonic's clock.

    To be asked when the call begins: gRPC keeps it on the clock of the day, which may leap during a stream.
    """
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def shorten(message: str) -> str:
    """A message that fits into a header: it may repeat what the caller sent, however long that was."""
    return message if len(message) <= MESSAGE_CHARACTERS else message[:MESSAGE_CHARACTERS] + "..."


def parse_with(deserialize: Callable[[bytes], Any], most: int | None) -> Callable[[bytes], Any]:
    """`deserialize`, raising an error of ours for what it does not take, or has more bytes than `most`."""

    def parse(data: bytes) -> Any:
        try:
            if most is not None and len(data) > most:
                raise InvalidArgument(
                    f"the message has {len(data)} bytes, and this call takes {most}: send less"
                )
            return deserialize(data)
        except Exception as error:
            refusal = _refused(data, error)
        raise refusal

    return parse


def _refused(data: bytes, error: Exception) -> TrimtabError:
    """Why a message is not taken: never the error itself, since where that was raised holds the data."""
    if data.startswith(COMPRESSED):
        return Unimplemented(
            "the message is compressed, and this server takes none that are: call without compression "
            "(compression= in gRPC, compression_algorithm= in tritonclient)"
        )
    if isinstance(error, InvalidArgument):
        return InvalidArgument(str(error))
    return InvalidArgument(
        f"the message is not the protobuf that this method takes ({error}): "
        "strings must be UTF-8, and the client's .proto the server's"
    )


async def _message(call: Call, context: Context, parse: Callable[[bytes], Any]) -> Any:
    """The message of a call that has one, which it holds until it is over."""
    data = await call.read(context)
    if data is None:
        raise InvalidArgument("the call ended without a message: send one")
    call.hold(len(data))
    try:
        message, call.understood = parse(data), True
        return message
    except TrimtabError as error:
        call.release(len(data))
        raise error.with_traceback(None) from None  # whose frames would keep the bytes
    finally:
        del data


async def _messages(call: Call, context: Context, parse: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    while (data := await call.read(context)) is not None:
        try:
            message, call.understood = parse(data), True
        except TrimtabError as error:
            raise error.with_traceback(None) from None  # whose frames would keep the bytes
        finally:
            del data
        yield message
        del message  # not while the next one is waited for
