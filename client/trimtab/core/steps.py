"""How the two clients share what they do: operations are generators, and each client performs their steps.

An operation yields a step, is sent its outcome or thrown its error, and returns the operation's result. The
generator holds all decisions, once; `Client` performs a step by blocking, `AsyncClient` by awaiting.
Source: httpx's authentication flows, one generator under two drivers.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from google.protobuf.message import Message

from trimtab import forks

Answer = TypeVar("Answer")
Result = TypeVar("Result")
Method = Literal["Embed", "Rescore", "GetEncoder", "ListEncoders", "ListAdapters"]
FetchTexts: TypeAlias = Callable[[Sequence[str]], Sequence[str] | Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request. The outcome is its answer."""

    method: Method
    request: Message


@dataclass(frozen=True, slots=True)
class Begin:
    """Send a request without waiting. The outcome is the call in flight, of the client's own type."""

    method: Method
    request: Message


@dataclass(frozen=True, slots=True)
class Await:
    """Wait for a call that was begun. The outcome is its answer."""

    call: Any


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask the caller for the texts of these ids, each named once. The outcome is a list of them."""

    texts: FetchTexts
    ids: list[str]


Step: TypeAlias = Send | Begin | Await | Fetch
Steps: TypeAlias = Generator[Step, Any, Result]
Kind = TypeVar("Kind")  # of steps


def ask(method: Method, request: Message) -> Steps[Answer]:
    """The server's answer to a request. While it is in flight, this process must not fork."""
    with forks.Calling():
        answer: Answer = yield Send(method, request)
    return answer


def run(steps: Generator[Kind, Any, Result], perform: Callable[[Kind], Any]) -> Result:
    """The result of an operation whose steps are performed one after another."""
    try:
        step = next(steps)
        while True:
            try:
                outcome = perform(step)
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(outcome)
    except StopIteration as end:
        result: Result = end.value
        return result


async def run_async(steps: Generator[Kind, Any, Result], perform: Callable[[Kind], Awaitable[Any]]) -> Result:
    """As `run`, with steps that are awaited."""
    try:
        step = next(steps)
        while True:
            try:
                outcome = await perform(step)
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(outcome)
    except StopIteration as end:
        result: Result = end.value
        return result
