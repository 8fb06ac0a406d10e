"""Hybrid search: a query as several outputs, each searched in its own column of a store, and the hits fused.

A store's outputs may come from one encoder or from several. Which encoder gives which is found by their
spaces, so a query is never compared with vectors of another encoder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypedDict, Unpack, get_args

from trimtab.core.answers import Encoder, Outputs
from trimtab.core.options import EmbedOptions
from trimtab.errors import FailedPrecondition, InvalidArgument, NotFound
from trimtab.sdk.aio import AsyncClient
from trimtab.sdk.asking import Question, Questions, answered, answered_async
from trimtab.sdk.client import Client
from trimtab.search.fusion import CONSTANT, FusedHit, by_ranks, by_scores
from trimtab.stores.base import Hit, Query, Store, unknown_output

CANDIDATES = 100
Fuse = Literal["ranks", "scores"]


class HybridOptions(TypedDict, total=False):
    """How a query is embedded.

    group: its language, tenant or similar, for adapters that know groups.
    timeout: seconds that each call to the server may take.
    """

    group: str
    timeout: float | None


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass through an encoder. wanted: by the store's name of each output, the encoder's name of it."""

    encoder: Encoder
    wanted: Mapping[str, str]


class Parts:
    """What both clients' searches share; no IO except the store's."""

    def __init__(
        self,
        store: Store,
        outputs: Sequence[str] | None,
        weights: Mapping[str, float] | None,
        fuse: Fuse,
        candidates: int,
        constant: float,
    ) -> None:
        names = list(store.outputs) if outputs is None else list(outputs)
        for name in names:
            if name not in store.outputs:
                raise unknown_output(store, name)
            if store.outputs[name].space is None:
                raise FailedPrecondition(
                    f"{store.name} does not name the space of its vectors; claim it in the address: "
                    "#...?space=DIGEST"
                )
        if not names or len(set(names)) < len(names):
            raise InvalidArgument(f"outputs is {names}; name one or more of the store's, each once")
        if fuse not in get_args(Fuse):
            raise InvalidArgument(f"fuse {fuse!r} is not known; choose ranks or scores")
        if candidates < 1:
            raise InvalidArgument(f"candidates is {candidates}; give at least 1")
        self.store, self.names, self.passes = store, names, list[_Pass]()
        self._weights, self._fuse, self._constant = weights, fuse, constant
        self._candidates = candidates
        self.fused(dict.fromkeys(names, ()), 1)  # refuses weights and a constant that make no sense

    def choose(self, encoders: Sequence[Encoder]) -> list[_Pass]:
        """The fewest passes that give all outputs, by the newest versions with their spaces."""
        left, passes = list(self.names), list[_Pass]()
        while left:
            found = [_Pass(encoder, self._given(encoder, left)) for encoder in encoders]
            best = max(found, key=lambda each: len(each.wanted), default=None)  # the first of several
            if best is None or not best.wanted:
                raise NotFound(
                    f"no encoder with an output of space {self.store.outputs[left[0]].space}, that of "
                    f"{left[0]!r} in {self.store.name}, is served; load it, or leave that output out"
                )
            passes.append(best)
            left = [name for name in left if name not in best.wanted]
        self.passes = passes
        return passes

    def _given(self, encoder: Encoder, names: Sequence[str]) -> dict[str, str]:
        """Which of the store's outputs an encoder gives, and its names for them."""
        spaces = {output.space: output.name for output in encoder.outputs}
        wanted = {name: str(self.store.outputs[name].space) for name in names}
        return {name: spaces[space] for name, space in wanted.items() if space in spaces}

    def query(self, each: _Pass, embedded: Outputs) -> dict[str, Query]:
        """What a pass gives to search with, by the store's names."""
        for name, theirs in each.wanted.items():
            wanted = self.store.outputs[name].space
            if embedded.spaces[theirs] != wanted:
                raise FailedPrecondition(
                    f"{embedded.encoder} {embedded.version} answered with {theirs!r} of space "
                    f"{embedded.spaces[theirs]}, and {name!r} of {self.store.name} is of space {wanted}"
                )
        return {name: embedded[theirs][0] for name, theirs in each.wanted.items()}

    def fetch(self, queries: Mapping[str, Query], k: int) -> dict[str, list[Hit]]:
        """The hits of each output by itself."""
        most = max(self._candidates, k)
        return {name: self.store.search_output(name, queries[name], most) for name in self.names}

    def fused(self, found: Mapping[str, Sequence[Hit]], k: int) -> list[FusedHit]:
        """The k best of all."""
        if self._fuse == "scores":
            return by_scores(found, k, weights=self._weights)
        return by_ranks(found, k, weights=self._weights, constant=self._constant)


class HybridSearch:
    """Search a store by several outputs at once, such as dense and sparse vectors.

    client: reaches the server with the encoders of the store's outputs. A query that one encoder embeds as
        several outputs takes one pass.
    store: open, and kept open by the caller.
    outputs: which of the store's outputs are searched; by default all.
    fuse: "ranks" for reciprocal rank fusion, which needs nothing tuned, or "scores" for the weighted mean of
        the scores. See trimtab.search.fusion.
    weights: how much each output counts, by its name; 1 where none is given.
    candidates: how many documents are taken from each output. A document that one output ranks below these
        counts there as not found.
    constant: of the fusion by ranks.

    Threads may share it.
    """

    def __init__(
        self,
        client: Client,
        store: Store,
        *,
        outputs: Sequence[str] | None = None,
        fuse: Fuse = "ranks",
        weights: Mapping[str, float] | None = None,
        candidates: int = CANDIDATES,
        constant: float = CONSTANT,
    ) -> None:
        self._client = client
        self._parts = Parts(store, outputs, weights, fuse, candidates, constant)

    def search(self, text: str, k: int = 10, **options: Unpack[HybridOptions]) -> list[FusedHit]:
        """The k best documents for a query, best first; each says its rank and score by each output.

        Raises NotFound if no encoder with the space of an output is served.
        """
        return answered(_search(self._client, self._parts, text, k, options))


class AsyncHybridSearch:
    """`HybridSearch` for asyncio. The store is searched in a thread, so the event loop is not blocked."""

    def __init__(
        self,
        client: AsyncClient,
        store: Store,
        *,
        outputs: Sequence[str] | None = None,
        fuse: Fuse = "ranks",
        weights: Mapping[str, float] | None = None,
        candidates: int = CANDIDATES,
        constant: float = CONSTANT,
    ) -> None:
        self._client = client
        self._parts = Parts(store, outputs, weights, fuse, candidates, constant)

    async def search(self, text: str, k: int = 10, **options: Unpack[HybridOptions]) -> list[FusedHit]:
        """The k best documents for a query. See `HybridSearch.search`."""
        return await answered_async(_search(self._client, self._parts, text, k, options))


def _search(
    client: Client | AsyncClient, parts: Parts, text: str, k: int, options: HybridOptions
) -> Questions[list[FusedHit]]:
    """A search for both clients: see `HybridSearch.search`."""
    if k < 1:
        raise InvalidArgument(f"k is {k}; ask for at least 1")
    encoders = Question(partial(client.encoders, timeout=options.get("timeout")))
    passes = parts.passes or parts.choose((yield encoders))
    try:
        queries = yield from _embed(client, parts, passes, text, options)
    except NotFound:  # another version may have replaced it
        queries = yield from _embed(client, parts, parts.choose((yield encoders)), text, options)
    found: Mapping[str, Sequence[Hit]] = yield Question(partial(parts.fetch, queries, k), stores=True)
    return parts.fused(found, k)


def _embed(
    client: Client | AsyncClient, parts: Parts, passes: Sequence[_Pass], text: str, options: HybridOptions
) -> Questions[dict[str, Query]]:
    """The query as each of the outputs."""
    queries: dict[str, Query] = {}
    for each in passes:
        names = list(dict.fromkeys(each.wanted.values()))
        asked: EmbedOptions = {
            "encoder": each.encoder.name,
            "version": each.encoder.version,
            "role": "query",  # without effect where roles are read alike
            "group": options.get("group", ""),
        }
        embed: Any = partial(client.embed_outputs, [text], names, timeout=options.get("timeout"), **asked)
        queries.update(parts.query(each, (yield Question(embed))))
    return queries
