"""Sources that are an ONNX graph already, with a tokenizer.json and perhaps more files beside it."""

import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import tokenizers
from numpy.typing import NDArray
from onnx import numpy_helper

from trimtab.bundle import SpaceParts
from trimtab.errors import ExportError
from trimtab_export import runtime, sentences, tokens
from trimtab_export.graph import head, to_onnx
from trimtab_export.load import declared, reference, structure, weights
from trimtab_export.source import Graph, Head, Normalize, Settings, Source, Tokenizer

Floats: TypeAlias = NDArray[np.float32]

# Outputs with ready vectors first: what pooled them knew more than these files tell.
POOLED = ("sentence_embedding", "embeddings", "sentence_embeddings")
STATES = ("last_hidden_state", "token_embeddings")
# Their positions begin at pad_token_id + 1.
OFFSET_POSITIONS = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "mpnet",
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
}
UNIT_NORM = 1e-3
REFERENCE_BATCH = 8


def load(settings: Settings, path: Path, home: Path) -> Source:
    """Read the graph `path` and the files in `home`; `embed` runs the graph as it is and pools in numpy."""
    model = _read(path)
    to_onnx.check_inputs(path.name, model)
    to_onnx.check_precision(path.name, model)
    graph = Graph(path, _choose_output(path.name, [value.name for value in model.graph.output]))
    head.external_files(model, path.parent)

    config = _json(home / "config.json")
    says = declared.read(str(home)) if (home / "modules.json").is_file() else None
    tokenizer = _tokenizer(home, config)
    st_config = says.config if says else _json(home / "config_sentence_transformers.json")
    max_tokens = declared.max_tokens(
        settings.max_tokens,
        [_json(home / "sentence_bert_config.json").get("max_seq_length"),
         _json(home / "tokenizer_config.json").get("model_max_length")],
        _positions(config),
    )  # fmt: skip
    batcher = tokens.Batcher(tokenizer, max_tokens)
    session = runtime.session(path)
    states = runtime.run(session, graph.output, batcher(["one text", "two"]))
    if states.dtype != np.float32 or states.ndim not in (2, 3):
        raise ExportError(
            f"the output {graph.output} of {path.name} is {states.dtype} with {states.ndim} dimensions; "
            "float32 token states (n, length, hidden) or vectors (n, dimensions) are needed"
        )
    layout = _head(settings, path.name, str(home), says, pooled=states.ndim == 2)
    prompts = declared.prompts(st_config, settings)

    def embed(texts: list[str], prompt: str) -> Floats:
        parts = []
        for start in range(0, len(texts), REFERENCE_BATCH):
            batch = batcher(texts[start : start + REFERENCE_BATCH], prompt)
            vectors = runtime.run(session, graph.output, batch)
            parts.append(reference.apply(layout, vectors, batch["attention_mask"]))
        return np.concatenate(parts)

    sample = embed(sentences.load(), prompts.passage)
    normalized = layout.normalizes
    if layout.pooling is None and not layout.layers:  # only the vectors can tell
        normalized = bool(np.all(np.abs(np.linalg.norm(sample, axis=1) - 1.0) <= UNIT_NORM))
    return Source(
        backbone=graph,
        head=layout,
        tokenizer=tokenizer,
        prompts=prompts,
        max_tokens=max_tokens,
        dimensions=sample.shape[1],
        similarity=declared.similarity(st_config),
        normalized=normalized,
        space_parts=SpaceParts(
            weights_sha256=weights.of_arrays(_initializers(model, path), layout),
            structure=structure.of_graph(model, path, graph.output),
        ),
        architecture=(config.get("architectures") or [config.get("model_type") or "unknown"])[0],
        embed=embed,
    )


def _read(path: Path) -> Any:
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ExportError(f"{path.name} is no ONNX graph: {runtime.first_line(error)}") from error


def _choose_output(name: str, outputs: list[str]) -> str:
    if len(outputs) == 1:
        return outputs[0]
    chosen = next((output for output in (*POOLED, *STATES) if output in outputs), None)
    if chosen is None:
        raise ExportError(
            f"{name} has the outputs {', '.join(outputs)}, and none of them is called "
            f"{', '.join((*POOLED, *STATES))}: export it again with one output"
        )
    return chosen


def _head(settings: Settings, name: str, home: str, says: declared.Declared | None, *, pooled: bool) -> Head:
    """The head that the graph lacks: none where its output is vectors, else the declared or the given one."""
    if pooled:
        if settings.pooling is not None:
            raise ExportError(f"{name} pools already, its output is (n, dimensions): leave --pooling out")
        return Head(None, (Normalize(),) if settings.normalize else ())
    if says is not None:
        layout = declared.head(home, says)
        declared.check_not_overridden(name, settings, layout)
        return layout
    if settings.pooling is None:
        raise ExportError(
            f"the output of {name} is token states (n, length, hidden), and no modules.json says how they "
            "become one vector: give --pooling mean, cls, last or max, as its authors say"
        )
    return Head(settings.pooling, (Normalize(),) if settings.normalize else ())


def _tokenizer(home: Path, config: dict[str, Any]) -> Tokenizer:
    """tokenizer.json with what the other files say of its use."""
    path = home / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise ExportError(f"{path.name} cannot be read: {runtime.first_line(error)}") from error
    says = _json(home / "tokenizer_config.json")
    padding = tokenizer.padding or {}
    side = says.get("padding_side", padding.get("direction", "right"))
    tokens.check_sides(path.name, side, says.get("truncation_side", "right"))
    if _json(home / "sentence_bert_config.json").get("do_lower_case"):  # done outside of the tokenizer there
        lower = tokenizers.normalizers.Lowercase()
        steps = [lower] if tokenizer.normalizer is None else [lower, tokenizer.normalizer]
        tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)
    token = says.get("pad_token")
    text = token.get("content") if isinstance(token, dict) else token
    pad_id = tokenizer.token_to_id(text) if text else config.get("pad_token_id", padding.get("pad_id"))
    if pad_id is None:
        raise ExportError(
            f"nothing beside {path.name} says which token pads: give `pad_token` in a tokenizer_config.json"
        )
    return tokens.plain(tokenizer.to_str(), int(pad_id))


def _positions(config: dict[str, Any]) -> int | None:
    limit = config.get("max_position_embeddings")
    if limit is None or limit <= 0:
        return None
    offset = config.get("pad_token_id", 1) + 1 if config.get("model_type") in OFFSET_POSITIONS else 0
    return int(limit) - int(offset)


def _initializers(model: Any, path: Path) -> list[NDArray[Any]]:
    arrays = [numpy_helper.to_array(tensor, base_dir=str(path.parent)) for tensor in model.graph.initializer]
    if not any(array.ndim > 1 for array in arrays):
        raise ExportError(
            f"{path.name} keeps its weights in Constant nodes, where they cannot be told from other "
            "constants: export it again with weights as initializers"
        )
    return arrays


def _json(path: Path) -> dict[str, Any]:
    """The file's object; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ExportError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ExportError(f"{path.name} holds no object")
    return content
