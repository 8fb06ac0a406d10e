"""Search while a re-index runs: the old half by an adapted query, the new half by the encoder's own.

The order of the steps is what keeps documents from being lost or shown twice. The old store has every
document until the end, so it is searched first. Then the new store tells which of those candidates it has
by now: their vectors there are better, and the search of the new store, which comes last, finds them if
they belong among the best. A document that arrives between these steps is found in both, and its new place
counts.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypedDict, Unpack

import numpy as np

from trimtab.aio import AsyncClient
from trimtab.client import Client
from trimtab.errors import ConfigError, FailedPrecondition, InvalidArgument, NotFound
from trimtab.rescoring import Scores
from trimtab.stores.base import Hit, Id, Matrix, Store, check_apart, scores
from trimtab.types import Embeddings, EmbedOptions, Encoder

CANDIDATES = 200
Merge = Literal["rescore", "calibrate"]
# Fewer documents than this in both halves say nothing about how their scores compare.
FEWEST_PAIRS = 8


class SearchOptions(TypedDict, total=False):
    """How a query is embedded.

    group: its language, tenant or the like, for adapters that know groups.
    timeout: seconds that each call to the server may take.
    """

    group: str
    timeout: float | None


class _Halves:
    """What both clients' searches share; no IO but the stores'."""

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
        """The encoder whose space is the new one, its newest version."""
        named = [each for each in encoders if self._name in {"", each.name}]
        self.encoder = next((each for each in named if each.space == self.spaces[0]), None)
        if self.encoder is None:
            raise NotFound(
                f"no encoder{f' {self._name!r}' if self._name else ''} of space {self.spaces[0]}, that of "
                f"{self.new.name}, is served; load it, or open the store that belongs to the encoder"
            )
        return self.encoder

    def fetch(self, native: Matrix, adapted: Matrix, k: int) -> tuple[list[Hit], list[Hit]]:
        """Candidates: those that are not in the new store yet, and those of the new store."""
        # In this order: see the head of the module.
        near = self.old.search(adapted, max(self._candidates, k))
        there = self.new.texts([hit.id for hit in near])
        waiting = [hit for hit in near if hit.id not in there]
        if self.merge == "calibrate":
            waiting = self._calibrated(native, waiting, [hit for hit in near if hit.id in there])
        return waiting, self.new.search(native, k)

    def rows(self, embedded: dict[str, Embeddings]) -> tuple[Matrix, Matrix]:
        """The query in the new space, and in the old one."""
        native, adapted = (embedded[space].vectors[0] for space in self.spaces)
        return native, adapted

    def texts(self, waiting: Sequence[Hit]) -> tuple[list[str], dict[str, str]]:
        """The names by which the server remembers the vectors of these texts, and each name's text.

        A name is a digest of the text, so that a text that changed has another.
        """
        names, texts = [], {}
        for hit in waiting:
            if hit.text is None:
                raise FailedPrecondition(
                    f"{self.old.name} has no text for document {hit.id!r}, so it cannot be scored again; "
                    "keep texts in the store, or pass merge='calibrate'"
                )
            names.append(hashlib.sha256(hit.text.encode()).hexdigest()[:32])
            texts[names[-1]] = hit.text
        return names, texts

    def _calibrated(self, native: Matrix, waiting: Sequence[Hit], moved: Sequence[Hit]) -> list[Hit]:
        adapted = {hit.id: hit.score for hit in moved}
        rows = self.new.get(list(adapted))
        known = np.array([adapted[id] for id in rows.ids], np.float32)
        return on_one_scale(waiting, known, scores(native, rows.vectors, self.new.form.similarity))


def on_one_scale(hits: Sequence[Hit], adapted: Scores, native: Scores) -> list[Hit]:
    """Bring scores of the old half onto the new half's scale, in their order.

    adapted, native: (n,), both scores of the candidates of this search that are in both halves. Afterwards
    these would have the same mean and the same spread on either scale. A least-squares line would press the
    scores together instead, by as much as the two disagree, and leave the old half behind. Where n is small,
    the scores stay as they are.
    """
    if len(adapted) < FEWEST_PAIRS or not np.std(adapted):
        return list(hits)
    slope = float(np.std(native) / np.std(adapted))
    start = float(np.mean(native) - slope * np.mean(adapted))
    return [replace(hit, score=slope * hit.score + start) for hit in hits]


def merged(waiting: Sequence[Hit], fresh: Sequence[Hit], k: int) -> list[Hit]:
    """The k best of both halves, each document once; one that is in both counts as it is in `fresh`."""
    found: dict[Id, Hit] = {hit.id: hit for hit in waiting}
    found.update((hit.id, hit) for hit in fresh)
    return sorted(found.values(), key=lambda hit: -hit.score)[:k]


class HalfMigrated:
    """Search over an old and a new store while `trimtab reindex` fills the new one.

    client: reaches the server with the new encoder and the adapter from its space into the old one.
    old, new: the stores, open; both stay the caller's to close. Each names its space. Until the end,
        documents are written to the old store or to both, and deleted from the old one first.
    encoder: the new encoder's name; left out, the one that is served with the new store's space.
    merge: how candidates of the old half get scores that compare with the new half's. "rescore": the new
        encoder embeds their texts, as good as it gets, and the server remembers them. "calibrate": their
        adapted scores get the mean and the spread that candidates in both halves have in the new space; no
        texts, no further call.
    candidates: how many documents the old store is asked for, before those that have moved are left out.

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
        self._client, self._halves = client, _Halves(old, new, encoder, merge, candidates)

    def search(self, text: str, k: int = 10, **options: Unpack[SearchOptions]) -> list[Hit]:
        """The k documents nearest to a query, the best first, wherever they are by now.

        One pass through the encoder gives the query in both spaces. A hit's score is the similarity in the
        new space. Raises FailedPrecondition where no adapter leads to the old store's space.
        """
        halves, timeout = self._halves, options.get("timeout")
        encoder = halves.encoder or halves.choose(self._client.encoders(timeout=timeout))
        try:
            embedded = self._client.embed_spaces(
                [text], halves.spaces, timeout=timeout, **_query(encoder, options)
            )
        except NotFound:  # perhaps another version took its place
            encoder = halves.choose(self._client.encoders(timeout=timeout))
            embedded = self._client.embed_spaces(
                [text], halves.spaces, timeout=timeout, **_query(encoder, options)
            )
        waiting, fresh = halves.fetch(*halves.rows(embedded), k)
        if halves.merge == "calibrate" or not waiting:
            return merged(waiting, fresh, k)
        names, texts = halves.texts(waiting)
        near = self._client.rescore(text, names, texts=texts, timeout=timeout, **_pinned(encoder))
        return merged(_scored(waiting, near), fresh, k)


class AsyncHalfMigrated:
    """`HalfMigrated` for asyncio: the stores are searched in threads, so that the event loop goes on."""

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
        self._client, self._halves = client, _Halves(old, new, encoder, merge, candidates)

    async def search(self, text: str, k: int = 10, **options: Unpack[SearchOptions]) -> list[Hit]:
        """The k documents nearest to a query. See `HalfMigrated.search`."""
        halves, timeout = self._halves, options.get("timeout")
        encoder = halves.encoder or halves.choose(await self._client.encoders(timeout=timeout))
        try:
            embedded = await self._client.embed_spaces(
                [text], halves.spaces, timeout=timeout, **_query(encoder, options)
            )
        except NotFound:
            encoder = halves.choose(await self._client.encoders(timeout=timeout))
            embedded = await self._client.embed_spaces(
                [text], halves.spaces, timeout=timeout, **_query(encoder, options)
            )
        waiting, fresh = await asyncio.to_thread(halves.fetch, *halves.rows(embedded), k)
        if halves.merge == "calibrate" or not waiting:
            return merged(waiting, fresh, k)
        names, texts = halves.texts(waiting)
        near = await self._client.rescore(text, names, texts=texts, timeout=timeout, **_pinned(encoder))
        return merged(_scored(waiting, near), fresh, k)


def _query(encoder: Encoder, options: SearchOptions) -> EmbedOptions:
    """How the query is embedded: as one, where the encoder tells queries from passages."""
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


def _scored(hits: Sequence[Hit], near: Scores) -> list[Hit]:
    return [replace(hit, score=score) for hit, score in zip(hits, near.tolist(), strict=True)]
