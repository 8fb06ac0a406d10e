"""In-place operations on an ONNX graph that several rewrites share."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from trimtab_export import runtime


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """The value of a node's attribute."""
    found = (helper.get_attribute_value(each) for each in node.attribute if each.name == name)
    return next(found, default)


def subgraphs(node: Any) -> list[Any]:
    """The graphs inside a node, such as the branches of an If."""
    return [
        graph
        for each in node.attribute
        for graph in (*([each.g] if each.HasField("g") else []), *each.graphs)
    ]


def reads(node: Any) -> set[str]:
    """The tensors that a node, or a node of its subgraphs, reads."""
    found = {name for name in node.input if name}
    return found.union(*(reads(inner) for graph in subgraphs(node) for inner in graph.node))


def replace_nodes(graph: Any, nodes: Iterable[Any]) -> None:
    """Replace a graph's nodes, and drop its type annotations of inner tensors, which may no longer hold."""
    kept = list(nodes)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)


def drop_unused(graph: Any) -> None:
    """Remove nodes and constants that no output needs."""
    needed = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed |= reads(node)
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    replace_nodes(graph, reversed(nodes))
    del graph.initializer[:]
    graph.initializer.extend(constants)


def inner_session(model: Any, names: Sequence[str], folder: Path, threads: int = 0) -> Any:
    """A session of a model that returns these of its tensors, float32, in place of its outputs.

    folder: where the weights of the model are.
    """
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    path = folder / ".probe.onnx"
    try:
        onnx.save(model, str(path))
        return runtime.session(path, threads)
    finally:
        path.unlink(missing_ok=True)
