"""Stores that keep several outputs: each in its own space and column, searched as in memory."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from qdrant_client import QdrantClient, models

import trimtab
from tests.client.stores.conftest import address
from tests.client.stores.postgres_process import PostgresProcess
from trimtab.search.fusion import by_ranks, by_scores
from trimtab.stores import Document, Form, Hit, Rows, Store, create_store, open_store, qdrant_store
from trimtab.stores.qdrant_store import QdrantStore
from trimtab.values.multi_vector import MultiVectors
from trimtab.values.similarity import normalised
from trimtab.values.sparse import SparseVectors

D, WORDS, WIDTH = 8, 5_000, 6
FORMS = {
    "dense": Form(space="space-d", dimensions=D),
    "sparse": Form(space="space-s", dimensions=WORDS, similarity="dot", kind="sparse"),
    "multi_vector": Form(space="space-m", dimensions=WIDTH, similarity="cosine", kind="multi_vector"),
}


@pytest.fixture(params=["qdrant", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kinds of store that keep all outputs."""
    name: str = request.param
    return name


def sparse_of(items: list[dict[int, float]], dimensions: int = WORDS) -> SparseVectors:
    indices = [np.array(sorted(item), np.int32) for item in items]
    values = [np.array([item[at] for at in sorted(item)], np.float32) for item in items]
    indptr = np.cumsum([0, *map(len, indices)])
    return SparseVectors(indptr, np.concatenate(indices), np.concatenate(values), dimensions)


def multi_of(items: list[np.ndarray]) -> MultiVectors:
    offsets = np.cumsum([0, *map(len, items)])
    return MultiVectors(np.concatenate(items).astype(np.float32), offsets)


def made(count: int, seed: int = 0) -> Rows:
    """Documents, each with a dense vector, a few of many words, and 1 to 9 vectors of tokens.

    The one in the middle has no words.
    """
    random = np.random.default_rng(seed)
    words = [
        {int(word): float(random.exponential()) for word in random.zipf(1.3, 12) if word < WORDS}
        for _ in range(count)
    ]
    words[count // 2] = {}
    tokens = [
        normalised(random.standard_normal((random.integers(1, 10), WIDTH)).astype(np.float32))
        for _ in range(count)
    ]
    dense = normalised(random.standard_normal((count, D)).astype(np.float32))
    documents = [Document(id, f"text {id} of {seed}") for id in range(count)]
    return Rows(documents, dense, {"sparse": sparse_of(words), "multi_vector": multi_of(tokens)})


def dense_products(rows: Rows, query: np.ndarray) -> np.ndarray:
    return rows.vectors @ query


def sparse_products(rows: Rows, query: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Of long vectors with all their zeros."""
    kept, asked = rows.others["sparse"], np.zeros(WORDS, np.float64)
    assert isinstance(kept, SparseVectors)
    asked[query[0]] = query[1]
    return np.array([np.dot(asked[indices], values) for indices, values in kept])


def max_sims(rows: Rows, query: np.ndarray) -> np.ndarray:
    kept = rows.others["multi_vector"]
    assert isinstance(kept, MultiVectors)
    return np.array([(query @ tokens.T).max(axis=1).sum() for tokens in kept])


PRODUCTS: dict[str, Any] = {"dense": dense_products, "sparse": sparse_products, "multi_vector": max_sims}


def query_of(rows: Rows, place: int) -> dict[str, Any]:
    """What a text gives, as it is searched with."""
    sparse, multi = rows.others["sparse"], rows.others["multi_vector"]
    assert isinstance(sparse, SparseVectors) and isinstance(multi, MultiVectors)
    return {"dense": rows.vectors[place], "sparse": sparse[place], "multi_vector": multi[place]}


def brute(rows: Rows, output: str, query: Any, k: int) -> list[Hit]:
    """The k nearest among all rows; by sparse vectors, those that have a word in common."""
    near = PRODUCTS[output](rows, query)
    order = np.argsort(-near, kind="stable")[:k]
    return [
        Hit(rows.ids[at], rows.documents[at].text, float(near[at]))
        for at in order.tolist()
        if output != "sparse" or near[at] > 0
    ]


def check_hits(hits: list[Hit], rows: Rows, output: str, query: Any, k: int) -> None:
    """They are the k nearest of all rows, but those that rounding could exchange."""
    expected, near = brute(rows, output, query, k), PRODUCTS[output](rows, query)
    assert len({hit.id for hit in hits}) == len(hits) == len(expected)
    for hit, place in zip(hits, expected, strict=True):
        assert hit.score == pytest.approx(near[int(hit.id)], abs=1e-5)
        assert hit.score == pytest.approx(place.score, abs=1e-5)
        assert hit.text == rows.documents[int(hit.id)].text


def check_values(found: Rows, written: Rows, places: list[int], atol: float = 1e-6) -> None:
    """The values of these of the written rows."""
    np.testing.assert_allclose(found.vectors, written.vectors[places], atol=atol)
    assert found.others.keys() == {"sparse", "multi_vector"}
    for row, place in enumerate(places):
        mine, theirs = query_of(found, row), query_of(written, place)
        np.testing.assert_array_equal(mine["sparse"][0], theirs["sparse"][0])
        np.testing.assert_allclose(mine["sparse"][1], theirs["sparse"][1], atol=1e-6)
        np.testing.assert_allclose(mine["multi_vector"], theirs["multi_vector"], atol=atol)


def test_all_outputs_come_back(url: str) -> None:
    written = made(150)  # more than one upload to Qdrant takes
    with create_store(url, FORMS, example=0) as store:
        store.upsert(written)
        assert store.outputs == FORMS
    with open_store(url) as store:
        assert list(store.outputs.items()) == list(FORMS.items())
        assert store.form == FORMS["dense"] and list(store.beside) == []
        found = store.get([3, 999, 75, 1])  # 75 has no words
        assert found.ids == [3, 75, 1]
        check_values(found, written, [3, 75, 1])
        changed = made(4, seed=1)
        store.upsert(changed)
        assert store.count() == 150 and store.texts([2]) == {2: "text 2 of 1"}
        check_values(store.get([0, 1, 2, 3]), changed, [0, 1, 2, 3])
        empty = store.get([])
        assert len(empty) == len(empty.others["sparse"]) == len(empty.others["multi_vector"]) == 0


@pytest.mark.parametrize("output", FORMS)
def test_each_output_is_searched_as_in_memory(url: str, output: str) -> None:
    written, queries = made(300), made(12, seed=5)
    with create_store(url, FORMS, example=0) as store:
        store.upsert(written)
        for place in range(len(queries)):
            query = query_of(queries, place)[output]
            for k in (1, 10, 400):
                check_hits(store.search_output(output, query, k), written, output, query, k)
        by_default = store.search(queries.vectors[0], 5)
        assert [hit.id for hit in by_default] == [
            hit.id for hit in store.search_output("dense", queries.vectors[0], 5)
        ]


@pytest.mark.parametrize("fuse", [by_ranks, by_scores])
def test_what_is_fused_is_what_memory_says(url: str, fuse: Any) -> None:
    written, queries = made(200), made(8, seed=6)
    weights = {"dense": 1.0, "sparse": 0.4, "multi_vector": 2.0}
    with create_store(url, FORMS, example=0) as store:
        store.upsert(written)
        for place in range(len(queries)):
            asked = query_of(queries, place)
            found = {name: store.search_output(name, query, 50) for name, query in asked.items()}
            expected = {name: brute(written, name, query, 50) for name, query in asked.items()}
            for hits in expected.values():  # no two so near to each other that rounding could exchange them
                assert (np.diff([hit.score for hit in hits]) < -1e-6).all()
            mine, theirs = fuse(found, 10, weights=weights), fuse(expected, 10, weights=weights)
            assert [hit.id for hit in mine] == [hit.id for hit in theirs]
            for hit, same in zip(mine, theirs, strict=True):
                assert hit.score == pytest.approx(same.score, abs=1e-4)
                assert {name: part.rank for name, part in hit.parts.items()} == {
                    name: part.rank for name, part in same.parts.items()
                }


@pytest.mark.parametrize("kind", ["postgresql"])
def test_half_the_size(url: str) -> None:
    written = made(60)
    with create_store(f"{url}?type=halfvec", FORMS, example=0) as store:
        store.upsert(written)
    query = query_of(made(1, seed=9), 0)
    with open_store(url) as store:
        check_values(store.get(list(range(60))), written, list(range(60)), atol=1e-3)
        for name in FORMS:
            hits, expected = store.search_output(name, query[name], 60), brute(written, name, query[name], 60)
            assert {hit.id for hit in hits} == {hit.id for hit in expected}
            np.testing.assert_allclose([h.score for h in hits], [h.score for h in expected], atol=2e-2)
    types = columns_of(url)
    assert types["embedding"] == "halfvec(8)" and types["multi_vector"] == "halfvec(6)[]"
    assert types["sparse"] == "sparsevec(5000)"
    plain = f"{url}_plain"
    create_store(plain, FORMS, example=0).close()
    assert columns_of(plain)["multi_vector"] == "vector(6)[]"
    with pytest.raises(trimtab.ConfigError, match=r"'embedding'.* is vector; leave out type=halfvec"):
        open_store(f"{plain}?type=halfvec")
    with pytest.raises(trimtab.ConfigError, match=r"type is 'bit'; give vector or halfvec"):
        open_store(f"{plain}?type=bit")


def columns_of(url: str) -> dict[str, str]:
    table = url.partition("#")[2]
    with psycopg.connect(url.partition("#")[0]) as connection:
        found = connection.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = to_regclass(%s) AND attnum > 0",
            (table,),
        ).fetchall()
    return dict(found)


@pytest.mark.parametrize("kind", ["postgresql"])
def test_an_index_on_sparse_vectors(url: str) -> None:
    written, queries = made(2000), made(10, seed=7)
    with create_store(url, FORMS, example=0) as store:
        store.upsert(written)
    table = url.rpartition("#")[2]
    with psycopg.connect(url.partition("#")[0], autocommit=True) as connection:
        connection.execute(f"CREATE INDEX ON {table} USING hnsw (sparse sparsevec_ip_ops)")  # type: ignore[call-overload]
        connection.execute(f"ANALYZE {table}")  # type: ignore[call-overload]
    right = total = 0
    with open_store(url) as store:
        for place in range(len(queries)):
            query = query_of(queries, place)["sparse"]
            expected = brute(written, "sparse", query, 10)
            hits = store.search_output("sparse", query, 10)
            assert len(hits) == len(expected)
            right += len({hit.id for hit in hits} & {hit.id for hit in expected})
            total += len(expected)
    assert total == 90 and right >= 0.95 * total


def test_a_query_without_entries_finds_nothing_by_them(url: str) -> None:
    with create_store(url, FORMS, example=0) as store:
        store.upsert(made(10))
        none = np.array([], np.int32), np.array([], np.float32)
        assert store.search_output("sparse", none, 5) == []
        unused = np.array([WORDS - 1], np.int32), np.array([1.0], np.float32)
        assert store.search_output("sparse", unused, 5) == []


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_values_of_fewer_bits_are_kept_as_numbers(url: str, dtype: str) -> None:
    written = made(20)
    multi, sparse = written.others["multi_vector"], written.others["sparse"]
    assert isinstance(multi, MultiVectors) and isinstance(sparse, SparseVectors)
    if dtype == "int8":
        given = MultiVectors(np.rint(multi.vectors * 100).astype(np.int8), multi.offsets, "int8", 0.01)
        few = sparse
    else:
        given = MultiVectors(multi.vectors.astype(np.float16), multi.offsets, "float16")
        half = sparse.values.astype(np.float16)
        few = SparseVectors(sparse.indptr, sparse.indices, half, sparse.dimensions)
    with create_store(url, FORMS, example=0) as store:
        store.upsert(Rows(written.documents, written.vectors, {"sparse": few, "multi_vector": given}))
        found = store.get(written.ids)
    for row in range(20):
        mine, theirs = query_of(found, row), query_of(written, row)
        np.testing.assert_allclose(mine["multi_vector"], theirs["multi_vector"], atol=6e-3)
        np.testing.assert_allclose(mine["sparse"][1], theirs["sparse"][1], rtol=1e-3)


BAD: dict[str, tuple[str, Any, str]] = {
    "missing": (
        "sparse",
        None,
        "keeps the outputs dense, sparse, multi_vector.* come with dense, multi_vector",
    ),
    "few": ("sparse", sparse_of([{1: 1.0}]), r"output 'sparse', takes 3 sparse vectors .*, got 1 of 5000"),
    "narrow": ("sparse", sparse_of([{1: 1.0}] * 3, 4000), "got 3 of 4000"),
    "falling": (
        "sparse",
        SparseVectors(np.array([0, 2, 2, 2]), np.array([5, 3], np.int32), np.ones(2, np.float32), WORDS),
        "indices that do not rise",
    ),
    "nan": ("sparse", sparse_of([{1: 1.0}, {2: math.nan}, {}]), "the sparse vector of document 1 .*1 of 3"),
    "an array": ("sparse", np.ones((3, WORDS), np.float32), "takes SparseVectors, got an array of shape"),
    "no rows": (
        "multi_vector",
        multi_of([np.ones((2, WIDTH)), np.ones((0, WIDTH)), np.ones((1, WIDTH))]),
        "the multi-vector of document 1 has no rows, or holds NaN.*1 of 3",
    ),
    "wide": ("multi_vector", multi_of([np.ones((1, WIDTH + 1))] * 3), "of width 6, got 3 of width 7"),
    "bits": (
        "multi_vector",
        MultiVectors(np.ones((3, WIDTH), np.uint8), np.arange(4), "ubinary"),
        "takes numbers, got the bits",
    ),
    "infinite": (
        "multi_vector",
        multi_of([np.full((1, WIDTH), math.inf)] * 3),
        "the multi-vector of document 0 .*3 of 3",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_value_is_refused_whole(url: str, case: str) -> None:
    name, value, message = BAD[case]
    good = made(3)
    others = dict(good.others)
    del others[name]
    if value is not None:
        others[name] = value
    with create_store(url, FORMS, example=0) as store:
        with pytest.raises(trimtab.InvalidArgument, match=message):
            store.upsert(Rows(good.documents, good.vectors, others))
        assert store.count() == 0


QUERIES: list[tuple[str, Any, str]] = [
    ("colbert", np.ones(D), "has no output 'colbert'; it has 'dense', 'sparse', 'multi_vector'"),
    ("", np.ones(D), "has no output ''"),
    ("dense", np.ones((1, D)), "by 'dense': it takes a vector of 8 dimensions, got an array of shape"),
    ("sparse", np.ones(WORDS), "takes the pair"),
    ("sparse", (np.array([3, 3]), np.ones(2)), "indices that do not rise"),
    ("sparse", (np.array([WORDS]), np.ones(1)), "an index outside of their 5000 dimensions"),
    ("sparse", (np.array([0.5]), np.ones(1)), "whole numbers as indices, got float64"),
    ("sparse", (np.array([1]), np.array([math.nan])), "NaN or infinity"),
    ("multi_vector", np.ones(WIDTH), r"an array \(rows, 6\) of 1 row or more, got an array of shape \(6,\)"),
    ("multi_vector", np.ones((0, WIDTH)), "1 row or more"),
    ("multi_vector", np.full((1, WIDTH), math.inf), "finite"),
    ("multi_vector", (np.array([1]), np.ones(1)), "got tuple"),
]


@pytest.mark.parametrize(("output", "query", "message"), QUERIES)
def test_what_is_no_query_is_refused(url: str, output: str, query: Any, message: str) -> None:
    with create_store(url, FORMS, example=0) as store:
        with pytest.raises(trimtab.InvalidArgument, match=message):
            store.search_output(output, query, 3)
        with pytest.raises(trimtab.InvalidArgument, match="k is 0"):
            store.search_output("sparse", (np.array([1]), np.ones(1)), 0)


def test_an_output_has_a_space_of_its_own(url: str) -> None:
    create_store(url, FORMS, example=0).close()
    other = {**FORMS, "sparse": Form(space="space-x", dimensions=WORDS, similarity="dot", kind="sparse")}
    with pytest.raises(trimtab.FailedPrecondition, match=r"output 'sparse',.* space space-s, .*space-x"):
        create_store(url, other)
    with pytest.raises(
        trimtab.FailedPrecondition, match=r"keeps dense and sparse and multi_vector, .* is dense"
    ):
        create_store(url, FORMS["dense"])
    fewer = {name: FORMS[name] for name in ("dense", "sparse")}
    with pytest.raises(trimtab.FailedPrecondition, match=r"to be written is dense and sparse; write just"):
        create_store(url, fewer)
    wide = {**FORMS, "sparse": Form(space="space-s", dimensions=9, similarity="dot", kind="sparse")}
    with pytest.raises(trimtab.FailedPrecondition, match=r"output 'sparse',.* 5000 dimensions.* have 9"):
        create_store(url, wide)
    create_store(url, FORMS).close()


@pytest.mark.parametrize(
    ("forms", "message"),
    [
        ({"sparse": FORMS["sparse"]}, "needs a dense output first, got sparse"),
        ({}, "needs a dense output first, got none"),
        (
            {**FORMS, "sparse": Form(space="s", dimensions=9, kind="sparse", similarity="manhattan")},
            "'sparse'.* is compared by dot or cosine, not by manhattan",
        ),
        (
            {**FORMS, "rest": Form(space="s", dimensions=9, kind="multi_vector", similarity="euclidean")},
            "'rest', which is multi_vector, is compared by cosine or dot, not by euclidean",
        ),
        ({**FORMS, "none": Form(space=None, dimensions=9)}, "without naming the space"),
        ({**FORMS, "n" * 64: FORMS["dense"]}, "is no name of an output; it has 1 to 63 bytes"),
        ({**FORMS, "rank": Form(space="s", dimensions=1, kind="scores")}, "the output 'rank' is scores"),  # type: ignore[arg-type]
    ],
)
def test_outputs_that_no_store_keeps(url: str, forms: dict[str, Form], message: str) -> None:
    with pytest.raises(trimtab.ConfigError, match=message):
        create_store(url, forms)
    with pytest.raises(trimtab.NotFound):
        open_store(url)


def test_faiss_keeps_dense_vectors_alone(tmp_path: Path) -> None:
    with pytest.raises(
        trimtab.ConfigError, match=r"dense vectors alone, and not sparse and multi_vector; leave"
    ):
        create_store(f"faiss:{tmp_path / 'docs'}", FORMS)
    assert not (tmp_path / "docs").exists()
    assert trimtab.stores.kinds(f"faiss:{tmp_path}") == ("dense",)
    with create_store(f"faiss:{tmp_path / 'docs'}", {"vector": FORMS["dense"]}) as store:
        store.upsert(Rows(made(3).documents, made(3).vectors))
        with pytest.raises(
            trimtab.InvalidArgument, match=r"keeps the outputs dense, .* dense, sparse, multi"
        ):
            store.upsert(made(3))
        with pytest.raises(trimtab.InvalidArgument, match="has no output 'sparse'; it has 'dense'"):
            store.search_output("sparse", (np.array([1]), np.ones(1)), 3)


def test_a_second_dense_output(url: str) -> None:
    """Each is compared by its own similarity, and a name is what the encoder calls it."""
    forms = {
        "title": FORMS["dense"],
        "body": Form(space="space-b", dimensions=3, similarity="euclidean"),
        "place": Form(space="space-p", dimensions=2, similarity="cosine"),
    }
    random = np.random.default_rng(4)
    body = random.standard_normal((50, 3)).astype(np.float32)
    place = random.standard_normal((50, 2)).astype(np.float32)
    place[7] = 0
    rows = Rows(made(50).documents, made(50).vectors, {"body": body, "place": place})
    with create_store(url, forms, example=0) as store:
        store.upsert(rows)
    with open_store(url) as store:
        assert store.output == "title" and store.outputs == forms
        hits = store.search_output("body", body[4] + 0.01, 50)
        near = -np.linalg.norm(body - (body[4] + 0.01), axis=1)
        assert [hit.id for hit in hits] == np.argsort(-near).tolist()
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(near)[::-1], atol=1e-4)
        hits = store.search_output("place", np.array([1, 1], np.float32), 50)
        cosines = normalised(place) @ normalised(np.array([1, 1], np.float32))
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosines)[::-1], atol=1e-5)
        np.testing.assert_allclose(store.get([4]).others["body"], body[[4]], atol=1e-6)


@pytest.mark.parametrize("kind", ["qdrant"])
def test_other_vectors_and_points_of_a_collection_stay(url: str) -> None:
    create_store(url, FORMS).close()
    folder, _, name = url.removeprefix("qdrant:").partition("#")
    client = QdrantClient(path=folder)
    # Another program's point, without our sparse and multi-vectors.
    client.upsert(name, [models.PointStruct(id=7, vector={"dense": [1.0] * D}, payload={"text": "theirs"})])
    client.close()
    with open_store(url) as store:
        store.upsert(made(3))
        found = store.get([7, 1])
        assert found.ids == [7, 1]
        assert len(query_of(found, 0)["sparse"][0]) == 0 and query_of(found, 0)["multi_vector"].shape == (
            0,
            WIDTH,
        )
        assert 7 not in {hit.id for hit in store.search_output("multi_vector", np.ones((1, WIDTH)), 9)}
        assert 7 in {hit.id for hit in store.search(np.ones(D, np.float32), 9)}


@pytest.mark.parametrize("kind", ["qdrant"])
def test_a_collection_of_somebody_is_read_as_before(url: str) -> None:
    """Only what the catalogue records is an output: other vectors are named, and not touched."""
    folder, _, name = url.removeprefix("qdrant:").partition("#")
    client = QdrantClient(path=folder)
    client.create_collection(
        name,
        vectors_config={"mine": models.VectorParams(size=D, distance=models.Distance.COSINE)},
        sparse_vectors_config={"bm25": models.SparseVectorParams()},
    )
    words = models.SparseVector(indices=[3], values=[1.0])
    client.upsert(name, [models.PointStruct(id=1, vector={"mine": [1.0] * D, "bm25": words})])
    client.close()
    with open_store(f"{url}?vector=mine&space=s") as store:
        assert store.outputs == {"dense": Form(space="s", dimensions=D)} and store.beside == ["bm25"]
        store.upsert(Rows([Document(1, "now with a text")], np.ones((1, D), np.float32)))
        with pytest.raises(trimtab.InvalidArgument, match="no output 'bm25'; it has 'dense'"):
            store.search_output("bm25", (np.array([3]), np.ones(1)), 1)
    client = QdrantClient(path=folder)
    (point,) = client.retrieve(name, [1], with_vectors=["bm25"])
    assert point.vector == {"bm25": words}
    client.close()


@pytest.mark.parametrize("kind", ["postgresql"])
def test_rows_and_columns_of_somebody_stay(url: str) -> None:
    create_store(url, FORMS, example=0).close()
    table = url.partition("#")[2]
    with psycopg.connect(url.partition("#")[0], autocommit=True) as connection:
        for statement in (
            f"ALTER TABLE {table} ADD COLUMN price int, ADD COLUMN bm25 sparsevec(10)",
            f"ALTER TABLE {table} ALTER COLUMN sparse DROP NOT NULL, ALTER COLUMN multi_vector DROP NOT NULL",
            f"INSERT INTO {table} (id, text, embedding) VALUES (7, 'theirs', '{[1] * D}')",
        ):
            connection.execute(statement)  # type: ignore[call-overload]
        with open_store(url) as store:
            assert store.beside == ["price", "bm25"] and list(store.outputs) == list(FORMS)
            store.upsert(made(3))
            found = store.get([7, 1])
            assert found.ids == [7, 1] and len(query_of(found, 0)["sparse"][0]) == 0
            assert 7 not in {hit.id for hit in store.search_output("multi_vector", np.ones((1, WIDTH)), 9)}
            connection.execute(f"UPDATE {table} SET price = 5, bm25 = '{{3:1}}/10' WHERE id = 1")  # type: ignore[call-overload]
            store.upsert(made(3, seed=1))
        kept = connection.execute(f"SELECT price, bm25::text FROM {table} WHERE id = 1").fetchone()  # type: ignore[call-overload]
        assert kept == (5, "{3:1}/10")


@pytest.mark.parametrize("kind", ["postgresql"])
def test_more_entries_than_a_sparsevec_holds(url: str) -> None:
    forms = {
        "dense": FORMS["dense"],
        "sparse": Form(space="s", dimensions=20_000, similarity="dot", kind="sparse"),
    }
    many = sparse_of([dict.fromkeys(range(16_001), 1.0)], 20_000)
    with create_store(url, forms, example=0) as store:
        with pytest.raises(trimtab.InvalidArgument, match="16000"):
            store.upsert(Rows(made(1).documents, made(1).vectors, {"sparse": many}))
        assert store.count() == 0


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("name", ["id", "text", "embedding"])
def test_an_output_called_as_another_column(url: str, name: str) -> None:
    forms = {"dense": FORMS["dense"], name: FORMS["sparse"]}
    with pytest.raises(
        trimtab.ConfigError, match=r"two of the columns id, text, embedding, .* have one name"
    ):
        create_store(url, forms)
    with create_store(f"{url}?id=key&text=body&vector=v", forms, example=0) as store:
        store.upsert(Rows(made(2).documents, made(2).vectors, {name: made(2).others["sparse"]}))
        assert store.get([1]).ids == [1]


def test_what_the_catalogue_says_must_be_there(
    url: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "postgresql":
        database: PostgresProcess = request.getfixturevalue("database")
        create_store(url, FORMS, example=0).close()
        table = url.partition("#")[2]
        with psycopg.connect(database.url, autocommit=True) as connection:
            connection.execute(f"ALTER TABLE {table} RENAME sparse TO other")  # type: ignore[call-overload]
            with pytest.raises(
                trimtab.ConfigError, match=r"records the output 'sparse', .* was it changed\?"
            ):
                open_store(url)
            comment = '{"trimtab_space": "s", "trimtab_outputs": [{"name": "x", "kind": "images"}]}'
            connection.execute(f"COMMENT ON TABLE {table} IS '{comment}'")  # type: ignore[call-overload]
            with pytest.raises(trimtab.ConfigError, match="records outputs that this Trimtab cannot read"):
                open_store(url)
        return
    folder, _, name = url.removeprefix("qdrant:").partition("#")
    recorded = [
        {"name": each, "kind": form.kind, "space": form.space, "dimensions": form.dimensions}
        | {"similarity": form.similarity}
        for each, form in FORMS.items()
    ]
    client = QdrantClient(path=folder)
    dense = models.VectorParams(size=D, distance=models.Distance.COSINE)
    for number, (outputs, vectors) in enumerate(
        [(recorded, {"dense": dense}), (recorded[1:], {"dense": dense}), ("?", {"dense": dense})]
    ):
        metadata = {"trimtab_space": "space-d", "trimtab_outputs": outputs}
        client.create_collection(f"{name}{number}", vectors_config=vectors, metadata=metadata)
    client.close()
    for number, message in enumerate(
        ["records the output 'sparse', and has no such", "cannot read", "cannot read"]
    ):
        with pytest.raises(trimtab.ConfigError, match=message):
            open_store(f"{url}{number}?vector=dense")


def test_stores_of_outputs_copy_into_each_other(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    written = made(30)
    with create_store(address(kind, tmp_path, request), FORMS, example=0) as source:
        source.upsert(written)
        for other in ("qdrant", "postgresql"):
            with create_store(address(other, tmp_path, request), source.outputs, example=0) as target:
                copy(source, target)
                check_values(target.get([5, 15, 2]), written, [5, 15, 2])


def copy(source: Store, target: Store) -> None:
    for batch in source.batches(7):
        target.upsert(batch)


def test_sparse_vectors_compared_by_cosine(url: str) -> None:
    forms = {
        "dense": FORMS["dense"],
        "sparse": Form(space="space-s", dimensions=WORDS, similarity="cosine", kind="sparse"),
    }
    written, queries = made(100), made(5, seed=3)
    kept = written.others["sparse"]
    assert isinstance(kept, SparseVectors)
    lengths = np.array([max(np.linalg.norm(values), 1e-9) for _, values in kept])
    with create_store(url, forms, example=0) as store:
        store.upsert(Rows(written.documents, written.vectors, {"sparse": kept}))
        for place in (0, 1, 3):
            query = query_of(queries, place)["sparse"]
            cosines = sparse_products(written, query) / lengths / np.linalg.norm(query[1])
            hits = store.search_output("sparse", query, 20)
            found = [int(hit.id) for hit in hits]
            expected = np.sort(cosines[cosines > 0])[::-1][:20]
            np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)
            np.testing.assert_allclose(cosines[found], expected, atol=1e-5)


def test_a_pgvector_without_sparse_vectors(database: PostgresProcess) -> None:
    """As before 0.7: dense vectors go in, and for others the error says what to do."""
    server, _, _ = database.url.rpartition("/")
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE former")
    with psycopg.connect(f"{server}/former", autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("ALTER TYPE sparsevec RENAME TO another")
    with pytest.raises(trimtab.FailedPrecondition, match=r"lacks a type .*sparsevec.* to 0\.7 or later"):
        create_store(f"{server}/former#docs", FORMS, example=0)
    with create_store(f"{server}/former#docs", FORMS["dense"], example=0) as store:
        store.upsert(Rows(made(3).documents, made(3).vectors))
        assert store.search(made(3).vectors[1], 1)[0].id == 1


@pytest.mark.parametrize("kind", ["qdrant"])
def test_long_multi_vectors_go_in_small_uploads(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few documents they are: a server takes only so many bytes at a time."""
    written, sizes = made(30), list[int]()
    write = QdrantStore._write

    def counted(self: QdrantStore, points: Any) -> None:
        sizes.append(sum(np.size(point.vector["multi_vector"]) for point in points))
        write(self, points)

    monkeypatch.setattr(qdrant_store, "_MOST_NUMBERS", 100)
    monkeypatch.setattr(QdrantStore, "_write", counted)
    with create_store(url, FORMS, example=0) as store:
        store.upsert(written)
        check_values(store.get([0, 15, 29]), written, [0, 15, 29])
        assert store.count() == 30
    assert len(sizes) > 10 and max(sizes) <= 100


@pytest.mark.parametrize(
    "name", ["wanted", "number", "kept", "near", "asked", "each", "searched", "distance"]
)
def test_an_output_may_have_any_name(url: str, name: str) -> None:
    """Also one that the query to PostgreSQL uses itself."""
    written, query = made(40), query_of(made(1, seed=2), 0)["multi_vector"]
    several = written.others["multi_vector"]
    with create_store(url, {"dense": FORMS["dense"], name: FORMS["multi_vector"]}, example=0) as store:
        store.upsert(Rows(written.documents, written.vectors, {name: several}))
        hits = store.search_output(name, query, 40)
    np.testing.assert_allclose(
        [hit.score for hit in hits], np.sort(max_sims(written, query))[::-1], atol=1e-5
    )
