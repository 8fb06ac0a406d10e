"""Scoring candidates, as steps: send requests, fetch the texts that the server lacks, return the scores."""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.core.answers import Limits
from trimtab.core.options import Options
from trimtab.core.requests import check_texts, text_size
from trimtab.core.steps import Fetch, Steps, ask
from trimtab.errors import FailedPrecondition, InternalError, InvalidArgument
from trimtab.v1 import encoder_pb2 as pb

# The bytes a candidate takes of a message besides its id and text, and a request besides its strings.
_CANDIDATE_OVERHEAD = 34
_REQUEST_OVERHEAD = 64

Scores: TypeAlias = NDArray[np.float32]
Texts: TypeAlias = Mapping[str, str] | Callable[[Sequence[str]], Sequence[str]]
AsyncTexts: TypeAlias = Texts | Callable[[Sequence[str]], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text or an id, at its place among all candidates."""

    id: str
    text: str | None
    place: int
    digest: bytes = b""

    def size(self, room: int) -> int:
        """The most bytes that it takes of a message."""
        text = 0 if self.text is None else text_size(self.text, self.place, room)
        return _CANDIDATE_OVERHEAD + len(self.id.encode()) + text

    def message(self) -> pb.Candidate:
        return pb.Candidate(id=self.id, text=self.text, digest=b"" if self.text is not None else self.digest)


@dataclass(frozen=True, slots=True)
class Origin:
    """What all scores of one result must have in common."""

    encoder: str
    version: str
    space: str

    def check(self, other: "Origin") -> None:
        """Raise FailedPrecondition if `other`, of a later answer to the same call, is not the same."""
        if other != self:
            raise FailedPrecondition(
                f"the server's vectors changed during the call, from {self} to {other}: scores of two "
                "spaces must not be mixed. Call again"
            )


def origin_of(response: pb.RescoreResponse) -> Origin:
    """What scored the candidates of an answer."""
    return Origin(response.encoder, response.version, response.space)


def rescoring(
    query: str, candidates: Iterable[str], texts: AsyncTexts | None, options: Options, limits: Limits
) -> Steps[Scores]:
    """The scores of all candidates in their order, float32 (n,); candidates are texts, or ids of `texts`.

    If `texts` is a mapping, each id is sent with its text's digest, so that a changed text is noticed. With
    ids, only texts that the server does not remember are fetched and sent. Each round either scores
    candidates or fetches texts, so this ends however often the server forgets.
    """
    check_query(query)
    given = check_texts(candidates)
    scores = np.empty(len(given), np.float32)
    origin: Origin | None = None
    parts = [[_candidate(each, n, texts) for n, each in enumerate(given)]]
    while parts:
        part, *rest = _split(parts.pop(), query, options, limits)
        parts.extend(reversed(rest))
        if not part:
            continue
        response: pb.RescoreResponse = yield from ask("Rescore", request_of(query, part, options))
        answered = origin_of(response)
        (origin or answered).check(answered)
        origin, options = answered, options.of(answered.encoder, answered.version)
        if response.missing:
            missing = list(dict.fromkeys(_missing(part, response)))
            known = yield from _texts(texts, missing)
            parts.append([replace(each, text=known.get(each.id, each.text)) for each in part])
            continue
        scores[[each.place for each in part]] = scores_of(response, len(part))
    return scores


def check_query(query: str) -> None:
    """InvalidArgument if the query is no text."""
    if not isinstance(query, str):
        raise InvalidArgument(f"query is {type(query).__name__}, not str")


def text_parts(
    query: str, texts: Sequence[str], options: Options, limits: Limits, output: str = ""
) -> list[list[Candidate]]:
    """These texts as candidates, in order, cut into as few consecutive parts as the server's limits allow."""
    given = [_candidate(text, number, None) for number, text in enumerate(texts)]
    return [part for part in _split(given, query, options, limits, output) if part]


def scores_of(response: pb.RescoreResponse, candidates: int) -> Scores:
    """The scores in an answer for so many candidates; InternalError if they are not as many."""
    if len(response.scores) != 4 * candidates:
        raise InternalError(
            f"the server answered {candidates} candidates with {len(response.scores)} bytes of scores"
        )
    scores: Scores = np.frombuffer(response.scores, "<f4").astype(np.float32)
    return scores


def digest_of(text: str) -> bytes:
    """A digest of 16 bytes that distinguishes a candidate's text from another under the same id."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:16]


def _candidate(given: str, place: int, texts: AsyncTexts | None) -> Candidate:
    if texts is None:
        return Candidate("", given, place)
    text = texts.get(given) if isinstance(texts, Mapping) else None
    return Candidate(given, None, place, digest_of(text) if isinstance(text, str) else b"")


def _look_up(texts: Mapping[str, str], ids: Sequence[str]) -> list[str]:
    try:
        return check_texts(texts[id] for id in ids)
    except KeyError as error:
        raise InvalidArgument(f"texts has no text for the candidate {error.args[0]!r}") from None


def request_of(
    query: str, part: Sequence[Candidate], options: Options, output: str = ""
) -> pb.RescoreRequest:
    """The request for a part of the candidates."""
    settings = options.request()
    return pb.RescoreRequest(
        encoder=settings.encoder,
        version=settings.version,
        query=query,
        candidates=[each.message() for each in part],
        truncate=settings.truncate,
        priority=settings.priority,
        output=output,
    )


def _split(
    part: list[Candidate], query: str, options: Options, limits: Limits, output: str = ""
) -> list[list[Candidate]]:
    """The candidates in order, cut into as few consecutive parts as the server's limits allow."""
    room = (limits.max_message_bytes or 2**31 - 1) - _REQUEST_OVERHEAD
    room -= len(query.encode()) + len(output.encode()) + sum(map(len, options.version))
    parts: list[list[Candidate]] = [[]]
    filled = 0
    for each in part:
        size = each.size(room)
        if parts[-1] and (filled + size > room or len(parts[-1]) == (limits.max_texts or len(part))):
            parts.append([])
            filled = 0
        parts[-1].append(each)
        filled += size
    return parts


def _missing(part: Sequence[Candidate], response: pb.RescoreResponse) -> Iterable[str]:
    if len(response.missing) > len(part):
        raise InternalError(
            f"the server asks for the texts of {len(response.missing)} candidates, and was sent {len(part)}"
        )
    for place in response.missing:
        if place >= len(part) or part[place].text is not None:
            raise InternalError(f"the server asks for the text of candidate {place}, which was sent")
        yield part[place].id


def _texts(texts: AsyncTexts | None, ids: list[str]) -> Steps[dict[str, str]]:
    """The texts of these ids, by id; InvalidArgument if one has none."""
    if texts is None:
        found = []
    elif isinstance(texts, Mapping):
        found = _look_up(texts, ids)
    else:
        found = check_texts((yield Fetch(texts, ids)))
    if len(found) != len(ids):
        raise InvalidArgument(f"texts gave {len(found)} texts for {len(ids)} candidates: one for each id")
    return dict(zip(ids, found, strict=True))
