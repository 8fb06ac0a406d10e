"""Large results are worked on in pieces: short ones on the event loop, and long ones on a thread."""

import threading
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from trimtab.values.column import Column, Columns
from trimtab_server.callers.access import ANYONE
from trimtab_server.callers.call import Call
from trimtab_server.config import LimitSettings
from trimtab_server.outputs.known import KINDS
from trimtab_server.tasks import rescore
from trimtab_server.tasks.pipeline import Pipeline
from trimtab_server.turns import Next

CALL = Call(ANYONE, "", "caller", "protocol", 0.0, None, "interactive", "")
WIDTH = 16


@pytest.fixture
def pipeline() -> Pipeline:
    unused: Any = mock.Mock()
    return Pipeline(LimitSettings(), unused, unused, unused, unused)


def several(*counts: int) -> Columns:
    """Items with so many vectors of length 1 each."""
    rows = np.random.default_rng(sum(counts)).normal(size=(sum(counts), WIDTH)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return {"multi_vector": Column(rows, np.cumsum([0, *counts]))}


def scored(query: int, *counts: int) -> Iterator[Any]:
    output: Any = SimpleNamespace(
        kind=KINDS["multi_vector"], columns=("multi_vector",), own=SimpleNamespace(title="encoder e")
    )
    documents = several(*counts)
    return rescore._scored(output, several(query), [(documents, place) for place in range(len(counts))])


def expected(query: int, *counts: int) -> np.ndarray:
    asked, documents = several(query)["multi_vector"].values, several(*counts)["multi_vector"]
    return np.array([(asked @ documents.item(each).T).max(axis=1).sum() for each in range(len(counts))])


async def test_a_long_piece_is_done_on_a_thread(pipeline: Pipeline) -> None:
    threads = []

    def pieces() -> Iterator[str | Next | None]:
        for what in (None, Next.LONG, None, Next.LONG, "made"):
            threads.append(threading.current_thread() is threading.main_thread())
            yield what

    assert await pipeline.in_pieces(CALL, pieces()) == "made"
    assert threads == [True, True, False, True, False]


async def test_what_a_long_piece_raises_is_raised(pipeline: Pipeline) -> None:
    def pieces() -> Iterator[str | Next | None]:
        yield Next.LONG
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await pipeline.in_pieces(CALL, pieces())


@pytest.mark.parametrize(
    ("query", "counts", "pieces"),
    [
        (4, (8, 8, 8, 8), []),
        (4, (16, 16, 16, 16, 16), [None, None]),
        (64, (16, 16, 16), [None, None]),  # twice as many rows as a piece is meant for
        (4, (8, 200, 8), [Next.LONG, None]),
        (64, (8, 100, 100), [Next.LONG, None, Next.LONG]),
    ],
)
async def test_candidates_are_scored_in_pieces(
    pipeline: Pipeline,
    query: int,
    counts: tuple[int, ...],
    pieces: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A piece is of 32 vectors of candidates; one of more than 128 is long."""
    monkeypatch.setattr(rescore, "PIECE_BYTES", 32 * WIDTH * 4)
    monkeypatch.setattr(rescore, "LONG_BYTES", 128 * WIDTH * 4)
    *yielded, scores = scored(query, *counts)
    assert yielded == pieces
    np.testing.assert_allclose(scores, expected(query, *counts), rtol=1e-5)
    np.testing.assert_array_equal(await pipeline.in_pieces(CALL, scored(query, *counts)), scores)


def test_candidates_are_remembered_in_pieces(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescore, "PIECE_BYTES", 10 * WIDTH * 4)
    rescorer = rescore.Rescorer(pipeline, 1 << 20)
    columns = several(8, 8, 20, 1)
    keys: list[Any] = [("space", "", "end", f"id {place}") for place in range(4)]
    items = [(key, columns, place) for place, key in enumerate(keys)]
    assert [*rescorer._remember(items, list("abcd"), ("multi_vector",))] == [None, None, True]
    for key, _, place in items:
        known: Mapping[str, Column] | None = rescorer._recall(key, b"")
        assert known is not None
        np.testing.assert_array_equal(known["multi_vector"].item(0), columns["multi_vector"].item(place))
