"""The runs over stores that end badly: some of them, and whether they would notice what is lost."""

import os
import signal
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

import trimtab
from bench.chaos import application_stores, endings, halves, store_run, stores
from bench.chaos.endings import Ending
from trimtab.stores import open_store


def test_some_runs_lose_nothing(tmp_path: Path) -> None:
    """A second call goes on where the first stopped."""
    first = stores.run(tmp_path, 4, seed=14, quiet=True)
    assert first.figures["runs"] == 4
    done = stores.run(tmp_path, 14, seed=14, quiet=True)
    assert done.figures["runs"] == 14
    assert all(bar.passed for bar in done.bars), done.figures


def test_what_is_lost_is_noticed(tmp_path: Path) -> None:
    texts = {id: f"text {id}" for id in range(10)}
    theirs = application_stores.make("taken", tmp_path / "store", halves.NEW, halves.new, texts, "", "")
    right = theirs.contents()

    def wrong(contents: application_stores.Contents) -> str:
        return " ".join(store_run.different("it", contents, texts, halves.new))

    assert wrong(right) == "" and theirs.strange() == []
    assert "1 lost [3]" in wrong({id: right[id] for id in texts if id != 3})
    assert "too many [11]" in wrong({**right, 11: right[1]})
    assert "texts of [2]" in wrong({**right, 2: right[1]})
    assert "1 vectors are others" in wrong({**right, 2: (right[2][0], np.roll(right[2][1], 1))})
    (theirs.folder / "index-2025.faiss").unlink()
    (theirs.folder / "notes.txt").write_text("changed")
    assert sorted(theirs.strange()) == ["taken: index-2025.faiss changed", "taken: notes.txt changed"]


def test_endings(tmp_path: Path) -> None:
    def written() -> None:
        with (tmp_path / "file").open("wb") as stream:
            stream.write(bytes(1000))
            stream.flush()
            os.fsync(stream.fileno())

    def refused() -> NoReturn:
        raise trimtab.FailedPrecondition("not now")

    said = tmp_path / "said"
    count = endings.calls(written, said)
    assert 3 < count < 1000
    assert endings.start(written, said).wait() == endings.DONE
    assert endings.start(written, said, Ending(kill=count // 2)).wait() == -signal.SIGKILL
    assert endings.start(written, said, Ending(full=500)).wait() == endings.CRASHED
    assert "File too large" in said.read_text()
    assert endings.start(written, said, Ending(failing=1)).wait() == endings.CRASHED
    assert "Input/output error" in said.read_text()
    assert endings.start(refused, said).wait() == endings.REFUSED
    assert said.read_text() == "FailedPrecondition: not now"


@pytest.mark.parametrize("kind", ["faiss", "taken", "npy", "parquet"])
def test_application_stores_are_stores(tmp_path: Path, kind: str) -> None:
    texts = {id: f"text {id}" for id in range(10)}
    theirs = application_stores.make(kind, tmp_path / "store", halves.OLD, halves.old, texts, "", "")
    with open_store(theirs.url) as store:
        assert store.form == halves.OLD
    theirs.edit({3: "changed", 10: "new"}, [])
    wanted = {**texts, 3: "changed", 10: "new"}
    assert store_run.different(kind, theirs.contents(), wanted, halves.old) == []
    assert theirs.strange() == []
