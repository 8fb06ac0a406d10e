"""From an encoder with three outputs to hybrid search: served, re-indexed into real stores, searched."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_bge_m3 import make

import trimtab
from tests.client.migration.world import fill
from tests.client.stores.conftest import address, database
from tests.server.server_process import ServerProcess, serve
from trimtab import cli
from trimtab.search import by_ranks, by_scores
from trimtab.stores import Hit, open_store
from trimtab.values.multi_vector import maxsim
from trimtab.values.sparse import dot
from trimtab_export import sentences
from trimtab_export.export import export
from trimtab_export.source import Settings

__all__ = ["database"]
OUTPUTS = ("dense", "sparse", "multi_vector")
TEXTS = [f"{text[:120]} ({number})" for number, text in enumerate(sentences.load()[:60])]
QUERIES = [text[20:80] for text in sentences.load()[60:90]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    source = make(tmp_path_factory.mktemp("source"))
    repository = tmp_path_factory.mktemp("repository")
    export(Settings(str(source)), "three", repository)
    with serve(repository, tmp_path_factory.mktemp("served")) as running:
        yield running


def brute(query: trimtab.Outputs, kept: trimtab.Outputs) -> dict[str, list[Hit]]:
    """All texts by each output, nearest first, compared in memory."""
    near = {
        "dense": kept["dense"] @ query["dense"][0],
        "sparse": dot(query["sparse"][0], kept["sparse"]),
        "multi_vector": maxsim(query["multi_vector"], kept["multi_vector"]),
    }
    return {
        name: [
            Hit(at, TEXTS[at], float(scores[at]))
            for at in np.argsort(-scores, kind="stable").tolist()
            if name != "sparse" or scores[at] > 0
        ]
        for name, scores in near.items()
    }


def apart(found: dict[str, list[Hit]]) -> bool:
    """Whether no two are so near to each other that rounding could exchange them."""
    return all((np.diff([hit.score for hit in hits]) < -3e-6).all() for hits in found.values())


@pytest.mark.parametrize("kind", ["qdrant", "postgresql"])
def test_every_step_is_the_same_as_in_memory(
    server: ServerProcess, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    old, new = f"faiss:{tmp_path / 'old'}", address(kind, tmp_path, request)
    fill(old, range(len(TEXTS)), TEXTS)
    assert cli.main(["reindex", "--from", old, "--to", new, "--url", server.url, "--encoder", "three"]) == 0
    checked = 0
    with trimtab.Client(server.url, timeout=100) as client, open_store(new) as store:
        assert list(store.outputs) == list(OUTPUTS)
        assert {name: form.space for name, form in store.outputs.items()} == {
            output.name: output.space for output in client.encoder().outputs
        }
        kept = client.embed_outputs(TEXTS, OUTPUTS)
        ranked = trimtab.HybridSearch(client, store)
        scored = trimtab.HybridSearch(client, store, fuse="scores", weights={"sparse": 0.5})
        for text in QUERIES:
            expected = brute(client.embed_outputs([text], OUTPUTS), kept)
            if not apart(expected):
                continue
            checked += 1
            for search, fused in (
                (ranked, by_ranks(expected, 10)),
                (scored, by_scores(expected, 10, weights={"sparse": 0.5})),
            ):
                hits = search.search(text, 10)
                assert [(hit.id, hit.text) for hit in hits] == [(hit.id, hit.text) for hit in fused]
                for hit, same in zip(hits, fused, strict=True):
                    assert hit.score == pytest.approx(same.score, abs=1e-4)
                    for name, part in hit.parts.items():
                        assert part.rank == same.parts[name].rank
                        assert part.score == pytest.approx(same.parts[name].score, abs=1e-4)
    assert checked >= 5
