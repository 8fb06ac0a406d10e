"""Writes a fitted adapter: the graph, the calibration queries, and the manifest with the report card."""

import statistics
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.adapter import (
    AdapterManifest,
    AdapterProvenance,
    AdapterReport,
    Counts,
    Endpoint,
)
from trimtab.artifacts.bundle import Bundle
from trimtab.stores import address as addresses
from trimtab_export import evaluate, runtime, write
from trimtab_export.adapters import gate, inputs, maps
from trimtab_export.adapters.climb import FitData
from trimtab_export.adapters.judge import EncodedQueries, Judgement
from trimtab_export.adapters.maps import Map
from trimtab_export.adapters.request import Request
from trimtab_export.adapters.split import Split
from trimtab_export.adapters.stage import StagedAdapter

Floats: TypeAlias = NDArray[np.float32]

LIBRARIES = ("numpy", "onnx", "onnxruntime", "scipy", "torch", "trimtab")
MOST_QUERIES = 2000  # kept as the baseline of query drift
CHECKED_ROWS = 64
BATCH = 64
RUNS = 50


def publish(
    stage: StagedAdapter,
    request: Request,
    new: Bundle,
    old: Bundle,
    split: Split,
    ground: FitData,
    test: EncodedQueries,
    outcome: Judgement,
) -> None:
    """Write the adapter into the stage, check its graph against the map, and publish it."""
    rung = outcome.chosen
    map = rung.map.scaled(ground.scale)
    rows = test.rows if rung.reads == "states" else test.rows[:, : ground.dimensions]
    graph = stage.folder / "adapter.onnx"
    maps.write(map, graph)
    maps.check(map, graph, rows[:CHECKED_ROWS])
    queries = None
    if request.queries is not None or request.pairs is not None:
        queries = stage.folder / "queries.npy"
        np.save(queries, test.rows[:MOST_QUERIES, : ground.dimensions].astype(np.float16))
    unsure = gate.provisional_ends(*(each.manifest.variants[0].report.fidelity for each in (new, old)))
    manifest = AdapterManifest(
        name=stage.target.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=_endpoint(new),
        target=_endpoint(old),
        rung=rung.name,
        reads=rung.reads,
        groups=ground.group_names if map.groups is not None else (),
        graph=write.entry(stage.folder, graph),
        queries=None if queries is None else write.entry(stage.folder, queries),
        calibrator=outcome.calibrator,
        verdict=outcome.verdict,
        provisional=request.pairs is None or bool(unsure),
        reasons=(*unsure, *outcome.reasons),
        report=_report(request, split, ground, outcome, _cost(graph, map, rows)),
        provenance=_provenance(request),
    )
    stage.publish(manifest)


def _report(
    request: Request, split: Split, ground: FitData, outcome: Judgement, microseconds: tuple[float, float]
) -> AdapterReport:
    alone, batched = microseconds
    return AdapterReport(
        truth="old ranking" if request.pairs is None else "pairs",
        counts=Counts(
            fit_texts=len(split.fit_documents),
            fit_queries=len(split.fit_queries),
            fit_pairs=len(ground.right),
            select_queries=len(split.select.queries),
            test_queries=len(split.test.queries),
            documents=len(split.documents),
        ),
        arms=outcome.arms,
        against_old=outcome.against_old,
        against_reindexed=outcome.against_reindexed,
        cascade_against_reindexed=outcome.cascade_against_reindexed,
        cascade_depth=outcome.cascade_depth,
        rungs=outcome.rungs,
        checks=outcome.checks,
        microseconds_alone=alone,
        microseconds_batched=batched,
        machine=evaluate.machine(),
    )


def _provenance(request: Request) -> AdapterProvenance:
    return AdapterProvenance(
        command=request.command,
        texts_sha256=inputs.sha256(request.texts),
        queries_sha256=None if request.queries is None else inputs.sha256(request.queries),
        pairs_sha256=None if request.pairs is None else inputs.sha256(request.pairs),
        old_vectors=None if request.old_vectors is None else addresses.parse(request.old_vectors).name,
        libraries={name: metadata.version(name) for name in LIBRARIES},
    )


def _endpoint(bundle: Bundle) -> Endpoint:
    manifest = bundle.manifest
    return Endpoint(
        encoder=manifest.name,
        version=manifest.version,
        space=manifest.space,
        dimensions=manifest.dimensions,
    )


def _cost(graph: Path, map: Map, rows: Floats) -> tuple[float, float]:
    """Microseconds for a single query, and per query of a batch; one thread, the median of several runs."""
    session = runtime.session(graph, threads=1)

    def median(count: int) -> float:
        batch: dict[str, NDArray[Any]] = {"vectors": np.resize(rows, (count, map.width))}
        if map.groups is not None:
            batch["group"] = np.zeros(count, np.int64)
        seconds = []
        for _ in range(RUNS):
            started = time.perf_counter()
            session.run(None, batch)
            seconds.append(time.perf_counter() - started)
        return round(1e6 * statistics.median(seconds) / count, 2)

    return median(1), median(BATCH)
