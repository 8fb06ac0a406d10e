"""What all stores answer alike."""

import math
import uuid
from pathlib import Path

import numpy as np
import pytest

import trimtab
from tests.client.stores.conftest import address
from trimtab.stores import Document, Form, Id, Rows, Store, create_store, open_store
from trimtab.stores.base import SIMILARITIES
from trimtab.values.similarity import scores

D = 8
FORM = Form(space="space-a", dimensions=D)


def rows(ids: list[Id], seed: int = 0) -> Rows:
    """Documents with random vectors of length 1."""
    vectors = np.random.default_rng(seed).standard_normal((len(ids), D)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Rows([Document(id, f"text {id} of {seed}") for id in ids], vectors)


def numbered(count: int) -> list[Id]:
    return list(range(count))


def test_documents_come_back(url: str) -> None:
    # 40 as text sorts before 5; each store has an order of its own, and keeps to it.
    written = rows(numbered(50))
    with create_store(url, FORM, example=0) as store:
        store.upsert(written)
    with open_store(url) as store:
        assert store.form == FORM
        assert store.count() == 50
        walked = [document for page in store.pages(7) for document in page]
        assert sorted(walked, key=lambda document: document.id) == list(written.documents)
        found = store.get([3, 99, 1])
        assert found.ids == [3, 1]
        np.testing.assert_allclose(found.vectors, written.vectors[[3, 1]], atol=1e-6)
        assert store.texts([3, 99]) == {3: "text 3 of 0"}
        batches = list(store.batches(20))
        assert [len(batch) for batch in batches] == [20, 20, 10]
        assert [document for batch in batches for document in batch.documents] == walked
        sampled = store.sample(10)
        assert len(set(sampled)) == 10 and set(sampled) <= set(numbered(50))
        assert sorted(store.sample(1000)) == numbered(50)  # type: ignore[type-var]


def test_ids_of_text_stay(url: str) -> None:
    ids: list[Id] = ["a/b", "ünï", str(uuid.uuid4()), str(uuid.uuid4()).upper(), "7", "x" * 200, ""]
    with create_store(url, FORM, example="a/b") as store:
        store.upsert(rows(ids))
        assert sorted(str(document.id) for page in store.pages(2) for document in page) == sorted(
            map(str, ids)
        )
        assert store.get(ids).ids == ids
        assert set(store.texts(ids)) == set(ids)
        assert set(store.sample(100)) == set(ids)
        assert {hit.id for hit in store.search(rows(ids).vectors[0], 10)} == set(ids)
        assert store.texts([7]) == {}, "a number is not its digits"
        store.delete(["a/b", "not there"])
        assert store.count() == len(ids) - 1


def test_writing_again_changes_nothing_else(url: str) -> None:
    with create_store(url, FORM, example=0) as store:
        store.upsert(rows(numbered(20)))
        store.upsert(rows(numbered(20)))
        assert store.count() == 20
        changed = rows([5, 20], seed=1)
        store.upsert(changed)
        assert store.count() == 21
        assert store.texts([4, 5, 20]) == {4: "text 4 of 0", 5: "text 5 of 1", 20: "text 20 of 1"}
        hits = store.search(changed.vectors[0], 3)
        assert hits[0].id == 5 and hits[0].text == "text 5 of 1"
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        assert len({hit.id for hit in store.search(changed.vectors[0], 30)}) == 21
        store.delete([5, 6, 777])
        assert store.count() == 19
        assert not {5, 6} & {hit.id for hit in store.search(changed.vectors[0], 30)}
        store.delete([])
        store.upsert(rows([]))
        assert store.count() == 19


def test_pages_do_not_stumble_over_what_came_or_went(url: str) -> None:
    with create_store(url, FORM, example=0) as store:
        store.upsert(rows(numbered(10)))
        first = store.page(None, 4)
        store.delete([first[-1].id])
        store.upsert(rows([first[0].id, 100]))
        rest = store.page(first[-1].id, 100)
    seen = [document.id for document in [*first, *rest]]
    assert sorted(seen) == [*numbered(10), 100]  # type: ignore[type-var]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_search_is_by_the_similarity(url: str, similarity: str) -> None:
    form = Form(space="space-a", dimensions=D, similarity=similarity)  # type: ignore[arg-type]
    random = np.random.default_rng(3)
    vectors = random.standard_normal((200, D)).astype(np.float32)
    query = random.standard_normal(D).astype(np.float32)
    with create_store(url, form, example=0) as store:
        store.upsert(Rows([Document(id, None) for id in range(200)], vectors))
        hits = store.search(query, 25)
        few = store.search(query, 1)
    near = scores(query, vectors, form.similarity)
    assert [hit.id for hit in hits] == np.argsort(-near)[:25].tolist()
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(near)[::-1][:25], atol=1e-4)
    assert [hit.id for hit in few] == [hits[0].id]
    assert hits[0].text is None


def test_search_of_nothing(url: str) -> None:
    with create_store(url, FORM, example=0) as store:
        assert store.search(np.ones(D, np.float32), 5) == []
        assert store.page(None, 5) == [] and store.sample(5) == [] and store.count() == 0
        assert len(store.get([1])) == 0 and store.texts([1]) == {}


def test_spaces_are_not_mixed(url: str) -> None:
    create_store(url, FORM, example=0).close()
    with pytest.raises(trimtab.FailedPrecondition, match=r"space-a.*space-b"):
        create_store(url, Form(space="space-b", dimensions=D))
    with pytest.raises(trimtab.FailedPrecondition, match=r"8 dimensions.*have 9"):
        create_store(url, Form(space="space-a", dimensions=9))
    with pytest.raises(trimtab.ConfigError, match="without naming the space"):
        create_store(url, Form(space=None, dimensions=D))
    with create_store(url, FORM) as store:
        assert store.form.space == "space-a"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_vector_is_refused_whole(url: str, bad: float) -> None:
    with create_store(url, FORM, example=0) as store:
        wrong = rows([1, 2, 3])
        wrong.vectors[1, 4] = bad
        with pytest.raises(trimtab.InvalidArgument, match=r"document 2 .*1 of 3"):
            store.upsert(wrong)
        with pytest.raises(trimtab.InvalidArgument, match="dimensions"):
            store.upsert(Rows([Document(1, None)], np.ones((1, D + 1), np.float32)))
        with pytest.raises(trimtab.InvalidArgument, match="2 vectors"):
            store.upsert(Rows(rows([1, 2]).documents, np.ones((1, D), np.float32)))
        with pytest.raises(trimtab.InvalidArgument, match="same id"):
            store.upsert(rows([1, 1]))
        with pytest.raises(trimtab.InvalidArgument, match="query"):
            store.search(np.full(D, bad, np.float32), 3)
        with pytest.raises(trimtab.InvalidArgument, match="dimensions"):
            store.search(np.ones(D + 1, np.float32), 3)
        with pytest.raises(trimtab.InvalidArgument, match="k is 0"):
            store.search(np.ones(D, np.float32), 0)
        assert store.count() == 0


def test_what_is_not_there_is_not_found(url: str) -> None:
    with pytest.raises(trimtab.NotFound):
        open_store(url)


def test_closing_twice_does_nothing(url: str) -> None:
    store = create_store(url, FORM)
    store.close()
    store.close()


def test_every_kind_into_every_other(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with create_store(address(kind, tmp_path, request), FORM, example="a") as source:
        source.upsert(rows(["a", "b", "c"]))
        for other in ("faiss", "qdrant", "postgresql"):
            with create_store(address(other, tmp_path, request), source.form, example="a") as target:
                copy(source, target)
                assert target.get(["c", "a", "b"]).ids == ["c", "a", "b"]


def copy(source: Store, target: Store) -> None:
    for batch in source.batches(2):
        target.upsert(batch)
