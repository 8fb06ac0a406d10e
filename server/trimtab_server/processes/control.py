"""What the supervisor and the processes that it has started ask of each other.

Each process has two sockets to the supervisor: one for questions and answers, and one over which further
sockets come, each to the engine or to a front end.
"""

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import msgspec

from trimtab.errors import InternalError, Unavailable
from trimtab_server.engine.remote import messages
from trimtab_server.link import Link

T = TypeVar("T")


class Question(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Asks the other side for something by its name, with a value in MessagePack."""

    number: int
    name: str
    value: bytes


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The value that was asked for, in MessagePack."""

    number: int
    value: bytes


Message: TypeAlias = Question | Answer | messages.Failed
# What answers a question, given its value; and these by the names of questions.
Answering: TypeAlias = Callable[[bytes], Awaitable[Any]]
Answers: TypeAlias = Mapping[str, Answering]

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Message]).decode


class ProcessGone(Unavailable):
    """The other side has ended before it could answer."""


class Peer:
    """The other side: it can be asked, and asks in turn. For one event loop."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._gone = False
        self._link: Link[Message] = Link(encode, _decode, self._received, self._left)

    async def open(self, sock: socket.socket) -> None:
        """Talk over a connected socket, which then belongs to this."""
        await self._link.open(sock)

    async def ask(self, name: str, value: object = None) -> None:
        """Ask, and wait until it is done. Raises what the other side raised; ProcessGone if it is gone."""
        await self.get(object, name, value)

    async def get(self, kind: type[T], name: str, value: object = None) -> T:
        """The same, for an answer of a type."""
        if self._gone:
            raise ProcessGone("the process is gone")
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._link.send(Question(number, name, encode(value)))
        try:
            return msgspec.msgpack.decode(await future, type=kind)
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """Close the connection, after what is unsent."""
        await self._link.close()

    def _received(self, message: Message) -> None:
        if isinstance(message, Question):
            task = asyncio.ensure_future(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        number = message.call if isinstance(message, messages.Failed) else message.number
        future = self._waiting.get(number)
        if future is None or future.done():
            return
        if isinstance(message, Answer):
            future.set_result(message.value)
        else:
            future.set_exception(messages.raised(message))

    async def _answer(self, question: Question) -> None:
        try:
            if question.name not in self._answers:
                raise InternalError(f"nobody answers {question.name!r}")
            value = await self._answers[question.name](question.value)
        except Exception as error:  # which `failed` logs, unless it is one of ours
            self._link.send(messages.failed(question.number, error))
        else:
            self._link.send(Answer(question.number, encode(value)))

    def _left(self) -> None:
        """The other side is gone."""
        self._gone = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ProcessGone("the process is gone"))


def watch_sockets(channel: socket.socket, take: Callable[[socket.socket], Awaitable[None]]) -> None:
    """Take each socket that comes over `channel`, until that is closed."""
    loop, taking = asyncio.get_running_loop(), set[asyncio.Future[None]]()

    def arrived() -> None:
        data, descriptors, *_ = socket.recv_fds(channel, 1, 1)
        if not data:
            loop.remove_reader(channel)
        for descriptor in descriptors:
            task = asyncio.ensure_future(take(socket.socket(fileno=descriptor)))
            taking.add(task)
            task.add_done_callback(taking.discard)

    channel.setblocking(False)
    loop.add_reader(channel, arrived)
