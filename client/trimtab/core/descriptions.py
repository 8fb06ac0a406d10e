"""Turn the server's descriptions of encoders and adapters into the SDK's own types. No IO."""

from typing import cast

from trimtab.artifacts.adapter import Calibrator, Endpoint
from trimtab.artifacts.artifact import Interval
from trimtab.artifacts.cards import Fidelity, Kept, Speedup
from trimtab.core.answers import Adapter, Encoder, EncoderOutput, Limits, Variant
from trimtab.errors import InternalError
from trimtab.kinds import JudgedBy, Reads, Verdict
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values.dense import FROM_PROTO


def describe_adapter(message: pb.Adapter) -> Adapter:
    """An adapter as the SDK's own type; InternalError if the server's description is invalid."""
    try:
        return _adapter(message)
    except ValueError as error:
        raise InternalError(f"the server describes adapter {message.name!r} wrongly: {error}") from error


def _adapter(message: pb.Adapter) -> Adapter:
    source, target = (
        Endpoint(encoder=end.encoder, version=int(end.version), space=end.space, dimensions=end.dimensions)
        for end in (message.source, message.target)
    )
    calibrator = None
    if message.HasField("calibrator"):
        knots = message.calibrator
        calibrator = Calibrator(adapted=tuple(knots.adapted), target=tuple(knots.target))
    return Adapter(
        encoder=message.encoder,
        name=message.name,
        source=source,
        target=target,
        rung=message.rung,
        reads=cast(Reads, message.reads),
        groups=tuple(message.groups),
        verdict=cast(Verdict, message.verdict),
        provisional=message.provisional,
        reasons=tuple(message.reasons),
        calibrator=calibrator,
        problem=message.problem,
    )


def describe(message: pb.Encoder) -> Encoder:
    """An encoder as the SDK's own type, without a newer server's dtypes that this client does not know."""
    return Encoder(
        name=message.name,
        version=message.version,
        space=message.space,
        dimensions=message.dimensions,
        max_tokens=message.max_tokens,
        similarity=message.similarity,
        pooling=message.pooling,
        normalized=message.normalized,
        query_prompt=message.query_prompt,
        passage_prompt=message.passage_prompt,
        dtypes=tuple(FROM_PROTO[dtype] for dtype in message.dtypes if dtype in FROM_PROTO),
        limits=Limits(
            max_texts=message.limits.max_texts,
            max_text_bytes=message.limits.max_text_bytes,
            max_message_bytes=message.limits.max_message_bytes,
        ),
        canary_share=message.canary_share,
        shadow_share=message.shadow_share,
        variants=tuple(_variant(variant) for variant in message.variants),
        outputs=tuple(_output(output) for output in message.outputs),
    )


def _output(message: pb.EncoderOutput) -> EncoderOutput:
    return EncoderOutput(
        name=message.name,
        kind=message.kind,
        form=message.form,
        space=message.space,
        dimensions=message.dimensions,
        similarity=message.similarity,
        normalized=message.normalized,
        labels=tuple(message.labels),
    )


def _variant(message: pb.Variant) -> Variant:
    return Variant(
        name=message.name,
        space=message.space,
        dimensions=message.dimensions,
        precision=message.precision,
        layers=message.layers,
        loaded=message.loaded,
        fidelity=_fidelity(message.fidelity) if message.HasField("fidelity") else None,
        runtime=message.runtime,
    )


def _fidelity(message: pb.Fidelity) -> Fidelity:
    def interval(figure: pb.Interval) -> Interval:
        return Interval(value=figure.value, low=figure.low, high=figure.high)

    return Fidelity(
        retrieval=message.retrieval,
        queries=message.queries,
        documents=message.documents,
        source_ndcg=message.source_ndcg,
        source_recall=message.source_recall,
        ndcg=interval(message.ndcg),
        recall=interval(message.recall),
        query_only_ndcg=interval(message.query_only_ndcg),
        query_only_recall=interval(message.query_only_recall),
        cosine=message.cosine,
        min_cosine=message.min_cosine,
        batch_min_cosine=message.batch_min_cosine,
        speedup=tuple(
            Speedup(batch=each.batch, length=each.length, factor=each.factor) for each in message.speedup
        ),
        bytes=message.bytes,
        sets=tuple(
            Kept(
                name=each.name,
                kind=cast(JudgedBy, each.kind),
                languages=tuple(each.languages),
                queries=each.queries,
                documents=each.documents,
                source_ndcg=each.source_ndcg,
                ndcg=interval(each.ndcg),
                query_only_ndcg=interval(each.query_only_ndcg),
            )
            for each in message.sets
        ),
        compared=message.compared or 1,
    )
