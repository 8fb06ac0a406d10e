"""What the exporter does for every kind: declare inputs, and graft outputs onto a graph."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from onnx import TensorProto, helper

from trimtab.artifacts.manifest import Input, Output, Tensor
from trimtab.errors import ExportError
from trimtab.outputs.form import ColumnForm
from trimtab.outputs.known import OUTPUTS
from trimtab_export.graph.head import Grafter
from trimtab_export.source import Source, SourceOutput
from trimtab_export.tokens import Collates

TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64}


class InputMaker(ABC):
    """A kind of input, which known.py finds by its name."""

    kind: ClassVar[str]

    @abstractmethod
    def declare(self, source: Source, folder: Path) -> Input:
        """The input of an encoder, for the manifest of the bundle in `folder`. Writes its processor's file
        there. Raises ExportError if this source has no such input."""

    def collator(self, source: Source) -> Collates:
        """What makes batches of a source that reads this kind of input, for the comparison."""
        raise ExportError(f"no source reads {self.kind}: nothing can be compared with it")

    def samples(self, count: Callable[[Any], int], most: int) -> list[Any]:
        """Items to compare a graph with its source on; the last one has `most` units by `count`."""
        raise ExportError(f"no source reads {self.kind}: nothing can be compared with it")


class OutputMaker(ABC):
    """A kind of output, made by nodes after the token states.

    in_int8: its numbers can be packed into bytes, for which their range is measured.
    """

    kind: ClassVar[str]
    in_int8: ClassVar[bool] = False

    def derive(self, source: Source) -> SourceOutput:
        """Such an output of an encoder that does not declare it. Raises ExportError if it cannot be had."""
        raise ExportError(f"{source.architecture} declares no {self.kind} output, and it cannot be made up")

    def tensors(self, declared: Output) -> dict[str, Tensor]:
        """Where our graphs give the columns of an output: under the columns' own names, with all offsets as
        NAME.offsets."""
        offsets = f"{declared.name}.offsets"
        return {
            form.name: Tensor(name=form.name, offsets=offsets if form.several else None)
            for form in OUTPUTS[declared.kind].columns(declared)
        }

    @abstractmethod
    def graft(self, grafter: Grafter, states: str, output: SourceOutput) -> Sequence[Any]:
        """Append nodes that make the output from `states`, float32 (n, length, hidden), under the names that
        `tensors` gives. Returns the graph's new outputs: see `values`."""

    def values(self, declared: Output) -> list[Any]:
        """The tensors of an output, in ONNX's own descriptions."""
        tensors = self.tensors(declared)
        forms = OUTPUTS[declared.kind].columns(declared)
        offsets = dict.fromkeys(each.offsets for each in tensors.values() if each.offsets is not None)
        return [
            *(_value(tensors[form.name].name, form) for form in forms),
            *(helper.make_tensor_value_info(each, TensorProto.INT64, [None]) for each in offsets),
        ]


def _value(name: str, form: ColumnForm) -> Any:
    rows = None if form.several else "batch"
    shape = [rows, form.width] if form.width else [rows]
    return helper.make_tensor_value_info(name, TYPES[form.dtype], shape)
