"""Search during a re-index: the old half with an adapted query, the new half with the encoder's own.

The order of the steps ensures that no document is lost or shown twice. The old store has every document until
the end, so it is searched first. Then the new store says which of those candidates it already has: their
vectors there are better. The search of the new store comes last, and finds them if they are among the best. A
document that moves in between is found in both, and its new place counts. trimtab.migration.merging explains
how the halves become one list.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypedDict, Unpack

from trimtab.core.answers import Embeddings, Encoder
from trimtab.core.options import EmbedOptions
from trimtab.core.requests import unfit
from trimtab.core.rescoring import Scores
from trimtab.errors import ConfigError, FailedPrecondition, InvalidArgument, NotFound
from trimtab.migration.merging import one_list
from trimtab.sdk.aio import AsyncClient
from trimtab.sdk.asking import Question, Questions, answered, answered_async
from trimtab.sdk.client import Client
from trimtab.stores.base import Hit, Matrix, Store
from trimtab.stores.checks import check_apart

CANDIDATES = 200
Merge = Literal["rescore", "calibrate"]


class SearchOptions(TypedDict, total=False):
    """How a query is embedded.

    group: its language, tenant or similar, for adapters that know groups.
    timeout: seconds that each call to the server may take.
    """

    group: str
    timeout: float | None


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The old half's candidates, which of them have not moved yet, and the new half's best."""

    near: list[Hit]
    waiting: list[Hit]
    fresh: list[Hit]
    k: int

    def merged(self, scored: Sequence[Hit] = ()) -> list[Hit]:
        """The merged hits; `scored` are waiting documents that were scored in the new space."""
        known = {hit.id for hit in scored}
        unknown = {hit.id for hit in self.waiting if hit.id not in known}
        return one_list(self.near, [*scored, *self.fresh], unknown, self.k)


class Halves:
    """What both clients' searches share; no IO except the stores'."""

    def __init__(self, old: Store, new: Store, encoder: str, merge: Merge, candidates: int) -> None:
        for store, half in ((old, "old"), (new, "new")):
            if store.form.space is None:
                raise FailedPrecondition(
                    f"{store.name}, the {half} half, does not name the space of its vectors; "
                    "claim it in the address: #...?space=DIGEST"
                )
        if old.form.space == new.form.space:
            raise ConfigError(f"{old.name} and {new.name} are of one space: there is nothing to migrate")
        check_apart(old, new)
        if merge not in {"rescore", "calibrate"}:
            raise InvalidArgument(f"merge {merge!r} is not known; choose rescore or calibrate")
        if candidates < 1:
            raise InvalidArgument(f"candidates is {candidates}; give at least 1")
        self.old, self.new, self.merge, self._candidates = old, new, merge, candidates
        self.spaces = (str(new.form.space), str(old.form.space))
        self.encoder: Encoder | None = None
        self._name = encoder

    def choose(self, encoders: Sequence[Encoder]) -> Encoder:
        """The newest version of the encoder with the new space."""
        named = [each for each in encoders if self._name in {"", each.name}]
        self.encoder = next((each for each in named if each.space == self.spaces[0]), None)
        if self.encoder is None:
            raise NotFound(
                f"no encoder{f' {self._name!r}' if self._name else ''} of space {self.spaces[0]}, that of "
                f"{self.new.name}, is served; load it, or open the store that belongs to the encoder"
            )
        if self.new.form.similarity != self.encoder.similarity:
            raise FailedPrecondition(
                f"{self.new.name} compares vectors by {self.new.form.similarity}, and {self.encoder.name} "
                f"scores candidates by {self.encoder.similarity}: the two halves' scores would not compare. "
                f"Open or make the new store with similarity {self.encoder.similarity}"
            )
        return self.encoder

    def fetch(self, native: Matrix, adapted: Matrix, k: int) -> "_Candidates":
        """What both halves find for the query with these embeddings."""
        # In this order: see the module's docstring.
        near = self.old.search(adapted, max(self._candidates, k))
        there = self.new.texts([hit.id for hit in near])
        fresh = self.new.search(native, k)
        arrived = {*there, *(hit.id for hit in fresh)}
        return _Candidates(near, [hit for hit in near if hit.id not in arrived], fresh, k)

    def rows(self, embedded: dict[str, Embeddings]) -> tuple[Matrix, Matrix]:
        """The query in the new space, and in the old one."""
        native, adapted = (embedded[space].vectors[0] for space in self.spaces)
        return native, adapted

    def scorable(self, waiting: Sequence[Hit], encoder: Encoder) -> list[Hit]:
        """The hits that the new encoder can score by their texts; none for "calibrate"."""
        if self.merge == "calibrate":
            return []
        if waiting and all(hit.text is None for hit in waiting):
            raise FailedPrecondition(
                f"{self.old.name} has no text for document {waiting[0].id!r}, nor for any other candidate: "
                "they cannot be scored again; keep texts in the store, or pass merge='calibrate'"
            )
        return [hit for hit in waiting if not unfit(hit.text, encoder.limits)]


class HalfMigrated:
    """Search over an old and a new store while `trimtab reindex` fills the new one.

    client: reaches the server with the new encoder and the adapter from its space into the old one.
    old, new: the open stores; the caller closes both. Each names its space. Until the end, documents are
        written to the old store or to both, and deleted from the old one first.
    encoder: the new encoder's name; by default, the served encoder with the new store's space.
    merge: how candidates of the old half get scores comparable with the new half's. "rescore": the new
        encoder embeds their texts, which is the most accurate, and the server remembers them; a candidate
        without a text, or with one too long for the server, is treated as by "calibrate". "calibrate":
        candidates keep the places that the old half gives them, and moved documents fill the other places,
        in the order of the new space (see `trimtab.migration.merging`); this needs no texts and no further
        call.
    candidates: how many documents are requested from the old store, before the moved ones are left out.

    Threads may share it.
    """

    def __init__(
        self,
        client: Client,
        *,
        old: Store,
        new: Store,
        encoder: str = "",
        merge: Merge = "rescore",
        candidates: int = CANDIDATES,
    ) -> None:
        self._client, self._halves = client, Halves(old, new, encoder, merge, candidates)

    def search(self, text: str, k: int = 10, **options: Unpack[SearchOptions]) -> list[Hit]:
        """The k documents nearest to a query, best first, whichever store they are in.

        One pass through the encoder gives the query in both spaces. A hit's score is the similarity in the
        new space, or an estimate of it that keeps the order; while none of the found documents has moved,
        "calibrate" leaves the adapted scores. Raises FailedPrecondition if no adapter leads to the old
        store's space.
        """
        return answered(_search(self._client, self._halves, text, k, options))


class AsyncHalfMigrated:
    """`HalfMigrated` for asyncio. The stores are searched in threads, so the event loop is not blocked."""

    def __init__(
        self,
        client: AsyncClient,
        *,
        old: Store,
        new: Store,
        encoder: str = "",
        merge: Merge = "rescore",
        candidates: int = CANDIDATES,
    ) -> None:
        self._client, self._halves = client, Halves(old, new, encoder, merge, candidates)

    async def search(self, text: str, k: int = 10, **options: Unpack[SearchOptions]) -> list[Hit]:
        """The k documents nearest to a query. See `HalfMigrated.search`."""
        return await answered_async(_search(self._client, self._halves, text, k, options))


def _search(
    client: Client | AsyncClient, halves: Halves, text: str, k: int, options: SearchOptions
) -> Questions[list[Hit]]:
    """A search for both clients: see `HalfMigrated.search`."""
    timeout = options.get("timeout")
    encoders = Question(partial(client.encoders, timeout=timeout))

    def embed(encoder: Encoder) -> Question:
        query = _query(encoder, options)
        return Question(partial(client.embed_spaces, [text], halves.spaces, timeout=timeout, **query))

    encoder = halves.encoder or halves.choose((yield encoders))
    try:
        embedded = yield embed(encoder)
    except NotFound:  # another version may have replaced it
        encoder = halves.choose((yield encoders))
        embedded = yield embed(encoder)
    found: _Candidates = yield Question(partial(halves.fetch, *halves.rows(embedded), k), stores=True)
    again = halves.scorable(found.waiting, encoder)
    if not again:
        return found.merged()
    names, texts = _named(again)
    near = yield Question(
        partial(client.rescore, text, names, texts=texts, timeout=timeout, **_pinned(encoder))
    )
    return found.merged(_scored(again, near))


def _query(encoder: Encoder, options: SearchOptions) -> EmbedOptions:
    """How the query is embedded: with the role "query" if the encoder has prompts."""
    prompted = bool(encoder.query_prompt or encoder.passage_prompt)
    return {
        "encoder": encoder.name,
        "version": encoder.version,
        "role": "query" if prompted else None,
        "group": options.get("group", ""),
    }


class _Pin(TypedDict):
    encoder: str
    version: str


def _pinned(encoder: Encoder) -> _Pin:
    return {"encoder": encoder.name, "version": encoder.version}


def _named(hits: Sequence[Hit]) -> tuple[list[str], dict[str, str]]:
    """The names by which the server remembers the vectors of these hits' texts, and each name's text.

    A name is a digest of the text, so a changed text has another name.
    """
    names = [hashlib.sha256((hit.text or "").encode()).hexdigest()[:32] for hit in hits]
    return names, {name: hit.text or "" for name, hit in zip(names, hits, strict=True)}


def _scored(hits: Sequence[Hit], near: Scores) -> list[Hit]:
    return [replace(hit, score=score) for hit, score in zip(hits, near.tolist(), strict=True)]
