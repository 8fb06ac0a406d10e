"""The passes of a re-index: how they ask the server, how fast, and what changes meanwhile."""

from pathlib import Path

import numpy as np
import pytest

import trimtab
from tests.client.fake_server import DIMENSIONS, FakeServer
from tests.client.migration.conftest import run
from trimtab.migration import passing, reindex
from trimtab.stores import Document, Form, Rows, create_store, open_store
from trimtab.v1 import encoder_pb2 as pb


@pytest.fixture
def fake() -> FakeServer:
    return FakeServer()


def test_bulk_work_in_the_role_of_passages(
    fake: FakeServer, old: str, texts: list[str], tmp_path: Path
) -> None:
    url = fake.start()
    try:
        assert (
            run("--from", old, "--to", f"faiss:{tmp_path / 'new'}", "--url", url, "--truncate", "start") == 0
        )
        assert {request.priority for request in fake.requests} == {pb.PRIORITY_BULK}
        assert {request.role for request in fake.requests} == {pb.ROLE_PASSAGE}, "the encoder has prompts"
        assert {request.truncate for request in fake.requests} == {pb.TRUNCATE_START}
        asked = len(fake.texts())
        other = f"faiss:{tmp_path / 'other'}"
        assert run("--from", old, "--to", other, "--url", url, "--role", "query", "--version", "2") == 0
        assert {request.role for request in fake.requests[asked:]} <= {pb.ROLE_QUERY}
        with open_store(other) as store:
            assert store.form.space == "space-2"
    finally:
        fake.stop()


def test_what_is_deleted_while_it_is_embedded_stays_deleted(
    fake: FakeServer, old: str, texts: list[str], tmp_path: Path
) -> None:
    url = fake.start()
    target = f"faiss:{tmp_path / 'new'}"

    def forget(asked: list[str]) -> None:
        if texts[5] in asked:
            with open_store(old) as store:
                store.delete(["doc-5"])

    fake.faults.gate = forget
    try:
        assert run("--from", old, "--to", target, "--url", url) == 0
        with open_store(target) as store:
            assert store.count() == len(texts) - 1
            assert store.texts(["doc-5"]) == {}
    finally:
        fake.stop()


def test_a_source_that_never_rests(fake: FakeServer, old: str, tmp_path: Path) -> None:
    url = fake.start()
    count = 0

    def write(asked: list[str]) -> None:
        nonlocal count
        count += 1
        with open_store(old) as store:
            rows = Rows([Document("restless", f"version {count}")], np.ones((1, 16), np.float32))
            store.upsert(rows)

    fake.faults.gate = write
    try:
        with (
            trimtab.Client(url, timeout=100) as client,
            open_store(old) as source,
            create_store(f"faiss:{tmp_path / 'new'}", Form(space="space-1", dimensions=DIMENSIONS)) as target,
        ):
            work = reindex.Reindex(client, source, target, client.encoder())
            with pytest.raises(trimtab.FailedPrecondition, match="after 10 passes"):
                work.run()
    finally:
        fake.stop()


def test_the_rate_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = 0.0, 0.0

    def sleep(seconds: float) -> None:
        nonlocal now, slept
        now, slept = now + seconds, slept + seconds

    monkeypatch.setattr(passing.time, "monotonic", lambda: now)
    monkeypatch.setattr(passing.time, "sleep", sleep)
    pace = passing.RateLimit(10)
    for _ in range(51):
        pace.wait()
    assert slept == pytest.approx(5, abs=0.11)
    now += 100  # nothing was asked for: that is no credit
    slept = 0.0
    for _ in range(11):
        pace.wait()
    assert slept == pytest.approx(1, abs=0.11)
    with pytest.raises(trimtab.ConfigError, match="rate is 0"):
        passing.RateLimit(0)


def test_the_rate_reaches_the_work(
    fake: FakeServer, old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    waits = []
    monkeypatch.setattr(passing.RateLimit, "wait", lambda pace: waits.append(pace.seconds))
    url = fake.start()
    try:
        assert run("--from", old, "--to", f"faiss:{tmp_path / 'new'}", "--url", url, "--rate", "50") == 0
    finally:
        fake.stop()
    assert waits == [1 / 50] * len(texts)
