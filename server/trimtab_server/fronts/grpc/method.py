"""A method of a service, as gRPC calls it: from the messages of a call to its answer or its error.

Servicers never see a message that does not parse, and never turn errors into statuses themselves.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio

from trimtab.errors import InvalidArgument, TrimtabError, Unimplemented
from trimtab_server.callers.access import ANYONE, Caller
from trimtab_server.fronts.grpc.bounds import bounded
from trimtab_server.fronts.grpc.entrance import Entrance
from trimtab_server.fronts.grpc.intake import OpenCall
from trimtab_server.fronts.grpc.messages import LARGE, parse_with
from trimtab_server.fronts.grpc.observed import UNOBSERVED, CallObserver, ObservedCall
from trimtab_server.fronts.grpc.pace import CANCELLED, CHEAP, FAILED
from trimtab_server.fronts.grpc.statuses import OVERLOADED, Context, abort, as_trimtab_error
from trimtab_server.observing.load import TRAILER
from trimtab_server.turns import SMALL_BYTES as SMALL_MESSAGE
from trimtab_server.turns import Flow

# Health checks and reflection: not logged, not traced, no part of the load, and not waited for by a drain.
UNCOUNTED = ("/grpc.",)


class _Called:
    """Lets in the calls of a method: each is observed, and its caller identified."""

    def __init__(self, entrance: Entrance, name: str) -> None:
        self._entrance = entrance
        self._name = name
        self._counted = not name.startswith(UNCOUNTED)
        self._observed = entrance.observed if self._counted else None
        self._open_to_all = entrance.guard.open_to_all(name)

    @property
    def called(self) -> Callable[[Any, Context], Awaitable[Any]]:
        """Handles a call, of which no message has been read yet."""
        return self._let_in if self._observed is None else partial(self._observe, self._observed)

    async def _observe(self, observer: CallObserver, requests: Any, context: Context) -> Any:
        with observer.call(self._name, context) as observed:
            return await self._let_in(requests, context, observed)

    async def _let_in(self, requests: Any, context: Context, observed: ObservedCall = UNOBSERVED) -> Any:
        if self._entrance.lobby.arrived():
            await self._entrance.wait_in_lobby(context.peer())
        try:
            caller = ANYONE if self._open_to_all else self._entrance.admit(self._name, context)
        except Exception as raised:
            refusal = as_trimtab_error(raised)
        else:
            if observed is not UNOBSERVED:
                observed.caller = caller.name
            return await self._called(caller, context, observed)
        await self._entrance.refuse(context, refusal)

    async def _called(self, caller: Caller, context: Context, observed: ObservedCall) -> Any:
        raise NotImplementedError


class Unknown(_Called):
    """A method that no service has."""

    async def _called(self, caller: Caller, context: Context, observed: ObservedCall) -> Any:
        error = Unimplemented("this server has no such method: see docs/protocols.md")
        await self._entrance.refuse(context, error)


class Method(_Called):
    """One method of a service: from a call's messages to its answer or its error."""

    def __init__(self, entrance: Entrance, name: str, handler: Any, max_texts: int, most: int) -> None:
        super().__init__(entrance, name)
        self._streams = handler.request_streaming
        self._answers_stream = handler.response_streaming
        self._serve = (
            handler.stream_stream or handler.unary_stream or handler.stream_unary or handler.unary_unary
        )
        self._yields = inspect.isasyncgenfunction(self._serve)  # as reflection does; our own servicers write
        self._serialize = handler.response_serializer
        self._large = name in LARGE
        self._most = 0 if self._streams else most  # bytes of its only message
        self._parse = parse_with(bounded(handler.request_deserializer, max_texts), most)
        single = not (self._streams or self._answers_stream)
        self._load = entrance.load if self._counted and single else None

    def handler(self) -> Any:
        """A handler of streams, since gRPC calls those before it reads a message."""
        kind = (
            grpc.stream_stream_rpc_method_handler
            if self._answers_stream
            else grpc.stream_unary_rpc_method_handler
        )
        return kind(self.called, response_serializer=self._serialized)

    async def _called(self, caller: Caller, context: Context, observed: ObservedCall) -> Any:
        entrance, call = self._entrance, None
        try:
            call = entrance.open(caller, context, observed.request_id, counted=self._counted)
            try:
                return await self._answer(call, context)
            except Exception as raised:
                # An aborted call has been answered. If the client has gone, or goes while it is written to,
                # there is nobody to tell.
                if isinstance(raised, grpc.aio.AbortError):
                    raise
                if context.done() or isinstance(raised, grpc.aio.InternalError):
                    return None
                # Keep no local reference to the raised error: its traceback refers to this frame, and the
                # cycle would keep everything the call holds until the next garbage collection.
                error = as_trimtab_error(raised)
            if not call.understood:
                await entrance.pace.wait(call.sender.peer, FAILED)
        except TrimtabError as full:
            error = as_trimtab_error(full)
        except asyncio.CancelledError:
            if call is None:
                raise
            if not call.understood:
                await entrance.pace.through(call.sender.peer, CANCELLED)
            why = call.ended()
            if why is None:
                raise
            error = why
        finally:
            if call is not None:
                entrance.close(call, counted=self._counted)
        self._report(context, error)
        await abort(context, error)

    async def _answer(self, call: OpenCall, context: Context) -> Any:
        entrance, peer = self._entrance, call.sender.peer
        call.most = self._most
        if not self._large:
            await entrance.pace.wait(peer, CHEAP)
        # No local here keeps a message: a call that watches reads it once and lasts long.
        if self._streams:
            messages = self._messages(call)
            answered = self._serve(messages if self._large else self._each_paced(messages, peer), call)
        else:
            answered = self._serve(await self._message(call), call)
        if self._yields:
            async for each in answered:
                await context.write(each)
            return None
        response = await answered
        if response is not None:  # otherwise answers were written and counted one by one
            response = self._serialized(response)
            account = entrance.unread.account(*call.sender)
            context.add_done_callback(account.close)  # type: ignore[arg-type]
            account.add(len(response))
            account.send()
        self._report(context)
        return response

    async def _message(self, call: OpenCall) -> Any:
        """The message of a unary call, which holds it until the call is over."""
        pace, together = self._entrance.pace, self._entrance.together
        number = together.came() if self._large else 0
        if pace.refused and (delay := pace.read_delay(call.sender.peer)):
            await asyncio.sleep(delay)
        data = await call.read()
        if data is None:
            raise InvalidArgument("the call ended without a message: send one")
        self._entrance.unread.check(*call.sender)
        call.hold(len(data))
        try:
            if number and len(data) <= SMALL_MESSAGE:
                await together.wait(number)
            return await self._parsed(call, data)
        except TrimtabError as error:
            call.release(len(data))
            raise error.with_traceback(None) from None  # the traceback would keep the bytes
        finally:
            del data

    async def _messages(self, call: OpenCall) -> AsyncIterator[Any]:
        pace, peer = self._entrance.pace, call.sender.peer
        while True:
            if delay := pace.read_delay(peer):
                await asyncio.sleep(delay)
            data = await call.read()
            if data is None:
                return
            call.hold(len(data))  # until it is taken up; from then on, the stream's window counts it
            try:
                message = await self._parsed(call, data)
            except TrimtabError as error:
                raise error.with_traceback(None) from None  # the traceback would keep the bytes
            finally:
                call.release(len(data))
                del data
            yield message
            del message  # not kept while waiting for the next one

    async def _parsed(self, call: OpenCall, data: bytes) -> Any:
        turns, pace = self._entrance.turns, self._entrance.pace
        try:
            if len(data) <= SMALL_MESSAGE:
                message = self._parse(data)
                turns.arrived()
            else:
                message = await turns.do(Flow(call.sender.flow, small=False), self._parse, data)
        except TrimtabError:
            pace.refuse(call.sender.peer, len(data))
            raise
        if pace.refused:
            pace.took(call.sender.peer)
        call.understood = True
        return message

    async def _each_paced(self, messages: AsyncIterator[Any], peer: str) -> AsyncIterator[Any]:
        """A stream's messages, each paced like a call of its own."""
        async for message in messages:
            await self._entrance.pace.wait(peer, CHEAP)
            yield message

    def _serialized(self, response: Any) -> bytes:
        done: bytes = response if isinstance(response, bytes) else self._serialize(response)
        return done

    def _report(self, context: Context, error: TrimtabError | None = None) -> None:
        if self._load is not None:
            self._load.called(overloaded=error is not None and error.code in OVERLOADED)
            context.set_trailing_metadata(((TRAILER, self._load.report()),))
