"""Encoders in BGE-M3's form (Chen et al. 2024, arXiv:2402.03216): three kinds of vectors from one pass.

Such a folder is one of sentence-transformers, for the dense vectors, with two layers beside it in files of
their own: `sparse_linear.pt` makes a weight of each token's state, `colbert_linear.pt` a vector. The files
are read as tensors only (`weights_only`), never as pickled objects.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from trimtab.artifacts.manifest import Output, SpaceParts
from trimtab.errors import ExportError
from trimtab.kinds import Role
from trimtab.outputs.sparse import SparseSettings
from trimtab.values.column import Columns, stacked
from trimtab_export.kinds import multi_vector, sparse
from trimtab_export.kinds.multi_vector import MultiVectorMaker, TokenHead
from trimtab_export.kinds.sparse import SparseHead, TokenWeights
from trimtab_export.load import files, from_torch, weights
from trimtab_export.load.declared import Declared
from trimtab_export.runtime import first_line
from trimtab_export.source import Dense, Head, Normalize, Settings, Source, SourceOutput

SPARSE, COLBERT = "sparse_linear.pt", "colbert_linear.pt"
# These tokens of a tokenizer have no weight.
UNWEIGHTED = ("cls_token", "eos_token", "pad_token", "unk_token")
States = Callable[[list[str], str], list[tuple[NDArray[np.int64], torch.Tensor]]]


def is_one(location: str) -> bool:
    """Whether the source has one of both layers."""
    return any(files.find(location, name) is not None for name in (SPARSE, COLBERT))


def load(settings: Settings, location: str, says: Declared | None) -> Source:
    """Read the source; its dense vectors come first."""
    source = from_torch.load(settings, says)
    hidden = source.backbone.config.hidden_size
    weigh, project = (_layer(location, name, hidden) for name in (SPARSE, COLBERT))
    if len(weigh.weight) != 1:
        raise ExportError(f"{SPARSE} of {location} gives {len(weigh.weight)} numbers a token; one is needed")
    model = SentenceTransformer(
        location, device="cpu", trust_remote_code=False, model_kwargs=dict(from_torch.NO_PICKLE)
    ).eval()
    model.max_seq_length = source.max_tokens
    states = _states_with(location, model)
    more = (_sparse(source, model.tokenizer, weigh, states), _multi_vector(source, project, states))
    return replace(source, outputs=(*source.outputs, *more))


def _layer(location: str, name: str, hidden: int) -> Dense:
    """The linear layer in a file, which reads states of this width."""
    path = files.find(location, name)
    if path is None:
        raise ExportError(f"{location} has no {name}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ExportError(
            f"{name} of {location} cannot be read as tensors: {first_line(error)}. Anything else in it could "
            "be code, and is never read"
        ) from None
    if not isinstance(state, dict) or set(state) - {"bias"} != {"weight"}:
        raise ExportError(f"{name} of {location} is no linear layer: it must hold `weight`, and may `bias`")
    for tensor in state.values():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise ExportError(f"{name} of {location} holds something other than numbers with a fraction")
    weight, bias = state["weight"].float(), state.get("bias")
    if (
        not weight.numel()
        or weight.ndim != 2
        or weight.shape[1] != hidden
        or (bias is not None and bias.shape != weight.shape[:1])
    ):
        raise ExportError(
            f"{name} of {location} has a weight of the shape {tuple(weight.shape)}, and the encoder's states "
            f"have {hidden} components: they do not belong together"
        )
    for tensor in (weight, *([bias] if bias is not None else [])):
        if not tensor.isfinite().all():
            raise ExportError(f"{name} of {location} holds NaN or infinity: the checkpoint is broken")
    return Dense(weight.numpy(), None if bias is None else bias.float().numpy(), "Identity")


def _states_with(location: str, model: Any) -> States:
    """The library's own states of each text's tokens, float32 (tokens, hidden), with their ids."""

    def states(texts: list[str], prompt: str) -> list[tuple[NDArray[np.int64], torch.Tensor]]:
        found = []
        for text in texts:
            try:
                features = model.preprocess([prompt + text])
                with torch.inference_mode():
                    given = model[0](features)["token_embeddings"]
            except Exception as error:
                raise ExportError(
                    f"{location} itself fails on the texts of the comparison: {first_line(error)}. "
                    "Do its tokenizer and its weights belong together?"
                ) from error
            found.append((features["input_ids"][0].numpy(), given[0]))
        return found

    return states


def _sparse(source: Source, tokenizer: Any, layer: Dense, states: States) -> SourceOutput:
    """relu(w s + b) of each token's state s; of equal tokens the largest counts."""
    named = (getattr(tokenizer, each) for each in UNWEIGHTED)
    stop = sorted({tokenizer.convert_tokens_to_ids(each) for each in named if each is not None})
    settings = SparseSettings(activation="relu", pooling="max", per_token=True, stop_tokens=tuple(stop))
    vocabulary = source.backbone.config.vocab_size
    weight, bias = _torch(layer)

    def weigh(texts: list[str], prompt: str) -> NDArray[np.float32]:
        rows = np.zeros((len(texts), vocabulary), np.float32)
        for row, (ids, each) in zip(rows, states(texts, prompt), strict=True):
            found = torch.relu(torch.nn.functional.linear(each, weight, bias))[:, 0].numpy()
            np.maximum.at(row, ids, found)
            row[stop] = 0
        return rows

    return sparse.output(
        SparseHead(TokenWeights(layer, vocabulary), settings),
        weigh,
        source.prompts,
        similarity="dot",
        space_parts=_parts(source, Head(None, (layer,))),
    )


def _multi_vector(source: Source, layer: Dense, states: States) -> SourceOutput:
    """w s + b of each token's state s but the first's, as vectors of length 1."""
    layers = (layer, Normalize())
    weight, bias = _torch(layer)

    def reference(texts: list[Any], role: Role) -> Columns:
        found = states(texts, source.prompts.of(role))
        rows = [torch.nn.functional.linear(each[1:], weight, bias) for _, each in found]
        return {
            multi_vector.NAME: stacked([torch.nn.functional.normalize(each, dim=-1).numpy() for each in rows])
        }

    declared = Output(
        name=multi_vector.NAME,
        kind=MultiVectorMaker.kind,
        space="",
        space_parts=_parts(source, Head(None, layers)),
        dimensions=len(layer.weight),
        similarity="cosine",
        pooling=None,
        normalized=True,
    )
    return SourceOutput(declared, TokenHead(layers, marked=False), reference)


def _torch(layer: Dense) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.from_numpy(layer.weight), None if layer.bias is None else torch.from_numpy(layer.bias)


def _parts(source: Source, head: Head) -> SpaceParts:
    return SpaceParts(
        weights_sha256=weights.of_torch(source.backbone, head), structure=source.space_parts.structure
    )
