"""trimtab.v1.EncoderService: our own API, over the pipeline."""

import asyncio
from collections.abc import AsyncIterator, Awaitable

from trimtab.core.options import from_message
from trimtab.errors import InvalidArgument
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values import dense, item_forms
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import LoadedEncoder
from trimtab_server.fronts.grpc import described
from trimtab_server.fronts.grpc.intake import OpenCall
from trimtab_server.fronts.grpc.statuses import as_trimtab_error, shorten
from trimtab_server.fronts.grpc.stream import Streams
from trimtab_server.outputs.dense import Matrix
from trimtab_server.policies.trials import Trials
from trimtab_server.tasks.embed import Embedder, EmbedResult
from trimtab_server.tasks.pipeline import Pipeline, Times
from trimtab_server.tasks.plan import EmbedRequest
from trimtab_server.tasks.rescore import Candidate, Rescorer, RescoreRequest, RescoreResult
from trimtab_server.turns import PIECE

# The protocols' names in metrics.
PROTOCOL, RESCORE = "trimtab.v1", "rescore"


class NativeServicer:
    """Translates the messages of trimtab.v1.EncoderService; the tasks do the work.

    The boundary calls each method with its message, or with the messages of a stream, and with the open call.
    """

    def __init__(
        self, pipeline: Pipeline, embedder: Embedder, rescorer: Rescorer, trials: Trials, streams: Streams
    ) -> None:
        self._pipeline = pipeline
        self._trials = trials
        self._embedder = embedder
        self._rescorer = rescorer
        self._streams = streams

    def Embed(self, request: pb.EmbedRequest, opened: OpenCall) -> Awaitable[pb.EmbedResponse | bytes]:
        return self._embed(opened.request(PROTOCOL), request)

    async def EmbedStream(self, messages: AsyncIterator[pb.EmbedStreamRequest], opened: OpenCall) -> None:
        async def answer(message: pb.EmbedStreamRequest) -> bytes:
            try:
                response = await self._embed(opened.request(PROTOCOL), message.request, message.id)
                if isinstance(response, bytes):
                    return response
                outcome = pb.EmbedStreamResponse(id=message.id, response=response)
            except Exception as error:
                outcome = pb.EmbedStreamResponse(id=message.id, error=_error(error))
            return outcome.SerializeToString()

        await self._streams.serve(messages, opened, _texts, answer, in_order=False)

    async def Rescore(self, request: pb.RescoreRequest, opened: OpenCall) -> pb.RescoreResponse:
        call, asked = self._pipeline.read(opened.request(RESCORE), _parse_rescore, request)
        return _rescored(await self._rescorer.rescore(call, asked))

    async def ListEncoders(
        self, request: pb.ListEncodersRequest, opened: OpenCall
    ) -> pb.ListEncodersResponse:
        encoders = self._pipeline.repository.encoders(opened.caller)
        return pb.ListEncodersResponse(encoders=map(self._describe, encoders))

    async def GetEncoder(self, request: pb.GetEncoderRequest, opened: OpenCall) -> pb.Encoder:
        encoder = self._pipeline.repository.find(opened.caller, request.encoder, request.version)
        return self._describe(encoder)

    async def ListAdapters(
        self, request: pb.ListAdaptersRequest, opened: OpenCall
    ) -> pb.ListAdaptersResponse:
        if request.encoder:
            opened.caller.check_encoder(request.encoder)
        adapters = self._pipeline.repository.adapters.all(opened.caller)
        chosen = [loaded for loaded in adapters if request.encoder in ("", loaded.encoder)]
        return pb.ListAdaptersResponse(adapters=map(described.adapter, chosen))

    async def _embed(
        self, call: Call, request: pb.EmbedRequest, id: int | None = None
    ) -> pb.EmbedResponse | bytes:
        """The answer to a request, or to the one with this id in a stream; serialised, if it is large."""
        call, asked = self._pipeline.read(call, _parse, request, self._pipeline.limits.max_text_bytes)
        result = await self._embedder.embed(call, asked)
        named = bool(request.outputs)
        if result.large:
            return await asyncio.to_thread(_serialized, result, named, id)
        rows = len(result.token_counts)
        if rows <= PIECE:
            return _response(result, named)
        return await self._pipeline.made(call, rows, _response, result, named)

    def _describe(self, encoder: LoadedEncoder) -> pb.Encoder:
        versions = self._pipeline.repository.versions(encoder.name)
        shares = self._trials.shares(encoder.name, encoder.version, versions)
        return described.encoder(encoder, self._pipeline.limits, *shares)


def _texts(message: pb.EmbedStreamRequest) -> int:
    request = message.request
    return len(request.texts) + len(request.inputs)


def _parse_rescore(call: Call, request: pb.RescoreRequest) -> tuple[Call, RescoreRequest]:
    options = from_message(request)
    priority = options.pop("priority")
    candidates = [
        Candidate(each.id, each.text if each.HasField("text") else None, each.digest)
        for each in request.candidates
    ]
    return call.asking(priority), RescoreRequest(
        query=request.query, candidates=candidates, output=request.output, **options
    )


def _rescored(result: RescoreResult) -> pb.RescoreResponse:
    encoder = result.encoder
    response = pb.RescoreResponse(
        scores=result.scores.astype("<f4", copy=False).tobytes(),
        missing=result.missing,
        encoder=encoder.name,
        version=str(encoder.version),
        space=result.output.own.space,
        similarity=result.output.kind.similarity(result.output.own),
    )
    _write_times(response.times, result.times)
    return response


def _write_times(message: pb.StageTimes, times: Times) -> None:
    message.tokenize = max(0, round(times.tokenize * 1e9))
    message.queue = max(0, round(times.queue * 1e9))
    message.compute = max(0, round(times.compute * 1e9))
    message.output = max(0, round(times.output * 1e9))


def _parse(call: Call, request: pb.EmbedRequest, most_ids: int) -> tuple[Call, EmbedRequest]:
    options = from_message(request)
    del options["space"]  # this message has `spaces`, too
    priority = options.pop("priority")
    if request.inputs:
        if request.texts:
            raise InvalidArgument("the request has texts and inputs: send one of them")
        form, items = item_forms.items(request.inputs, most_ids)
        options |= {"texts": items, "form": form, "field": "inputs"}
    else:
        options["texts"] = request.texts
    return call.asking(priority), EmbedRequest(spaces=request.spaces, outputs=request.outputs, **options)


def _response(result: EmbedResult, named: bool) -> pb.EmbedResponse:
    """The answer's message. `named`: the request named its outputs."""
    encoder, hubness = result.encoder, result.hubness
    response = pb.EmbedResponse(
        token_counts=result.token_counts,
        encoder=encoder.name,
        version=str(encoder.version),
        variant=encoder.variant.name,
        browned_out=result.browned_out,
    )
    for answer in result.outputs:
        output, route, finished = answer.output, answer.route, answer.finished
        if named or not isinstance(finished, Matrix):
            message = response.outputs.add(
                name=output.name, kind=output.kind.kind, space=route.space, adapters=route.names
            )
            output.kind.write(message, finished)
        else:
            embeddings = response.embeddings.add(space=route.space)
            if route.hops:
                embeddings.adapters.extend(route.names)
            dense.write(embeddings.vectors, finished.matrix, finished.dtype, finished.scale)
    _write_times(response.times, result.times)
    if hubness is not None:
        response.hubness.reach.extend(hubness.reach)
        response.hubness.threshold = hubness.threshold
    return response


def _serialized(result: EmbedResult, named: bool, id: int | None) -> bytes:
    """The message of an answer, serialised: that of a stream, if there is an id."""
    response = _response(result, named)
    if id is None:
        return response.SerializeToString()
    return pb.EmbedStreamResponse(id=id, response=response).SerializeToString()


def _error(error: Exception) -> pb.Error:
    known = as_trimtab_error(error)
    retry_after_ms = round(known.retry_after * 1000)
    return pb.Error(code=known.code, message=shorten(str(known)), retry_after_ms=retry_after_ms)
