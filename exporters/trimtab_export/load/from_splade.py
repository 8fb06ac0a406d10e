"""Sources of sparse vectors with a weight for each word of a vocabulary: SPLADE and its kin.

These are a SparseEncoder folder of sentence-transformers, or the folder of a masked language model. As for
dense vectors, the library reads them, and its own result is what the export is compared with.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SparseEncoder
from sentence_transformers.util import select_max_active_dims

from trimtab.artifacts.manifest import SpaceParts
from trimtab.errors import ExportError
from trimtab.kinds import Similarity
from trimtab.outputs.sparse import SIMILARITIES, SparseActivation, SparseSettings
from trimtab_export import tokens
from trimtab_export.kinds import sparse
from trimtab_export.kinds.sparse import SparseHead, TokenTable
from trimtab_export.load import (
    declared,
    files,
    from_torch,
    language,
    library,
    refused,
    structure,
    tables,
    weights,
)
from trimtab_export.load.declared import Declared
from trimtab_export.load.splade import DOCUMENT, QUERY, Splade
from trimtab_export.runtime import first_line
from trimtab_export.source import Settings, Source, SourceOutput

# sentence-transformers' name of the function before the last logarithm, and ours of both together.
ACTIVATIONS: dict[str, SparseActivation] = {"relu": "log1p", "log1p_relu": "log1p-log1p"}


def load(settings: Settings, location: str, says: Splade | None) -> Source:
    """Read the source, to be compared with SparseEncoder.encode. `says`: None without a modules.json.

    With a pooling, a masked language model gives dense vectors, too, from the same pass. If queries are read
    by a table, this is one of two sources, by the role, which share a space.
    """
    _check_settings(settings, location, says)
    refused.check(location, says)
    refused.check_weights(location, says)
    if says is not None and says.table:
        tables.check(location, says.table)
    whole = SparseEncoder(
        location, device="cpu", trust_remote_code=False, model_kwargs=dict(from_torch.NO_PICKLE)
    ).eval()
    queries = whole[0].sub_modules[QUERY][0] if says is not None and says.table else None
    model = whole if queries is None else _route(whole, DOCUMENT)
    library.check(location, model, gives="token_embeddings", output="logits", task="fill-mask")
    masked = model[0].auto_model
    from_torch.check_weights(location, says.transformer_folder if says else "", masked)
    tokenizer, backbone = tokens.from_transformers(model.tokenizer), masked.base_model
    max_tokens = library.max_tokens(location, settings.max_tokens, model, from_torch.positions(backbone))
    prompts, notes = library.prompts(whole, settings)
    given = _settings(settings, model)
    words = language.head(location, masked)
    head = SparseHead(words, given)
    arrays = list(words.arrays())
    if queries is not None:
        table = tables.read(location, queries, len(words.words), given)
        arrays.append(("queries.table", table))
        if settings.role == "query":
            looked_up = tables.scores(tokenizer, max_tokens, table)
            head, max_tokens = SparseHead(looked_up, given), tables.max_tokens(queries, max_tokens, looked_up)
    vectors = sparse.output(
        head,
        weigh_with(location, whole, given, task=_task(settings, queries)),
        prompts,
        similarity=_similarity(location, says),
        space_parts=SpaceParts(
            weights_sha256=weights.of_state(backbone, arrays), structure=structure.of_torch(backbone)
        ),
    )
    if settings.pooling is not None:
        return _with_dense(settings, vectors)
    return Source(
        backbone=None if isinstance(head.scores, TokenTable) else backbone,
        outputs=(vectors,),
        tokenizer=tokenizer,
        prompts=prompts,
        max_tokens=max_tokens,
        architecture=type(masked).__name__,
        notes=notes,
    )


def _route(whole: Any, name: str) -> Any:
    """The encoder of one route of a Router alone."""
    return SparseEncoder(modules=list(whole[0].sub_modules[name]), device="cpu").eval()


def _task(settings: Settings, queries: Any) -> str | None:
    """By which route the library embeds."""
    return None if queries is None else QUERY if settings.role == "query" else DOCUMENT


def _with_dense(settings: Settings, vectors: SourceOutput) -> Source:
    """The source of the dense vectors, with the sparse ones after them."""
    source = from_torch.load(settings, None)
    return replace(source, outputs=(*source.outputs, vectors))


def _check_settings(settings: Settings, location: str, says: Splade | None) -> None:
    routed = says is not None and bool(says.table)
    if routed and settings.role is None:
        raise ExportError(
            f"{location} reads queries by a table, and passages by a model: export it twice, with --role "
            "query and --role passage, under two names. Both give vectors of one space"
        )
    if settings.role is not None and not routed:
        raise ExportError(f"--role is for sources that read roles by different modules, not for {location}")
    names = files.mapping(location, "config.json").get("architectures") or []
    if says is None and not any(str(name).endswith("ForMaskedLM") for name in names):
        raise ExportError(
            f"{location} is {', '.join(map(str, names)) or 'of no known class'}, and sparse vectors are made "
            "by the head of a masked language model (...ForMaskedLM): give the folder of the whole model, or "
            "of a SparseEncoder"
        )
    if says is not None and settings.pooling is not None:
        raise ExportError(
            f"{location} declares its modules, which give sparse vectors alone: leave --pooling out"
        )
    if settings.output is not None:
        raise ExportError(f"--output names an output of a graph, and {location} has torch weights")
    if settings.normalize and settings.pooling is None:
        raise ExportError(
            "--normalize is for dense vectors, and sparse ones are not normalised: leave it out"
        )


def _settings(settings: Settings, model: Any) -> SparseSettings:
    pooling, vocabulary = model[1], model.tokenizer.get_vocab()
    unknown = [token for token in settings.stop_tokens if token not in vocabulary]
    if unknown:
        raise ExportError(f"--stop-token {unknown[0]!r} is no token of the source's vocabulary")
    size = model[0].auto_model.config.vocab_size
    if settings.top_k is not None and settings.top_k > size:
        raise ExportError(f"--top-k {settings.top_k} is more than the {size} words of the vocabulary")
    return SparseSettings(
        activation=ACTIVATIONS[pooling.activation_function],
        pooling=pooling.pooling_strategy,
        top_k=settings.top_k,
        stop_tokens=tuple(sorted({vocabulary[token] for token in settings.stop_tokens})),
    )


def _similarity(location: str, says: Declared | None) -> Similarity:
    """As declared, else the dot product, like SparseEncoder."""
    name = (says.config.get("similarity_fn_name") if says else None) or "dot"
    if name not in SIMILARITIES:
        raise ExportError(
            f"{location} compares its vectors by {name}; sparse vectors are served with "
            f"{' or '.join(SIMILARITIES)}"
        )
    return declared.similarity({"similarity_fn_name": name})


def weigh_with(
    source: str, model: Any, settings: SparseSettings, task: str | None = None
) -> Callable[[list[str], str], NDArray[np.float32]]:
    """The library's own answer, without the stop tokens, and cut as its `max_active_dims` cuts."""

    def weigh(texts: list[str], prompt: str) -> NDArray[np.float32]:
        try:
            found = model.encode(
                texts,
                prompt=prompt,
                batch_size=library.REFERENCE_BATCH,
                show_progress_bar=False,
                convert_to_sparse_tensor=False,
                task=task,
            )
        except Exception as error:
            raise ExportError(
                f"{source} itself fails on the texts of the comparison: {first_line(error)}. "
                "Do its tokenizer and its weights belong together?"
            ) from error
        found = torch.clone(found)
        found[:, list(settings.stop_tokens)] = 0
        cut: NDArray[np.float32] = select_max_active_dims(found, settings.top_k).numpy()
        return cut

    return weigh
