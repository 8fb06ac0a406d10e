"""Running an adapter's graph, on the CPU: a row is too little work for the way to a GPU."""

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts import reading
from trimtab_server.engine.batch import HashedFile
from trimtab_server.engine.runners import loading, runtime
from trimtab_server.engine.runners.runner import GraphError

OUTPUT = "adapted"


class AdapterGraph(msgspec.Struct, frozen=True):
    """An adapter's graph, and what its manifest says of it."""

    folder: Path
    file: HashedFile  # in the adapter's folder
    groups: tuple[str, ...]
    source: int  # dimensions
    target: int
    states: bool  # it reads inner states after the embedding

    @property
    def path(self) -> Path:
        """The graph's path, for messages."""
        return self.folder / self.file.path


class AdapterOpened(msgspec.Struct, frozen=True):
    """What is known of a graph once it is open."""

    width: int


class AdapterSession:
    """An adapter's graph in ONNX Runtime. GraphError if the graph is not what its manifest says."""

    def __init__(self, graph: AdapterGraph) -> None:
        try:
            content = reading.content(graph.folder, graph.file.path, graph.file.size, graph.file.sha256)
            self._session = loading.in_memory(content, {}, runtime.options(), ["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base
            raise GraphError(f"cannot be loaded: {runtime.told(error)}") from None
        inputs = {each.name: each for each in self._session.get_inputs()}
        kinds = {name: each.type for name, each in inputs.items()}
        wanted = {"vectors": "tensor(float)"} | ({"group": "tensor(int64)"} if graph.groups else {})
        outputs = {each.name: each.type for each in self._session.get_outputs()}
        if kinds != wanted or outputs != {OUTPUT: "tensor(float)"}:
            raise GraphError(
                f"takes {_listed(kinds)}, and gives {_listed(outputs)}; the graph of this adapter takes "
                f"{_listed(wanted)}, and gives {OUTPUT!r} tensor(float)"
            )
        shape = inputs["vectors"].shape
        width = shape[1] if len(shape) == 2 else None
        more = width - graph.source if isinstance(width, int) else -1
        if not isinstance(width, int) or more < 0 or (more > 0) != graph.states:
            reads = "states" if graph.states else "embeddings"
            raise GraphError(
                f"takes vectors of {width} components, and its manifest says that it reads the {reads} of an "
                f"encoder of {graph.source} dimensions"
            )
        self.width = width
        self._target = graph.target
        self._groups = bool(graph.groups)

    def run(self, rows: NDArray[np.float32], groups: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows, float32 (n, width), in the target space, float32 (n, target); `groups` is int64 (n,)."""
        feeds: dict[str, NDArray[np.generic]] = {"vectors": np.ascontiguousarray(rows)}
        if self._groups:
            feeds["group"] = groups
        given, expected = runtime.run(self._session, [OUTPUT], feeds)[0], (len(rows), self._target)
        if not isinstance(given, np.ndarray) or given.dtype != np.float32 or given.shape != expected:
            what = f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
            raise GraphError(f"the graph gave {what} instead of float32 {expected}")
        return given


def _listed(kinds: dict[str, str]) -> str:
    return " and ".join(f"{name!r} {kind}" for name, kind in sorted(kinds.items()))
