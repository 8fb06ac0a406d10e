"""Rankings as the SDK makes them, against the fake server."""

from typing import Any

import grpc
import numpy as np
import pytest

import trimtab
from tests.client.either import Async, Sync
from tests.client.fake_server import Abort, FakeServer, vector, vectors
from trimtab.v1 import encoder_pb2 as pb

QUERY = "which of them"
TEXTS = [f"text {number}" for number in range(300)]
Either = Sync | Async
LATE = Abort(grpc.StatusCode.DEADLINE_EXCEEDED)


def truth(texts: list[str], version: str = "1") -> np.ndarray:
    """As the fake server scores."""
    return vectors(texts, version, pb.ROLE_PASSAGE) @ vector(QUERY, version, pb.ROLE_QUERY)


@pytest.mark.parametrize("count", [1, 64, 300])
def test_the_best_come_first(either: Either, server: FakeServer, url: str, count: int) -> None:
    ranking = either.call(url, "rerank", QUERY, TEXTS[:count])
    scores = truth(TEXTS[:count])
    assert list(ranking.indices) == list(np.argsort(-scores, kind="stable"))
    np.testing.assert_allclose(ranking.scores, scores[ranking.indices], atol=1e-6)
    assert (ranking.encoder, ranking.version, ranking.scored, ranking.complete) == ("fake", "1", count, True)
    assert len(server.rescores) == -(-count // 64), "split by the limit of texts alone"
    if count > 64:
        assert {request.version for request in server.rescores} == {"1"}, "pinned"
    few = either.call(url, "rerank", QUERY, TEXTS[:count], top_n=3, output="other")
    assert list(few.indices) == list(ranking.indices[:3]) and few.scored == count
    assert {request.output for request in server.rescores[-1:]} == {"other"}


def test_equal_scores_keep_their_order(either: Either, url: str) -> None:
    assert list(either.call(url, "rerank", QUERY, ["b", "a", "b", "b"]).indices) in (
        [1, 0, 2, 3],
        [0, 2, 3, 1],
    )


def test_many_candidates(either: Either, server: FakeServer, url: str) -> None:
    server.limits.max_texts = 1024
    texts = [f"text {number % 1000}" for number in range(100_000)]
    ranking = either.call(url, "rerank", QUERY, texts, top_n=200)
    best = np.sort(truth(texts[:1000]))[-2:][::-1].repeat(100)
    np.testing.assert_allclose(ranking.scores, best, atol=1e-6)
    assert (len(server.rescores), ranking.scored) == (98, 100_000)


def test_a_partial_ranking_has_what_was_in_time(either: Either, server: FakeServer, url: str) -> None:
    server.faults.rescores.extend([None, LATE, None, None])
    ranking = either.call(url, "rerank", QUERY, TEXTS, partial=True)
    assert len(server.rescores) <= 5, "of ten; no more is sent than was in flight"
    assert not ranking.complete and ranking.scored == len(ranking) < len(TEXTS)
    scores = truth(TEXTS)
    np.testing.assert_allclose(ranking.scores, scores[ranking.indices], atol=1e-6)
    assert len(set(ranking.indices)) == len(ranking)


def test_nothing_partial_unless_asked_for(either: Either, server: FakeServer, url: str) -> None:
    server.faults.rescores.extend([None, LATE])
    with pytest.raises(trimtab.DeadlineExceeded):
        either.call(url, "rerank", QUERY, TEXTS)
    server.faults.rescores.clear()
    server.faults.rescores.extend([LATE] * 20)
    with pytest.raises(trimtab.DeadlineExceeded, match="before any candidate was scored"):
        either.call(url, "rerank", QUERY, TEXTS, partial=True)
    server.faults.rescores.clear()
    server.faults.rescores.extend([None, Abort(grpc.StatusCode.INTERNAL)])
    with pytest.raises(trimtab.InternalError):
        either.call(url, "rerank", QUERY, TEXTS, partial=True)


def test_what_has_gone_or_changed_meanwhile(either: Either, server: FakeServer, url: str) -> None:
    server.faults.rescores.extend([None, Abort(grpc.StatusCode.NOT_FOUND)])
    with pytest.raises(trimtab.FailedPrecondition, match="version 1 of 'fake' was unloaded"):
        either.call(url, "rerank", QUERY, TEXTS)
    answered = iter(["space-1", "space-1", "space-x"])

    def tamper(response: Any) -> None:
        response.space = next(answered, "space-1")

    server.faults.rescores.clear()
    server.faults.tamper_scores = tamper
    with pytest.raises(trimtab.FailedPrecondition, match="must not be mixed"):
        either.call(url, "rerank", QUERY, TEXTS)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda response: setattr(response, "scores", b"1234"), "answered 2 candidates with 4 bytes"),
        (lambda response: response.missing.append(0), "asks for the texts of candidates, which were sent"),
    ],
)
def test_an_answer_that_does_not_fit(
    either: Either, server: FakeServer, url: str, tamper: Any, message: str
) -> None:
    server.faults.tamper_scores = tamper
    with pytest.raises(trimtab.InternalError, match=message):
        either.call(url, "rerank", QUERY, TEXTS[:2])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((QUERY, ["a"]), {"top_n": 0}, "top_n is 0; pass 1 or more"),
        ((QUERY, ["a"]), {"top_n": -1}, "top_n is -1"),
        ((QUERY, ["a"]), {"top_n": True}, "top_n is True"),
        ((QUERY, ["a"]), {"top_n": 1.5}, "top_n is 1.5"),
        (("", ["a"]), {}, "query is empty: pass what the candidates are to be ranked for"),
        ((" \n", ["a"]), {}, "query is empty"),
        ((3, ["a"]), {}, "query is int, not str"),
        ((QUERY, "a"), {}, "texts is one str"),
        ((QUERY, ["a", 3]), {}, "texts.1. is int, not str"),
        ((QUERY, ["a", "\ud800"]), {}, "texts.1. holds half of a surrogate pair"),
    ],
)
def test_what_cannot_be_ranked(
    either: Either, server: FakeServer, url: str, arguments: Any, options: Any, message: str
) -> None:
    with pytest.raises(trimtab.InvalidArgument, match=message):
        either.call(url, "rerank", *arguments, **options)
    assert not server.rescores


def test_no_candidates(either: Either, server: FakeServer, url: str) -> None:
    ranking = either.call(url, "rerank", QUERY, [])
    assert (list(ranking), ranking.encoder, ranking.scored, ranking.complete) == ([], "fake", 0, True)
    assert not server.rescores


def test_a_ranking_is_a_sequence_of_hits(either: Either, url: str) -> None:
    ranking = either.call(url, "rerank", QUERY, TEXTS[:5])
    for place, (index, score) in enumerate(ranking):
        assert (index, score) == (ranking.indices[place], ranking.scores[place])
        assert ranking[place] == trimtab.Ranked(index, score) and isinstance(index, int)
    assert [hit.index for hit in ranking[1:3]] == list(ranking.indices[1:3])
    assert ranking[-1].index == ranking.indices[-1]
