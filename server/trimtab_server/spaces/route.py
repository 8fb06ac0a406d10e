"""A loaded adapter, and a route through several: how an encoder's output comes into a space."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.adapter import AdapterManifest
from trimtab.artifacts.manifest import Manifest, Output
from trimtab.errors import InternalError
from trimtab.kinds import Similarity
from trimtab_server.engine.runners.adapter_host import AdapterHost, OpenAdapter
from trimtab_server.engine.runners.runner import DeviceLostError
from trimtab_server.spaces.watching import Watched

Vectors = NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class LoadedAdapter:
    """A loaded adapter; without a session it cannot be used, and `problem` says why."""

    encoder: str  # in whose folder it lies
    manifest: AdapterManifest
    sha256: str  # of the manifest, and through it of every file
    session: OpenAdapter | None
    problem: str
    row_seconds: float  # about what a row costs
    host: AdapterHost  # where its session lives
    target: Manifest | None  # of the bundle whose space the adapter leads to, if the repository has it
    watched: Watched | None  # if it has calibration queries, which live ones are compared with

    @property
    def name(self) -> str:
        """ENCODER/NAME."""
        return f"{self.encoder}/{self.manifest.name}"

    @property
    def states_width(self) -> int:
        """How many components it reads besides the embedding."""
        return self.session.width - self.manifest.source.dimensions if self.session else 0

    def see(self, rows: Vectors) -> None:
        """These rows, in its source space, are live queries on their way through it."""
        if self.watched is not None:
            self.watched.see(rows)

    def end(self) -> None:
        """Stop its graph, which hangs, if that is possible."""
        if self.session is not None:
            self.host.end(self.session)

    def run(self, vectors: Vectors, groups: Sequence[str]) -> Vectors:
        """Rows of the source space, float32 (n, d_in), as float32 (n, d_out) of the target space.

        groups[i] is the group of row i; a group that the adapter does not know counts as none. Raises
        InternalError if that fails, or if there is no session.
        """
        if self.session is None:
            raise InternalError(f"adapter {self.name} is in a route, and cannot be used: {self.problem}")
        try:
            known = {name: number for number, name in enumerate(self.manifest.groups, start=1)}
            numbers = np.array([known.get(group, 0) for group in groups], np.int64)
            return self.session.run(vectors, numbers)
        except DeviceLostError:
            raise
        except Exception as error:
            raise InternalError(f"adapter {self.name} failed: {type(error).__name__}") from error


@dataclass(frozen=True, slots=True)
class Route:
    """How an encoder's output comes into a space: through these adapters, one after the other."""

    space: str
    hops: tuple[LoadedAdapter, ...]  # none: the space is the encoder's own
    dimensions: int
    similarity: Similarity | None  # None if unknown
    normalized: bool | None
    int8_limit: float | None  # None if it was not calibrated, or is unknown
    encoder: str  # whose the space is
    version: int
    variant: str = ""

    @property
    def names(self) -> list[str]:
        """ENCODER/NAME of the adapters."""
        return [hop.name for hop in self.hops]

    @property
    def title(self) -> str:
        """What messages call its target."""
        return f"space {self.space}" if self.hops else f"encoder {self.encoder}"

    @property
    def uncalibrated(self) -> str:
        """Why there is no `int8_limit`."""
        if self.hops:
            return f"in space {self.space} was calibrated with an encoder that this server does not have"
        return f"was calibrated for {self.encoder} itself, not for its narrower variant {self.variant}"

    @property
    def cure(self) -> str:
        """What to do if something is unknown."""
        if self.hops:
            return f"put the bundle of {self.encoder} version {self.version} into the repository"
        return "export the encoder again"


def own(encoder: Manifest, output: Output | None = None) -> Route:
    """The route into the space of an encoder's own output, by default the first."""
    given = output or encoder.output
    return Route(
        given.space, (), given.dimensions, given.similarity, given.normalized, given.int8_limit,
        encoder.name, encoder.version, encoder.variants[0].name,
    )  # fmt: skip
