"""How the two clients share what they do: operations are generators, and each client performs their steps.

An operation yields a step, is sent its outcome or thrown its error, and returns the operation's result. The
generator holds all decisions, once; `Client` performs a step by blocking, `AsyncClient` by awaiting.
Source: httpx's authentication flows, one generator under two drivers.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal, TypeAlias, TypeVar

from google.protobuf.message import Message

from trimtab import forks
from trimtab.errors import ResourceExhausted, TrimtabError

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


# How many requests of a split call are in flight at a time: one computed, one waiting, and their answers.
PARTS_IN_FLIGHT = 4


@dataclass(slots=True)
class _Part:
    """A request in flight. `alone`: never was another of its call in flight beside it."""

    number: int
    request: Message
    call: Any
    alone: bool


def in_parts(
    method: Method,
    requests: Iterable[Message],
    take: Callable[[int, Any], None],
    over: Callable[[TrimtabError], bool] = lambda error: False,
) -> Steps[bool]:
    """Send requests, a few of them in flight at a time, and `take` their answers in order, each with the
    number of its request. Returns whether all were answered.

    Requests that found the server full are sent again when none is in flight, since those beside them may be
    what filled it. From then on half as many are in flight. A request that was alone is not sent again: its
    ResourceExhausted is raised.

    An error of which `over` says so ends the work without being raised: no more requests are sent, and what
    is answered already is still taken.
    """
    begun: deque[_Part] = deque()
    refused: list[tuple[int, Message]] = []
    answers: dict[int, Any] = {}  # not taken yet: an earlier one is missing
    unsent: Iterator[tuple[int, Message]] = enumerate(requests)
    window, due, whole = PARTS_IN_FLIGHT, 0, True
    try:
        with forks.Calling():
            while True:
                try:
                    # After a refusal, nothing is sent until nothing is in flight.
                    for number, request in islice(unsent, 0 if refused else window - len(begun)):
                        call = yield Begin(method, request)
                        begun.append(_Part(number, request, call, alone=not begun))
                        begun[0].alone &= len(begun) == 1
                except TrimtabError as error:
                    whole, unsent = _ended(error, over)
                if not begun and refused and whole:
                    window, unsent, refused = max(1, window // 2), chain(refused, unsent), []
                    continue
                if not begun:
                    for number in sorted(answers):
                        take(number, answers[number])
                    return whole
                part = begun[0]
                try:
                    answers[part.number] = yield Await(part.call)
                except TrimtabError as error:
                    if _is_full(error) and not part.alone:
                        refused.append((part.number, part.request))
                    else:
                        whole, unsent = _ended(error, over)
                begun.popleft()
                while due in answers:
                    take(due, answers.pop(due))
                    due += 1
    finally:
        for part in begun:
            part.call.cancel()


def is_too_large(error: TrimtabError) -> bool:
    """Whether gRPC refused a message that is too large, which it does with these words, before the server
    sees it."""
    return isinstance(error, ResourceExhausted) and "larger than max" in str(error)


def _is_full(error: TrimtabError) -> bool:
    """Whether the same request may succeed once others are answered."""
    return isinstance(error, ResourceExhausted) and not is_too_large(error)


def _ended(error: TrimtabError, over: Callable[[TrimtabError], bool]) -> tuple[bool, Any]:
    """Raise an error that does not end the work quietly. Otherwise, not all is answered, and no more is
    sent."""
    if not over(error):
        raise error
    return False, iter(())


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
