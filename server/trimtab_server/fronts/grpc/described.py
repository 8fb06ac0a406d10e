"""Descriptions of encoders and adapters, as messages of trimtab.v1."""

from trimtab import kinds
from trimtab.artifacts import variants
from trimtab.artifacts.artifact import Interval
from trimtab.artifacts.cards import Fidelity
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values import dense
from trimtab_server import config
from trimtab_server.catalog.encoder import LoadedEncoder, ServedOutput
from trimtab_server.spaces.route import LoadedAdapter
from trimtab_server.spaces.routes import refusal
from trimtab_server.tasks.pipeline import BYTES_A_TOKEN


def encoder(encoder: LoadedEncoder, limits: config.LimitSettings, canary: float, shadow: float) -> pb.Encoder:
    """A version of an encoder, with the limits of requests and its shares of them while it is on trial."""
    manifest = encoder.manifest
    return pb.Encoder(
        name=encoder.name,
        version=str(encoder.version),
        space=manifest.space,
        dimensions=manifest.dimensions,
        max_tokens=manifest.max_tokens,
        similarity=encoder.output.kind.similarity(encoder.own),
        pooling=manifest.pooling or "",
        normalized=manifest.normalized,
        query_prompt=manifest.prompts.query,
        passage_prompt=manifest.prompts.passage,
        dtypes=[dense.TO_PROTO[dtype] for dtype in kinds.DTYPES],
        limits=pb.Limits(
            max_texts=_max_texts(encoder, limits),
            max_text_bytes=limits.max_text_bytes,
            max_message_bytes=limits.max_message_bytes,
        ),
        canary_share=canary,
        shadow_share=shadow,
        variants=_variants(encoder),
        inputs=[_input(encoder)],
        outputs=[_output(each) for each in encoder.outputs.values()],
    )


def _max_texts(encoder: LoadedEncoder, limits: config.LimitSettings) -> int:
    """How many texts a request may have: fewer if their outputs may be so large that a request of them would
    take more than an eighth of all room: the SDK has up to four of them in flight, beside those of others."""
    model = encoder.model
    largest = max(1, model.most_bytes(model.names, 1, model.most_units) // BYTES_A_TOKEN)
    return max(1, min(limits.max_texts, limits.max_tokens_in_flight // 8 // largest))


def _input(encoder: LoadedEncoder) -> pb.EncoderInput:
    given = encoder.manifest.input
    return pb.EncoderInput(
        name=given.name,
        kind=given.kind,
        form=encoder.reader.form,
        max_units=given.most_units,
        needs_role=bool(given.prompts.query or given.prompts.passage or encoder.reader.by_role),
    )


def _output(output: ServedOutput) -> pb.EncoderOutput:
    own = output.own
    return pb.EncoderOutput(
        name=output.name,
        kind=output.kind.kind,
        form=output.kind.form,
        space=own.space,
        dimensions=own.dimensions,
        similarity=output.kind.similarity(own),
        normalized=bool(own.normalized),
        labels=output.labels,
    )


def _variants(encoder: LoadedEncoder) -> list[pb.Variant]:
    bundle = encoder.manifest
    loaded = {each.variant.name for each in encoder.graphs()}
    return [
        pb.Variant(
            name=variant.name,
            space=alone.space,
            dimensions=alone.dimensions,
            precision=variant.precision,
            layers=variants.depth(bundle, variant) or 0,
            loaded=variant.name in loaded,
            fidelity=_fidelity(variant.report.fidelity),
            runtime=variant.runner,
        )
        for variant in bundle.variants
        for alone in (variants.alone(bundle, variant),)
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


def adapter(loaded: LoadedAdapter) -> pb.Adapter:
    """An adapter, and why requests cannot use it, if they cannot."""
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
