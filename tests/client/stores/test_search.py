"""What a search gives, whatever the store: the right metric, zero vectors, and as many hits as there are."""

from pathlib import Path

import faiss
import msgspec
import numpy as np
import psycopg
import pytest

import trimtab
from tests.client.stores.postgres_process import PostgresProcess
from tests.client.stores.test_contract import FORM, D, rows
from trimtab.kinds import Similarity
from trimtab.stores import Document, Form, Rows, create_store, open_store
from trimtab.stores.base import SIMILARITIES, Matrix
from trimtab.stores.postgres_catalogue import SETTINGS
from trimtab.values.similarity import scores


def clustered(count: int, seed: int = 0) -> Matrix:
    """Vectors of length 1 in 40 clusters, as those of texts are."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((40, D))
    vectors = centres[random.integers(0, 40, count)] + 0.5 * random.standard_normal((count, D))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors, np.float32)


def store_of(folder: Path, index: faiss.Index, similarity: str = "cosine", lines: int | None = None) -> str:
    """A folder with an index of somebody's, as a store."""
    faiss.write_index(index, str(folder / "my.index"))
    rows = [msgspec.json.encode({"id": id}) for id in range(index.ntotal if lines is None else lines)]
    (folder / "my.jsonl").write_bytes(b"\n".join(rows))
    catalogue = {"space": "s", "dimensions": D, "similarity": similarity}
    catalogue |= {"index": "my.index", "rows": "my.jsonl"}
    (folder / "store.json").write_bytes(msgspec.json.encode(catalogue))
    return f"faiss:{folder}"


def recall(store: trimtab.stores.Store, vectors: Matrix, queries: Matrix) -> float:
    """Recall at 10 against comparing with all vectors."""
    right = 0
    for query in queries:
        true = set(np.argsort(-(vectors @ query))[:10].tolist())
        right += len(true & {hit.id for hit in store.search(query, 10)})
    return right / (10 * len(queries))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("query", ["some", "zero"])
def test_zero_vectors_have_the_scores_that_they_have_in_memory(
    url: str, similarity: Similarity, query: str
) -> None:
    random = np.random.default_rng(5)
    vectors = random.standard_normal((12, D)).astype(np.float32)
    vectors[[2, 7]] = 0
    asked = np.zeros(D, np.float32) if query == "zero" else vectors[0] - vectors[5]
    near = scores(asked, vectors, similarity)
    with create_store(url, Form(space="s", dimensions=D, similarity=similarity), example=0) as store:
        store.upsert(Rows([Document(id, None) for id in range(12)], vectors))
        for k in (1, 4, 9, 12, 50):
            hits = store.search(asked, k)
            np.testing.assert_allclose(
                [hit.score for hit in hits], np.sort(near)[::-1][:k], atol=1e-5, err_msg=f"k={k}"
            )
            assert len({hit.id for hit in hits}) == len(hits)
            for hit in hits:
                assert hit.score == pytest.approx(near[int(hit.id)], abs=1e-5)


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF4,Flat"])
@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
def test_zero_vectors_in_an_index_from_elsewhere(tmp_path: Path, factory: str, metric: int) -> None:
    vectors = clustered(60)
    vectors[[3, 40]] = 0
    index = faiss.index_factory(D, factory, metric)
    index.train(vectors)
    index.add(vectors)
    query = -vectors[:3].sum(axis=0)
    for asked in (query, np.zeros(D, np.float32)):
        near = scores(asked, vectors, "cosine")
        with open_store(store_of(tmp_path, index)) as store:
            hits = store.search(asked, 60)
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(near)[::-1], atol=1e-4)


@pytest.mark.parametrize(
    ("similarity", "factory", "metric"),
    [
        ("dot", "Flat", faiss.METRIC_L2),
        ("dot", "HNSW16", faiss.METRIC_L2),
        ("euclidean", "Flat", faiss.METRIC_INNER_PRODUCT),
        ("euclidean", "IVF4,Flat", faiss.METRIC_INNER_PRODUCT),
        ("manhattan", "Flat", faiss.METRIC_L2),
        ("cosine", "Flat", faiss.METRIC_L1),
        ("euclidean", "Flat", faiss.METRIC_Linf),
    ],
)
@pytest.mark.parametrize("count", [0, 60])
def test_an_index_that_ranks_otherwise_than_its_store(
    tmp_path: Path, similarity: str, factory: str, metric: int, count: int
) -> None:
    index = faiss.index_factory(D, factory, metric)
    index.train(clustered(60))
    index.add(clustered(count))
    with pytest.raises(trimtab.FailedPrecondition, match=rf"ranks by .* similarity '{similarity}'"):
        open_store(store_of(tmp_path, index, similarity))


@pytest.mark.parametrize("row", [0, 1, 150, 199])
@pytest.mark.parametrize("factor", [0.5, 2.0, 1e-3, 1e30])
def test_every_vector_compared_by_cosine_is_of_length_1(tmp_path: Path, row: int, factor: float) -> None:
    vectors = clustered(200)
    vectors[row] *= factor
    index = faiss.IndexFlatIP(D)
    index.add(vectors)
    with pytest.raises(trimtab.FailedPrecondition, match=rf"in row {row}, and 1 of 200"):
        open_store(store_of(tmp_path, index))


@pytest.mark.parametrize(
    "factory",
    ["IVF4,PQ4", "IVF4,SQ8", "PQ4", "SQ8", "SQfp16", "HNSW16,SQ8", "PCA4,Flat", "IVF4,PQ4,RFlat", "OPQ4,PQ4"],
)
def test_indexes_that_do_not_keep_their_vectors_are_refused(tmp_path: Path, factory: str) -> None:
    vectors = clustered(400)
    index = faiss.index_factory(D, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    with pytest.raises(trimtab.FailedPrecondition, match=r"does not return vectors as they were.*Build"):
        open_store(store_of(tmp_path, index))


def test_an_index_that_was_not_trained_is_refused(tmp_path: Path) -> None:
    index = faiss.index_factory(D, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    with pytest.raises(trimtab.FailedPrecondition, match="not trained"):
        open_store(store_of(tmp_path, index))


def test_how_far_an_ivf_index_is_searched(tmp_path: Path) -> None:
    vectors, queries = clustered(4000), clustered(50, seed=9)
    index = faiss.index_factory(D, "IVF64,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    url = store_of(tmp_path, index)
    found = {}
    for told in ("", "#?nprobe=1", "#?nprobe=64"):
        with open_store(url + told) as store:
            found[told] = recall(store, vectors, queries)
    assert found["#?nprobe=1"] < 0.8 and found[""] > 0.95 and found["#?nprobe=64"] == 1
    index.nprobe = 2  # the application's own choice stands in the file
    with open_store(store_of(tmp_path, index)) as store:
        assert found["#?nprobe=1"] < recall(store, vectors, queries) < found[""]


@pytest.mark.parametrize("factory", ["HNSW8", "IVF64,Flat"])
@pytest.mark.parametrize("told", ["", "#?nprobe=1", "#?ef_search=1"])
def test_there_are_as_many_hits_as_asked_for(tmp_path: Path, factory: str, told: str) -> None:
    if told.startswith("#?nprobe") != factory.startswith("IVF") and told:
        pytest.skip("options belong to their kinds")
    vectors = clustered(1500)
    index = faiss.index_factory(D, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    with open_store(store_of(tmp_path, index) + told) as store:
        store.delete(list(range(0, 1500, 3)))
        store.upsert(rows([5000]))
        for k in (1, 10, 200, 1000, 1001, 2000):
            hits = store.search(vectors[5], k)
            assert len({hit.id for hit in hits}) == min(k, 1001)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("nprobe=4", "is an IndexFlat.*has no nprobe"),
        ("ef_search=4", "has no ef_search"),
        ("nprobe=0", "whole number from 1"),
        ("nprobe=x", "whole number from 1"),
        ("probes=4", "no option 'probes'"),
    ],
)
def test_options_that_do_nothing_are_refused(tmp_path: Path, told: str, message: str) -> None:
    index = faiss.IndexFlatIP(D)
    index.add(clustered(5))
    with pytest.raises(trimtab.ConfigError, match=message):
        open_store(f"{store_of(tmp_path, index)}#?{told}")


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize(
    ("using", "told"),
    [
        ("ivfflat (embedding vector_cosine_ops) WITH (lists = 40)", "?probes=1"),
        ("ivfflat (embedding vector_cosine_ops) WITH (lists = 40)", ""),
        ("hnsw (embedding vector_cosine_ops) WITH (m = 4, ef_construction = 8)", "?ef_search=1"),
        ("hnsw (embedding vector_cosine_ops)", ""),
    ],
)
def test_approximate_indexes_of_postgresql(url: str, using: str, told: str) -> None:
    vectors = clustered(3000)
    vectors[[10, 20]] = 0  # of which these indexes know nothing
    with create_store(url, FORM, example=0) as store:
        store.upsert(Rows([Document(id, None) for id in range(3000)], vectors))
    table = url.rpartition("#")[2]
    with psycopg.connect(url.partition("#")[0], autocommit=True) as connection:
        connection.execute(f"CREATE INDEX ON {table} USING {using}")  # type: ignore[call-overload]
        connection.execute(f"ANALYZE {table}")  # type: ignore[call-overload]
    with open_store(url + told) as store:
        for k in (1, 10, 200, 2999, 3000, 5000):
            hits = store.search(vectors[5], k)
            assert len({hit.id for hit in hits}) == min(k, 3000)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        if not told:
            assert recall(store, vectors, clustered(30, seed=9)) > 0.95


@pytest.mark.parametrize(
    ("version", "iterative"), [("0.7.4", "off"), ("0.8.0", "strict_order"), ("0.10", "strict_order")]
)
def test_a_pgvector_that_has_no_iterative_scans(
    database: PostgresProcess, version: str, iterative: str
) -> None:
    """It takes no setting of that name, and is searched without."""
    with psycopg.connect(database.url) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute("SELECT '[1]'::vector")
        connection.execute("UPDATE pg_extension SET extversion = %s WHERE extname = 'vector'", (version,))
        connection.execute(SETTINGS, (None, 10, None, "pg_class"))
        assert connection.execute("SHOW hnsw.iterative_scan").fetchone() == (iterative,)
        assert connection.execute("SHOW ivfflat.probes").fetchone() == ("16",)
        connection.rollback()


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([], "cosine"),
        (["vector_l2_ops"], "euclidean"),
        (["vector_ip_ops"], "dot"),
        (["vector_l1_ops"], "manhattan"),
        (["vector_cosine_ops"], "cosine"),
        (["vector_l2_ops", "vector_ip_ops"], None),
    ],
)
def test_a_table_of_somebody_else_is_compared_as_it_is_indexed(
    url: str, classes: list[str], expected: str | None
) -> None:
    table = url.rpartition("#")[2]
    with psycopg.connect(url.partition("#")[0], autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f"CREATE TABLE {table} (id bigint, text text, embedding vector(8))")  # type: ignore[call-overload]
        for each in classes:
            connection.execute(f"CREATE INDEX ON {table} USING hnsw (embedding {each})")  # type: ignore[call-overload]
    if expected is None:
        with pytest.raises(trimtab.ConfigError, match=r"indexes for dot and euclidean; say .*similarity="):
            open_store(url)
    else:
        with open_store(url) as store:
            assert store.form.similarity == expected
    with open_store(f"{url}?similarity=manhattan") as store:
        assert store.form.similarity == "manhattan"


@pytest.mark.parametrize("length", [1e-44, 1e-30, 1e-20, 1e19, 1e30])
@pytest.mark.parametrize("kind", ["faiss", "qdrant"])
def test_vectors_as_short_or_long_as_numbers_can_be(url: str, length: float) -> None:
    """Their squares are no numbers of 32 bits; a store with one of them opens again, and finds it."""
    written = rows(list(range(6)))
    written.vectors[3] = 0
    written.vectors[3, 0] = length
    with create_store(url, FORM) as store:
        store.upsert(written)
    with open_store(url) as store:
        np.testing.assert_allclose(store.get([3]).vectors, np.eye(1, D), atol=1e-6)
        (hit,) = store.search(written.vectors[3], 1)
        assert hit.id == 3 and hit.score == pytest.approx(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_of_a_file_that_are_no_vectors_hide_no_others(tmp_path: Path, bad: float) -> None:
    vectors = rows(list(range(30))).vectors
    vectors[4:8, 1] = bad
    np.save(tmp_path / "docs.npy", vectors)
    sound = np.delete(np.arange(30), range(4, 8))
    with open_store(f"{tmp_path / 'docs.npy'}#?space=s") as store:
        for k in (1, 3, 10, 30):
            hits = store.search(vectors[0], k)
            near = np.argsort(-(vectors[sound] @ vectors[0]), kind="stable")[:k]
            assert [hit.id for hit in hits] == sound[near].tolist()
