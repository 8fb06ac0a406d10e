"""A whole, made-up adapter manifest for tests that need one on disk, and real pairs of texts."""

from functools import cache
from pathlib import Path

import msgspec
import numpy as np

from trimtab.artifacts import adapter as adapters
from trimtab.artifacts import artifact
from trimtab_export.texts import python_sources
from trimtab_export.texts.domain import hash_of

QUALITY = adapters.Quality(recall_1=0.5, recall_10=0.8, recall_100=0.9, ndcg_10=0.6)
INTERVAL = artifact.Interval(value=0.98, low=0.96, high=1.0)

REPORT = adapters.AdapterReport(
    truth="pairs",
    counts=adapters.Counts(fit_texts=9, fit_queries=3, select_queries=3, test_queries=3, documents=9),
    arms=adapters.Arms(old_on_old=QUALITY, naive=None, adapted=QUALITY, cascade=QUALITY, reindexed=QUALITY),
    against_old=INTERVAL,
    against_reindexed=INTERVAL,
    cascade_against_reindexed=INTERVAL,
    cascade_depth=200,
    rungs=(),
    checks=(),
    microseconds_alone=20.0,
    microseconds_batched=2.0,
    machine="a machine",
)


def manifest(folder: Path, name: str) -> adapters.AdapterManifest:
    """A manifest of the files graph and queries in `folder`."""

    def entry(file: str) -> artifact.File:
        return msgspec.structs.replace(artifact.digest(folder / file), path=file)

    return adapters.AdapterManifest(
        name=name,
        created="2026-01-01T00:00:00+00:00",
        source=adapters.Endpoint(encoder="new", version=2, space="a" * 16, dimensions=4),
        target=adapters.Endpoint(encoder="old", version=1, space="b" * 16, dimensions=4),
        rung="ridge",
        reads="embeddings",
        graph=entry("adapter.onnx"),
        queries=entry("queries.npy"),
        calibrator=adapters.Calibrator(adapted=(0.0, 1.0), target=(0.1, 0.9)),
        verdict="bridge",
        provisional=False,
        reasons=("it is good enough",),
        report=REPORT,
        provenance=adapters.AdapterProvenance(
            command="trimtab adapter fit",
            texts_sha256="0" * 64,
            queries_sha256=None,
            pairs_sha256=None,
            old_vectors=None,
            libraries={},
        ),
    )


def write(folder: Path) -> adapters.AdapterManifest:
    """A folder with an adapter in it; its graph is no graph."""
    folder.mkdir(parents=True)
    (folder / "adapter.onnx").write_bytes(b"not a graph, but a file")
    np.save(folder / "queries.npy", np.eye(4, dtype=np.float16))
    content = manifest(folder, folder.name)
    (folder / adapters.MANIFEST).write_bytes(msgspec.json.encode(content))
    return content


@cache
def docstrings(longest: int) -> list[tuple[str, str]]:
    """(first paragraph, the first `longest` characters of the rest) of real docstrings, each once."""
    found: dict[str, str] = {}
    for query, document, _ in python_sources.docstrings((python_sources.STANDARD, "numpy", "scipy")):
        found.setdefault(" ".join(document.split())[:longest], " ".join(query.split()))
    unique = {query: document for document, query in found.items()}
    return sorted(unique.items(), key=lambda pair: (hash_of(pair[0]), pair))
