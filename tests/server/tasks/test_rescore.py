"""Candidates scored in the encoder's own space: as texts, or as ids whose vectors the server remembers."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest

import trimtab
from tests.server.server_process import NAME, ServerProcess, serve
from tests.texts import TEXTS
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc

TOLERANCE = 1e-5
QUERY = "how to get a deleted file back"
CANDIDATES = TEXTS[:20]
IDS = [f"document {number}" for number in range(len(CANDIDATES))]
TENANTS = '[server]\ntenant_header = "x-tenant"\n'


class Library:
    """Texts by their ids; it notes what it is asked for."""

    def __init__(self) -> None:
        self.texts = dict(zip(IDS, CANDIDATES, strict=True))
        self.asked: list[list[str]] = []

    def __call__(self, ids: Sequence[str]) -> list[str]:
        self.asked.append(list(ids))
        return [self.texts[id] for id in ids]


@pytest.fixture
def expected(server: ServerProcess) -> np.ndarray:
    with trimtab.Client(server.url, timeout=100) as client:
        query = client.embed([QUERY], timeout=240)[0]
        return client.embed(CANDIDATES, timeout=240) @ query


@pytest.fixture(scope="module")
def strict(minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Remembers nothing; takes four candidates, and little text."""
    config = "[rescoring]\ncache_bytes = 0\n[limits]\nmax_texts = 4\nmax_text_bytes = 300\n"
    with serve(minilm_repository, tmp_path_factory.mktemp("strict"), config) as running:
        yield running


async def test_texts(server: ServerProcess, expected: np.ndarray) -> None:
    with trimtab.Client(server.url, timeout=100) as client:
        scores = client.rescore(QUERY, CANDIDATES, timeout=240)
    assert scores.dtype == np.float32 and scores.shape == (len(CANDIDATES),)
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)
    async with trimtab.AsyncClient(server.url, timeout=100) as client:
        np.testing.assert_allclose(await client.rescore(QUERY, CANDIDATES), expected, atol=TOLERANCE)


async def test_ids_are_sent_their_texts_once(server: ServerProcess, expected: np.ndarray) -> None:
    library = Library()
    with trimtab.Client(server.url, timeout=100) as client:
        for _ in range(2):
            np.testing.assert_allclose(
                client.rescore(QUERY, IDS[:15], texts=library), expected[:15], atol=TOLERANCE
            )
        assert library.asked == [IDS[:15]]
        np.testing.assert_allclose(client.rescore(QUERY, IDS, texts=library), expected, atol=TOLERANCE)
        assert library.asked[1:] == [IDS[15:]], "only what was missing"
        texts = dict(library.texts)
        np.testing.assert_allclose(client.rescore(QUERY, IDS, texts=texts), expected, atol=TOLERANCE)
        with pytest.raises(trimtab.InvalidArgument, match="no text for the candidate 'unheard of'"):
            client.rescore(QUERY, ["unheard of"], texts=texts)
        with pytest.raises(trimtab.InvalidArgument, match="0 texts for 1 candidates"):
            client.rescore(QUERY, ["unheard of"], texts=lambda ids: [])
    async with trimtab.AsyncClient(server.url, timeout=100) as client:

        async def fetch(ids: Sequence[str]) -> list[str]:
            return library(ids)

        more = [*IDS, "another"]
        library.texts["another"] = QUERY
        scores = await client.rescore(QUERY, more, texts=fetch)
        np.testing.assert_allclose(scores, [*expected, 1], atol=TOLERANCE)
        assert library.asked[2:] == [["another"]]


def test_only_the_query_is_computed_where_all_is_remembered(server: ServerProcess) -> None:
    count = f'trimtab_texts_total{{encoder="{NAME}",protocol="rescore",version="1"}}'
    with trimtab.Client(server.url, timeout=100) as client:
        client.rescore(QUERY, IDS, texts=Library())
        before = server.metrics()[count]
        client.rescore(QUERY, IDS, texts=Library())
        assert server.metrics()[count] - before == 1


def test_what_is_remembered_belongs_to_the_tenant(
    minilm_repository: Path, tmp_path: Path, expected: np.ndarray
) -> None:
    with serve(minilm_repository, tmp_path, TENANTS + "[rescoring]\ncache_bytes = 10000\n") as server:
        one, other = Library(), Library()
        for tenant, library in (("one", one), ("other", other)):
            with trimtab.Client(server.url, metadata={"x-tenant": tenant}) as client:
                client.rescore(QUERY, IDS[:2], texts=library)
        assert one.asked == other.asked == [IDS[:2]]
        # 10,000 bytes hold some five vectors of 1,536: the server forgets within the call, and asks again.
        with trimtab.Client(server.url, metadata={"x-tenant": "one"}) as client:
            scores = client.rescore(QUERY, IDS, texts=one)
        np.testing.assert_allclose(scores, expected, atol=TOLERANCE)


async def test_another_text_under_its_id_is_seen(server: ServerProcess) -> None:
    texts = {"same": "quarterly tax report", "moving": "a cat"}
    with trimtab.Client(server.url, timeout=100) as client:
        first = client.rescore("a cat", ["same", "moving"], texts=texts)
        assert first[1] == pytest.approx(1, abs=1e-4)
        texts["moving"] = "quarterly tax report"
        second = client.rescore("a cat", ["same", "moving"], texts=texts)
        np.testing.assert_allclose(second, [first[0], first[0]], atol=TOLERANCE)
        # A function is not called for what is remembered.
        again = client.rescore("a cat", ["moving"], texts=lambda ids: ["x"])
        np.testing.assert_allclose(again, second[1:], atol=TOLERANCE)
        # Cut elsewhere, a long text has another vector.
        long = "a cat " + "quarterly tax report " * 400 + "the moon"
        ends = [
            client.rescore("the moon", ["long"], texts={"long": long}, truncate=cut)
            for cut in ("end", "start")
        ]
        assert abs(float(ends[0][0] - ends[1][0])) > 1e-3
    texts["moving"] = "a cat"
    async with trimtab.AsyncClient(server.url, timeout=100) as client:
        assert (await client.rescore("a cat", ["moving"], texts=texts))[0] == pytest.approx(1, abs=1e-4)


def test_a_text_takes_the_place_of_what_was_remembered(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.url) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)

        def score(text: str | None) -> pb.RescoreResponse:
            candidates = [pb.Candidate(id="changing", text=text)]
            return stub.Rescore(pb.RescoreRequest(query="a cat", candidates=candidates))

        assert list(score(None).missing) == [0] and score(None).scores == b""
        answers = [score(text) for text in ("a cat", None, "quarterly tax report", None)]
        scores = [np.frombuffer(answer.scores, "<f4")[0] for answer in answers]
        assert scores[0] == scores[1] == pytest.approx(1, abs=TOLERANCE)
        assert scores[2] == scores[3] < 0.5
        assert answers[0].similarity == "cosine" and answers[0].times.compute > 0


def test_without_a_memory_texts_are_asked_for_each_time(strict: ServerProcess, expected: np.ndarray) -> None:
    library = Library()
    short = [number for number, text in enumerate(CANDIDATES) if len(text.encode()) <= 300]
    ids = [IDS[number] for number in short]
    with trimtab.Client(strict.url, timeout=100) as client:
        scores = client.rescore(QUERY, ids, texts=library)  # split: the server takes four at a time
        np.testing.assert_allclose(scores, expected[short], atol=TOLERANCE)
        client.rescore(QUERY, ids[:4], texts=library)
    assert library.asked[-1] == ids[:4]


@pytest.mark.parametrize(
    ("request_", "code", "parts"),
    [
        ({"candidates": []}, "INVALID_ARGUMENT", ["no candidates"]),
        (
            {"candidates": [pb.Candidate(text="a"), pb.Candidate()]},
            "INVALID_ARGUMENT",
            ["candidates[1]", "id"],
        ),
        ({"candidates": [pb.Candidate(id="x" * 513)]}, "INVALID_ARGUMENT", ["candidates[0]", "513", "512"]),
        (
            {"candidates": [pb.Candidate(id="x", digest=b"short")]},
            "INVALID_ARGUMENT",
            ["a digest of 5 bytes"],
        ),
        ({"candidates": [pb.Candidate(text="a")] * 5}, "INVALID_ARGUMENT", ["5 candidates", "takes 4"]),
        ({"candidates": [pb.Candidate(text="a" * 301)]}, "INVALID_ARGUMENT", ["candidates[0]", "301 bytes"]),
        ({"query": "a" * 301}, "INVALID_ARGUMENT", ["query[0]", "301 bytes"]),
        ({"encoder": "nope"}, "NOT_FOUND", ["nope", NAME]),
        ({"truncate": 77}, "INVALID_ARGUMENT", ["truncate 77"]),
        ({"truncate": 3, "candidates": [pb.Candidate(text="a b " * 70)]}, "OK", []),
    ],
)
def test_bad_input(strict: ServerProcess, request_: dict, code: str, parts: list[str]) -> None:
    with grpc.insecure_channel(strict.url) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        whole = {"query": "a", "candidates": [pb.Candidate(text="a")], **request_}
        if code == "OK":
            stub.Rescore(pb.RescoreRequest(**whole))
            return
        with pytest.raises(grpc.RpcError) as caught:
            stub.Rescore(pb.RescoreRequest(**whole))
        assert caught.value.code().name == code
        for part in parts:
            assert part in caught.value.details()


def test_a_deadline_that_cannot_be_met(server: ServerProcess) -> None:
    with trimtab.Client(server.url, timeout=100) as client:
        # Refused at the door, or given up later: it depends on who is first to see it.
        with pytest.raises((trimtab.DeadlineExceeded, trimtab.ResourceExhausted)):
            client.rescore("a query of its own " * 60, ["another text of its own " * 80] * 8, timeout=0.005)
