"""What the parts are given."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from bench.gpu.devices import Device, Row
from bench.gpu.graphs import Graphs
from bench.gpu.sessions import Encoder


@dataclass(frozen=True)
class Run:
    """One part's run.

    `seconds` is about how long it should take; `tiny`: as few texts, shapes and processes as show that it
    works.
    """

    device: Device
    graphs: Graphs
    seconds: float
    tiny: bool = False

    @cached_property
    def encoder(self) -> Encoder:
        """The bundle's tokenizer."""
        return Encoder(self.graphs.bundle)

    @property
    def on_gpu(self) -> bool:
        """Whether there is anything to see that a CPU does not have."""
        return self.device.kind != "cpu"


Part: TypeAlias = Callable[[Run], Iterator[Row]]
