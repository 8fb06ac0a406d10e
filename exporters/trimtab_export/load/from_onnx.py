"""Sources that already are an ONNX graph, with a tokenizer and perhaps more files next to it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from trimtab.artifacts.manifest import SpaceParts
from trimtab.errors import ExportError
from trimtab_export import runtime, sentences, tokens
from trimtab_export.graph import head, to_onnx
from trimtab_export.kinds import dense
from trimtab_export.load import declared, graph_model, library, structure, weights
from trimtab_export.source import Graph, Settings, Source

POOLED = ("sentence_embedding", "embeddings", "sentence_embeddings")
STATES = ("last_hidden_state", "token_embeddings")
# Their positions start at pad_token_id + 1.
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


def load(settings: Settings, path: Path, home: Path, says: declared.Declared | None) -> Source:
    """Read the graph `path` and the files in `home`; compared with the library's own code with this graph."""
    proto = read(path)
    names = [value.name for value in proto.graph.output]
    output = _choose_output(settings, path.name, names, declared=says is not None)
    backbone = graph_model.Backbone(runtime.session(path), output)
    pooled = _is_pooled(path.name, backbone)
    if pooled and settings.pooling is not None:
        raise ExportError(f"{path.name} pools already, its output is (n, dimensions): leave --pooling out")
    if pooled and says is not None:
        raise ExportError(
            f"{path.name} gives finished vectors ({output}), and nothing shows which modules of modules.json "
            "they include: give a graph with token states (last_hidden_state), or, if these vectors are the "
            "encoder's, a folder without sentence-transformers' files"
        )
    model = graph_model.model(settings, path.name, str(home), says, backbone, pooled=pooled)
    library.check(path.name, model, gives="sentence_embedding" if pooled else "token_embeddings")
    layout = library.head(model)
    if says is not None:
        declared.check_not_overridden(path.name, settings, layout)
    tokenizer = tokens.from_transformers(model.tokenizer)
    config = model[0].config
    max_tokens = library.max_tokens(path.name, settings.max_tokens, model, positions(config))
    prompts, notes = library.prompts(model, settings)
    embed = library.embed_with(path.name, model)
    sample = embed(sentences.load(), prompts.passage)
    normalized = layout.normalizes
    if pooled and not layout.layers:  # only the vectors can show it
        normalized = bool(np.all(np.abs(np.linalg.norm(sample, axis=1) - 1.0) <= UNIT_NORM))
    vectors = dense.output(
        layout,
        embed,
        prompts,
        dimensions=sample.shape[1],
        similarity=declared.similarity(says.config if says else {}),
        normalized=normalized,
        space_parts=SpaceParts(
            weights_sha256=weights.of_arrays(initializers(proto, path), layout),
            structure=structure.of_graph(proto, path, output),
        ),
    )
    return Source(
        backbone=Graph(path, output),
        outputs=(vectors,),
        tokenizer=tokenizer,
        prompts=prompts,
        max_tokens=max_tokens,
        architecture=(config.architectures or [config.model_type or "unknown"])[0],
        notes=notes,
    )


def read(path: Path) -> Any:
    """The graph, without external data. ExportError if it cannot be a bundle's."""
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ExportError(f"{path.name} is not an ONNX graph: {runtime.first_line(error)}") from error
    to_onnx.check_inputs(path.name, proto)
    to_onnx.check_precision(path.name, proto)
    head.check_external_data(proto, path.parent)
    return proto


def _choose_output(settings: Settings, name: str, outputs: list[str], *, declared: bool) -> str:
    """The output to read, chosen by name, since a classifier's scores have the shape of vectors, too.

    With a modules.json, token states are preferred, since it says how to pool them. Otherwise finished
    vectors are preferred: whoever pooled them knew more than the files say.
    """
    if settings.output is not None:
        if settings.output not in outputs:
            raise ExportError(f"{name} has no output {settings.output}: it has {', '.join(outputs)}")
        return settings.output
    known = (*STATES, *POOLED) if declared else (*POOLED, *STATES)
    chosen = next((output for output in known if output in outputs), None)
    if chosen is None:
        raise ExportError(
            f"{name} has the outputs {', '.join(outputs)}, and none of them is called "
            f"{', '.join((*POOLED, *STATES))}. Those of a reranker or a classifier are scores; where one is "
            "an encoder's vectors or token states, name it with --output"
        )
    return chosen


def _is_pooled(name: str, backbone: graph_model.Backbone) -> bool:
    """Whether the output is finished vectors; refused if it is neither these nor token states."""
    result, output = backbone.of_ones(), backbone.output
    if not isinstance(result, np.ndarray):
        raise ExportError(f"the output {output} of {name} is not a tensor; an encoder's output is one")
    ranks = {**dict.fromkeys(POOLED, (2,)), **dict.fromkeys(STATES, (3,))}.get(output, (2, 3))
    if result.dtype != np.float32 or result.ndim not in ranks:
        raise ExportError(
            f"the output {output} of {name} is {result.dtype} with {result.ndim} dimensions; "
            "float32 token states (n, length, hidden) or vectors (n, dimensions) are needed"
        )
    if result.shape[-1] == 1:
        raise ExportError(f"the output {output} of {name} is one number per text: a score, not a vector")
    return result.ndim == 2


def positions(config: Any) -> int | None:
    """The most tokens that the graph has positions for, by the configuration of its original model."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or limit <= 0:
        return None
    if config.model_type not in OFFSET_POSITIONS:
        return int(limit)
    pad = 1 if config.pad_token_id is None else config.pad_token_id
    return int(limit) - int(pad) - 1


def initializers(model: Any, path: Path) -> list[NDArray[Any]]:
    """A graph's weights."""
    arrays = [numpy_helper.to_array(tensor, base_dir=str(path.parent)) for tensor in model.graph.initializer]
    if not any(array.ndim > 1 for array in arrays):
        raise ExportError(
            f"{path.name} keeps its weights in Constant nodes, where they cannot be told from other "
            "constants: export it again with weights as initializers"
        )
    return arrays
