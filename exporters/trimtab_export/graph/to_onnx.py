"""The backbone as an ONNX graph with token states, or scores, through optimum; and what any graph must be."""

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from trimtab.errors import ExportError
from trimtab_export.runtime import first_line
from trimtab_export.source import Graph, Source, Task

# What optimum calls the tensor that heads read, by the task.
TENSORS: dict[Task, str] = {"feature-extraction": "last_hidden_state", "text-classification": "logits"}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OPSET, IR_VERSION = 17, 9  # of graphs that are made here
REQUIRED = {"input_ids", "attention_mask"}
# Weight types that contradict the variant's fp32.
NOT_FP32 = ("FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT4", "UINT4", "FLOAT8E4M3FN", "FLOAT8E5M2")


def states_graph(source: Source, folder: Path) -> Graph:
    """The source's graph: the existing one, or one that optimum writes into `folder`."""
    if isinstance(source.backbone, Graph):
        return source.backbone
    if source.backbone is None:
        return _ids_alone(folder / "model.onnx")
    from optimum.exporters.onnx import onnx_export_from_model

    try:
        onnx_export_from_model(source.backbone, output=folder, task=source.task, do_validation=False)
    except Exception as error:
        raise ExportError(
            f"optimum cannot convert {source.architecture} to ONNX: {first_line(error)}. "
            "An ONNX graph of it made by other means can be the SOURCE"
        ) from error
    graphs = sorted(path.name for path in folder.glob("*.onnx"))
    if graphs != ["model.onnx"]:
        raise ExportError(
            f"optimum splits {source.architecture} into {', '.join(graphs)}; one graph is needed"
        )
    path = folder / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    check_inputs(path.name, model)
    tensor = TENSORS[source.task]
    if tensor not in [value.name for value in model.graph.output]:
        raise ExportError(f"the graph of {source.architecture} has no output {tensor}")
    return Graph(path, tensor)


def _ids_alone(path: Path) -> Graph:
    """A graph without nodes, for heads that read nothing but ids and their mask."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph([], "ids", inputs, inputs[:1])
    opsets = [helper.make_opsetid("", OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), str(path))
    return Graph(path, "input_ids")


def check_inputs(name: str, model: Any) -> None:
    """Refuse a graph with inputs other than ids and masks, int64 (n, length), both of any size."""
    inputs = {value.name: value.type.tensor_type for value in _inputs(model)}
    if other := sorted(set(inputs) - set(INPUTS)):
        raise ExportError(
            f"{name} also needs the inputs {', '.join(other)}; only {', '.join(INPUTS)} can be served"
        )
    if missing := sorted(REQUIRED - set(inputs)):
        raise ExportError(f"{name} has no input {' and '.join(missing)}")
    for key, tensor in inputs.items():
        if tensor.elem_type != TensorProto.INT64:
            kind = TensorProto.DataType.Name(tensor.elem_type).lower()
            raise ExportError(f"the input {key} of {name} is {kind}; int64 is needed. Export it again")
        fixed = [dim.dim_value for dim in tensor.shape.dim if dim.HasField("dim_value")]
        if len(tensor.shape.dim) != 2 or fixed:
            shape = [dim.dim_value or dim.dim_param or "?" for dim in tensor.shape.dim]
            raise ExportError(
                f"the input {key} of {name} has the shape {shape}; (n, length) of any size is needed. "
                "Export it again with dynamic axes"
            )


def inputs_of(path: Path) -> tuple[str, ...]:
    """The names of a graph's inputs, in its order."""
    return tuple(value.name for value in _inputs(onnx.load(str(path), load_external_data=False)))


def _inputs(model: Any) -> list[Any]:
    """The inputs that a model must be given: older models declare their constants as inputs, too."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def check_precision(name: str, model: Any) -> None:
    """Refuse a graph whose weights are not float32: its variant would be called fp32."""
    for tensor in model.graph.initializer:
        kind = TensorProto.DataType.Name(tensor.data_type)
        if kind in NOT_FP32 and len(tensor.dims) > 1:
            raise ExportError(f"{name} holds {kind.lower()} weights ({tensor.name}): give the float32 graph")
