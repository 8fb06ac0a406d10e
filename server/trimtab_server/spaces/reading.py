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
from trimtab_server.engine.batch import Stored
from trimtab_server.engine.runners import rehearsal, runtime
from trimtab_server.engine.runners.mapping import Maps, OpenMap
from trimtab_server.engine.runners.maps import Map
from trimtab_server.engine.runners.runner import GraphError
from trimtab_server.engine.runners.stage import Stage
from trimtab_server.spaces.route import Loaded
from trimtab_server.spaces.watching import Watch, Watched

log = logging.getLogger(__name__)


def listed(repository: Path, encoder: str) -> list[Path]:
    """The folders of an encoder's adapters."""
    return list(adapters.adapters(repository, encoder))


class Reader:
    """Reads adapters, on any thread.

    Args:
        watch: compares live queries with an adapter's own.
        signers: whose adapters are used; None: anybody's.
        stage: where graphs are rehearsed; None: in this process.
        maps: where they live.
    """

    def __init__(self, watch: Watch, signers: Signers | None, stage: Stage | None, maps: Maps) -> None:
        self._watch, self._signers, self._stage, self._maps = watch, signers, stage, maps

    def open(
        self, repository: Path, encoder: str, path: Path, sha256: str, step: Callable[[], None]
    ) -> Loaded:
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
        return Loaded(encoder, manifest, sha256, session, problem, row_seconds, self._maps, target, watched)

    def _session(self, adapter: AdapterFolder, step: Callable[[], None]) -> tuple[OpenMap, float]:
        """The map of an adapter, rehearsed if there is a stage, and what a row costs."""
        manifest, graph = adapter.manifest, adapter.manifest.graph
        map = Map(
            adapter.path, Stored(graph.path, graph.size, graph.sha256), manifest.groups,
            manifest.source.dimensions, manifest.target.dimensions, manifest.reads == "states",
        )  # fmt: skip
        piece = rehearsal.MapPiece(map)
        try:
            stage = self._stage
            found = stage.rehearse(piece, step) if stage else rehearsal.rehearse_map(map, step)
            return self._maps.open(map), found.row_seconds
        except GraphError as error:
            raise AdapterError(f"{map.graph}: {error}. Fit the adapter again") from None

    def _watched(self, adapter: AdapterFolder) -> Watched | None:
        queries, source = adapter.baseline(), adapter.manifest.source
        if queries is None:
            return None
        try:
            return self._watch.open(source.encoder, source.version, adapter.manifest.name, queries)
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
