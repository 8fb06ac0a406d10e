"""A request's way through the server: the same for every protocol and every task."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from trimtab.errors import DeadlineExceeded, InternalError, InvalidArgument, TrimtabError
from trimtab.inputs.known import INPUTS
from trimtab.kinds import Truncate
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import LoadedEncoder
from trimtab_server.catalog.repository import Repository
from trimtab_server.config import LimitSettings
from trimtab_server.engine.batch import Wanted
from trimtab_server.engine.port import AdmissionRequest, Computed, ComputeRequest, EnginePort, ItemError, Turn
from trimtab_server.inputs.preparation import Preparation
from trimtab_server.inputs.reader import Which
from trimtab_server.observing.metrics import Metrics, Statistics
from trimtab_server.observing.tracing import Tracing
from trimtab_server.turns import PIECE, Flow, Next, Turns

# Requests in flight also hold memory: so many bytes of texts and vectors are charged as one token.
BYTES_A_TOKEN = 128
# About how long the event loop needs for a text of a large request until it is queued for the tokenizer.
TEXT_SECONDS = 2e-6


P = ParamSpec("P")
T = TypeVar("T")


class ComputedItems(msgspec.Struct, frozen=True):
    """What was computed for a request's items, and how long that took so far, in seconds."""

    computed: Computed
    counts: list[int]  # tokens
    tokenize: float
    arrived: float  # when the last row arrived, on time.monotonic's clock


class Times(msgspec.Struct, frozen=True):
    """Seconds spent in each stage."""

    tokenize: float
    queue: float
    compute: float
    output: float


class Admitted:
    """An admitted request, until its answer is made."""

    __slots__ = ("_engine", "number", "turn")

    def __init__(self, engine: EnginePort, number: int, turn: Turn) -> None:
        self._engine = engine
        self.number = number
        self.turn = turn

    def __enter__(self) -> "Admitted":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._engine.release(self.number, answered=kind is None)


class Answering:
    """A request that is being answered: it is counted while in flight, and if it fails; its version is held,
    and its task is cancelled at its deadline.

    version: what the request counts for, unless another one answers it.
    """

    __slots__ = (
        "_call", "_cancels", "_expired", "_held", "_metrics", "_repository", "_task", "_timer",
        "version",
    )  # fmt: skip

    def __init__(self, repository: Repository, metrics: Metrics, call: Call) -> None:
        self._repository = repository
        self._metrics = metrics
        self._call = call
        self.version: LoadedEncoder | None = None
        self._held = False
        # As asyncio.timeout_at does it, in fewer calls.
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cancels = 0  # of the task, before
        self._expired = False

    def hold(self, version: LoadedEncoder) -> None:
        """This version answers the request. Nothing may have been awaited since it was found."""
        self.version, self._held, call = version, True, self._call
        self._repository.hold(version)
        self._metrics.began(version.name, version.version, call.protocol)
        task = asyncio.current_task()
        if call.deadline is not None and task is not None:
            self._task, self._cancels = task, task.cancelling()
            self._timer = task.get_loop().call_at(call.deadline, self._expire)

    def _expire(self) -> None:
        self._expired = True
        if self._task is not None:
            self._task.cancel()

    def __enter__(self) -> "Answering":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        found, call = self.version, self._call
        if self._timer is not None:
            self._timer.cancel()
        late = isinstance(error, TimeoutError)
        if self._expired and self._task is not None:
            alone = self._task.uncancel() <= self._cancels  # nobody else has cancelled it, too
            late = late or (alone and kind is asyncio.CancelledError)
        if self._held and found is not None:
            self._metrics.ended(found.name, found.version, call.protocol)
            self._repository.release(found)
        if kind is None:
            return
        name, version = ("", None) if found is None else (found.name, found.version)
        seconds = time.monotonic() - call.arrived
        reason = "DEADLINE_EXCEEDED" if late else _reason(error)
        self._metrics.failed(name, version, call.protocol, reason, seconds)
        if late:
            raise DeadlineExceeded("the deadline passed before the vectors were computed") from None


class Pipeline:
    """What every task shares: admits, tokenises, computes and counts requests."""

    def __init__(
        self,
        limits: LimitSettings,
        repository: Repository,
        preparation: Preparation,
        engine: EnginePort,
        metrics: Metrics,
        tracing: Tracing | None = None,
        turns: Turns | None = None,
        statistics: Callable[[str, int], Awaitable[Statistics]] | None = None,
    ) -> None:
        self.limits = limits
        self.repository = repository
        self.turns = turns or Turns()
        self.engine = engine
        self.metrics = metrics
        self._preparation = preparation
        self._tracing = tracing
        self._statistics = statistics

    async def statistics(self, encoder: LoadedEncoder) -> Statistics:
        """What happened to an encoder version since it was loaded, over all front ends of the server."""
        if self._statistics is None:
            return self.metrics.statistics(encoder.name, encoder.version)
        return await self._statistics(encoder.name, encoder.version)

    def read(
        self, call: Call, parse: Callable[Concatenate[Call, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `parse` makes of a message; if it cannot be parsed, that counts like any failure."""
        try:
            return parse(call, *args, **kwargs)
        except Exception as error:
            self.metrics.failed("", None, call.protocol, _reason(error), time.monotonic() - call.arrived)
            raise

    def answering(self, call: Call) -> "Answering":
        """The context in which a request is answered."""
        return Answering(self.repository, self.metrics, call)

    async def turn(self, call: Call, texts: int) -> None:
        """Wait for the caller's turn, at most until the deadline, if so many texts take long."""
        if texts > PIECE:
            async with asyncio.timeout_at(call.deadline):
                await self.turns.wait(Flow(call.flow, small=False), texts * TEXT_SECONDS)

    async def admit(
        self,
        encoder: LoadedEncoder,
        call: Call,
        items: Sequence[Any],
        wanted: Wanted,
        others: int = 0,
    ) -> "Admitted":
        """Admit items, which include their prompts, until the answer is made.

        `others`: components that each of them holds besides what is wanted of the model.
        """
        estimate, size = encoder.reader.bound(items)
        size += encoder.model.most_bytes(wanted, len(items), estimate) + 4 * others * len(items)
        turn = Turn(call.tenant, call.flow, call.priority, call.deadline)
        number = await self.engine.admit(
            AdmissionRequest(encoder.number, turn, estimate, size // BYTES_A_TOKEN)
        )
        return Admitted(self.engine, number, turn)

    async def compute(
        self,
        encoder: LoadedEncoder,
        call: Call,
        items: Sequence[Any],
        truncate: Truncate,
        admitted: "Admitted",
        wanted: Wanted,
        which: Which,
    ) -> ComputedItems:
        """Prepare admitted items, and compute their wanted outputs."""
        payloads = await self._preparation.read(
            encoder.reader, items, truncate, (call.flow, call.priority), which
        )
        tokenized = time.monotonic()
        try:
            computed = await self.engine.compute(
                ComputeRequest(admitted.number, encoder.number, admitted.turn, payloads, wanted)
            )
        except ItemError as error:
            raise InternalError(f"the encoder failed on {which(error.row)}: {error.why}") from error.__cause__
        counts = [payload.units for payload in payloads]
        return ComputedItems(computed, counts, tokenized - call.arrived, time.monotonic())

    async def made(self, call: Call, rows: int, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make an answer of so many rows: in its caller's turn, if they are many."""
        if rows <= PIECE:
            return make(*args, **kwargs)
        return await self.turns.do(Flow(call.flow, small=False), make, *args, **kwargs)

    async def in_pieces(self, call: Call, pieces: Iterator[T | Next | None]) -> T:
        """What pieces of work yield at the end; before it they yield None, or Next.LONG. All but the first
        are done in the caller's turn, or, after Next.LONG, on a thread."""
        made = next(pieces)
        while made is None or isinstance(made, Next):
            if made is None:
                made = await self.turns.do(Flow(call.flow, small=False), next, pieces)
            else:
                made = await asyncio.to_thread(next, pieces)
        return made

    def answered(self, encoder: LoadedEncoder, call: Call, rows: ComputedItems) -> Times:
        """Count an answered request. Returns where its time went."""
        ended = time.monotonic()
        computed = rows.computed
        times = Times(rows.tokenize, computed.queue_seconds, computed.compute_seconds, ended - rows.arrived)
        self.metrics.answered(
            encoder.name, encoder.version, call.protocol,
            texts=len(rows.counts), tokens=sum(rows.counts),
            tokenize=times.tokenize, queue=times.queue, compute=times.compute, output=times.output,
            total=ended - call.arrived, now_ms=int(time.time() * 1000),
        )  # fmt: skip
        if self._tracing is not None:
            self._tracing.answered(
                call.protocol, encoder.name, encoder.version,
                texts=len(rows.counts), tokens=sum(rows.counts),
                seconds=(times.tokenize, times.queue, times.compute, times.output),
            )  # fmt: skip
        return times

    def check_items(self, encoder: LoadedEncoder, items: Sequence[Any], field: str) -> None:
        """Refuse more or longer items than the limits allow, naming the item."""
        limits, reader = self.limits, encoder.reader
        if len(items) > limits.max_texts:
            check_count(len(items), limits.max_texts, field)
        for row, item in enumerate(items):
            size = reader.size(item)
            if size > limits.max_text_bytes:
                given = encoder.manifest.input
                raise InvalidArgument(
                    f"{field}[{row}] has {size} bytes, this server takes {limits.max_text_bytes}: cut it; "
                    f"the encoder reads only {given.most_units} {INPUTS[given.kind].units} of it anyway"
                )


def check_count(given: int, most: int, name: str = "texts") -> None:
    """Refuse more texts than one request may have. To be called before anything goes through the texts."""
    if given > most:
        raise InvalidArgument(
            f"the request has {given} {name}, this server takes {most} in one request: "
            "split it, or use a stream"
        )


def _reason(error: BaseException | None) -> str:
    """What metrics call a request's failure."""
    if isinstance(error, TrimtabError):
        return error.code.name
    if isinstance(error, TimeoutError):
        return "DEADLINE_EXCEEDED"
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else "INTERNAL"
