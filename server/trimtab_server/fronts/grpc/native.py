"""trimtab.v1.EncoderService: our own API, over the pipeline."""

import asyncio
from collections.abc import AsyncIterator

from trimtab import kinds
from trimtab.artifacts import variants
from trimtab.artifacts.artifact import Interval
from trimtab.artifacts.bundle import Fidelity
from trimtab.core.options import from_message
from trimtab.errors import ResourceExhausted, Unavailable
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values import dense
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import Encoder
from trimtab_server.fronts.grpc.intake import OpenCall
from trimtab_server.fronts.grpc.statuses import as_trimtab_error, shorten
from trimtab_server.fronts.grpc.unread import Unread
from trimtab_server.fronts.grpc.window import Window, weight
from trimtab_server.policies.trials import Trials
from trimtab_server.spaces.adapters import Loaded
from trimtab_server.spaces.routes import refusal
from trimtab_server.tasks.embed import Embedder, EmbedResult
from trimtab_server.tasks.pipeline import Pipeline, Times
from trimtab_server.tasks.plan import EmbedRequest
from trimtab_server.tasks.rescore import Candidate, Rescorer, RescoreRequest, RescoreResult

# By these names the metrics know what is asked.
PROTOCOL, RESCORE = "trimtab.v1", "rescore"


class NativeServicer:
    """The methods of trimtab.v1.EncoderService: translates messages; the tasks do the work.

    The boundary hands each of them its message, or the messages of a stream, and its call.
    """

    def __init__(
        self, pipeline: Pipeline, embedder: Embedder, rescorer: Rescorer, trials: Trials, unread: Unread
    ) -> None:
        self._pipeline = pipeline
        self._trials = trials
        self._embedder = embedder
        self._rescorer = rescorer
        self._unread = unread
        self._readers: set[asyncio.Task[None]] = set()  # of the streams that are open

    async def Embed(self, request: pb.EmbedRequest, opened: OpenCall) -> pb.EmbedResponse:
        return await self._embed(opened.request(PROTOCOL), request)

    async def EmbedStream(self, messages: AsyncIterator[pb.EmbedStreamRequest], opened: OpenCall) -> None:
        window = Window(self._pipeline.limits.max_stream_texts, opened)
        writing = asyncio.Lock()
        account = self._unread.account(*opened.sender)

        async def answer(message: pb.EmbedStreamRequest, taken: tuple[int, int]) -> None:
            outcome = await embed(message)
            del message
            account.add(len(outcome))
            # The window opens only after the answer is written: a client that does not read what it
            # asked for fills its own window, and nobody else's.
            async with writing:
                with account.sending(len(outcome)):
                    await opened.write(outcome)
            window.leave(*taken)

        async def embed(message: pb.EmbedStreamRequest) -> bytes:
            try:
                response = await self._embed(opened.request(PROTOCOL), message.request)
                outcome = pb.EmbedStreamResponse(id=message.id, response=response)
            except Exception as error:
                outcome = pb.EmbedStreamResponse(id=message.id, error=_error(error))
            return outcome.SerializeToString()

        async def read(tasks: asyncio.TaskGroup) -> None:
            async for message in messages:
                size = message.ByteSize()
                taken = weight(len(message.request.texts), size), size
                await window.enter(*taken)
                tasks.create_task(answer(message, taken))

        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(read(tasks))
                self._readers.add(reader)
                reader.add_done_callback(self._readers.discard)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            account.close()
        if reader.cancelled():
            raise Unavailable("the server is draining: send what was not answered to another one")

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
        return pb.ListAdaptersResponse(adapters=[_adapter(loaded) for loaded in chosen])

    def drain(self) -> None:
        """Read no more from any stream; each ends when what it has read is answered."""
        for reader in list(self._readers):
            reader.cancel()

    async def _embed(self, call: Call, request: pb.EmbedRequest) -> pb.EmbedResponse:
        call, asked = self._pipeline.read(call, _parse, request)
        result = await self._embedder.embed(call, asked)
        return await self._pipeline.made(call, len(result.token_counts), _response, result)

    def _describe(self, encoder: Encoder) -> pb.Encoder:
        manifest, limits = encoder.manifest, self._pipeline.limits
        versions = self._pipeline.repository.versions(encoder.name)
        canary, shadow = self._trials.shares(encoder.name, encoder.version, versions)
        return pb.Encoder(
            name=encoder.name,
            version=str(encoder.version),
            space=manifest.space,
            dimensions=manifest.dimensions,
            max_tokens=manifest.max_tokens,
            similarity=manifest.similarity,
            pooling=manifest.pooling or "",
            normalized=manifest.normalized,
            query_prompt=manifest.prompts.query,
            passage_prompt=manifest.prompts.passage,
            dtypes=[dense.TO_PROTO[dtype] for dtype in kinds.DTYPES],
            limits=pb.Limits(
                max_texts=limits.max_texts,
                max_text_bytes=limits.max_text_bytes,
                max_message_bytes=limits.max_message_bytes,
            ),
            canary_share=canary,
            shadow_share=shadow,
            variants=_variants(encoder),
        )


def _parse_rescore(call: Call, request: pb.RescoreRequest) -> tuple[Call, RescoreRequest]:
    options = from_message(request)
    priority = options.pop("priority")
    candidates = [
        Candidate(each.id, each.text if each.HasField("text") else None, each.digest)
        for each in request.candidates
    ]
    return call.asking(priority), RescoreRequest(query=request.query, candidates=candidates, **options)


def _rescored(result: RescoreResult) -> pb.RescoreResponse:
    encoder = result.encoder
    response = pb.RescoreResponse(
        scores=result.scores.astype("<f4", copy=False).tobytes(),
        missing=result.missing,
        encoder=encoder.name,
        version=str(encoder.version),
        space=encoder.manifest.space,
        similarity=encoder.manifest.similarity,
    )
    _write_times(response.times, result.times)
    return response


def _write_times(message: pb.StageTimes, times: Times) -> None:
    message.tokenize = _ns(times.tokenize)
    message.queue = _ns(times.queue)
    message.compute = _ns(times.compute)
    message.output = _ns(times.output)


def _parse(call: Call, request: pb.EmbedRequest) -> tuple[Call, EmbedRequest]:
    options = from_message(request)
    del options["space"]  # here they may be several
    priority = options.pop("priority")
    return call.asking(priority), EmbedRequest(texts=request.texts, spaces=request.spaces, **options)


def _response(result: EmbedResult) -> pb.EmbedResponse:
    encoder, hubness = result.encoder, result.hubness
    response = pb.EmbedResponse(
        token_counts=result.token_counts,
        encoder=encoder.name,
        version=str(encoder.version),
        variant=encoder.variant.name,
        browned_out=result.browned_out,
    )
    for route, output in result.outputs:
        embeddings = response.embeddings.add(space=route.space, adapters=route.names)
        dense.write(embeddings.vectors, output.matrix, output.dtype, output.scale)
    _write_times(response.times, result.times)
    if hubness is not None:
        response.hubness.reach.extend(hubness.reach)
        response.hubness.threshold = hubness.threshold
    return response


def _variants(encoder: Encoder) -> list[pb.Variant]:
    bundle = encoder.manifest
    loaded = {each.variant.name for each in encoder.graphs()}
    return [
        pb.Variant(
            name=variant.name,
            space=variant.space or bundle.space,
            dimensions=variant.dimensions or bundle.dimensions,
            precision=variant.precision,
            layers=variants.depth(bundle, variant) or 0,
            loaded=variant.name in loaded,
            fidelity=_fidelity(variant.report.fidelity),
        )
        for variant in bundle.variants
    ]


def _fidelity(figures: Fidelity | None) -> pb.Fidelity | None:
    if figures is None:
        return None

    def interval(figure: Interval) -> pb.Interval:
        return pb.Interval(value=figure.value, low=figure.low, high=figure.high)

    return pb.Fidelity(
        retrieval=figures.retrieval,
        queries=figures.queries,
        documents=figures.documents,
        source_ndcg=figures.source_ndcg,
        source_recall=figures.source_recall,
        ndcg=interval(figures.ndcg),
        recall=interval(figures.recall),
        query_only_ndcg=interval(figures.query_only_ndcg),
        query_only_recall=interval(figures.query_only_recall),
        cosine=figures.cosine,
        min_cosine=figures.min_cosine,
        batch_min_cosine=figures.batch_min_cosine,
        speedup=[
            pb.Speedup(batch=each.batch, length=each.length, factor=each.factor) for each in figures.speedup
        ],
        bytes=figures.bytes,
        sets=[
            pb.Kept(
                name=each.name,
                kind=each.kind,
                languages=each.languages,
                queries=each.queries,
                documents=each.documents,
                source_ndcg=each.source_ndcg,
                ndcg=interval(each.ndcg),
                query_only_ndcg=interval(each.query_only_ndcg),
            )
            for each in figures.sets
        ],
        compared=figures.compared,
    )


def _adapter(loaded: Loaded) -> pb.Adapter:
    manifest = loaded.manifest
    source, target = (
        pb.Endpoint(encoder=end.encoder, version=str(end.version), space=end.space, dimensions=end.dimensions)
        for end in (manifest.source, manifest.target)
    )
    knots = manifest.calibrator
    return pb.Adapter(
        encoder=loaded.encoder,
        name=manifest.name,
        source=source,
        target=target,
        rung=manifest.rung,
        reads=manifest.reads,
        groups=manifest.groups,
        verdict=manifest.verdict,
        provisional=manifest.provisional,
        reasons=manifest.reasons,
        calibrator=pb.Calibrator(adapted=knots.adapted, target=knots.target) if knots else None,
        problem=refusal(loaded),
    )


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


def _error(error: Exception) -> pb.Error:
    known = as_trimtab_error(error)
    retry_after = known.retry_after if isinstance(known, ResourceExhausted) else 0.0
    return pb.Error(code=known.code, message=shorten(str(known)), retry_after_ms=round(retry_after * 1000))
