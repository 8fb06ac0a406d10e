"""A request's way through the server, the same for every protocol: in order, in one function."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import ParamSpec, Protocol, TypeVar

import msgspec

from trimtab.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, TrimtabError
from trimtab.kinds import Dtype, Priority, Role, Truncate
from trimtab.values.column import Columns
from trimtab_server.catalog.encoder import Encoder
from trimtab_server.catalog.repository import Repository
from trimtab_server.config import Limits
from trimtab_server.engine.admission.admission import Admission, Pass
from trimtab_server.engine.batch import Wanted
from trimtab_server.engine.engine import Engine
from trimtab_server.engine.tickets import Computed
from trimtab_server.inputs.text import Tokenization
from trimtab_server.observing.metrics import Metrics
from trimtab_server.observing.tracing import Tracing
from trimtab_server.outputs import dense
from trimtab_server.outputs.dense import Output
from trimtab_server.policies.brownout import Brownouts
from trimtab_server.policies.canary import Canary
from trimtab_server.policies.hubs import Guards, Hubness
from trimtab_server.spaces.adapters import Route, Vectors
from trimtab_server.spaces.applying import Applier
from trimtab_server.turns import PIECE, Flow, Turns

# Each space asked for holds a matrix of its own until the answer is sent.
MAX_SPACES = 8

# What is in flight also holds memory: so many bytes of texts and vectors are charged as a token.
BYTES_A_TOKEN = 128
# A text has no more tokens than bytes, and these.
SPECIAL_TOKENS = 4


class EmbedRequest(msgspec.Struct, frozen=True):
    """What a caller asks for, whatever the protocol it came by. The options are those of `EmbedOptions`."""

    encoder: str
    version: str
    texts: Sequence[str]
    role: Role | None = None
    truncate: Truncate = "end"
    dimensions: int | None = None
    dtype: Dtype = "float32"
    deadline: float | None = None  # on time.monotonic's clock
    tenant: str = ""
    flow: str = ""  # with whom it takes turns: its tenant, or its connection where it has none
    priority: Priority = "interactive"
    spaces: Sequence[str] = ()  # none: the encoder's own
    group: str = ""
    variant: str = ""  # of the encoder's bundle
    layers: int | None = None
    allow_brownout: bool = True


class Request(Protocol):
    """What every request has, whatever it asks for."""

    @property
    def encoder(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def truncate(self) -> Truncate: ...
    @property
    def deadline(self) -> float | None: ...
    @property
    def tenant(self) -> str: ...
    @property
    def flow(self) -> str: ...
    @property
    def priority(self) -> Priority: ...


R = TypeVar("R", bound=Request)
A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")


class Rows(msgspec.Struct, frozen=True):
    """What was computed of a request's texts, and how far the time has gone, in seconds."""

    computed: Computed
    counts: list[int]  # tokens
    tokenize: float
    arrived: float  # when the last row was there, on time.monotonic's clock


class Times(msgspec.Struct, frozen=True):
    """Seconds spent in each stage."""

    tokenize: float
    queue: float
    compute: float
    output: float


class EmbedResult(msgspec.Struct, frozen=True):
    """The answer: row i of each output is the vector of texts[i], in the space where its route leads.

    `encoder` is the variant that computed them; `browned_out` says that it stood in for the encoder itself.
    `hubness` is of passages, where they are looked at.
    """

    encoder: Encoder
    outputs: list[tuple[Route, Output]]
    token_counts: list[int]
    times: Times
    browned_out: bool
    hubness: Hubness | None


class Pipeline:
    """Checks, admits, tokenises, computes and finishes requests."""

    def __init__(
        self,
        limits: Limits,
        repository: Repository,
        admission: Admission,
        tokenization: Tokenization,
        engine: Engine,
        metrics: Metrics,
        tracing: Tracing | None = None,
        show: Callable[[Encoder, EmbedRequest, Vectors], None] | None = None,
        hang_seconds: float = 10.0,
        turns: Turns | None = None,
        *,
        canary: Canary,
        brownouts: Brownouts,
        guards: Guards,
    ) -> None:
        self.limits = limits
        self.repository = repository
        self.canary = canary
        self.turns = turns or Turns()
        self._brownouts = brownouts
        self._guards = guards
        self._admission = admission
        self._tokenization = tokenization
        self._engine = engine
        self._metrics = metrics
        self._applier = Applier(repository.adapters.retire, hang_seconds)
        self._show = show  # told of each answer, before it is sent: its encoder, request and vectors
        self._tracing = tracing

    async def embed(self, protocol: str, parse: Callable[[], EmbedRequest]) -> EmbedResult:
        """Answer the request that `parse` reads off the wire, or raise one of trimtab.errors."""
        return await self.answer(protocol, lambda: self._given(parse()), self._embed)

    def _given(self, request: EmbedRequest) -> EmbedRequest:
        """The request as the canary gets it, where it falls to its share; else as it is.

        Nobody who asked for no other version is answered in another space: where the canary has one of its
        own, it gets queries alone, and those through an adapter into the space of the version that would
        have answered, which was judged a bridge: they will not score candidates again, as a cascade needs.
        """
        if request.version or request.spaces or request.variant or request.layers or not request.texts:
            return request
        if not self.canary:
            return request
        # Who may not have the encoder, or asks for too much, is told so; neither counted nor hashed.
        self.check_texts(self.repository.find(request.encoder), request.texts)
        canary = self.canary.of(request.encoder, request.tenant, request.texts[0])
        if canary is None:
            return request
        answered = self._as_answered(canary, request)
        self._metrics.canary(canary.name, canary.version, given=answered is not None)
        return answered or request

    def _as_answered(self, canary: Encoder, request: EmbedRequest) -> EmbedRequest | None:
        version = str(canary.version)
        try:
            space = self.repository.find(request.encoder).manifest.space
            if space == canary.manifest.space:
                return msgspec.structs.replace(request, version=version)
            asked = msgspec.structs.replace(request, version=version, spaces=(space,))
            (route,) = self._routes(canary, asked)
        except TrimtabError:  # there is no way into that space, or not for such vectors
            return None
        if any(hop.manifest.verdict != "bridge" for hop in route.hops):
            return None
        # What is too long for the canary need not be for the other.
        return asked if request.role == "query" and request.truncate != "none" else None

    async def answer(
        self,
        protocol: str,
        parse: Callable[[], R],
        work: Callable[[Encoder, R, str, float], Awaitable[A]],
    ) -> A:
        """Parse a request, find its encoder, and work on it until its deadline; count it where that fails.

        `work` gets the encoder, the request, the protocol and the second when the request arrived. Until it
        awaits something, the adapters are those that belong to the encoder. Parsing is part of it all, so
        that a request that cannot be read is counted like any that fails.
        """
        begun = time.monotonic()
        name, version = "", None
        reason = "INTERNAL"
        try:
            request = parse()
            with self.repository.use(request.encoder, request.version) as encoder:
                name, version = encoder.name, encoder.version
                self._metrics.began(name, version, protocol)
                try:
                    async with asyncio.timeout_at(request.deadline):
                        result = await work(encoder, request, protocol, begun)
                finally:
                    self._metrics.ended(name, version, protocol)
            reason = ""
            return result
        except TimeoutError:
            reason = "DEADLINE_EXCEEDED"
            raise DeadlineExceeded("the deadline passed before the vectors were there") from None
        except TrimtabError as error:
            reason = error.code.name
            raise
        except asyncio.CancelledError:
            reason = "CANCELLED"
            raise
        finally:
            if reason:
                self._metrics.failed(name, version, protocol, reason, time.monotonic() - begun)

    def admit(
        self,
        encoder: Encoder,
        request: Request,
        texts: Sequence[str],
        wanted: Wanted = dense.ALONE,
        others: int = 0,
    ) -> Pass:
        """Room for texts whose prompts stand before them already, until the answer is made of them.

        `others`: components that are held for each of them beside what is wanted of the model.
        """
        most, model = encoder.manifest.max_tokens, encoder.model
        lengths = [_most_bytes(text) for text in texts]
        size = sum(lengths) + len(texts) * (model.item_bytes(wanted) + 4 * others)
        estimate = sum([min(length + SPECIAL_TOKENS, most) for length in lengths])
        return self._admission.admit(
            estimate,
            partial(self._engine.queue_seconds, model, request.flow, request.priority),
            request.deadline,
            request.tenant,
            size // BYTES_A_TOKEN,
            request.flow,
        )

    async def compute(
        self,
        encoder: Encoder,
        request: Request,
        texts: Sequence[str],
        share: Pass,
        begun: float,
        wanted: Wanted = dense.ALONE,
    ) -> Rows:
        """What is wanted of texts that were admitted: tokenise, compute."""
        payloads = await self._tokenization.encode(
            encoder.tokenizer, texts, request.truncate, (request.flow, request.priority)
        )
        tokenized = time.monotonic()
        counts = [payload.units for payload in payloads]
        share.settle(sum(counts))
        computed = await self._engine.compute(
            encoder.model,
            payloads,
            wanted,
            request.deadline,
            tenant=request.tenant,
            flow=request.flow,
            priority=request.priority,
        )
        return Rows(computed, counts, tokenized - begun, time.monotonic())

    async def made(self, flow: str, rows: int, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """An answer of so many rows: in its caller's turn, where they are many."""
        if rows <= PIECE:
            return make(*args, **kwargs)
        return await self.turns.do(Flow(flow, small=False), make, *args, **kwargs)

    def answered(self, encoder: Encoder, rows: Rows, protocol: str, begun: float) -> Times:
        """Count an answered request; where its time went."""
        ended = time.monotonic()
        computed = rows.computed
        times = Times(rows.tokenize, computed.queue_seconds, computed.compute_seconds, ended - rows.arrived)
        self._metrics.answered(
            encoder.name, encoder.version, protocol,
            texts=len(rows.counts), tokens=sum(rows.counts),
            tokenize=times.tokenize, queue=times.queue, compute=times.compute, output=times.output,
            total=ended - begun, now_ms=int(time.time() * 1000),
        )  # fmt: skip
        if self._tracing is not None:
            self._tracing.answered(
                protocol, encoder.name, encoder.version,
                texts=len(rows.counts), tokens=sum(rows.counts),
                seconds=(times.tokenize, times.queue, times.compute, times.output),
            )  # fmt: skip
        return times

    def check_texts(self, encoder: Encoder, texts: Sequence[str], name: str = "texts") -> None:
        """Refuse as many texts, or as long ones, as the limits do not allow, naming the element."""
        limits = self.limits
        check_count(len(texts), limits.max_texts, name)
        for row, text in enumerate(texts):
            # A character has one to four bytes: only texts near the limit have to be encoded.
            if 4 * len(text) > limits.max_text_bytes and len(text.encode()) > limits.max_text_bytes:
                raise InvalidArgument(
                    f"{name}[{row}] has {len(text.encode())} bytes, this server takes "
                    f"{limits.max_text_bytes}: cut it; the encoder reads only {encoder.manifest.max_tokens} "
                    "tokens of it anyway"
                )

    async def _embed(
        self, encoder: Encoder, request: EmbedRequest, protocol: str, begun: float
    ) -> EmbedResult:
        itself, encoder = (
            encoder,
            encoder.choose(request.variant, request.layers or 0, request.dimensions or 0),
        )
        self._check(encoder, request)
        routes = self._routes(encoder, request)
        stand_in = self._stand_in(encoder, request) if encoder is itself else None
        if stand_in is not None:
            encoder, routes = stand_in
        prompts, prompt = encoder.manifest.prompts, ""
        if request.role is not None:
            prompt = prompts.of(request.role)
        texts = [prompt + text for text in request.texts] if prompt else request.texts
        adapted = [route for route in routes if route.hops]
        with_states = max([route.hops[0].states_width for route in adapted], default=0)
        wanted = dense.WITH_STATES if with_states else dense.ALONE
        others = sum([route.dimensions for route in adapted])
        with self.admit(encoder, request, texts, wanted, others) as share:
            rows = await self.compute(encoder, request, texts, share, begun, wanted)
            result = rows.computed.result
            vectors = result[dense.DENSE].values
            dense.check_finite(vectors)  # before anybody learns anything of them
            if self._show is not None and encoder is itself:  # versions are compared, not their variants
                self._show(encoder, request, vectors)
            hubness = None
            guard = self._guards.of(encoder.name, encoder.version) if encoder is itself else None
            if guard is not None and request.role == "passage":
                hubness = await guard.look(vectors)
                self._metrics.suspicious(encoder.name, encoder.version, len(hubness.suspicious))
                guard.refuse(hubness)
            answers = await self._outputs(encoder, request, routes, result)
            browned_out = stand_in is not None
            self._metrics.computed_by(
                encoder.name, encoder.version, encoder.model.variant, len(vectors), browned_out=browned_out
            )
            times = self.answered(encoder, rows, protocol, begun)
            return EmbedResult(encoder, answers, rows.counts, times, browned_out, hubness)

    async def _outputs(
        self, encoder: Encoder, request: EmbedRequest, routes: Sequence[Route], result: Columns
    ) -> list[tuple[Route, Output]]:
        answers, vectors = [], result[dense.DENSE].values
        for route in routes:
            there = await self._applier.apply(route, result, request.group)
            if route.hops:
                dense.check_finite(there)
            answers.append((route, _finish(route, request, there)))
            for hop in route.hops:
                self._metrics.adapted(encoder.name, encoder.version, hop.name, len(vectors))
            if route.hops and request.role != "passage":
                route.hops[0].see(vectors)
        return answers

    def _stand_in(self, encoder: Encoder, request: EmbedRequest) -> tuple[Encoder, list[Route]] | None:
        """The variant that answers instead, and the way into the encoder's space; None: there is no brownout.

        Only what was measured is answered so: whole vectors of interactive queries, in the encoder's own
        space. A text of no role may be a passage, and would stay in an index when the brownout is over.
        """
        brownout = self._brownouts.of(encoder.name, encoder.version)
        if brownout is None:
            return None
        queue_seconds = self._engine.queue_seconds(encoder.model, request.flow, "interactive")
        if not brownout.look(queue_seconds, time.monotonic(), request.flow):
            return None
        measured = (
            request.role == "query"
            and request.priority == "interactive"
            and tuple(request.spaces) in ((), (encoder.manifest.space,))
            and request.dimensions in (None, encoder.manifest.dimensions)
            and request.dtype != "ubinary"
        )
        if not request.allow_brownout or request.variant or request.layers or not measured:
            return None
        found = self._brownouts.stand_in(encoder)
        return None if found is None else (found[0], [found[1]])

    def _check(self, encoder: Encoder, request: EmbedRequest) -> None:
        """Refuse what the encoder or the limits do not allow, naming the element and the cure."""
        prompts = encoder.manifest.prompts
        if not request.texts:
            raise InvalidArgument("the request has no texts: send at least one")
        self.check_texts(encoder, request.texts)
        if request.role is None and (prompts.query or prompts.passage):
            raise InvalidArgument(
                f"encoder {encoder.name} embeds queries and passages differently: say which these texts are "
                "(role in trimtab.v1, parameter input_type in KServe: query or passage)"
            )

    def _routes(self, encoder: Encoder, request: EmbedRequest) -> list[Route]:
        """The way into each space asked for; refuses what cannot be had there, naming the cure."""
        manifest, spaces = encoder.manifest, request.spaces
        if not spaces:
            _check_output(encoder.own, encoder, request)
            return [encoder.own]
        if len(spaces) > MAX_SPACES or len(set(spaces)) < len(spaces):
            raise InvalidArgument(
                f"spaces names {len(spaces)} spaces, of which {len(set(spaces))} differ: name each once, and "
                f"{MAX_SPACES} at most"
            )
        repository = self.repository
        routes = [
            encoder.own
            if space == manifest.space
            else repository.adapters.route(manifest, encoder.states_width, space)
            for space in spaces
        ]
        for route in routes:
            _check_output(route, encoder, request)
        return routes


def check_count(given: int, most: int, name: str = "texts") -> None:
    """Refuse more texts than one request may have. To be asked before anything looks at each of them."""
    if given > most:
        raise InvalidArgument(
            f"the request has {given} {name}, this server takes {most} in one request: "
            "split it, or use a stream"
        )


def _check_output(route: Route, encoder: Encoder, request: EmbedRequest) -> None:
    wanted = request.dimensions or route.dimensions
    if wanted > route.dimensions:
        whose = f"space {route.space}" if route.hops else f"encoder {encoder.name}"
        raise InvalidArgument(
            f"dimensions is {request.dimensions}, {whose} has {route.dimensions}: ask for that many or fewer"
        )
    if request.dtype == "ubinary" and wanted % 8:
        raise InvalidArgument(
            f"ubinary packs 8 dimensions into a byte: dimensions must be a multiple of 8, not {wanted}"
        )
    if not route.hops:
        if request.dtype == "int8" and route.int8_limit is None:
            raise FailedPrecondition(
                f"the range of int8 was calibrated for {encoder.name} itself, not for its narrower variant "
                f"{encoder.variant.name}: ask for float32 or float16, or export the encoder again"
            )
        return
    end = route.hops[-1].manifest.target
    cure = f"or put the bundle of {end.encoder} version {end.version} into the repository"
    if request.dtype == "int8" and route.int8_limit is None:
        raise FailedPrecondition(
            f"the range of int8 in space {route.space} was calibrated with an encoder that this server does "
            f"not have: ask for float32 or float16, {cure}"
        )
    if wanted < route.dimensions and route.normalized is None:
        raise FailedPrecondition(
            f"vectors of space {route.space} cannot be cut: whether they are of length 1 only its encoder "
            f"tells, which this server does not have. Ask for all dimensions, {cure}"
        )


def _finish(route: Route, request: EmbedRequest, vectors: Vectors) -> Output:
    return dense.finish(
        vectors,
        dimensions=request.dimensions or route.dimensions,
        normalized=bool(route.normalized),
        dtype=request.dtype,
        int8_limit=route.int8_limit or 0.0,
    )


def _most_bytes(text: str) -> int:
    """As many bytes as a text may have, in UTF-8 or as Python keeps it; and no more of its tokens."""
    return (1 if text.isascii() else 4) * len(text)
