"""Both halves searched, at every stage of a migration: no document is lost, none is shown twice."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trimtab
from tests.client.migration.conftest import address
from tests.client.migration.world import World, fill, form_of, two_encoders
from trimtab.core.answers import Limits
from trimtab.kinds import Similarity
from trimtab.migration import half_migrated
from trimtab.stores import Document, Form, Hit, Id, Matrix, Rows, Store, create_store, open_store
from trimtab.values.similarity import scores

QUERIES = ["how do I get my password back?", "a dish with tomatoes", "flights"]
K = 10


@pytest.fixture(scope="module")
def world(minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with two_encoders(minilm_repository, tmp_path_factory.mktemp("two-encoders")) as running:
        yield running


@pytest.fixture
def client(world: World) -> Iterator[trimtab.Client]:
    with trimtab.Client(world.url, timeout=100) as opened:
        yield opened


@pytest.fixture
def halves(
    kind: str, world: World, client: trimtab.Client, texts: list[str], tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[tuple[Store, Store]]:  # fmt: skip
    """An old store with all documents, and a new one that is empty."""
    old = address(kind, tmp_path, request)
    vectors = client.embed(texts, encoder=world.old)
    fill(old, list(range(len(texts))), texts, form_of(client, world.old), vectors)
    with (
        open_store(old) as source,
        create_store(address(kind, tmp_path, request), form_of(client, world.new), example=0) as target,
    ):
        yield source, target


class Truth:
    """What a search of everything in the new space gives."""

    def __init__(self, client: trimtab.Client, world: World, texts: list[str]) -> None:
        vectors, queries = (client.embed(each, encoder=world.new) for each in (texts, QUERIES))
        self.near = {
            text: scores(query, vectors, "cosine") for text, query in zip(QUERIES, queries, strict=True)
        }

    def check(self, text: str, hits: list[Hit]) -> None:
        """The best of all, each once; where two are as good as equal, in any order."""
        near, found = self.near[text], [int(hit.id) for hit in hits]
        assert len(set(found)) == len(hits) == K
        np.testing.assert_allclose(near[found], np.sort(near)[::-1][:K], atol=1e-4)
        np.testing.assert_allclose([hit.score for hit in hits], near[found], atol=1e-4)


def test_every_stage(
    world: World, client: trimtab.Client, halves: tuple[Store, Store], texts: list[str]
) -> None:
    old, new = halves
    truth = Truth(client, world, texts)
    exact = trimtab.HalfMigrated(client, old=old, new=new, candidates=len(texts))
    calibrated = trimtab.HalfMigrated(client, old=old, new=new, merge="calibrate", encoder=world.new)
    vectors = client.embed(texts, encoder=world.new)
    order = np.random.default_rng(5).permutation(len(texts))
    for moved in np.array_split(order, 5):
        for text in QUERIES:
            hits = exact.search(text, K)
            truth.check(text, hits)
            assert [hit.text for hit in hits] == [texts[int(hit.id)] for hit in hits]
            found = calibrated.search(text, K, timeout=100)
            assert len({hit.id for hit in found}) == K
        documents = [Document(int(id), texts[id]) for id in moved]
        new.upsert(Rows(documents, vectors[moved]))
    truth.check(QUERIES[0], calibrated.search(QUERIES[0], K))


def test_for_asyncio(world: World, client: trimtab.Client, texts: list[str], tmp_path: Path) -> None:
    fill(f"faiss:{tmp_path / 'old'}", list(range(len(texts))), texts, form_of(client, world.old),
         client.embed(texts, encoder=world.old))  # fmt: skip
    half = len(texts) // 2
    fill(f"faiss:{tmp_path / 'new'}", list(range(half)), texts[:half], form_of(client, world.new),
         client.embed(texts[:half], encoder=world.new))  # fmt: skip

    async def search(**options: Any) -> list[list[Hit]]:
        async with trimtab.AsyncClient(world.url, timeout=100) as client:
            search = trimtab.AsyncHalfMigrated(client, old=old, new=new, **options)
            return list(await asyncio.gather(*(search.search(text, K) for text in QUERIES)))

    with open_store(f"faiss:{tmp_path / 'old'}") as old, open_store(f"faiss:{tmp_path / 'new'}") as new:
        found = asyncio.run(search(candidates=len(texts)))
        truth = Truth(client, world, texts)
        for text, hits in zip(QUERIES, found, strict=True):
            truth.check(text, hits)
        assert all(len(hits) == K for hits in asyncio.run(search(merge="calibrate")))


def test_while_another_process_re_indexes(
    world: World, client: trimtab.Client, texts: list[str], tmp_path: Path
) -> None:
    old, new = f"faiss:{tmp_path / 'old'}", f"faiss:{tmp_path / 'new'}"
    fill(
        old,
        list(range(len(texts))),
        texts,
        form_of(client, world.old),
        client.embed(texts, encoder=world.old),
    )
    create_store(new, form_of(client, world.new)).close()
    truth = Truth(client, world, texts)
    command = [sys.executable, "-m", "trimtab.cli", "reindex", "--from", old, "--to", new, "--url", world.url]
    command += ["--encoder", world.new, "--batch", "8", "--rate", "100"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    stages = set()
    try:
        with open_store(old) as source, open_store(new) as target:
            search = trimtab.HalfMigrated(client, old=source, new=target, candidates=len(texts))
            while process.poll() is None:
                stages.add(target.count())
                for text in QUERIES:
                    truth.check(text, search.search(text, K))
            assert target.count() == len(texts)
    finally:
        process.kill()
        said = process.communicate()[1].decode()
    assert process.returncode == 0, said
    assert f"sampled vectors of {old} are of the space it claims" in said
    assert len(stages) > 3, "searches fell in the middle"


def test_what_it_needs(world: World, client: trimtab.Client, tmp_path: Path, texts: list[str]) -> None:
    old = form_of(client, world.old)
    fill(f"faiss:{tmp_path / 'old'}", [1], texts[:1], old)
    fill(f"faiss:{tmp_path / 'elsewhere'}", [1], texts[:1])
    np.save(tmp_path / "old.npy", np.ones((3, 64), np.float32))
    with (
        open_store(f"faiss:{tmp_path / 'old'}") as source,
        open_store(f"faiss:{tmp_path / 'elsewhere'}") as elsewhere,
        open_store(str(tmp_path / "old.npy")) as silent,
        open_store(f"{tmp_path / 'old.npy'}#?space={old.space}") as textless,
        create_store(f"faiss:{tmp_path / 'new'}", form_of(client, world.new)) as new,
    ):
        with pytest.raises(trimtab.FailedPrecondition, match="does not name the space"):
            trimtab.HalfMigrated(client, old=silent, new=new)
        with pytest.raises(trimtab.ConfigError, match="of one space"):
            trimtab.HalfMigrated(client, old=source, new=source)
        with pytest.raises(trimtab.InvalidArgument, match="merge"):
            trimtab.HalfMigrated(client, old=source, new=new, merge="guess")  # type: ignore[arg-type]
        with pytest.raises(trimtab.InvalidArgument, match="candidates"):
            trimtab.HalfMigrated(client, old=source, new=new, candidates=0)
        with pytest.raises(trimtab.NotFound, match="the-old-space"):
            trimtab.HalfMigrated(client, old=source, new=elsewhere).search("text")
        with pytest.raises(trimtab.NotFound, match="'nobody'"):
            trimtab.HalfMigrated(client, old=source, new=new, encoder="nobody").search("text")
        with pytest.raises((trimtab.NotFound, trimtab.FailedPrecondition), match="the-old-space"):
            trimtab.HalfMigrated(client, old=elsewhere, new=new).search("text")
        with pytest.raises(trimtab.FailedPrecondition, match="no text for document"):
            trimtab.HalfMigrated(client, old=textless, new=new).search("text")
        assert len(trimtab.HalfMigrated(client, old=textless, new=new, merge="calibrate").search("text")) == 3


# Between any two steps of a search, any documents may move. A client whose answers are known stands in for
# the server here, so that many interleavings can be tried.

COUNT, D = 12, 6
NEW = np.random.default_rng(7).standard_normal((COUNT, D)).astype(np.float32)
TURN = np.linalg.qr(np.random.default_rng(8).standard_normal((D, D)))[0][:, :4].astype(np.float32)
ALL = [Document(id, f"text {id}") for id in range(COUNT)]
LIMITS = Limits(max_texts=100, max_text_bytes=1000, max_message_bytes=100_000)


class KnownClient:
    """Answers as a server would whose encoder gives `query`, and NEW for the documents."""

    def __init__(self, query: Matrix) -> None:
        self._query = query

    def encoders(self, timeout: float | None = None) -> list[Any]:
        return [
            SimpleNamespace(
                name="new",
                version="1",
                space="new",
                similarity="cosine",
                query_prompt="",
                passage_prompt="",
                limits=LIMITS,
            )
        ]

    def embed_spaces(self, texts: Sequence[str], spaces: Sequence[str], **options: Any) -> dict[str, Any]:
        both = {"new": self._query, "old": self._query @ TURN}
        return {space: SimpleNamespace(vectors=both[space][None]) for space in spaces}

    def rescore(self, query: str, names: Sequence[str], *, texts: dict[str, str], **options: Any) -> Matrix:
        places = [int(texts[name].split()[1]) for name in names]
        return scores(self._query, NEW[places], "cosine")


class Memory(Store):
    """A store in memory that lets others act before each call."""

    def __init__(
        self,
        name: str,
        vectors: Matrix,
        ids: Collection[int],
        before: Callable[[], None],
        similarity: Similarity = "cosine",
    ) -> None:
        self.name = name
        self.form = Form(space=name, dimensions=vectors.shape[1], similarity=similarity)
        self.vectors, self.ids, self._before = vectors, sorted(ids), before
        self.documents = ALL

    def search(self, vector: Matrix, k: int) -> list[Hit]:
        self._before()
        there = self.vectors[self.ids]
        near = scores(vector, there, self.form.similarity) if self.ids else np.empty(0, np.float32)
        order = np.argsort(-near, kind="stable")[:k]
        return [Hit(self.ids[at], self.documents[self.ids[at]].text, float(near[at])) for at in order]

    def texts(self, ids: Sequence[Id]) -> dict[Id, str | None]:
        self._before()
        return {id: ALL[int(id)].text for id in ids if id in self.ids}

    def get(self, ids: Sequence[Id]) -> Rows:
        kept = [int(id) for id in ids if id in self.ids]
        return Rows([ALL[id] for id in kept], self.vectors[kept])

    def identity(self) -> frozenset[Hashable]:
        return frozenset([self.name])

    count = page = sample = None  # type: ignore[assignment]  # a search needs none of these


@pytest.mark.parametrize("similarity", ["euclidean", "dot", "manhattan"])
def test_a_new_store_that_compares_otherwise_than_its_encoder(similarity: Similarity) -> None:
    """Its distances would be merged with the cosines by which the server scores candidates."""
    vectors = np.eye(COUNT, D, dtype=np.float32)
    old = Memory("old", vectors, range(COUNT), lambda: None)
    new = Memory("new", vectors, [], lambda: None, similarity)
    halves = half_migrated.Halves(old, new, "", "rescore", 10)
    encoder = trimtab.Encoder(
        name="e", version="1", space="new", dimensions=D, max_tokens=8, similarity="cosine", pooling="mean",
        normalized=True, query_prompt="", passage_prompt="", dtypes=("float32",), limits=LIMITS,
    )  # fmt: skip
    with pytest.raises(trimtab.FailedPrecondition, match=f"new compares vectors by {similarity}.*by cosine"):
        halves.choose([encoder])


@settings(max_examples=200, deadline=None)
@given(
    query=st.integers(0, 1000),
    moves=st.lists(st.sets(st.integers(0, COUNT - 1)), min_size=4, max_size=4),
    merge=st.sampled_from(["rescore", "calibrate"]),
    k=st.integers(1, COUNT),
)
def test_documents_that_move_during_the_search(query: int, moves: list[set[int]], merge: str, k: int) -> None:
    vector = np.random.default_rng(query).standard_normal(D).astype(np.float32)
    waiting = list(moves)

    def move() -> None:
        if waiting:
            new.ids = sorted({*new.ids, *waiting.pop(0)})

    old = Memory("old", NEW @ TURN, range(COUNT), move)
    new = Memory("new", NEW, waiting.pop(0), move)
    search = trimtab.HalfMigrated(KnownClient(vector), old=old, new=new, merge=merge)  # type: ignore[arg-type]
    hits = search.search("the query", k)
    found = [hit.id for hit in hits]
    assert len(found) == len(set(found)) == k, "none is lost, none is shown twice"
    if merge == "rescore":
        assert found == np.argsort(-scores(vector, NEW, "cosine"), kind="stable")[:k].tolist()


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, COUNT + 1),
    similarity=st.sampled_from(["cosine", "dot", "euclidean"]),
    k=st.integers(1, COUNT),
)
def test_calibrated_it_is_never_worse_than_the_old_half(
    seed: int, count: int, similarity: Similarity, k: int
) -> None:
    random = np.random.default_rng(seed)
    vector = random.standard_normal(D).astype(np.float32)
    # Scores of the halves on scales that have nothing in common, and an adapter that is far from exact.
    vectors = (100 * NEW @ TURN + random.standard_normal((COUNT, 4)) * 50 + 300).astype(np.float32)
    old = Memory("old", vectors, range(COUNT), lambda: None, similarity)
    new = Memory("new", NEW, random.permutation(COUNT)[: count - 1].tolist(), lambda: None)
    search = trimtab.HalfMigrated(KnownClient(vector), old=old, new=new, merge="calibrate")  # type: ignore[arg-type]
    hits = search.search("the query", k)
    alone = [hit.id for hit in old.search(vector @ TURN, k)]
    found = [hit.id for hit in hits]
    nearest = np.argsort(-scores(vector, NEW, "cosine"), kind="stable").tolist()
    for depth in range(1, k + 1):
        for right in range(1, COUNT + 1):
            truth = set(nearest[:right])
            assert len(truth & set(found[:depth])) >= len(truth & set(alone[:depth]))
    assert len(set(found)) == k
    if count == 1:
        assert found == alone
    else:
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    if count == COUNT + 1:
        assert found == nearest[:k]


@pytest.mark.parametrize("text", [None, "x" * 2000, "\ud800"])
def test_candidates_that_cannot_be_scored_keep_their_places(text: str | None) -> None:
    vector = np.random.default_rng(1).standard_normal(D).astype(np.float32)
    old = Memory("old", NEW @ TURN, range(COUNT), lambda: None)
    new = Memory("new", NEW, [], lambda: None)
    first = int(old.search(vector @ TURN, 1)[0].id)
    old.documents = [Document(id, text if id == first else ALL[id].text) for id in range(COUNT)]
    search = trimtab.HalfMigrated(KnownClient(vector), old=old, new=new)  # type: ignore[arg-type]
    hits = search.search("the query", COUNT)
    nearest = np.argsort(-scores(vector, NEW, "cosine"), kind="stable").tolist()
    nearest.remove(first)
    assert [hit.id for hit in hits] == [first, *nearest]
