"""Rescore: candidates from any index are scored for a query, by what the encoder gives.

This is the second stage of a cascade (Matveeva et al. 2006): the new encoder reranks what an adapted query
found in the old encoder's index. An encoder of texts computes the query and each candidate, and its output's
kind compares them; a candidate with an id is computed once and cached. An encoder of pairs (a cross-encoder)
reads the query with each candidate. There is nothing of a candidate alone to keep, so its score is cached
under the id and the query; whatever else repeats a pair is computed once by the engine's own sharing.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.core.rescoring import digest_of
from trimtab.errors import InvalidArgument
from trimtab.kinds import Truncate
from trimtab.values.column import Columns, gathered
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import LoadedEncoder, ServedOutput
from trimtab_server.engine.batch import Wanted
from trimtab_server.lru import LruCache
from trimtab_server.outputs.kind import check_finite
from trimtab_server.tasks.pipeline import Pipeline, Times
from trimtab_server.turns import INLINE_BYTES, Next

MAX_ID_BYTES = 512
DIGEST_BYTES = 16
# What a cached output takes besides its numbers and its key's strings: the objects that hold them.
ENTRY_BYTES = 400
# The candidates that are scored or remembered in one piece: some tenths of a millisecond. Each is compared
# with all the query's vectors, so with more of them than QUERY_ROWS it counts as so much larger.
PIECE_BYTES = 1 << 19
QUERY_ROWS = 32
# A piece that counts as more, because of one large candidate, is scored on a thread.
LONG_BYTES = 1 << 21

# The forms of input that can be scored.
TEXT, PAIR = "text", "pair"
NO_TIME = Times(0.0, 0.0, 0.0, 0.0)

# Space, output and tokens read; tenant; how texts are cut; id; for pairs, the query's digest before the id.
Key: TypeAlias = tuple[str, str, Truncate, str]
Cached: TypeAlias = tuple[Columns, bytes]  # an item's output, and its text's digest


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text to score, an id under which its vector is cached, or both.

    digest: of the text that is meant, if only the id is given; empty for whatever is cached.
    """

    id: str
    text: str | None
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class RescoreRequest:
    """What a caller asks for."""

    encoder: str
    version: str
    query: str
    candidates: Sequence[Candidate]
    truncate: Truncate
    output: str = ""  # by which it is scored; "": the first one


@dataclass(frozen=True, slots=True)
class RescoreResult:
    """A score for each candidate, higher for nearer ones; or the positions of those whose text is missing."""

    encoder: LoadedEncoder
    output: ServedOutput
    scores: NDArray[np.float32]
    missing: list[int]
    times: Times


class Rescorer:
    """Answers Rescore through the pipeline. For one event loop."""

    def __init__(self, pipeline: Pipeline, cache_bytes: int) -> None:
        self._pipeline = pipeline
        self._cache: LruCache[Key, Cached] = LruCache(cache_bytes, _size)

    async def rescore(self, call: Call, request: RescoreRequest) -> RescoreResult:
        """Answer a request, or raise one of trimtab.errors."""
        with self._pipeline.answering(call) as answering:
            await self._pipeline.turn(call, 1 + len(request.candidates))
            encoder = self._pipeline.repository.find(call.caller, request.encoder, request.version)
            answering.hold(encoder)
            return await self._rescore(encoder, call, request)

    async def _rescore(self, encoder: LoadedEncoder, call: Call, request: RescoreRequest) -> RescoreResult:
        candidates, cut = request.candidates, request.truncate
        (output,) = encoder.outputs_named((request.output,) if request.output else ())
        self._check(encoder, output, request)
        pairs = encoder.reader.form == PAIR
        about = f"{digest_of(request.query).hex()}/" if pairs else ""
        # How much of a text is read is not part of its space's name.
        of = f"{output.own.space} {output.name} {encoder.manifest.max_tokens}"
        keys = [(of, call.tenant, cut, about + each.id) for each in candidates]
        cached = [
            self._recall(key, each.digest) if each.text is None else None
            for key, each in zip(keys, candidates, strict=True)
        ]
        wanted = [place for place, found in enumerate(cached) if found is None]
        missing = [place for place in wanted if candidates[place].text is None]
        if missing:
            return RescoreResult(encoder, output, np.empty(0, np.float32), missing, NO_TIME)
        names = output.columns
        parts = [(each or {}, 0) for each in cached]
        if pairs and not wanted:
            scores = output.kind.score_pairs(gathered(parts, names), names, output.own)
            return RescoreResult(encoder, output, scores, [], NO_TIME)
        items = _items(encoder, request, wanted)
        first = len(items) - len(wanted)  # the row of the first candidate

        def which(row: int) -> str:
            return "query" if row < first else f"candidates[{wanted[row - first]}]"

        with await self._pipeline.admit(encoder, call, items, names) as admitted:
            rows = await self._pipeline.compute(encoder, call, items, cut, admitted, names, which)
            computed = rows.computed.result
            if sum([computed[name].values.nbytes for name in names]) > INLINE_BYTES:
                await asyncio.to_thread(check_finite, computed, names, which)
            else:
                check_finite(computed, names, which)
            for row, place in enumerate(wanted, first):
                parts[place] = computed, row
            named = [place for place in wanted if candidates[place].id]
            if named:
                texts = [candidates[place].text or "" for place in named]
                own = [(keys[place], *parts[place]) for place in named]
                await self._pipeline.in_pieces(call, self._remember(own, texts, names))
            if pairs:
                scores = output.kind.score_pairs(gathered(parts, names), names, output.own)
            else:
                query = {name: computed[name].only(0) for name in names}
                scores = await self._pipeline.in_pieces(call, _scored(output, query, parts))
            times = self._pipeline.answered(encoder, call, rows)
            return RescoreResult(encoder, output, scores, [], times)

    def _remember(
        self, items: Sequence[tuple[Key, Columns, int]], texts: Sequence[str], names: Wanted
    ) -> Iterator[bool | None]:
        """Cache items, each of its columns and place, and their texts' digests: yields None after each piece
        of the work, and True at the end."""
        size = 0
        for (key, computed, row), text in zip(items, texts, strict=True):
            if size >= PIECE_BYTES:
                yield None
                size = 0
            # A view would keep all the rows.
            own = {name: computed[name].only(row).copy() for name in names}
            self._cache.put(key, (own, digest_of(text)))
            size += sum([column.nbytes for column in own.values()])
        yield True

    def _recall(self, key: Key, digest: bytes) -> Columns | None:
        """What is cached under this key, unless it is that of a text with another digest."""
        output, of = self._cache.get(key) or (None, b"")
        return output if digest in (b"", of) else None

    def _check(self, encoder: LoadedEncoder, output: ServedOutput, request: RescoreRequest) -> None:
        form, query = encoder.reader.form, request.query
        texts = [each.text or "" for each in request.candidates]
        if form not in (TEXT, PAIR):
            raise InvalidArgument(
                f"encoder {encoder.name} reads {form}, and candidates are texts: name another encoder"
            )
        if not texts:
            raise InvalidArgument("the request has no candidates: send at least one")
        if form == PAIR:
            output.kind.check_pairs(output.own)
            if not query:
                raise InvalidArgument(
                    f"the query is empty, and encoder {encoder.name} reads it with each candidate: send one"
                )
            self._pipeline.check_items(encoder, [(query, "")], "query")
            self._pipeline.check_items(encoder, [("", text) for text in texts], "candidates")
        else:
            self._pipeline.check_items(encoder, [query], "query")
            self._pipeline.check_items(encoder, texts, "candidates")
        for place, each in enumerate(request.candidates):
            if not each.id and each.text is None:
                raise InvalidArgument(f"candidates[{place}] has neither an id nor a text: send one of them")
            if len(each.id.encode()) > MAX_ID_BYTES:
                raise InvalidArgument(
                    f"candidates[{place}] has an id of {len(each.id.encode())} bytes, "
                    f"this server takes {MAX_ID_BYTES}: send a shorter one"
                )

            if len(each.digest) not in (0, DIGEST_BYTES):
                raise InvalidArgument(
                    f"candidates[{place}] has a digest of {len(each.digest)} bytes: send the first "
                    f"{DIGEST_BYTES} of its text's SHA-256, or none"
                )


def _scored(
    output: ServedOutput, query: Columns, parts: Sequence[tuple[Columns, int]]
) -> Iterator[NDArray[np.float32] | Next | None]:
    """The score of each candidate, item parts[i][1] of the columns parts[i][0]: yields None after each piece
    of the work, Next.LONG before a long one, and the scores at the end.

    Only the candidates of a piece are copied at a time: the vectors of all tokens of a thousand texts would
    take a hundred megabytes.
    """
    names, found, start = output.columns, list[NDArray[np.float32]](), 0
    rows = len(query[names[0]].values) if output.kind.several else 1
    weight = max(1.0, rows / QUERY_ROWS)
    while start < len(parts):
        end, size = start, 0.0
        while end < len(parts) and size < PIECE_BYTES:
            columns, place = parts[end]
            size += weight * sum([columns[name].item(place).nbytes for name in names])
            end += 1
        if size > LONG_BYTES:
            yield Next.LONG
        found.append(output.kind.score(query, gathered(parts[start:end], names), names, output.own))
        start = end
        if start < len(parts):
            yield None
    yield np.concatenate(found)


def _items(encoder: LoadedEncoder, request: RescoreRequest, wanted: Sequence[int]) -> Sequence[Any]:
    """What is to be computed for the wanted candidates: the query and their texts, or pairs of these."""
    reader, prompts = encoder.reader, encoder.manifest.prompts
    texts = [request.candidates[place].text or "" for place in wanted]
    if reader.form == PAIR:
        return reader.in_role([(request.query, text) for text in texts], None, prompts)
    return [*reader.in_role([request.query], "query", prompts), *reader.in_role(texts, "passage", prompts)]


def _size(key: Key, cached: Cached) -> int:
    output, _ = cached
    numbers = sum(column.nbytes for column in output.values())
    return ENTRY_BYTES + DIGEST_BYTES + sum(map(len, key)) + numbers
