"""`trimtab reindex` with an encoder that gives more than dense vectors: stores get all that they can keep."""

import re
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import trimtab
from tests.client.either import server, url
from tests.client.fake_server import DIMENSIONS, OUTPUTS, FakeServer, space_of, sparse_of, vectors, words_of
from tests.client.migration.conftest import address, run
from tests.client.migration.world import fill
from trimtab.migration import claims
from trimtab.migration.making import Making, target_outputs
from trimtab.stores import Form, Rows, create_store, open_store
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values.multi_vector import MultiVectors
from trimtab.values.sparse import SparseVectors

__all__ = ["server", "url"]
TEXTS = [f"words of document {number} and {number * 7 % 100}" for number in range(100)]
FORMS = {
    "dense": Form(space=space_of("dense", "1"), dimensions=DIMENSIONS),
    "sparse": Form(space=space_of("sparse", "1"), dimensions=DIMENSIONS, similarity="dot", kind="sparse"),
    "multi_vector": Form(
        space=space_of("multi_vector", "1"), dimensions=DIMENSIONS, similarity="dot", kind="multi_vector"
    ),
}


@pytest.fixture(autouse=True)
def all_outputs(server: FakeServer) -> None:
    server.outputs = OUTPUTS


@pytest.fixture(params=["qdrant", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store may be made that keeps all outputs."""
    kind: str = request.param
    return address(kind, tmp_path, request)


@pytest.fixture
def old(tmp_path: Path) -> str:
    """A store of other vectors."""
    source = f"faiss:{tmp_path / 'old'}"
    fill(source, range(100), TEXTS)
    return source


def check_moved(target: str, ids: list[int], texts: list[str]) -> None:
    """Each document has all that the encoder gives of its text."""
    dense, words = vectors(texts, role=pb.ROLE_PASSAGE), words_of(texts, role=pb.ROLE_PASSAGE)
    sparse = sparse_of(dense)
    with open_store(target) as store:
        assert store.outputs == FORMS
        found = store.get(ids)  # type: ignore[arg-type]
    assert found.ids == ids and [document.text for document in found.documents] == texts
    np.testing.assert_allclose(found.vectors, dense, atol=1e-6)
    kept, several = found.others["sparse"], found.others["multi_vector"]
    assert isinstance(kept, SparseVectors) and isinstance(several, MultiVectors)
    np.testing.assert_array_equal(kept.indptr, sparse.indptr)
    np.testing.assert_array_equal(kept.indices, sparse.indices)
    np.testing.assert_allclose(kept.values, sparse.values, atol=1e-6)
    np.testing.assert_array_equal(several.offsets, words.offsets)
    np.testing.assert_allclose(several.vectors, words.vectors, atol=1e-6)


def test_all_outputs_move_in_one_pass(
    url: str, server: FakeServer, old: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--from", old, "--to", target, "--url", url, "--batch", "32", "--sample", "16"]
    assert run(*command) == 0
    said = capsys.readouterr().err
    assert "100 documents" in said and "100 embedded now, 16 sampled vectors verified" in said
    assert "the spaces space-1 (dense), sparse-1 (sparse), multi_vector-1 (multi_vector)" in said
    check_moved(target, list(range(100)), TEXTS)
    asked = [request for request in server.requests if request.outputs]
    assert {tuple(request.outputs) for request in asked} == {("dense", "sparse", "multi_vector")}
    assert {request.priority for request in asked} == {pb.PRIORITY_BULK}
    assert {request.role for request in asked} == {pb.ROLE_PASSAGE}
    with open_store(old) as store:
        changed = Rows([trimtab.stores.Document(5, "another text")], np.ones((1, 16), np.float32))
        store.upsert(changed)
    assert run(*command) == 0
    assert "1 embedded now" in capsys.readouterr().err
    check_moved(target, [4, 5], [TEXTS[4], "another text"])


def test_some_of_them(url: str, old: str, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--from", old, "--to", target, "--url", url]
    assert run(*command, "--outputs", "sparse,dense") == 0
    with open_store(target) as store:
        assert store.outputs == {name: FORMS[name] for name in ("dense", "sparse")}
    assert run(*command, "--outputs", "dense,sparse,multi_vector") == 1
    said = capsys.readouterr().err
    assert "keeps dense and sparse, and what is to be written is dense and sparse and multi_vector" in said
    assert run(*command) == 0, "a store that exists gets what it keeps"
    assert "also gives multi_vector (multi_vector), which " in capsys.readouterr().err


def test_dense_alone_moves_by_a_stream(url: str, server: FakeServer, old: str, target: str) -> None:
    assert run("--from", old, "--to", target, "--url", url, "--outputs", "dense") == 0
    assert not any(request.outputs for request in server.requests)
    with open_store(target) as store:
        assert store.outputs == {"dense": FORMS["dense"]}


def test_faiss_is_told_what_it_cannot_keep(
    url: str, old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--from", old, "--to", f"faiss:{tmp_path / 'new'}", "--url", url) == 0
    said = capsys.readouterr().err
    assert "also gives sparse (sparse), multi_vector (multi_vector), which faiss:" in said
    assert (
        run("--from", old, "--to", f"faiss:{tmp_path / 'b'}", "--url", url, "--outputs", "dense,sparse") == 1
    )
    assert "keeps dense vectors alone, and not sparse" in capsys.readouterr().err


def test_outputs_that_the_encoder_lacks(
    url: str, old: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--from", old, "--to", target, "--url", url, "--outputs", "dense,colbert") == 1
    assert "has no output 'colbert'; it has dense, sparse, multi_vector" in capsys.readouterr().err
    assert run("--from", old, "--to", target, "--url", url, "--outputs", "sparse") == 1
    assert "keeps dense vectors first, and of fake 1 it would get sparse" in capsys.readouterr().err
    with pytest.raises(trimtab.NotFound):
        open_store(target)


def test_a_text_that_is_refused_stops_no_other(
    url: str, server: FakeServer, old: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = pb.Error(code=3, message="this text is refused")
    server.faults.refusals[TEXTS[42]] = deque([refusal] * 20)
    assert run("--from", old, "--to", target, "--url", url, "--batch", "50") == 3
    assert re.search(r"document 42: the server refuses its text: .*refused", capsys.readouterr().err)
    ids = [number for number in range(100) if number != 42]
    check_moved(target, ids, [TEXTS[number] for number in ids])


def test_a_run_that_was_stopped_goes_on(
    url: str, server: FakeServer, old: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--from", old, "--to", target, "--url", url, "--batch", "20"]
    server.faults.refusals[TEXTS[60]] = deque([pb.Error(code=7, message="no more for today")])
    assert run(*command) == 1
    assert "the same command goes on from here" in capsys.readouterr().err
    with open_store(target) as store:
        before = store.count()
    assert 40 <= before <= 60
    assert run(*command) == 0
    assert f"{100 - before} embedded now" in capsys.readouterr().err
    check_moved(target, list(range(100)), TEXTS)


@pytest.mark.parametrize("output", ["sparse", "multi_vector"])
def test_vectors_that_are_not_their_texts_are_found(
    url: str, old: str, target: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--from", old, "--to", target, "--url", url, "--sample", "100"]
    assert run(*command) == 0
    with open_store(target) as store:
        kept, other = store.get([17]), store.get([18])
        store.upsert(Rows(kept.documents, kept.vectors, {**kept.others, output: other.others[output]}))
    assert run(*command) == 1
    said = capsys.readouterr().err
    assert "1 of 100 sampled vectors are not those of their texts, such as that of document 17" in said


def test_spaces_that_change_meanwhile(
    url: str, server: FakeServer, old: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def elsewhere(response: pb.EmbedResponse) -> None:
        if response.outputs:
            response.outputs[1].space = "elsewhere"

    server.faults.tamper = elsewhere
    assert run("--from", old, "--to", target, "--url", url) == 1
    assert "makes vectors of space elsewhere by now" in capsys.readouterr().err
    with open_store(target) as store:
        assert store.count() == 0


def test_a_store_of_dense_vectors_from_before(
    url: str, old: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    create_store(target, FORMS["dense"], example=0).close()
    assert run("--from", old, "--to", target, "--url", url, "--outputs", "dense,sparse") == 1
    said = capsys.readouterr().err
    assert "keeps dense, and what is to be written is dense and sparse; write just" in said
    assert run("--from", old, "--to", target, "--url", url) == 0
    with open_store(target) as store:
        assert store.outputs == {"dense": FORMS["dense"]} and store.count() == 100


def test_names_and_orders_are_the_stores(url: str, target: str) -> None:
    """A store may call its first output otherwise than the encoder, and keep the others in any order."""
    forms = {"vectors": FORMS["dense"], "multi_vector": FORMS["multi_vector"], "sparse": FORMS["sparse"]}
    with trimtab.Client(url) as client, create_store(target, forms, example=0) as store:
        encoder = client.encoder()
        with pytest.raises(trimtab.FailedPrecondition, match="keeps vectors and multi_vector and sparse"):
            Making.of(encoder, store)
    alone = f"{target}_alone"
    with trimtab.Client(url) as client, create_store(alone, {"vectors": FORMS["dense"]}, example=0) as store:
        making = Making.of(client.encoder(), store)
        assert making.first and making.names == {"vectors": "dense"}
    mixed = f"{target}_mixed"
    forms = {"dense": FORMS["dense"], "multi_vector": FORMS["multi_vector"], "sparse": FORMS["sparse"]}
    with trimtab.Client(url) as client, create_store(mixed, forms, example=0) as store:
        making = Making.of(client.encoder(), store)
        assert making.names == {name: name for name in forms}
        assert list(making.embed(client, ["a text"], claims.bulk(client.encoder()))) == list(forms)


@pytest.mark.parametrize(
    ("form", "similarity", "message"),
    [
        ("scores", "", "'other', which is scores; leave it out"),
        ("sparse", "jaccard", "is compared by jaccard, as no"),
    ],
)
def test_outputs_that_no_store_keeps(
    url: str, server: FakeServer, form: str, similarity: str, message: str
) -> None:
    with trimtab.Client(url) as client:
        encoder = client.encoder()
    other = replace(encoder.outputs[1], name="other", form=form, similarity=similarity)
    with pytest.raises(trimtab.FailedPrecondition, match=message):
        target_outputs(replace(encoder, outputs=(*encoder.outputs, other)), ["dense", "other"])
    assert target_outputs(replace(encoder, outputs=()))["dense"].space == "space-1", "as servers before"
