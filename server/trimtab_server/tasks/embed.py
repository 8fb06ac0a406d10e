"""Embed: texts in, their vectors in each requested space out, in order.

The steps of a request, from top to bottom: find, plan, admit, compute, look, finish. What an operator can
configure about them is in policies, which are asked in the order of one list.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from trimtab.errors import InvalidArgument
from trimtab.values.column import Column, Columns
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import LoadedEncoder, ServedOutput
from trimtab_server.engine.batch import Wanted
from trimtab_server.outputs.dense import STATES
from trimtab_server.outputs.kind import check_finite
from trimtab_server.spaces.applying import Applier
from trimtab_server.spaces.route import Route
from trimtab_server.tasks.pipeline import Answering, Pipeline, Times
from trimtab_server.tasks.plan import EmbedRequest, Hubness, Plan, Policy
from trimtab_server.turns import INLINE_BYTES, PIECE

# What to do instead, by the form that an encoder reads and the form that came.
CURES = {
    ("pair", "text"): "to score texts for a query, call Rescore; to send pairs, use inputs in trimtab.v1, or "
    "the tensors query and text in KServe",
    ("text", "pair"): "send each text for itself; to score pairs, name a reranker",
}


class Answer(msgspec.Struct, frozen=True):
    """A requested output, in the space that its route leads to, finished by its kind."""

    output: ServedOutput
    route: Route
    finished: Any


class EmbedResult(msgspec.Struct, frozen=True):
    """The answer: item i of each output belongs to texts[i].

    `encoder` is the variant that computed them; `browned_out` says that it replaced the encoder itself.
    `hubness` is that of passages, if they are checked. `large`: it takes long to write, and is written on a
    thread.
    """

    encoder: LoadedEncoder
    outputs: list[Answer]
    token_counts: list[int]
    times: Times
    browned_out: bool
    hubness: Hubness | None
    large: bool


class Embedder:
    """Answers Embed, following the policies in their order. For one event loop."""

    def __init__(self, pipeline: Pipeline, policies: Sequence[Policy], hang_seconds: float = 10.0) -> None:
        self._pipeline = pipeline
        self._repository = pipeline.repository
        self._metrics = pipeline.metrics
        self._applier = Applier(pipeline.repository.adapters.retire, hang_seconds)
        # Only policies that do something are asked, since each call pays for it.
        self._planning = [each.plan for each in policies if type(each).plan is not Policy.plan]
        self._looking = [each.look for each in policies if type(each).look is not Policy.look]

    async def embed(self, call: Call, request: EmbedRequest) -> EmbedResult:
        """Answer a request, or raise one of trimtab.errors."""
        with self._pipeline.answering(call) as answering:
            if len(request.texts) > PIECE:
                await self._pipeline.turn(call, len(request.texts))
            plan = self._plan(call, request, answering)
            answering.hold(plan.version)
            return await self._answer(call, plan)

    def _plan(self, call: Call, request: EmbedRequest, answering: Answering) -> Plan:
        """How the request is answered, given what is served now."""
        found = self._repository.find(call.caller, request.encoder, request.version)
        answering.version = found
        # Before a policy sees it: a refused request must not move any policy's figures.
        self._check(found, request)
        plan = Plan(request, found, found, (found.default,))
        for policy in self._planning:
            plan = policy(call, plan)
            answering.version = plan.version
        return plan

    async def _answer(self, call: Call, plan: Plan) -> EmbedResult:
        encoder, items, request = plan.encoder, plan.items, plan.request
        wanted, others = _needed(plan)
        with await self._pipeline.admit(encoder, call, items, wanted, others) as admitted:
            rows = await self._pipeline.compute(
                encoder, call, items, request.truncate, admitted, wanted, request.which
            )
            result = rows.computed.result
            large = sum([result[name].values.nbytes for name in wanted]) > INLINE_BYTES
            if large:  # checked before a policy sees them
                await asyncio.to_thread(check_finite, result, wanted, request.which)
            else:
                check_finite(result, wanted, request.which)
            vectors = result.get(encoder.mapped)
            if vectors is not None:
                for look in self._looking:
                    plan = await look(call, plan, vectors.values)
            outputs = await self._finish(call, plan, result, large)
            self._metrics.computed_by(
                encoder.name, encoder.version, encoder.model.variant, len(items),
                browned_out=plan.browned_out,
            )  # fmt: skip
            times = self._pipeline.answered(encoder, call, rows)
            return EmbedResult(encoder, outputs, rows.counts, times, plan.browned_out, plan.hubness, large)

    async def _finish(self, call: Call, plan: Plan, result: Columns, large: bool) -> list[Answer]:
        """The requested outputs, in each space: on a thread, if they are large."""
        shape = plan.request.shape
        answers = []
        for output, route in plan.outputs:
            columns = await self._adapted(plan, output.columns[0], route, result) if route.hops else result
            first = columns[output.columns[0]]
            if first.offsets is not None:
                self._metrics.gave(plan.encoder.name, plan.encoder.version, output.name, len(first.values))
            if shape.max_vectors is not None and output.kind.several:
                pieces = output.kind.reduced(columns, output.columns, route, shape)
                columns = await self._pipeline.in_pieces(call, pieces)
            if large:
                finished = await asyncio.to_thread(output.kind.finish, columns, output.columns, route, shape)
            else:
                finished = output.kind.finish(columns, output.columns, route, shape)
            answers.append(Answer(output, route, finished))
        return answers

    async def _adapted(self, plan: Plan, column: str, route: Route, result: Columns) -> Columns:
        """A column's vectors in the space that a route leads to."""
        request, encoder, vectors = plan.request, plan.encoder, result[column].values
        there = {column: Column(await self._applier.apply(route, result, column, request.group))}
        check_finite(there, (column,), request.which)
        for hop in route.hops:
            self._metrics.adapted(encoder.name, encoder.version, hop.name, len(vectors))
        if request.role != "passage":
            route.hops[0].see(vectors)
        return there

    def _check(self, encoder: LoadedEncoder, request: EmbedRequest) -> None:
        """Refuse what the encoder or the limits do not allow, naming the element and the cure."""
        if not request.texts:
            raise InvalidArgument(f"the request has no {request.field}: send at least one")
        if request.form != encoder.reader.form:
            cure = CURES.get((encoder.reader.form, request.form), "send what it reads")
            raise InvalidArgument(
                f"encoder {encoder.name} reads {encoder.reader.form}, and {request.which(0)} is "
                f"{request.form}: {cure}, or name another encoder"
            )
        self._pipeline.check_items(encoder, request.texts, request.field)
        if request.max_vectors is not None:
            _check_max_vectors(encoder, request)
        prompts, by_role = encoder.prompts, encoder.reader.by_role
        if request.role is None and (prompts.query or prompts.passage or by_role):
            raise InvalidArgument(
                f"encoder {encoder.name} embeds queries and passages differently: say which these texts are "
                "(role in trimtab.v1, parameter input_type in KServe: query or passage)"
            )


def _check_max_vectors(encoder: LoadedEncoder, request: EmbedRequest) -> None:
    """Refuse a limit of vectors where there is nothing to limit."""
    named = encoder.outputs_named(request.outputs)
    if not any(output.kind.several for output in named):
        given = ", ".join(f"{output.name} ({output.kind.kind})" for output in named)
        raise InvalidArgument(
            f"max_vectors is {request.max_vectors}, and {given} of encoder {encoder.name} has one vector an "
            "item: leave it out, or name an output with several in outputs"
        )
    if request.role == "query":
        raise InvalidArgument(
            f"max_vectors is {request.max_vectors}, and these are queries, each of whose vectors counts in a "
            "score: leave it out for the role query"
        )


def _needed(plan: Plan) -> tuple[Wanted, int]:
    """The columns wanted of the graph, and how many more components the adapted vectors have."""
    outputs = plan.outputs
    alone = len(outputs) == 1 and not plan.watched
    if alone and not outputs[0].route.hops and len(outputs[0].output.columns) == 1:
        return outputs[0].output.columns, 0
    names = [name for each in outputs for name in each.output.columns]
    if any(each.route.hops and each.route.hops[0].states_width for each in outputs):
        names.append(STATES)
    if plan.watched:
        names.append(plan.encoder.mapped)
    others = sum([each.route.dimensions for each in outputs if each.route.hops])
    return tuple(sorted(set(names))), others
