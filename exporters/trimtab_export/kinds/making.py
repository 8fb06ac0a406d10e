"""What the exporter does for every kind: declare inputs, and graft outputs onto a graph."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from onnx import TensorProto, helper

from trimtab.artifacts.manifest import Input, Output, Tensor
from trimtab.outputs.form import ColumnForm
from trimtab.outputs.known import OUTPUTS
from trimtab_export.graph.head import Grafter
from trimtab_export.source import Source

TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64}


class InputMaker(ABC):
    """A kind of input, which known.py finds by its name."""

    kind: ClassVar[str]

    @abstractmethod
    def declare(self, source: Source, folder: Path) -> Input:
        """The input of an encoder, for the manifest of the bundle in `folder`. Writes its processor's file
        there. Raises ExportError if this source has no such input."""


class OutputMaker(ABC):
    """A kind of output besides the dense vectors, made by nodes after the token states."""

    kind: ClassVar[str]

    @abstractmethod
    def declare(self, source: Source) -> Output:
        """The output of an encoder; its space is named later. Raises ExportError if this source has no such
        output."""

    @abstractmethod
    def graft(self, grafter: Grafter, states: str, source: Source) -> None:
        """Append nodes that make the output from `states`, float32 (n, length, hidden), under the tensor
        names given by `tensors`."""


def tensors(declared: Output) -> dict[str, Tensor]:
    """Where our graphs give the columns of an output: under the columns' own names, with all offsets as
    NAME.offsets."""
    offsets = f"{declared.name}.offsets"
    return {
        form.name: Tensor(name=form.name, offsets=offsets if form.several else None)
        for form in OUTPUTS[declared.kind].columns(declared)
    }


def grafted(maker: OutputMaker, source: Source, grafter: Grafter, states: str) -> list[Any]:
    """The results of a maker's nodes, as outputs of the graph."""
    maker.graft(grafter, states, source)
    declared = maker.declare(source)
    forms = OUTPUTS[declared.kind].columns(declared)
    offsets = {each.offsets for each in tensors(declared).values() if each.offsets is not None}
    return [
        *map(_value, forms),
        *(helper.make_tensor_value_info(each, TensorProto.INT64, [None]) for each in offsets),
    ]


def _value(form: ColumnForm) -> Any:
    rows = None if form.several else "batch"
    shape = [rows, form.width] if form.width else [rows]
    return helper.make_tensor_value_info(form.name, TYPES[form.dtype], shape)
