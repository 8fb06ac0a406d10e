"""Graphs of 16 bits: float16 for GPUs, where a CPU would convert back and forth; bfloat16 for small files.

bfloat16 is how the weights are stored, and no more: ONNX Runtime has few products of bfloat16, on CPUs none.
A Cast behind each weight makes float32 of it, once, when a session is opened.
"""

import warnings
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from trimtab.errors import ExportError
from trimtab_export.graph.head import EXTERNAL, GRAPH, free_prefix, opset_of, save

# Sums over many values, and what must not overflow, stay in float32: layer norms, the pooling, the length.
KEPT = ["LayerNormalization", "ReduceSum", "ReduceL2", "ReduceMean", "Pow", "Sqrt", "Softmax", "CumSum"]
BFLOAT = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
BFLOAT_OPSET = 13  # Cast knows it


def to_fp16(graph: Path, folder: Path) -> tuple[Path, ...]:
    """Write `folder`/model.onnx with float16 weights and products, float32 inputs and outputs; its files."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values below the least of float16
        model = convert_float_to_float16(onnx.load(str(graph)), keep_io_types=True, op_block_list=KEPT)
    # A tensor that several nodes read in float32 was converted once for each, under one name.
    once = {output: node for node in reversed(model.graph.node) for output in node.output}
    nodes = [node for node in model.graph.node if once[node.output[0]] is node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    OnnxModel(model).topological_sort()  # conversions were appended to the end
    return save(model, folder / GRAPH)


def to_bf16(graph: Path, folder: Path) -> tuple[Path, ...]:
    """Write `folder`/model.onnx with bfloat16 weights, computed in float32; its files, the graph first.

    Raises ExportError where the graph's opset does not have bfloat16.
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
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return save(model, folder / GRAPH)
