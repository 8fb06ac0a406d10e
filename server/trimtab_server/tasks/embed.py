"""Embed: texts in, their vectors in each space asked for out, in order, in one function."""

import time
from collections.abc import Callable, Sequence

import msgspec

from trimtab.errors import InvalidArgument, TrimtabError
from trimtab.kinds import Dtype, Role, Truncate
from trimtab.values.column import Columns
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import Encoder
from trimtab_server.outputs import dense
from trimtab_server.outputs.dense import Output
from trimtab_server.policies.brownout import Brownouts
from trimtab_server.policies.canary import Canary
from trimtab_server.policies.hubs import Guards, Hubness
from trimtab_server.spaces.adapters import Route, Vectors
from trimtab_server.spaces.applying import Applier
from trimtab_server.tasks import routing
from trimtab_server.tasks.pipeline import Pipeline, Times


class EmbedRequest(msgspec.Struct, frozen=True):
    """What a caller asks for, whatever the protocol it came by. The options are those of `EmbedOptions`."""

    encoder: str
    version: str
    texts: Sequence[str]
    role: Role | None = None
    truncate: Truncate = "end"
    dimensions: int | None = None
    dtype: Dtype = "float32"
    spaces: Sequence[str] = ()  # none: the encoder's own
    group: str = ""
    variant: str = ""  # of the encoder's bundle
    layers: int | None = None
    allow_brownout: bool = True


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


class Embedder:
    """Answers Embed through the pipeline, as the policies say. For one event loop.

    `show` is told of each answer, before it is sent: its encoder, call, request and vectors.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        canary: Canary,
        brownouts: Brownouts,
        guards: Guards,
        show: Callable[[Encoder, Call, EmbedRequest, Vectors], None] | None = None,
        hang_seconds: float = 10.0,
    ) -> None:
        self.canary = canary
        self._pipeline = pipeline
        self._repository = pipeline.repository
        self._metrics = pipeline.metrics
        self._brownouts = brownouts
        self._guards = guards
        self._applier = Applier(pipeline.repository.adapters.retire, hang_seconds)
        self._show = show

    async def embed(self, call: Call, request: EmbedRequest) -> EmbedResult:
        """Answer a request, or raise one of trimtab.errors."""
        request = self._pipeline.read(call, self._given, request)
        return await self._pipeline.answer(call, request, self._embed)

    def _given(self, call: Call, request: EmbedRequest) -> EmbedRequest:
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
        self._pipeline.check_texts(self._repository.find(call.caller, request.encoder), request.texts)
        canary = self.canary.of(call, request.encoder, request.texts[0])
        if canary is None:
            return request
        answered = self._as_answered(call, canary, request)
        self._metrics.canary(canary.name, canary.version, given=answered is not None)
        return answered or request

    def _as_answered(self, call: Call, canary: Encoder, request: EmbedRequest) -> EmbedRequest | None:
        version = str(canary.version)
        try:
            space = self._repository.find(call.caller, request.encoder).manifest.space
            if space == canary.manifest.space:
                return msgspec.structs.replace(request, version=version)
            asked = msgspec.structs.replace(request, version=version, spaces=(space,))
            (route,) = routing.routes(self._repository.adapters, call.caller, canary, asked)
        except TrimtabError:  # there is no way into that space, or not for such vectors
            return None
        if any(hop.manifest.verdict != "bridge" for hop in route.hops):
            return None
        # What is too long for the canary need not be for the other.
        return asked if request.role == "query" and request.truncate != "none" else None

    async def _embed(self, encoder: Encoder, call: Call, request: EmbedRequest) -> EmbedResult:
        itself, encoder = (
            encoder,
            encoder.choose(request.variant, request.layers or 0, request.dimensions or 0),
        )
        self._check(encoder, request)
        routes = routing.routes(self._repository.adapters, call.caller, encoder, request)
        stand_in = self._stand_in(encoder, call, request) if encoder is itself else None
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
        with self._pipeline.admit(encoder, call, texts, wanted, others) as share:
            rows = await self._pipeline.compute(encoder, call, texts, request.truncate, share, wanted)
            result = rows.computed.result
            vectors = result[dense.DENSE].values
            dense.check_finite(vectors)  # before anybody learns anything of them
            if self._show is not None and encoder is itself:  # versions are compared, not their variants
                self._show(encoder, call, request, vectors)
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
            times = self._pipeline.answered(encoder, call, rows)
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

    def _stand_in(
        self, encoder: Encoder, call: Call, request: EmbedRequest
    ) -> tuple[Encoder, list[Route]] | None:
        """The variant that answers instead, and the way into the encoder's space; None: there is no brownout.

        Only what was measured is answered so: whole vectors of interactive queries, in the encoder's own
        space. A text of no role may be a passage, and would stay in an index when the brownout is over.
        """
        brownout = self._brownouts.of(encoder.name, encoder.version)
        if brownout is None:
            return None
        queue_seconds = self._pipeline.engine.queue_seconds(encoder.model, call.flow, "interactive")
        if not brownout.look(queue_seconds, time.monotonic(), call.flow):
            return None
        measured = (
            request.role == "query"
            and call.priority == "interactive"
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
        self._pipeline.check_texts(encoder, request.texts)
        if request.role is None and (prompts.query or prompts.passage):
            raise InvalidArgument(
                f"encoder {encoder.name} embeds queries and passages differently: say which these texts are "
                "(role in trimtab.v1, parameter input_type in KServe: query or passage)"
            )


def _finish(route: Route, request: EmbedRequest, vectors: Vectors) -> Output:
    return dense.finish(
        vectors,
        dimensions=request.dimensions or route.dimensions,
        normalized=bool(route.normalized),
        dtype=request.dtype,
        int8_limit=route.int8_limit or 0.0,
    )
