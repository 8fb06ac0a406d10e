"""A second graph for a variant, whose output also has the mean hidden state of every layer.

An adapter that sees the inner states keeps more than one that sees only the final vector. Both graphs share
their weights file, so the second costs some kilobytes.

If the source is a torch module, a graph's hidden states are found by comparing values with it. Otherwise they
are found by the order of layer norms: in BERT-like models each layer has one after the attention and one at
its end.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from trimtab.errors import ExportError
from trimtab_export import runtime
from trimtab_export.graph import editing
from trimtab_export.graph.head import OUTPUT, STATES_GRAPH, declare_outputs, new_head
from trimtab_export.source import Graph

Tokens: TypeAlias = Mapping[str, NDArray[np.int64]]
Floats: TypeAlias = NDArray[np.float32]

# The largest differences that reordered float32 arithmetic explains, for values up to 1.
SAME = 1e-4
SAME_EMBEDDING = 1e-6  # of the same operators in two graphs
CLOSERS = {"LayerNormalization", "Add"}  # what can end a layer: the norm after it, or the residual sum


def hidden_states(graph: Path, backbone: Any, batch: Tokens) -> list[str]:
    """The names of a graph's hidden states, the embedding layer's first; empty if they are not found.

    Args:
        graph: with its head, and not yet rewritten.
        backbone: the torch module that the graph was made from, or a Graph if there is none.
        batch: a few texts; only torch modules are run on them.
    """
    model = onnx.load(str(graph), load_external_data=False)
    if isinstance(backbone, Graph):
        return _by_structure(model)
    return _by_value(model, graph.parent, _of_torch(backbone, batch), batch)


def write(graph: Path, layers: list[str]) -> Path:
    """Write model-with-states.onnx next to `graph`, over the same weights; returns its path.

    Its output `embeddings` is float32 (n, dimensions + width): see `trimtab.artifacts.manifest.States`.
    """
    model = onnx.load(str(graph), load_external_data=False)
    grafter, embedding = new_head(model, "embedding")
    grafter.give(grafter.concat([embedding, *(grafter.pool(layer, "mean") for layer in layers)]))
    others = [value for value in model.graph.output if value.name not in (OUTPUT, embedding)]
    declare_outputs(model.graph, "joined", others)
    path = graph.with_name(STATES_GRAPH)
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path))
    return path


def check(graph: Path, plain: Path, batch: Tokens) -> int:
    """The width of the states that `graph` outputs besides the embeddings of the graph `plain`.

    Raises ExportError if an embedding differs from that of `plain`, or if a text's row changes with its
    neighbours in the batch.
    """
    session = runtime.session(graph)
    rows = runtime.run(session, OUTPUT, batch)
    embeddings = runtime.run(runtime.session(plain), OUTPUT, batch)
    dimensions = int(embeddings.shape[1])
    if not _near(rows[:, :dimensions], embeddings, SAME_EMBEDDING):
        raise ExportError(f"{graph.name} gives other embeddings than {plain.name}")
    for number, row in enumerate(rows):
        own = int(batch["attention_mask"][number].sum())
        single = {name: ids[number : number + 1, :own] for name, ids in batch.items()}
        if not _near(runtime.run(session, OUTPUT, single)[0], row, SAME):
            raise ExportError(f"the inner states of a text in {graph.name} change with its neighbours")
    width: int = rows.shape[1] - dimensions
    return width


def _near(one: Floats, other: Floats, tolerance: float) -> bool:
    return bool(np.abs(one - other).max() <= tolerance * max(1.0, float(np.abs(other).max())))


def _of_torch(backbone: Any, batch: Tokens) -> list[Floats]:
    """The hidden states that the module itself returns, float32 (n, length, hidden) each; perhaps none."""
    import torch

    known = inspect.signature(backbone.forward).parameters
    inputs = {name: torch.from_numpy(ids) for name, ids in batch.items() if name in known}
    try:
        with torch.no_grad():
            states = getattr(backbone(**inputs, output_hidden_states=True), "hidden_states", None)
    except Exception:  # whatever a source raises, the comparison with it will report
        return []
    return [state.numpy() for state in states or ()]


def _by_value(model: Any, folder: Path, wanted: list[Floats], batch: Tokens) -> list[str]:
    """For each of `wanted`, in order, the first tensor that equals it on the real tokens."""
    if not wanted:
        return []
    rank3 = _of_rank_3(model)
    names = [node.output[0] for node in model.graph.node if node.op_type in CLOSERS]
    names = [name for name in names if name in rank3]
    session = editing.inner_session(model, names, folder)
    inputs = {value.name: batch[value.name] for value in session.get_inputs()}
    values = dict(zip(names, session.run(names, inputs), strict=True))
    real = batch["attention_mask"] == 1
    found: list[str] = []
    for state in wanted:
        same = (
            name
            for name, value in values.items()
            if value.shape == state.shape and name not in found and _near(value[real], state[real], SAME)
        )
        found.append(next(same, ""))
    return found if all(found) else []


def _by_structure(model: Any) -> list[str]:
    """The layer norms that end a layer, if they are ordered as in BERT; else none.

    That order is: one over the embeddings, then alternately one with a softmax between it and the previous
    norm (the attention) and one without (the feed-forward block).
    """
    rank3 = _of_rank_3(model)
    makers = {output: node for node in model.graph.node for output in node.output}
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    if len(norms) < 3 or len(norms) % 2 == 0 or not rank3.issuperset(norm.output[0] for norm in norms):
        return []
    first, *rest = norms
    if _between(first, makers) != (False, set()):
        return []
    for number, norm in enumerate(rest, 1):
        attention, before = _between(norm, makers)
        if attention != (number % 2 == 1) or before != {norms[number - 1].output[0]}:
            return []
    return [norm.output[0] for norm in norms[::2]]


def _of_rank_3(model: Any) -> set[str]:
    """The names of the tensors (n, length, width)."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*inferred.value_info, *inferred.output)
    return {value.name for value in values if len(value.type.tensor_type.shape.dim) == 3}


def _between(norm: Any, makers: dict[str, Any]) -> tuple[bool, set[str]]:
    """Whether a softmax lies between a layer norm and those before it, and the outputs of those."""
    softmax, before = False, set()
    todo, seen = list(norm.input), set()
    while todo:
        name = todo.pop()
        if name in seen or name not in makers:
            continue
        seen.add(name)
        node = makers[name]
        if node.op_type == "LayerNormalization":
            before.add(name)
            continue
        softmax |= node.op_type == "Softmax"
        if node.op_type != "Shape":  # MPNet's position bias reads only the shape of the embeddings
            todo.extend(node.input)
    return softmax, before
