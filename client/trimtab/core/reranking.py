"""Ranking candidates, as steps: requests for their scores, a few of them in flight at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trimtab.core.answers import Encoder, Limits, Ranking
from trimtab.core.options import Options
from trimtab.core.requests import check_texts
from trimtab.core.rescoring import Candidate, check_query, origin_of, request_of, scores_of, text_parts
from trimtab.core.responses import unloaded
from trimtab.core.steps import Steps, ask, in_parts
from trimtab.errors import DeadlineExceeded, InternalError, InvalidArgument, NotFound, TrimtabError
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values import similarity

# The candidates of a request whose ranking may be partial: what is not answered in time is lost.
PARTIAL_CANDIDATES = 32


@dataclass(frozen=True, slots=True)
class Reranking:
    """What is to be ranked, checked; `top_n`: None for all; `partial`: what was scored in time is enough."""

    query: str
    texts: list[str]
    top_n: int | None
    output: str
    partial: bool

    def parts(self, options: Options, limits: Limits) -> list[list[Candidate]]:
        """All candidates in order, in parts for a request each, within the server's limits."""
        if self.partial:
            most = min(limits.max_texts or PARTIAL_CANDIDATES, PARTIAL_CANDIDATES)
            limits = replace(limits, max_texts=most)
        return text_parts(self.query, self.texts, options, limits, self.output)

    def request(self, part: Sequence[Candidate], options: Options) -> pb.RescoreRequest:
        """The request for a part."""
        return request_of(self.query, part, options, self.output)

    def ended(self, error: TrimtabError) -> bool:
        """Whether an error leaves a partial ranking."""
        return self.partial and isinstance(error, DeadlineExceeded)


def checked(query: str, texts: Iterable[str], top_n: int | None, output: str, *, partial: bool) -> Reranking:
    """The arguments of a call; InvalidArgument names what is wrong with them."""
    check_query(query)
    if not query.strip():
        raise InvalidArgument("query is empty: pass what the candidates are to be ranked for")
    if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1):
        raise InvalidArgument(f"top_n is {top_n!r}; pass 1 or more, or leave it out for all candidates")
    return Reranking(query, check_texts(texts), top_n, output, partial)


def reranking(
    wanted: Reranking, options: Options, limits: Limits, describe: Callable[[str, str], Steps[Encoder]]
) -> Steps[Ranking]:
    """The ranking. Several requests are pinned to the version that is newest when the first is sent."""
    parts = wanted.parts(options, limits)
    answers: dict[int, pb.RescoreResponse] = {}
    if len(parts) == 1 and not wanted.partial:
        answers[0] = yield from ask("Rescore", wanted.request(parts[0], options))
        return _ranking(wanted, parts, answers)
    encoder = yield from describe(*options.version)
    if not parts:
        return _none(encoder)
    pinned = options.of(encoder.name, encoder.version)
    parts = wanted.parts(pinned, encoder.limits)
    # Made as they are sent: all of them at once would be a copy of all texts.
    requests = (wanted.request(part, pinned) for part in parts)
    try:
        yield from in_parts("Rescore", requests, answers.__setitem__, wanted.ended)
    except NotFound as error:
        raise unloaded(error, encoder.name, encoder.version) from error
    if not answers:
        raise DeadlineExceeded("the deadline passed before any candidate was scored: give the call more time")
    return _ranking(wanted, parts, answers)


def _ranking(
    wanted: Reranking, parts: Sequence[Sequence[Candidate]], answers: Mapping[int, pb.RescoreResponse]
) -> Ranking:
    """The best of all candidates whose parts were answered."""
    starts = np.cumsum([0, *map(len, parts)])
    first = next(iter(answers.values()))
    scores, places = [], []
    for number, answer in answers.items():
        if answer.missing:
            raise InternalError("the server asks for the texts of candidates, which were sent")
        origin_of(first).check(origin_of(answer))
        scores.append(scores_of(answer, len(parts[number])))
        places.append(np.arange(starts[number], starts[number + 1]))
    near, index = np.concatenate(scores), np.concatenate(places)
    best = similarity.best(near, wanted.top_n or len(near))
    return Ranking(
        indices=index[best],
        scores=near[best],
        encoder=first.encoder,
        version=first.version,
        similarity=first.similarity,
        scored=len(near),
        complete=len(near) == len(wanted.texts),
    )


def _none(encoder: Encoder) -> Ranking:
    """The ranking of no candidates."""
    return Ranking(
        indices=np.empty(0, np.int64), scores=np.empty(0, np.float32), encoder=encoder.name,
        version=encoder.version, similarity=encoder.similarity, scored=0,
    )  # fmt: skip
