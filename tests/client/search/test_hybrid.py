"""Hybrid search over real stores: a query is embedded, each output searched, and the hits fused."""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

import trimtab
from tests.client.fake_server import DIMENSIONS, OUTPUTS, FakeServer, space_of, sparse_of, vectors, words_of
from trimtab.search import FusedHit, by_ranks, by_scores
from trimtab.stores import Document, Form, Hit, Rows, Store, create_store
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values.multi_vector import maxsim
from trimtab.values.sparse import dot

WORDS = ["wind", "sail", "rudder", "keel", "anchor", "harbour", "tide", "storm"]
# Each word has its number, so that no two texts are equally near by a word.
TEXTS = [" ".join(f"{WORDS[(place * step) % 8]}{place}" for step in (1, 3, 5)) for place in range(60)]
FORMS = {
    "dense": Form(space=space_of("dense", "1"), dimensions=DIMENSIONS),
    "sparse": Form(space=space_of("sparse", "1"), dimensions=DIMENSIONS, similarity="dot", kind="sparse"),
    "multi_vector": Form(space=space_of("multi_vector", "1"), dimensions=DIMENSIONS, kind="multi_vector"),
}
QUERIES = ["sail in a storm", "harbour", "tide 7"]
PASSAGE, QUERY = pb.ROLE_PASSAGE, pb.ROLE_QUERY
Search = Callable[..., list[FusedHit]]


@pytest.fixture(autouse=True)
def all_outputs(server: FakeServer) -> None:
    server.outputs = OUTPUTS


@pytest.fixture
def store(place: str) -> Iterator[Store]:
    """Everything that the encoder gives for each text."""
    others = {
        "sparse": sparse_of(vectors(TEXTS, role=PASSAGE)),
        "multi_vector": words_of(TEXTS, role=PASSAGE),
    }
    documents = [Document(place, text) for place, text in enumerate(TEXTS)]
    with create_store(place, FORMS, example=0) as made:
        made.upsert(Rows(documents, vectors(TEXTS, role=PASSAGE), others))
        yield made


@pytest.fixture(params=["sync", "async"])
def search(request: pytest.FixtureRequest, url: str) -> Search:
    """A search with either client."""

    def sync(store: Store, text: str, k: int, given: Mapping[str, Any] | None = None, **options: Any) -> Any:
        with trimtab.Client(url, timeout=100) as client:
            return trimtab.HybridSearch(client, store, **options).search(text, k, **(given or {}))

    def asynchronous(
        store: Store, text: str, k: int, given: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        async def run() -> Any:
            async with trimtab.AsyncClient(url, timeout=100) as client:
                hybrid = trimtab.AsyncHybridSearch(client, store, **options)
                return await hybrid.search(text, k, **(given or {}))

        return asyncio.run(run())

    return sync if request.param == "sync" else asynchronous


def brute(text: str, most: int) -> dict[str, list[Hit]]:
    """The hits of each output, by comparing the query with all texts in memory."""
    (dense,) = vectors([text], role=QUERY)
    passages = vectors(TEXTS, role=PASSAGE)
    products = {
        "dense": passages @ dense,
        "sparse": dot(sparse_of(dense[None])[0], sparse_of(passages)),
        "multi_vector": maxsim(words_of([text], role=QUERY), words_of(TEXTS, role=PASSAGE)),
    }
    found = {}
    for name, near in products.items():
        order = np.argsort(-near, kind="stable")[:most].tolist()
        found[name] = [
            Hit(at, TEXTS[at], float(near[at])) for at in order if name != "sparse" or near[at] > 0
        ]
        # No two so near to each other that rounding could exchange them.
        assert (np.diff(np.sort(near)) > 1e-6).all()
    return found


def check(hits: list[FusedHit], expected: list[FusedHit]) -> None:
    assert [(hit.id, hit.text) for hit in hits] == [(hit.id, hit.text) for hit in expected]
    for hit, same in zip(hits, expected, strict=True):
        assert hit.score == pytest.approx(same.score, abs=1e-4)
        assert hit.parts.keys() == same.parts.keys()
        for name, part in hit.parts.items():
            assert part.rank == same.parts[name].rank
            assert part.score == pytest.approx(same.parts[name].score, abs=1e-4)


@pytest.mark.parametrize("text", QUERIES)
def test_it_finds_what_memory_finds(search: Search, store: Store, server: FakeServer, text: str) -> None:
    check(search(store, text, 10), by_ranks(brute(text, 100), 10))
    (request,) = server.requests
    assert list(request.outputs) == list(FORMS), "one pass gives all"
    assert request.role == QUERY and request.priority != pb.PRIORITY_BULK
    weights = {"sparse": 0.5, "multi_vector": 2.0}
    check(
        search(store, text, 7, fuse="scores", weights=weights, candidates=20),
        by_scores(brute(text, 20), 7, weights=weights),
    )
    check(search(store, text, 30, constant=5, candidates=4), by_ranks(brute(text, 30), 30, constant=5))


def test_some_of_the_outputs(search: Search, store: Store, server: FakeServer) -> None:
    hits = search(store, QUERIES[0], 5, outputs=["sparse", "dense"])
    found = brute(QUERIES[0], 100)
    check(hits, by_ranks({name: found[name] for name in ("sparse", "dense")}, 5))
    assert {tuple(request.outputs) for request in server.requests} == {("sparse", "dense")}
    (alone,) = search(store, QUERIES[0], 1, outputs=["multi_vector"])
    assert (alone.id, alone.score) == (found["multi_vector"][0].id, 1 / 61)


def test_outputs_of_two_versions(search: Search, place: str, server: FakeServer) -> None:
    """The dense vectors are of one version, the sparse ones of another: each is asked for its own."""
    forms = {
        "dense": FORMS["dense"],
        "words": Form(space=space_of("sparse", "2"), dimensions=DIMENSIONS, similarity="dot", kind="sparse"),
    }
    documents = [Document(place, text) for place, text in enumerate(TEXTS)]
    others = {"words": sparse_of(vectors(TEXTS, "2", PASSAGE))}
    server.newest = "2"
    with create_store(place, forms, example=0) as store:
        store.upsert(Rows(documents, vectors(TEXTS, role=PASSAGE), others))
        hits = search(store, "harbour", 10)
    asked = {(request.version, tuple(request.outputs)) for request in server.requests}
    assert asked == {("1", ("dense",)), ("2", ("sparse",))}
    words = dot(sparse_of(vectors(["harbour"], "2", QUERY))[0], sparse_of(vectors(TEXTS, "2", PASSAGE)))
    best = int(words.argmax())
    assert {hit.id for hit in hits if hit.parts.get("words") and hit.parts["words"].rank == 1} <= {best}


def test_options_reach_the_server(search: Search, store: Store, server: FakeServer) -> None:
    search(store, "keel", 1, {"group": "de", "timeout": 7.0})
    (request,) = server.requests
    assert request.group == "de" and server.deadlines[-1] < 8  # gRPC rounds up


def test_a_version_that_was_replaced(store: Store, server: FakeServer, url: str) -> None:
    with trimtab.Client(url, timeout=100) as client:
        hybrid = trimtab.HybridSearch(client, store)
        first = hybrid.search("storm", 3)
        server.loaded.remove("1")
        with pytest.raises(trimtab.NotFound, match="no encoder with an output of space space-1"):
            hybrid.search("storm", 3)
        server.loaded.add("1")
        assert [hit.id for hit in hybrid.search("storm", 3)] == [hit.id for hit in first]


def test_spaces_are_never_mixed(search: Search, store: Store, place: str, server: FakeServer) -> None:
    def elsewhere(response: pb.EmbedResponse) -> None:
        response.outputs[1].space = "elsewhere"

    server.faults.tamper = elsewhere
    with pytest.raises(
        trimtab.FailedPrecondition, match=r"'sparse' of space elsewhere, .* of space sparse-1"
    ):
        search(store, "storm", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": ["bm25"]}, "has no output 'bm25'; it has 'dense', 'sparse', 'multi_vector'"),
        ({"outputs": []}, r"outputs is \[\]; name one or more"),
        ({"outputs": ["dense", "dense"]}, "each once"),
        ({"fuse": "votes"}, "fuse 'votes' is not known; choose ranks or scores"),
        ({"candidates": 0}, "candidates is 0"),
        ({"weights": {"bm25": 1}}, "weights names 'bm25'"),
        ({"weights": {"dense": -1}}, "weight of 'dense' is -1"),
        ({"constant": -1.0}, "constant is -1"),
        ({"k": 0}, "k is 0"),
    ],
)
def test_what_makes_no_sense_never_leaves(
    search: Search, store: Store, server: FakeServer, options: dict[str, Any], message: str
) -> None:
    k = options.get("k", 3)
    with pytest.raises(trimtab.InvalidArgument, match=message):
        search(store, "storm", k, **{name: value for name, value in options.items() if name != "k"})
    assert not server.requests


def test_a_store_that_names_no_space(search: Search, tmp_path: Any) -> None:
    np.save(tmp_path / "docs.npy", vectors(TEXTS))
    with trimtab.stores.open_store(str(tmp_path / "docs.npy")) as store:
        with pytest.raises(trimtab.FailedPrecondition, match=re.escape("#...?space=DIGEST")):
            search(store, "storm", 3)


def test_a_dense_store_is_searched_as_well(search: Search, tmp_path: Any) -> None:
    np.save(tmp_path / "docs.npy", vectors(TEXTS, role=PASSAGE))
    with trimtab.stores.open_store(f"{tmp_path / 'docs.npy'}#?space=space-1") as store:
        hits = search(store, QUERIES[0], 5)
    assert [hit.id for hit in hits] == [hit.id for hit in brute(QUERIES[0], 5)["dense"]]
