"""ColBERT encoders with torch weights: a backbone, layers for each token's vector, and how texts are read.

The libraries read the weights. PyLate is none of them, since it pins another sentence-transformers, so the
reference follows its rules here, on the library's modules, one text at a time: see `_reference`.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer

from trimtab.artifacts.manifest import Output, Prompts, SpaceParts
from trimtab.errors import ExportError
from trimtab.inputs.text import Reading
from trimtab.kinds import Role
from trimtab.values.column import Columns, stacked
from trimtab_export import tokens
from trimtab_export.kinds.multi_vector import NAME, MultiVectorMaker, TokenHead
from trimtab_export.load import files, library, refused, structure, weights
from trimtab_export.load.colbert import LINEAR, Colbert, Reads
from trimtab_export.load.from_torch import NO_CODE, NO_PICKLE, check_weights, positions
from trimtab_export.source import Head, Layer, Normalize, Reference, Settings, Source, SourceOutput

SAFETENSORS = "model.safetensors"


def load(settings: Settings, says: Colbert) -> Source:
    """Read the source."""
    source = settings.source
    _check_options(settings)
    refused.check_weights(source, says.declared)
    folder = says.declared.transformer_folder
    transformer = Transformer.load(
        source,
        folder,
        model_kwargs=dict(NO_PICKLE),
        processor_kwargs=dict(NO_CODE),
        config_kwargs=dict(NO_CODE),
    )
    behind = _layers(source, says)
    model = SentenceTransformer(modules=[transformer, *behind], device="cpu").eval()
    library.check(source, model, gives="token_embeddings")
    backbone = model[0].auto_model
    check_weights(source, folder, backbone)
    readings = _readings(settings, says.reads, model.tokenizer, positions(backbone))
    prompts, notes = _prompts(settings, says.reads)
    layers: tuple[Layer, ...] = (*map(library.dense, behind), Normalize())
    declared = Output(
        name=NAME,
        kind=MultiVectorMaker.kind,
        space="",
        space_parts=SpaceParts(
            weights_sha256=weights.of_torch(backbone, Head(None, layers)),
            structure=structure.of_torch(backbone),
        ),
        dimensions=behind[-1].out_features,
        similarity="cosine",
        pooling=None,
        normalized=True,
    )
    reference = _reference(model, readings, says.reads, prompts)
    return Source(
        backbone=backbone,
        outputs=(SourceOutput(declared, TokenHead(layers), reference),),
        tokenizer=tokens.from_transformers(model.tokenizer),
        prompts=prompts,
        max_tokens=max(reading.most for reading in readings.values()),
        architecture=(backbone.config.architectures or [type(backbone).__name__])[0],
        readings=readings,
        notes=notes,
    )


def _check_options(settings: Settings) -> None:
    for option, given in (
        ("--pooling", settings.pooling), ("--normalize", settings.normalize), ("--output", settings.output),
    ):  # fmt: skip
        if given:
            raise ExportError(
                f"{settings.source} is a ColBERT encoder, which gives a vector for each token: leave "
                f"{option} out"
            )


def _layers(source: str, says: Colbert) -> list[Dense]:
    """The layers behind the token states."""
    if says.stanford:
        weight = load_file(_safetensors(source, ""))[LINEAR]
        layer = Dense(weight.shape[1], weight.shape[0], bias=False, activation_function=torch.nn.Identity(),
                      module_input_name="token_embeddings")  # fmt: skip
        layer.linear.load_state_dict({"weight": weight})
        return [layer]
    found = []
    for folder in says.declared.folders("Dense"):
        config = files.mapping(source, "config.json", folder)
        activation = config["activation_function"].rpartition(".")[2]
        layer = Dense(
            config["in_features"], config["out_features"], bias=config.get("bias", True),
            activation_function=getattr(torch.nn, activation)(), module_input_name="token_embeddings",
        )  # fmt: skip
        layer.load_state_dict(load_file(_safetensors(source, folder)))
        found.append(layer)
    return found


def _safetensors(source: str, folder: str) -> Path:
    path = files.find(source, SAFETENSORS, folder)
    if path is None:
        raise ExportError(f"{source} has no {Path(folder, SAFETENSORS)} with the layer of the vectors")
    return path


def _readings(settings: Settings, reads: Reads, tokenizer: Any, limit: int | None) -> dict[Role, Reading]:
    """How texts of each role are read."""
    lengths: dict[Role, int] = {
        "query": reads.query_length,
        "passage": settings.max_tokens or reads.document_length,
    }
    for role, length in lengths.items():
        if limit is not None and length > limit:
            raise ExportError(
                f"{settings.source} reads {length} tokens of a {role}, and has {limit} positions"
            )
    markers = {
        role: _marker(settings.source, tokenizer, prefix)
        for role, prefix in (("query", reads.query_prefix), ("passage", reads.document_prefix))
    }
    types = tokenizer("a b").get("token_type_ids") or []
    if any(types) or not tokenizer("").get("input_ids"):
        raise ExportError(
            f"the tokenizer of {settings.source} gives token types other than 0, or no special tokens: a "
            "marker can only be put behind a first special token, among tokens of type 0"
        )
    fill = _fill(tokenizer) if reads.do_query_expansion else None
    skipped = _skipped(settings.source, reads, tokenizer)
    found: dict[Role, Reading] = {
        "query": Reading(
            most=lengths["query"],
            marker=markers["query"],
            fill=fill,
            attended=reads.attend_to_expansion_tokens or fill is None,
        ),
        "passage": Reading(most=lengths["passage"], marker=markers["passage"], skipped=skipped),
    }
    _check_room(settings.source, found, tokenizer)
    return found


def _fill(tokenizer: Any) -> int:
    """The token that fills queries up."""
    known = (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return int(next(each for each in known if each is not None))


def _marker(source: str, tokenizer: Any, prefix: str) -> int | None:
    """The token of a prefix. PyLate adds it to the tokenizer, where it is then found in texts, too."""
    if not prefix:
        return None
    if prefix not in tokenizer.get_vocab():
        raise ExportError(
            f"the tokenizer of {source} has no token {prefix!r}, with which its texts are marked, and PyLate "
            "would make up a random vector for it: save the encoder with PyLate's save_pretrained"
        )
    tokenizer.add_tokens([prefix])
    return int(tokenizer.convert_tokens_to_ids(prefix))


def _skipped(source: str, reads: Reads, tokenizer: Any) -> tuple[int, ...]:
    """The tokens without a vector. An unknown word stands for the unknown token, as in PyLate."""
    found = tokenizer.convert_tokens_to_ids(list(reads.skiplist_words))
    unknown = [word for word, each in zip(reads.skiplist_words, found, strict=True) if each is None]
    if unknown:
        raise ExportError(
            f"skiplist_words of {source} has {unknown[0]!r}, and its tokenizer has no such token: take it "
            "out of config_sentence_transformers.json"
        )
    return tuple(sorted(set(found)))


def _check_room(source: str, readings: dict[Role, Reading], tokenizer: Any) -> None:
    special = tokenizer("")["input_ids"]
    for role, reading in readings.items():
        always = [*special, *([] if reading.marker is None else [reading.marker])]
        if reading.most <= len(always):
            raise ExportError(
                f"{source} reads {reading.most} tokens of a {role}, of which {len(always)} are special "
                "tokens: none of the text would be read"
            )
        if set(always) <= set(reading.skipped):
            raise ExportError(f"{source} skips all special tokens: an empty {role} would have no vector")


def _prompts(settings: Settings, reads: Reads) -> tuple[Prompts, tuple[str, ...]]:
    """The prompt of each role: text that comes before it, beside the marker."""
    named = {"query": "", "document": ""} | {name: text or "" for name, text in reads.prompts.items()}
    model = SimpleNamespace(prompts=named, default_prompt_name=reads.default_prompt_name)
    return library.prompts(model, settings)


def _reference(model: Any, readings: dict[Role, Reading], reads: Reads, prompts: Prompts) -> Reference:
    """The vectors of texts by PyLate's rules, from the library's modules.

    The tokenizer cuts a text to its role's length less one, and the marker goes behind the first token. A
    query is filled up with mask tokens, which all give vectors; the others attend to them if the encoder says
    so. Documents have no vectors at skipped tokens. Each vector is scaled to length 1.
    """
    tokenizer = model.tokenizer

    def vectors(text: str, role: Role) -> np.ndarray[Any, np.dtype[np.float32]]:
        query, reading = role == "query", readings[role]
        prefix = reads.query_prefix if query else reads.document_prefix
        room = reading.most - bool(prefix)
        ids: list[int] = tokenizer(prompts.of(role) + text, truncation=True, max_length=room)["input_ids"]
        if prefix:
            ids.insert(1, tokenizer.convert_tokens_to_ids(prefix))
        attended = len(ids)
        if query and reads.do_query_expansion:
            mask = next(
                each for each in (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
                if each is not None
            )  # fmt: skip
            ids += [mask] * (reading.most - len(ids))
            if reads.attend_to_expansion_tokens:
                attended = len(ids)
        given = torch.tensor([ids])
        features = {"input_ids": given, "attention_mask": (torch.arange(len(ids)) < attended).long()[None]}
        if "token_type_ids" in tokenizer.model_input_names:
            features["token_type_ids"] = torch.zeros_like(given)
        for module in model:
            features = module(features)
        states = torch.nn.functional.normalize(features["token_embeddings"][0], dim=1)
        if not query:
            skipped = {tokenizer.convert_tokens_to_ids(word) for word in reads.skiplist_words}
            states = states[[place for place, each in enumerate(ids) if each not in skipped]]
        return states.numpy()

    def reference(texts: Sequence[str], role: Role) -> Columns:
        with torch.no_grad():
            return {NAME: stacked([vectors(text, role) for text in texts])}

    return reference
