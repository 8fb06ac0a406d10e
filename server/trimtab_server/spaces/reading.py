"""Reads adapters from their folders. These are foreign files, rehearsed before they are opened."""

import logging
from collections.abc import Callable
from pathlib import Path

from trimtab.artifacts import adapter as adapters
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import variants
from trimtab.artifacts.adapter import AdapterFolder, AdapterManifest, Endpoint
from trimtab.artifacts.manifest import Manifest
from trimtab.artifacts.signatures import Signers
from trimtab.errors import AdapterError, TrimtabError
from trimtab_server.engine.batch import HashedFile
from trimtab_server.engine.runners import rehearsal, runtime
from trimtab_server.engine.runners.adapter_graph import AdapterGraph
from trimtab_server.engine.runners.adapter_host import AdapterHost, OpenAdapter
from trimtab_server.engine.runners.rehearsal_pool import Rehearsals
from trimtab_server.engine.runners.runner import GraphError
from trimtab_server.spaces.route import LoadedAdapter
from trimtab_server.spaces.watching import DriftMonitor, Watched

log = logging.getLogger(__name__)


def listed(repository: Path, encoder: str) -> list[Path]:
    """The folders of an encoder's adapters."""
    return list(adapters.adapters(repository, encoder))


class AdapterReader:
    """Reads adapters, on any thread.

    Args:
        monitor: compares live queries with an adapter's own.
        signers: whose adapters are used; None: anybody's.
        rehearsals: where graphs are rehearsed; None: in this process.
        host: where they run.
    """

    def __init__(
        self,
        monitor: DriftMonitor,
        signers: Signers | None,
        rehearsals: Rehearsals | None,
        host: AdapterHost,
    ) -> None:
        self._monitor, self._signers, self._rehearsals, self._host = monitor, signers, rehearsals, host

    def open(
        self, repository: Path, encoder: str, path: Path, sha256: str, step: Callable[[], None]
    ) -> LoadedAdapter:
        """The adapter in the folder `path`; if it cannot be used, it has a `problem`.

        `sha256` is that of its manifest; `step` is called when a step of the work begins. Raises AdapterError
        if there is no readable manifest.
        """
        manifest = adapters.KIND.manifest(path, AdapterManifest)
        session, watched, problem, row_seconds = None, None, "", 0.0
        try:
            if (manifest.name, manifest.source.encoder) != (path.name, encoder):
                raise AdapterError(
                    f"{path} holds {manifest.name}, which maps vectors of {manifest.source.encoder}: an "
                    "adapter is served from REPOSITORY/ENCODER/adapters/NAME under its own name. Move it"
                )
            trusted = self._signers.check if self._signers is not None else None
            adapter = adapters.read(path, within=repository, trusted=trusted)
            session, row_seconds = self._session(adapter, step)
            watched = self._watched(adapter)
        except Exception as error:  # a foreign file may raise anything
            problem = str(error) if isinstance(error, TrimtabError) else runtime.told(error)
            log.error("%s: %s", path, problem)
            session = None
        target = _target(repository, manifest.target, self._signers)
        return LoadedAdapter(
            encoder, manifest, sha256, session, problem, row_seconds, self._host, target, watched
        )

    def _session(self, adapter: AdapterFolder, step: Callable[[], None]) -> tuple[OpenAdapter, float]:
        """An adapter's open graph, rehearsed if there is a pool for that, and what a row costs."""
        manifest, file = adapter.manifest, adapter.manifest.graph
        graph = AdapterGraph(
            adapter.path, HashedFile(file.path, file.size, file.sha256), manifest.groups,
            manifest.source.dimensions, manifest.target.dimensions, manifest.reads == "states",
        )  # fmt: skip
        piece = rehearsal.AdapterPiece(graph)
        try:
            pool = self._rehearsals
            found = pool.rehearse(piece, step) if pool else rehearsal.rehearse_adapter(graph, step)
            return self._host.open(graph), found.row_seconds
        except GraphError as error:
            raise AdapterError(f"{graph.path}: {error}. Fit the adapter again") from None

    def _watched(self, adapter: AdapterFolder) -> Watched | None:
        queries, source = adapter.baseline(), adapter.manifest.source
        if queries is None:
            return None
        try:
            return self._monitor.open(source.encoder, source.version, adapter.manifest.name, queries)
        except AdapterError as error:  # it can do its work all the same
            log.warning("%s: %s", adapter.path, error)
            return None


def _target(repository: Path, end: Endpoint, signers: Signers | None) -> Manifest | None:
    """The manifest of the bundle or variant whose space this is, if the repository still has it."""
    path = repository / bundles.check_name(end.encoder) / str(end.version)
    try:
        trusted = signers.check if signers is not None else None
        manifest = bundles.read(path, verify=False, within=repository, trusted=trusted).manifest
    except TrimtabError:
        return None
    return variants.of_space(manifest, end.space)
