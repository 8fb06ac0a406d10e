"""Spaces, adapters and rescoring as the SDK has them, against the fake server."""

import itertools
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trimtab
from tests.client.either import Async, Sync
from tests.client.fake_server import Abort, FakeServer, vector, vectors
from trimtab.core.answers import Limits
from trimtab.core.options import Options
from trimtab.core.rescoring import rescoring
from trimtab.core.steps import Fetch, Send, Step, run
from trimtab.errors import InvalidArgument
from trimtab.v1 import encoder_pb2 as pb

TEXTS = ["a", "b", "c", "d"]
QUERY = "which of them"
Either = Sync | Async


def scores_of(texts: Sequence[str], version: str = "1") -> np.ndarray:
    """As the fake server scores."""
    return vectors(list(texts), version, pb.ROLE_PASSAGE) @ vector(QUERY, version, pb.ROLE_QUERY)


def test_a_space_reaches_the_server_and_the_answer_says_how(
    either: Either, server: FakeServer, url: str
) -> None:
    detailed = either.call(url, "embed_detailed", TEXTS, space="reversed", group="de")
    assert np.array_equal(detailed.vectors, vectors(TEXTS)[:, ::-1])
    assert (detailed.space, detailed.adapters) == ("reversed", ("fake/to-reversed",))
    (request,) = server.requests
    assert (list(request.spaces), request.group) == (["reversed"], "de")
    native = either.call(url, "embed_detailed", TEXTS)
    assert (native.space, native.adapters) == ("space-1", ())
    assert list(server.requests[-1].spaces) == []


@pytest.mark.parametrize("count", [4, 300])
def test_several_spaces_come_from_one_request(
    either: Either, server: FakeServer, url: str, count: int
) -> None:
    texts = [f"text {number}" for number in range(count)]
    found = either.call(url, "embed_spaces", texts, ["reversed", "space-1"], dimensions=8)
    assert list(found) == ["reversed", "space-1"]
    assert np.array_equal(found["reversed"].vectors, vectors(texts)[:, ::-1][:, :8])
    assert np.array_equal(found["space-1"].vectors, vectors(texts)[:, :8])
    assert found["space-1"].adapters == () and found["reversed"].adapters == ("fake/to-reversed",)
    assert len(server.requests) == -(-count // 64), "split by the limit of texts alone"
    assert all(list(request.spaces) == ["reversed", "space-1"] for request in server.requests)


@pytest.mark.parametrize(
    ("spaces", "options", "match"),
    [
        ([], {}, "spaces is empty"),
        (["a", "a"], {}, r"spaces\[1\] is 'a' again"),
        (["a", ""], {}, r"spaces\[1\] is ''"),
        ([7], {}, r"spaces\[0\] is 7"),
        (["a"], {"space": "b"}, "name all of them in spaces"),
    ],
)
def test_spaces_that_make_no_sense_never_leave(
    either: Either, server: FakeServer, url: str, spaces: list[str], options: dict[str, str], match: str
) -> None:
    with pytest.raises(InvalidArgument, match=match):
        either.call(url, "embed_spaces", TEXTS, spaces, **options)
    assert server.requests == []


def test_an_answer_in_another_space_than_asked_for_is_a_fault(
    either: Either, server: FakeServer, url: str
) -> None:
    def tamper(response: pb.EmbedResponse) -> None:
        response.embeddings[0].space = "elsewhere"

    server.faults.tamper = tamper
    with pytest.raises(trimtab.InternalError, match="space elsewhere instead of reversed"):
        either.call(url, "embed", TEXTS, space="reversed")
    server.faults.tamper = lambda response: response.embeddings.pop()
    with pytest.raises(trimtab.InternalError, match="for 1 spaces instead of 2"):
        either.call(url, "embed_spaces", TEXTS, ["reversed", "space-1"])


def test_an_adapter_that_is_replaced_between_the_parts_is_named_beside_the_first(
    either: Either, server: FakeServer, url: str
) -> None:
    answers = itertools.count()

    def tamper(response: pb.EmbedResponse) -> None:
        if next(answers) > 1:  # the parts are answered at the same time, in any order
            response.embeddings[0].adapters[:] = ["fake/successor"]

    server.faults.tamper = tamper
    detailed = either.call(url, "embed_detailed", [str(n) for n in range(300)], space="reversed")
    assert sorted(detailed.adapters) == ["fake/successor", "fake/to-reversed"]


def test_a_stream_in_another_space(url: str) -> None:
    with trimtab.Client(url) as client:
        with client.embed_stream(TEXTS, space="reversed") as stream:
            assert np.array_equal(np.stack(list(stream)), vectors(TEXTS)[:, ::-1])
            assert stream.adapters == ("fake/to-reversed",)


def test_adapters_come_with_their_calibrators(either: Either, url: str) -> None:
    good, bad = either.call(url, "adapters")
    assert (good.encoder, good.name, good.verdict, good.provisional) == ("fake", "good", "cascade", True)
    assert good.source == trimtab.Endpoint(encoder="fake", version=2, space="space-2", dimensions=32)
    assert good.target.space == "space-1" and good.groups == ("de",) and good.reasons == ("it will do",)
    np.testing.assert_allclose(good.calibrator([-1.0, 0.0, 0.5, 2.0]), [0.25, 0.5, 0.625, 1.0])
    assert (bad.calibrator, bad.problem) == (None, "it will not do")
    assert [adapter.name for adapter in either.call(url, "adapters", "other")] == ["bad"]


def test_texts_are_scored(either: Either, server: FakeServer, url: str) -> None:
    scores = either.call(url, "rescore", QUERY, TEXTS, truncate="start", priority="bulk")
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, scores_of(TEXTS), atol=1e-6)
    (request,) = server.rescores
    assert (request.truncate, request.priority) == (pb.TRUNCATE_START, pb.PRIORITY_BULK)
    assert either.call(url, "rescore", QUERY, []).shape == (0,)
    assert len(server.rescores) == 1, "nothing to score, nothing to ask"


def test_ids_are_scored_and_a_full_server_is_asked_again(
    either: Either, server: FakeServer, url: str
) -> None:
    server.faults.rescores.extend([Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", 10)])
    texts = {f"id {text}": text for text in TEXTS}
    for _ in range(2):
        scores = either.call(url, "rescore", QUERY, texts, texts=texts, version="2")
        np.testing.assert_allclose(scores, scores_of(TEXTS, "2"), atol=1e-6)
    sent = [[each.HasField("text") for each in request.candidates] for request in server.rescores]
    assert sent == [[False] * 4, [False] * 4, [True] * 4, [False] * 4]


def test_ids_outlive_a_server_that_forgets(server: FakeServer, url: str) -> None:
    server.memory, server.limits.max_texts = 3, 5
    ids = [f"id {number}" for number in range(23)]
    with trimtab.Client(url) as client:
        client.rescore(QUERY, ids[:4], texts=lambda asked: [id[3:] for id in asked])
        scores = client.rescore(QUERY, [*ids, *ids], texts=lambda asked: [id[3:] for id in asked])
    np.testing.assert_allclose(scores, scores_of([id[3:] for id in [*ids, *ids]]), atol=1e-6)


def test_parts_are_of_one_version(server: FakeServer, url: str) -> None:
    def newer(response: pb.RescoreResponse) -> None:
        server.newest = "2"

    server.faults.tamper_scores = newer
    many = [str(number) for number in range(200)]
    with trimtab.Client(url) as client:
        np.testing.assert_allclose(client.rescore(QUERY, many), scores_of(many), atol=1e-6)
    assert [request.version for request in server.rescores] == ["", "1", "1", "1"]

    def mixed(response: pb.RescoreResponse) -> None:
        response.space = f"space-{len(server.rescores)}"

    server.faults.tamper_scores = mixed
    with trimtab.Client(url) as client:
        with pytest.raises(trimtab.FailedPrecondition, match="must not be mixed"):
            client.rescore(QUERY, many)


@pytest.mark.parametrize(
    ("tamper", "match"),
    [
        (lambda response: setattr(response, "scores", b"123"), "4 candidates with 3 bytes"),
        (lambda response: response.missing.append(2), "asks for the text of candidate 2"),
        (lambda response: response.missing.append(9), "candidate 9"),
        (lambda response: response.missing.extend([0] * 9), "9 candidates, and was sent 4"),
    ],
)
def test_answers_that_make_no_sense_are_a_fault_of_the_server(
    server: FakeServer, url: str, tamper, match: str
) -> None:
    server.faults.tamper_scores = tamper
    with trimtab.Client(url) as client:
        with pytest.raises(trimtab.InternalError, match=match):
            client.rescore(QUERY, TEXTS)


def test_candidates_that_are_no_texts_never_leave(server: FakeServer, url: str) -> None:
    with trimtab.Client(url) as client:
        for candidates in ("one text", [1], ["half \ud800 a pair"]):
            with pytest.raises(InvalidArgument):
                client.rescore(QUERY, candidates)
        with pytest.raises(InvalidArgument, match="query is int"):
            client.rescore(7, TEXTS)  # type: ignore[arg-type]
    assert server.rescores == []


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(0, 15), max_size=40),
    st.integers(1, 7),
    st.integers(400, 2000),
    st.randoms(),
)
def test_it_ends_with_every_score_whatever_the_server_forgets(
    numbers: list[int], max_texts: int, max_bytes: int, rng
) -> None:
    limits = Limits(max_texts=max_texts, max_text_bytes=100, max_message_bytes=max_bytes)
    texts = {f"id-{number}": f"{number} " + "x" * 20 * number for number in range(16)}
    steps = rescoring(QUERY, [f"id-{number}" for number in numbers], lambda ids: [], Options(), limits)
    known: set[str] = set()
    rounds = 0

    def perform(step: Step) -> Any:
        nonlocal known, rounds
        rounds += 1
        assert rounds < 5000
        if isinstance(step, Fetch):
            assert len(set(step.ids)) == len(step.ids)
            return [texts[id] for id in step.ids]
        assert isinstance(step, Send) and isinstance(step.request, pb.RescoreRequest)
        candidates = step.request.candidates
        assert step.request.ByteSize() <= max_bytes and len(candidates) <= max_texts
        known = set(rng.sample(sorted(known), rng.randint(0, len(known))))
        missing = []
        for place, each in enumerate(candidates):
            if each.HasField("text"):
                assert each.text == texts[each.id]
                known.add(each.id)
            elif each.id not in known:
                missing.append(place)
        answer = pb.RescoreResponse(encoder="e", version="1", space="s", missing=missing)
        if not missing:
            answer.scores = np.array([float(each.id[3:]) for each in candidates], "<f4").tobytes()
        return answer

    assert run(steps, perform).tolist() == numbers
