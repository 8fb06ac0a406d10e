"""Embed: texts in, their vectors in each space asked for out, in order.

The way reads from top to bottom: find, plan, admit, compute, look, finish. What an operator can configure of
it is a policy's, and the policies stand in one list.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from trimtab.errors import InvalidArgument
from trimtab.values.column import Columns
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import Encoder
from trimtab_server.engine.batch import Wanted
from trimtab_server.outputs import dense
from trimtab_server.outputs.dense import Output
from trimtab_server.spaces.adapters import Route, Vectors
from trimtab_server.spaces.applying import Applier
from trimtab_server.tasks.pipeline import Answering, Pipeline, Times
from trimtab_server.tasks.plan import EmbedRequest, Hubness, Plan, Policy


class EmbedResult(msgspec.Struct, frozen=True):
    """The answer: row i of each output is the vector of texts[i], in the space where its route leads.

    `encoder` is the variant that computed them; `browned_out` says that it did so in place of the encoder
    itself. `hubness` is of passages, where they are looked at.
    """

    encoder: Encoder
    outputs: list[tuple[Route, Output]]
    token_counts: list[int]
    times: Times
    browned_out: bool
    hubness: Hubness | None


class Embedder:
    """Answers Embed, as the policies say, in their order. For one event loop."""

    def __init__(self, pipeline: Pipeline, policies: Sequence[Policy], hang_seconds: float = 10.0) -> None:
        self._pipeline = pipeline
        self._repository = pipeline.repository
        self._metrics = pipeline.metrics
        self._applier = Applier(pipeline.repository.adapters.retire, hang_seconds)
        # Only those that have something to say are asked, since each call pays for it.
        self._planning = [each.plan for each in policies if type(each).plan is not Policy.plan]
        self._looking = [each.look for each in policies if type(each).look is not Policy.look]

    async def embed(self, call: Call, request: EmbedRequest) -> EmbedResult:
        """Answer a request, or raise one of trimtab.errors."""
        with self._pipeline.answering(call) as answering:
            await self._pipeline.turn(call, len(request.texts))
            plan = self._plan(call, request, answering)
            answering.hold(plan.version)
            async with asyncio.timeout_at(call.deadline):
                return await self._answer(call, plan)

    def _plan(self, call: Call, request: EmbedRequest, answering: Answering) -> Plan:
        """How the request is answered, by what is served now."""
        found = self._repository.find(call.caller, request.encoder, request.version)
        answering.found(found)
        # Before a policy sees it: what is refused counts for none of them.
        self._check(found, request)
        plan = Plan(request, found, found, (found.own,))
        for policy in self._planning:
            plan = policy(call, plan)
            answering.found(plan.version)
        return plan

    async def _answer(self, call: Call, plan: Plan) -> EmbedResult:
        encoder, texts = plan.encoder, plan.texts
        wanted, others = _needed(plan.routes)
        with await self._pipeline.admit(encoder, call, texts, wanted, others) as admitted:
            rows = await self._pipeline.compute(encoder, call, texts, plan.request.truncate, admitted, wanted)
            result = rows.computed.result
            vectors = result[dense.DENSE].values
            dense.check_finite(vectors)  # before anybody learns anything of them
            for look in self._looking:
                plan = await look(call, plan, vectors)
            outputs = await self._finish(plan, result)
            self._metrics.computed_by(
                encoder.name, encoder.version, encoder.model.variant, len(vectors),
                browned_out=plan.browned_out,
            )  # fmt: skip
            times = self._pipeline.answered(encoder, call, rows)
            return EmbedResult(encoder, outputs, rows.counts, times, plan.browned_out, plan.hubness)

    async def _finish(self, plan: Plan, result: Columns) -> list[tuple[Route, Output]]:
        """The vectors in each space, as they were asked for."""
        request, encoder = plan.request, plan.encoder
        answers, vectors = [], result[dense.DENSE].values
        for route in plan.routes:
            there = await self._applier.apply(route, result, request.group)
            if route.hops:
                dense.check_finite(there)
            answers.append((route, _output(route, request, there)))
            for hop in route.hops:
                self._metrics.adapted(encoder.name, encoder.version, hop.name, len(vectors))
            if route.hops and request.role != "passage":
                route.hops[0].see(vectors)
        return answers

    def _check(self, encoder: Encoder, request: EmbedRequest) -> None:
        """Refuse what the encoder or the limits do not allow, naming the element and the cure."""
        if not request.texts:
            raise InvalidArgument("the request has no texts: send at least one")
        self._pipeline.check_texts(encoder, request.texts)
        prompts = encoder.manifest.prompts
        if request.role is None and (prompts.query or prompts.passage):
            raise InvalidArgument(
                f"encoder {encoder.name} embeds queries and passages differently: say which these texts are "
                "(role in trimtab.v1, parameter input_type in KServe: query or passage)"
            )


def _needed(routes: Sequence[Route]) -> tuple[Wanted, int]:
    """What is wanted of the graph for these routes, and how many components their ends have beside it."""
    adapted = [route for route in routes if route.hops]
    if not adapted:
        return dense.ALONE, 0
    with_states = any(route.hops[0].states_width for route in adapted)
    others = sum(route.dimensions for route in adapted)
    return dense.WITH_STATES if with_states else dense.ALONE, others


def _output(route: Route, request: EmbedRequest, vectors: Vectors) -> Output:
    return dense.finish(
        vectors,
        dimensions=request.dimensions or route.dimensions,
        normalized=bool(route.normalized),
        dtype=request.dtype,
        int8_limit=route.int8_limit or 0.0,
    )
