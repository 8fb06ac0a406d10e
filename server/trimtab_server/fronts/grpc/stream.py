"""Streams of requests, by whatever protocol: read as far as their windows allow, answered one by one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

from trimtab.errors import Unavailable
from trimtab_server.fronts.grpc.intake import OpenCall
from trimtab_server.fronts.grpc.unread import Unread, UnreadAnswers
from trimtab_server.fronts.grpc.window import Window, weight

# A message's answer, serialised. What is wrong with one request is part of its answer; what this raises ends
# the stream.
Answer: TypeAlias = Callable[[Any], Awaitable[bytes]]


class Streams:
    """The streams that are open.

    most_texts: that a stream may have unanswered. A request of any size may be alone.
    """

    def __init__(self, most_texts: int, unread: Unread) -> None:
        self._most_texts = most_texts
        self._unread = unread
        self._readers: set[asyncio.Task[None]] = set()

    async def serve(
        self,
        messages: AsyncIterator[Any],
        opened: OpenCall,
        texts: Callable[[Any], int],
        answer: Answer,
        *,
        in_order: bool,
    ) -> None:
        """Answer messages until the client sends no more; Unavailable if the server drains before that.

        Args:
            texts: how many a message asks for.
            in_order: an answer waits for those of earlier messages; otherwise it is written when it is ready.
        """
        account = self._unread.account(*opened.sender)
        try:
            async with asyncio.TaskGroup() as tasks:
                stream = _Stream(opened, Window(self._most_texts, opened), account, answer, tasks)
                reader = tasks.create_task(stream.read(messages, texts, in_order=in_order))
                self._readers.add(reader)
                reader.add_done_callback(self._readers.discard)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            account.close()
        if reader.cancelled():
            raise Unavailable("the server is draining: send what was not answered to another one")

    def drain(self) -> None:
        """Stop reading from all streams; each ends when its requests so far are answered."""
        for reader in list(self._readers):
            reader.cancel()


class _Stream:
    """One stream: what it has unanswered, and its answers on their way."""

    def __init__(
        self,
        opened: OpenCall,
        window: Window,
        account: UnreadAnswers,
        answer: Answer,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._opened = opened
        self._window = window
        self._account = account
        self._answer = answer
        self._tasks = tasks
        self._writing = asyncio.Lock()

    async def read(
        self, messages: AsyncIterator[Any], texts: Callable[[Any], int], *, in_order: bool
    ) -> None:
        """Start on each message as soon as the window has room for it."""
        last: asyncio.Task[None] | None = None
        async for message in messages:
            size = message.ByteSize()
            taken = weight(texts(message), size), size
            await self._window.enter(*taken)
            task = self._tasks.create_task(self._one(message, taken, last))
            if in_order:
                last = task
            del message  # not while the next one is waited for

    async def _one(self, message: Any, taken: tuple[int, int], before: "asyncio.Task[None] | None") -> None:
        outcome = await self._answer(message)
        del message
        self._account.add(len(outcome))
        if before is not None:
            await before
        # Make room in the window only after the answer is written: a client that does not read its answers
        # fills its own window, and nobody else's.
        async with self._writing:
            with self._account.sending(len(outcome)):
                await self._opened.write(outcome)
        self._window.leave(*taken)
