"""The data that travels through the engine. Scheduling looks only at an item's units and key; its content is
up to its kind of input and the runner."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from trimtab.inputs.graph import GraphInput
from trimtab.kinds import Precision, Priority, Runtime
from trimtab.values.column import Columns, Values, stacked

Wanted: TypeAlias = tuple[str, ...]  # names of outputs, in order
# The dtypes that outputs may have, and their sizes in bytes.
BYTES = {"float32": 4, "int32": 4, "int64": 8}


class Payload(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One item for a graph, prepared by its input's kind.

    The garbage collector ignores it: there may be 100,000, and none is part of a cycle.

    `arrays` have a row for each unit, such as the ids of a text's tokens. Payloads with the same `key` have
    the same result for the same model.
    """

    arrays: Mapping[str, Values]
    units: int  # its length: batches are padded to the longest, and bounded in units
    key: bytes


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A file of a bundle: its path in the bundle's folder, and the size and hash it must have."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """An output of a graph: a column, cut out of one of its tensors."""

    name: str
    tensor: str
    width: int = 0  # components of a row; 0: a row is one number
    start: int = 0  # where they begin in the tensor's rows
    dtype: str = "float32"
    several: bool = False  # an item may have several rows
    most: int = 0  # how many, at most; 0: one for each unit
    offsets: str = ""  # the tensor with the offsets of items, if they have several rows
    unit: bool = False  # rows are of length 1
    places: str = ""  # the output that says where these numbers stand in a long vector

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors that the graph must compute for it."""
        return (self.tensor, self.offsets) if self.several else (self.tensor,)

    @property
    def row_bytes(self) -> int:
        """The bytes of a row."""
        return (self.width or 1) * BYTES[self.dtype]


@dataclass(frozen=True, eq=False, slots=True)
class Model:
    """One graph, as devices load it. Two loads of the same file are two models: identity is the key."""

    encoder: str
    version: int
    variant: str
    folder: Path  # of its bundle
    files: tuple[HashedFile, ...]  # the graph, and its external data
    input: GraphInput
    outputs: tuple[OutputSpec, ...]
    most_units: int
    unpadded: bool = False  # its linear layers skip the padding
    precision: Precision = "fp32"
    runner: Runtime = "onnx"
    engines: tuple[HashedFile, ...] = ()  # of TensorRT

    @property
    def graph(self) -> Path:
        """The graph's path, for messages."""
        return self.folder / self.files[0].path if self.files else self.folder

    @property
    def digest(self) -> str:
        """A digest of its files."""
        return "".join(file.sha256 for file in self.files)

    @property
    def names(self) -> Wanted:
        """The names of all its outputs."""
        return tuple(sorted(output.name for output in self.outputs))

    def specs(self, wanted: Iterable[str]) -> list[OutputSpec]:
        """The outputs of these names. KeyError if it lacks one."""
        by_name = {output.name: output for output in self.outputs}
        return [by_name[name] for name in wanted]

    def most_bytes(self, wanted: Wanted, items: int, units: int) -> int:
        """The most bytes that the outputs of these names of some items may have, if the items have so many
        units in all."""
        size = 0
        for each in self.outputs:
            if each.name in wanted:
                by_units = each.several and not each.most
                size += each.row_bytes * (units if by_units else items * (each.most or 1))
        return size

    def sample(self, units: int) -> Payload:
        """An item of so many units, or as many as the graph takes, to try it with."""
        units = max(1, min(units, self.most_units))
        return Payload(self.input.sample(units), units, b"")


class Item(msgspec.Struct, eq=False):
    """One payload that waits for a device, and all requests that wait for it: see sharing.py."""

    model: Model
    payload: Payload
    wanted: Wanted
    deadline: float | None  # the latest of its waiters', on the engine's clock; None: no deadline
    tenant: str = ""
    priority: Priority = "interactive"
    key: Any = None  # items with the same key have the same result
    # Tickets, and the rows it fills in each.
    waiters: dict[Any, list[int]] = msgspec.field(default_factory=dict)

    @property
    def units(self) -> int:
        """Its length in units."""
        return self.payload.units


class Batch(msgspec.Struct, frozen=True):
    """Items of one model that run together, padded to the longest of them."""

    model: Model
    items: tuple[Item, ...]

    @property
    def longest(self) -> int:
        """Units of the longest item: the width of the padded batch."""
        return max([item.payload.units for item in self.items])

    @property
    def units(self) -> int:
        """Real units, padding left out."""
        return sum([item.payload.units for item in self.items])

    @property
    def computed_units(self) -> int:
        """Units that the graph's linear layers compute."""
        return self.units if self.model.unpadded else len(self.items) * self.longest

    @property
    def wanted(self) -> Wanted:
        """All outputs that its items want."""
        first = self.items[0].wanted
        if len(self.items) == 1 or all(item.wanted == first for item in self.items):
            return first
        return tuple(sorted({name for item in self.items for name in item.wanted}))


def collated(payloads: Sequence[Payload]) -> Columns:
    """Payloads of one kind as a batch for a runner."""
    names = payloads[0].arrays
    return {name: stacked([payload.arrays[name] for payload in payloads]) for name in names}
