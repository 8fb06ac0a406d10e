"""Writers that are interrupted, or forked: a FAISS store gives nobody another's vector."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

import trimtab
from tests.client.stores.test_contract import FORM, rows
from trimtab.stores import Rows, Store, create_store, open_store
from trimtab.stores.faiss_contents import Contents
from trimtab.stores.faiss_index import FaissIndex


@pytest.mark.parametrize("place", ["before", "within", "behind"])
def test_an_interrupt_while_a_write_is_taken_into_memory(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in memory then is believed no more: it would give later documents the vectors of others."""
    written = rows(list(range(9)))

    def upsert(store: Store, *ids: int) -> None:
        store.upsert(Rows([written.documents[id] for id in ids], written.vectors[list(ids)]))

    apply, add = Contents.apply, FaissIndex.add

    def stop(*_: object) -> None:
        monkeypatch.undo()
        if place == "behind":
            apply(*_)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    store = create_store(f"faiss:{tmp_path}", FORM)
    upsert(store, 0, 1)
    monkeypatch.setattr(FaissIndex, "add", stop) if place == "within" else monkeypatch.setattr(
        Contents, "apply", stop
    )
    with pytest.raises(KeyboardInterrupt):
        upsert(store, 2, 3, 4)
    assert (FaissIndex.add, Contents.apply) == (add, apply)
    upsert(store, 5, 6)
    store.delete([3])
    upsert(store, 7, 8)
    ids = [0, 1, 2, 4, 5, 6, 7, 8]
    for _ in range(2):
        found = store.get(ids)
        assert found.ids == ids and store.count() == len(ids)
        np.testing.assert_allclose(found.vectors, written.vectors[ids], atol=1e-6)
        store.close()
        store = open_store(f"faiss:{tmp_path}")
    store.close()


def test_an_interrupt_while_another_reads_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = rows(list(range(6)))
    with create_store(f"faiss:{tmp_path}", FORM) as writer, open_store(f"faiss:{tmp_path}") as reader:
        writer.upsert(written)

        def stop(*_: object) -> None:
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(FaissIndex, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            reader.count()
        assert reader.count() == 6
        np.testing.assert_allclose(reader.get(written.ids).vectors, written.vectors, atol=1e-6)


def test_a_child_of_a_fork_is_no_second_writer(tmp_path: Path) -> None:
    """It reads; it neither writes beside its parent, nor makes a new index of what it knew at the fork."""
    written = rows(list(range(6)))
    store = create_store(f"faiss:{tmp_path}", FORM)
    store.upsert(Rows(written.documents[:3], written.vectors[:3]))
    hear, tell = os.pipe()
    child = os.fork()
    if not child:
        said = "nothing"
        with contextlib.suppress(BaseException):
            os.close(tell)
            os.read(hear, 1)  # until the parent has written more
            assert store.count() == 6
            try:
                store.upsert(Rows(written.documents[:1], written.vectors[:1]))
            except trimtab.FailedPrecondition as error:
                said = str(error)
            store.close()
        os._exit(0 if "another process is writing" in said else 1)
    os.close(hear)
    store.upsert(Rows(written.documents[3:], written.vectors[3:]))
    os.close(tell)
    assert os.waitpid(child, 0)[1] == 0
    store.delete([5])
    store.close()
    with open_store(f"faiss:{tmp_path}") as store:
        assert store.count() == 5
        np.testing.assert_allclose(store.get(written.ids).vectors, written.vectors[:5], atol=1e-6)
