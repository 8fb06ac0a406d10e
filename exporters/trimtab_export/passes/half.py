"""Graphs in 16 bits: float16 for GPUs (a CPU would convert back and forth), bfloat16 for small files.

Only the weights are stored in bfloat16, since ONNX Runtime has few bfloat16 products, and none on CPUs. A
Cast after each weight makes it float32, once, when a session is opened. OpenVINO has such products, and
rounds the weights of a float32 graph by itself.
"""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from trimtab.artifacts import openvino
from trimtab.errors import ExportError
from trimtab_export import runtime
from trimtab_export.graph.editing import replace_nodes
from trimtab_export.graph.head import EXTERNAL, GRAPH, WEIGHTS, free_prefix, opset_of, save

# Sums over many values, and what must not overflow, stay in float32: layer norms, the pooling, the length.
KEPT = ["LayerNormalization", "ReduceSum", "ReduceL2", "ReduceMean", "Pow", "Sqrt", "Softmax", "CumSum"]
BFLOAT = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
BFLOAT_OPSET = 13  # Cast knows it


def to_fp16(graph: Path, folder: Path) -> tuple[Path, ...]:
    """Write `folder`/model.onnx with float16 weights and products, float32 inputs and outputs; its files."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about values below float16's smallest
        model = convert_float_to_float16(onnx.load(str(graph)), keep_io_types=True, op_block_list=KEPT)
    # A tensor that several nodes read in float32 is converted once for each, under the same name.
    once = {output: node for node in reversed(model.graph.node) for output in node.output}
    nodes = [node for node in model.graph.node if once[node.output[0]] is node]
    replace_nodes(model.graph, nodes)
    OnnxModel(model).topological_sort()  # conversions were appended at the end
    return save(model, folder / GRAPH)


def to_bf16(graph: Path, folder: Path) -> tuple[Path, ...]:
    """Write `folder`/model.onnx with bfloat16 weights, computed in float32; its files, the graph first.

    Raises ExportError if the graph's opset lacks bfloat16.
    """
    model = onnx.load(str(graph))
    if opset_of(model) < BFLOAT_OPSET:
        raise ExportError(
            f"{graph.name} is of opset {opset_of(model)}; bf16 needs {BFLOAT_OPSET} or later. Convert it "
            "with onnx.version_converter, or export it again"
        )
    prefix, casts = free_prefix(model.graph), []
    for tensor in model.graph.initializer:
        weight = numpy_helper.to_array(tensor)
        if tensor.data_type == TensorProto.FLOAT and weight.nbytes >= EXTERNAL:
            name, short = tensor.name, f"{prefix}/{tensor.name}"
            tensor.CopyFrom(numpy_helper.from_array(weight.astype(BFLOAT), short))
            casts.append(helper.make_node("Cast", [short], [name], name=short, to=TensorProto.FLOAT))
    replace_nodes(model.graph, [*casts, *model.graph.node])
    return save(model, folder / GRAPH)


def to_openvino(graph: Path, folder: Path) -> tuple[Path, ...]:
    """Put the float32 graph into `folder` for OpenVINO, which multiplies in bfloat16; its files.

    Raises ExportError if OpenVINO is not installed, if this processor has no such products, so that nothing
    could be measured, or if the graph has operators that OpenVINO is not given.
    """
    if not openvino.multiplies_bf16(runtime.require_openvino()):
        raise ExportError(
            "this processor has no products in bfloat16: export on one that has (avx512_bf16, amx_bf16)"
        )
    for node in _nodes(onnx.load(str(graph), load_external_data=False).graph):
        if node.domain not in openvino.DOMAINS or node.op_type in openvino.LOOPS:
            raise ExportError(f"OpenVINO is not given the operator {node.op_type} of {node.domain or 'ONNX'}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (GRAPH, WEIGHTS):
        shutil.copyfile(graph.with_name(name), folder / name)  # onnx reads no files with hard links
    return folder / GRAPH, folder / WEIGHTS


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph, and of the graphs in them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
