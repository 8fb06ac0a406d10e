"""float16 graphs, for GPUs: a CPU would convert back and forth, and be slower than with float32."""

import warnings
from pathlib import Path

import onnx

from trimtab_export.graph.head import GRAPH, save

# Sums over many values, and what must not overflow, stay in float32: layer norms, the pooling, the length.
KEPT = ["LayerNormalization", "ReduceSum", "ReduceL2", "ReduceMean", "Pow", "Sqrt", "Softmax", "CumSum"]


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
