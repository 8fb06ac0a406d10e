"""A client's operations, without IO: each is a generator of steps (see trimtab.core.steps)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from trimtab.core import descriptions, outputs, requests, reranking, responses
from trimtab.core.answers import Adapter, Embeddings, Encoder, Limits, Outputs, Ranking
from trimtab.core.exchange import Exchange
from trimtab.core.options import Item, Options
from trimtab.core.rescoring import AsyncTexts, Scores, rescoring
from trimtab.core.responses import Part
from trimtab.core.steps import Steps, ask, in_parts, is_too_large
from trimtab.errors import InvalidArgument, NotFound, ResourceExhausted, TrimtabError
from trimtab.v1 import encoder_pb2 as pb

Answer = TypeVar("Answer")


class Session:
    """The operations of one client, and what it remembers between them: the server's limits.

    Errors in the arguments are raised at once, all others when the steps are performed.
    """

    def __init__(self) -> None:
        self._limits: dict[tuple[str, str], Limits] = {}  # by encoder and version

    def embed(self, texts: Iterable[str], options: Options) -> Steps[Embeddings]:
        """The vectors of all texts."""
        return self._embed(requests.check_texts(texts), options)

    def embed_spaces(
        self, texts: Iterable[str], spaces: Iterable[str], options: Options
    ) -> Steps[dict[str, Embeddings]]:
        """The vectors of all texts in each of the spaces."""
        checked = requests.check_spaces(spaces, options)
        return self._embed_spaces(requests.check_texts(texts), checked, options)

    def embed_outputs(self, texts: Iterable[Item], names: Iterable[str], options: Options) -> Steps[Outputs]:
        """These outputs of all texts, or pairs."""
        checked = requests.check_outputs(names)
        return self._embed_outputs(requests.check_items(texts), checked, options)

    def stream(self, options: Options, window: int, timeout: float) -> Steps[Exchange]:
        """The exchange of a stream, pinned to the version that serves now."""
        encoder = yield from self.encoder(*options.version)
        return Exchange(options, encoder, window, timeout)

    def rescore(
        self, query: str, candidates: Iterable[str], texts: AsyncTexts | None, options: Options
    ) -> Steps[Scores]:
        """The scores of all candidates; these are texts, or ids of `texts`."""
        given = list(candidates) if not isinstance(candidates, str | bytes) else candidates
        return self._within_limits(options, lambda limits: rescoring(query, given, texts, options, limits))

    def rerank(
        self,
        query: str,
        texts: Iterable[str],
        top_n: int | None,
        output: str,
        partial: bool,
        options: Options,
    ) -> Steps[Ranking]:
        """The ranking of all texts for the query."""
        wanted = reranking.checked(query, texts, top_n, output, partial=partial)
        return self._within_limits(
            options, lambda limits: reranking.reranking(wanted, options, limits, self.encoder)
        )

    def encoders(self) -> Steps[list[Encoder]]:
        """Every version of every encoder that is served."""
        listed: pb.ListEncodersResponse = yield from ask("ListEncoders", pb.ListEncodersRequest())
        return [descriptions.describe(encoder) for encoder in listed.encoders]

    def adapters(self, encoder: str) -> Steps[list[Adapter]]:
        """The adapters of the server, or only those that map from `encoder`."""
        request = pb.ListAdaptersRequest(encoder=encoder)
        listed: pb.ListAdaptersResponse = yield from ask("ListAdapters", request)
        return [descriptions.describe_adapter(adapter) for adapter in listed.adapters]

    def encoder(self, name: str, version: str) -> Steps[Encoder]:
        """One encoder. Its limits are remembered."""
        request = pb.GetEncoderRequest(encoder=name, version=version)
        described: pb.Encoder = yield from ask("GetEncoder", request)
        encoder = descriptions.describe(described)
        self._limits[name, version] = encoder.limits
        return encoder

    def _embed(self, texts: list[str], options: Options) -> Steps[Embeddings]:
        answers = yield from self._answers(texts, _dense(options, options.spaces))
        return responses.join([answer[0] for answer in answers], options.values["space"])

    def _embed_spaces(
        self, texts: list[str], spaces: tuple[str, ...], options: Options
    ) -> Steps[dict[str, Embeddings]]:
        answers = yield from self._answers(texts, _dense(options, spaces))
        return responses.join_spaces(answers, spaces)

    def _embed_outputs(self, texts: list[Item], names: tuple[str, ...], options: Options) -> Steps[Outputs]:
        asked = _Asked(
            options, options.spaces, names, lambda response, count: outputs.parse(response, count, names)
        )
        return outputs.join((yield from self._answers(texts, asked)))

    def _answers(self, texts: Sequence[Item], asked: "_Asked[Answer]") -> Steps[list[Answer]]:
        """The answers to all texts, in order."""

        def attempt(limits: Limits) -> Steps[list[Answer]]:
            parts = asked.split(texts, limits)
            if len(parts) == 1:
                response: pb.EmbedResponse = yield from ask("Embed", asked.request(texts))
                return [asked.parse(response, len(texts))]
            # Pinned to the version that is newest now, so that all parts are of one space.
            encoder = yield from self.encoder(*asked.options.version)
            parts = asked.split(texts, encoder.limits)
            return (yield from _in_parts(parts, replace(asked, options=asked.options.pinned(encoder))))

        return self._within_limits(asked.options, attempt)

    def _within_limits(self, options: Options, attempt: Callable[[Limits], Steps[Answer]]) -> Steps[Answer]:
        """The result of `attempt` within the server's limits; it is tried again if they have changed."""
        key = options.version
        known = self._limits.get(key)
        try:
            return (yield from attempt(known or (yield from self.encoder(*key)).limits))
        except (InvalidArgument, ResourceExhausted) as error:
            if known is None or not may_be_limits(error):
                raise
            self._limits.pop(key, None)
            try:
                limits = (yield from self.encoder(*key)).limits
            except TrimtabError:
                limits = known  # the first error says more than this one
            if limits == known:
                raise
        return (yield from attempt(limits))


def may_be_limits(error: TrimtabError) -> bool:
    """Whether a request within the limits that the client knows may exceed the server's current ones."""
    return isinstance(error, InvalidArgument) or is_too_large(error)


@dataclass(frozen=True, slots=True)
class _Asked(Generic[Answer]):
    """What is asked of texts, and how the answer is read, given the number of texts."""

    options: Options
    spaces: tuple[str, ...]
    outputs: tuple[str, ...]
    parse: Callable[[pb.EmbedResponse, int], Answer]

    def request(self, texts: Sequence[Item]) -> pb.EmbedRequest:
        return self.options.request(texts, self.spaces, self.outputs)

    def split(self, texts: Sequence[Item], limits: Limits) -> list[list[Item]]:
        return requests.split(texts, self.options, limits, self.spaces, self.outputs)


def _dense(options: Options, spaces: tuple[str, ...]) -> _Asked[list[Part]]:
    """The dense vectors in each space, a part of each (one part, if none is named)."""
    return _Asked(
        options, spaces, (), lambda response, count: responses.parse(response, count, len(spaces) or 1)
    )


def _in_parts(parts: list[list[Item]], asked: _Asked[Answer]) -> Steps[list[Answer]]:
    """The answers to all parts in order, with a few of them in flight at a time."""
    answers: list[Answer] = []

    def take(number: int, response: pb.EmbedResponse) -> None:
        answers.append(asked.parse(response, len(parts[number])))

    try:
        yield from in_parts("Embed", map(asked.request, parts), take)
    except NotFound as error:
        raise responses.unloaded(error, *asked.options.version) from error
    return answers
