"""The client for programs without an event loop."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, Unpack

import grpc
from google.protobuf.message import Message

from trimtab import forks
from trimtab.core import (
    requests,
    responses,
)
from trimtab.core.answers import (
    Adapter,
    Embeddings,
    Encoder,
    Limits,
    Vectors,
)
from trimtab.core.exchange import (
    DEFAULT_WINDOW,
    Exchange,
)
from trimtab.core.options import EmbedOptions, Options
from trimtab.core.rescoring import (
    Missing,
    Scores,
    Texts,
    look_up,
    rescoring,
)
from trimtab.core.responses import Part
from trimtab.errors import InvalidArgument, NotFound, ResourceExhausted, TrimtabError
from trimtab.kinds import (
    Priority,
    Truncate,
)
from trimtab.sdk import channel
from trimtab.sdk.credentials import CallMetadata
from trimtab.sdk.stream import EmbeddingStream
from trimtab.sdk.target import (
    Target,
    check_target,
    target,
)
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1.encoder_pb2_grpc import EncoderServiceStub

Answer = TypeVar("Answer")


class _Pending(Protocol):
    def result(self) -> pb.EmbedResponse: ...
    def cancel(self) -> Any: ...


class _Connections:
    """One channel for calls and one for streams, of the process that uses them: a child opens its own."""

    def __init__(
        self, to: Target, credentials: grpc.ChannelCredentials | None, balancing: channel.Balancing
    ) -> None:
        self._to, self._credentials = to, credentials
        self._options = channel.call_options(to, balancing), channel.stream_options(to)
        self._left: list[grpc.Channel] = []  # a parent's: to end them would touch what is the parent's
        self._closed = False
        self._open()

    @property
    def calls(self) -> EncoderServiceStub:
        """For calls."""
        return self._stubs()[0]

    @property
    def streams(self) -> EncoderServiceStub:
        """For streams."""
        return self._stubs()[1]

    def close(self) -> None:
        """Close both."""
        self._closed = True
        if forks.generation() == self._generation:
            for opened in self._channels:
                opened.close()

    def _stubs(self) -> tuple[EncoderServiceStub, EncoderServiceStub]:
        if forks.generation() != self._generation and not self._closed:
            self._left.extend(self._channels)
            self._open()
        return self._both

    def _open(self) -> None:
        generation = forks.generation()
        to, credentials = self._to.url, self._credentials
        first, second = self._channels = tuple(
            grpc.insecure_channel(to, options)
            if credentials is None
            else grpc.secure_channel(to, credentials, options)
            for options in self._options
        )
        self._both = EncoderServiceStub(first), EncoderServiceStub(second)
        self._generation = generation  # at last, since another thread of the child goes by it


class Client:
    """Connections to a Trimtab server: one for calls, one for streams. Threads may share it.

    Close it, or use it in `with`.

    url: HOST:PORT, or any other gRPC target (dns:///HOST:PORT, unix:PATH). Where a name has several
        addresses, requests go round all of them.
    tls: False for plain text, True for TLS with the public authorities, the path of a PEM file for TLS with
        one's own, or `grpc.ChannelCredentials` for anything else, such as a client certificate.
    timeout: seconds that a call may take, however often it is tried; for streams, the longest wait for an
        answer while one is owed. math.inf for no limit. Each call may name its own.
    metadata: sent with every call.
    token: the API key or token that the server asks for; a Path is read, and again once the file has changed.
        It is sent over TLS, or within this machine, and refused otherwise. In plain text it goes through no
        proxy, whatever the environment names, nor does anything that stays within this machine.
    balancing: where a call goes of several addresses: to each in turn, or more of them to servers that have
        less to do ("least_loaded"), by the reports that come with their answers. It takes a second or two of
        calls to tell, and a server of which nothing is known yet gets its even share. Streams go to each in
        turn, and stay with their server.

    A child of this process opens connections of its own when it first uses the client, and is refused
    (FailedPrecondition) where a call or a stream was on its way while the process was forked.

    Calls that find the server away or full are tried up to five times, with growing delays or the one the
    server asks for; they do not wait for a server that refuses connections longer than those few seconds.
    All errors are TrimtabErrors.
    """

    def __init__(
        self,
        url: str = channel.DEFAULT_URL,
        *,
        tls: channel.Tls = False,
        timeout: float = channel.DEFAULT_TIMEOUT,
        metadata: Mapping[str, str] | None = None,
        token: str | Path | None = None,
        balancing: channel.Balancing = "round_robin",
    ) -> None:
        self._timeout = channel.Deadline(timeout).seconds
        credentials = channel.check_credentials(tls)
        encrypted = credentials is not None
        self._sent = CallMetadata(metadata, token, url=check_target(url), secure=encrypted)
        self._target = target(url, encrypted=encrypted, credentials=self._sent.secret)
        self._connections = _Connections(self._target, credentials, balancing)
        self._limits: dict[tuple[str, str], Limits] = {}

    def close(self) -> None:
        """Close the connection; open streams end."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def embed(
        self, texts: Iterable[str], *, timeout: float | None = None, **options: Unpack[EmbedOptions]
    ) -> Vectors:
        """Embed texts: an (n, d) array, one row a text, in their order.

        The options are those of EmbedOptions: encoder, version, role, dimensions, dtype, truncate, variant
        and others. The array is the caller's own, of float32, float16, int8, or for dtype "ubinary" uint8. As
        many texts as memory holds may be passed: what exceeds the server's limits is split, and all rows are
        of one version and space, or FailedPrecondition is raised. `timeout` bounds the whole call.
        """
        return self.embed_detailed(texts, timeout=timeout, **options).vectors

    def embed_detailed(
        self, texts: Iterable[str], *, timeout: float | None = None, **options: Unpack[EmbedOptions]
    ) -> Embeddings:
        """As `embed`, with the vectors' space, version and scale, the token counts, the server's times."""
        wanted = Options(**options)
        answers = self._embed(texts, wanted, wanted.spaces, timeout)
        return responses.join([answer[0] for answer in answers], wanted.space)

    def embed_spaces(
        self,
        texts: Iterable[str],
        spaces: Iterable[str],
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> dict[str, Embeddings]:
        """Embed texts in several spaces at once, from one pass through the encoder: the vectors by space.

        For an index that is half re-embedded, for example. The options are those of EmbedOptions, without
        `space`, and hold for every space alike. Raises as `embed` with one of the spaces would.
        """
        wanted = Options(**options)
        checked = requests.check_spaces(spaces, wanted)
        return responses.join_spaces(self._embed(texts, wanted, checked, timeout), checked)

    def embed_stream(
        self,
        texts: Iterable[str],
        *,
        window: int = DEFAULT_WINDOW,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> EmbeddingStream:
        """Embed any number of texts: an iterator of (d,) vectors, in the texts' order.

        `texts` may be endless: it is read in a thread of the stream, no more than `window` texts ahead of
        the vectors taken, and a text is sent at once, however long the next one takes. What the iterable
        raises is raised here, after the vectors of the texts before it; so is an error of a single request.
        A connection that breaks is opened again, and only what had no answer is sent again. All vectors
        are of the version that is the newest when the stream begins (or of `version`), and of one space.
        `timeout` is the longest wait for an answer while one is owed, in seconds; DeadlineExceeded then.

        The options are those of EmbedOptions. Raises NotFound at once where the encoder is not served.
        """
        requests.refuse_single(texts)
        wanted, deadline = Options(**options), self._deadline(timeout)
        encoder = self._describe(wanted.encoder, wanted.version, deadline)
        exchange = Exchange(wanted, encoder, window, deadline.seconds)
        target, connections, sent = self._target, self._connections, self._sent
        return EmbeddingStream(
            exchange,
            texts,
            lambda messages: connections.streams.EmbedStream(messages, metadata=sent.get()),
            lambda error: channel.from_break(error, target),
        )

    def rescore(
        self,
        query: str,
        candidates: Iterable[str],
        *,
        texts: Texts | None = None,
        encoder: str = "",
        version: str = "",
        truncate: Truncate = "end",
        priority: Priority = "interactive",
        timeout: float | None = None,
    ) -> Scores:
        """Score candidates for a query in the encoder's own space: float32 (n,), the more the nearer.

        The scores are the encoder's similarity: cosine, dot product, or minus the distance. For the second
        stage of a search whose first stage fetched its candidates from an index of another space.

        `candidates` are texts; with `texts`, they are ids, whose vectors the server remembers from call to
        call (by the caller's tenant), and `texts` tells the text of an id that it does not: a mapping, or a
        function from a list of ids to the list of their texts. With a mapping, a text that has changed under
        its id is noticed, and scored; with a function, which is not called for what is remembered, it wants
        a new id.
        """
        options = Options(encoder=encoder, version=version, truncate=truncate, priority=priority)
        deadline, key = self._deadline(timeout), (encoder, version)
        given = list(candidates) if not isinstance(candidates, str | bytes) else candidates

        def attempt(limits: Limits) -> Scores:
            steps = rescoring(query, given, texts, options, limits)
            answer: pb.RescoreResponse | Sequence[str] | None = None
            while True:
                try:
                    step = steps.send(answer) if answer is not None else next(steps)
                except StopIteration as end:
                    scores: Scores = end.value
                    return scores
                if isinstance(step, Missing):
                    answer = _fetch(texts, step.ids)
                else:
                    answer = self._call(self._stub.Rescore, step, deadline)

        return self._within_limits(key, deadline, attempt)

    def encoders(self, *, timeout: float | None = None) -> list[Encoder]:
        """Every version of every encoder that is ready to serve, by name, the newest version first."""
        deadline = self._deadline(timeout)
        listed = self._call(self._stub.ListEncoders, pb.ListEncodersRequest(), deadline)
        return [responses.describe(encoder) for encoder in listed.encoders]

    def adapters(self, encoder: str = "", *, timeout: float | None = None) -> list[Adapter]:
        """The adapters of the server's repository, by encoder and name, or those that map from `encoder`.

        Those that requests cannot use are among them, and say why. Each has the calibrator that brings
        scores of adapted queries onto the old scale, where it has one.
        """
        request, deadline = pb.ListAdaptersRequest(encoder=encoder), self._deadline(timeout)
        listed = self._call(self._stub.ListAdapters, request, deadline)
        return [responses.describe_adapter(adapter) for adapter in listed.adapters]

    def encoder(self, name: str = "", version: str = "", *, timeout: float | None = None) -> Encoder:
        """One encoder: its newest version, or the one named. NotFound where it is not served.

        `name` may be left out where the server serves only one.
        """
        return self._describe(name, version, self._deadline(timeout))

    def _embed(
        self, texts: Iterable[str], wanted: Options, spaces: tuple[str, ...], timeout: float | None
    ) -> list[list[Part]]:
        """The answers to all texts in order, each with a part for every space (none named: one)."""
        checked, deadline = requests.check_texts(texts), self._deadline(timeout)
        key = (wanted.encoder, wanted.version)

        def attempt(limits: Limits) -> list[list[Part]]:
            parts = requests.split(checked, wanted, limits, spaces)
            if len(parts) == 1:
                response = self._call(self._stub.Embed, wanted.request(checked, spaces), deadline)
                return [responses.parse(response, len(checked), len(spaces) or 1)]
            # Pinned to the version that is the newest now, so that all parts are of one space.
            encoder = self._describe(*key, deadline)
            parts = requests.split(checked, wanted, encoder.limits, spaces)
            return list(self._embed_parts(parts, wanted.pinned(encoder), spaces, deadline))

        return self._within_limits(key, deadline, attempt)

    def _within_limits(
        self, key: tuple[str, str], deadline: channel.Deadline, attempt: Callable[[Limits], Answer]
    ) -> Answer:
        """What `attempt` gives within the server's limits; once more where they were others by now."""
        known = self._limits.get(key)
        try:
            return attempt(known or self._describe(*key, deadline).limits)
        except (InvalidArgument, ResourceExhausted) as error:
            if known is None or not channel.may_be_limits(error):
                raise
            self._limits.pop(key, None)
            try:
                limits = self._describe(*key, deadline).limits
            except TrimtabError:
                limits = known  # what was wrong says more than that it cannot be looked into
            if limits == known:
                raise
        return attempt(limits)

    @property
    def _stub(self) -> EncoderServiceStub:
        return self._connections.calls

    def _deadline(self, timeout: float | None) -> channel.Deadline:
        return channel.Deadline(self._timeout if timeout is None else timeout)

    def _describe(self, name: str, version: str, deadline: channel.Deadline) -> Encoder:
        request = pb.GetEncoderRequest(encoder=name, version=version)
        encoder = responses.describe(self._call(self._stub.GetEncoder, request, deadline))
        self._limits[name, version] = encoder.limits
        return encoder

    def _call(
        self,
        method: Callable[..., Answer],
        request: Message,
        deadline: channel.Deadline,
    ) -> Answer:
        with forks.Calling(), channel.translated(self._target, deadline):
            return method(request, timeout=deadline.left(), metadata=self._sent.get())

    def _embed_parts(
        self,
        parts: Iterable[list[str]],
        pinned: Options,
        spaces: tuple[str, ...],
        deadline: channel.Deadline,
    ) -> Iterator[list[Part]]:
        """The answers to all parts in order, a few of them on their way at a time."""
        calls: deque[tuple[int, _Pending]] = deque()
        unsent = iter(parts)
        calling = forks.Calling()
        calling.begin()
        try:
            while True:
                with channel.translated(self._target, deadline):
                    for part in islice(unsent, channel.PARTS_IN_FLIGHT - len(calls)):
                        pending: _Pending = self._stub.Embed.future(
                            pinned.request(part, spaces), timeout=deadline.left(), metadata=self._sent.get()
                        )
                        calls.append((len(part), pending))
                    if not calls:
                        return
                    count, call = calls[0]
                    response = call.result()
                calls.popleft()
                yield responses.parse(response, count, len(spaces) or 1)
        except NotFound as error:
            raise responses.unloaded(error, pinned.encoder, pinned.version) from error
        finally:
            calling.end()
            for _, call in calls:
                call.cancel()


def _fetch(texts: Texts | None, ids: list[str]) -> Sequence[str]:
    return look_up(texts, ids) if isinstance(texts, Mapping) else texts(ids) if texts else []
