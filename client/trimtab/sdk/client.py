"""The client for programs without an event loop."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from trimtab import forks
from trimtab.core import requests
from trimtab.core.answers import Adapter, Embeddings, Encoder, Outputs, Ranking, Vectors
from trimtab.core.exchange import DEFAULT_WINDOW
from trimtab.core.options import EmbedOptions, Item, Options
from trimtab.core.rescoring import Scores, Texts
from trimtab.core.steps import Await, Begin, Fetch, Step, Steps, run
from trimtab.kinds import Priority, Truncate
from trimtab.sdk import channel
from trimtab.sdk.base import BaseClient
from trimtab.sdk.stream import EmbeddingStream
from trimtab.sdk.target import Target
from trimtab.v1.encoder_pb2_grpc import EncoderServiceStub

Result = TypeVar("Result")


class _Connections:
    """A channel for calls and another for streams. Each process has its own: a child opens new ones."""

    def __init__(
        self,
        to: Target,
        credentials: grpc.ChannelCredentials | None,
        options: Iterable[channel.ChannelOptions],
    ) -> None:
        self._to, self._credentials, self._options = to, credentials, options
        self._left: list[grpc.Channel] = []  # the parent's: closing them would affect its connections
        self._closed = False
        self._open()

    @property
    def calls(self) -> EncoderServiceStub:
        """The stub for calls."""
        return self._stubs()[0]

    @property
    def streams(self) -> EncoderServiceStub:
        """The stub for streams."""
        return self._stubs()[1]

    def close(self) -> None:
        """Close both channels."""
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
        self._generation = generation  # last, since other threads of the child check it


class Client(BaseClient):
    """Connections to a Trimtab server: one for calls, one for streams. Threads may share it.

    Close it, or use it in `with`.

    url: HOST:PORT, or any other gRPC target (dns:///HOST:PORT, unix:PATH). If a name has several addresses,
        requests are spread over all of them.
    tls: False for plain text, True for TLS with the public authorities, the path of a PEM file for TLS with
        your own authority, or `grpc.ChannelCredentials` for anything else, such as a client certificate.
    timeout: seconds that a call may take, including all its retries; for streams, the longest wait for an
        answer that is due. math.inf for no limit. Each call may set its own.
    metadata: sent with every call.
    token: the API key or token that the server requires. If it is a Path, the file is read, and read again
        after it has changed. The token is sent only over TLS or within this machine, and refused otherwise.
        In plain text it never goes through a proxy, whatever the environment says, nor does anything that
        stays within this machine.
    balancing: how calls are spread over several addresses: to each in turn, or more of them to servers with
        less load ("least_loaded"), by the load reports in their answers. This takes effect after a second or
        two of calls; until a server has reported, it gets an even share. Streams go to each address in turn,
        and stay with their server.

    A child of this process opens its own connections when it first uses the client. It is refused
    (FailedPrecondition) if a call or a stream was in flight when the process was forked.

    A call that finds the server unreachable or full is tried up to five times, with growing delays or the
    delay the server asks for. It waits no longer than those few seconds for a server that refuses
    connections. All errors are TrimtabErrors.
    """

    def _open(self) -> None:
        self._connections = _Connections(self._target, self._credentials, self._options)

    def close(self) -> None:
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
        return self.embed_detailed(texts, timeout=timeout, **options).vectors

    def embed_detailed(
        self, texts: Iterable[str], *, timeout: float | None = None, **options: Unpack[EmbedOptions]
    ) -> Embeddings:
        return self._run(self._session.embed(texts, Options(**options)), timeout)

    def embed_spaces(
        self,
        texts: Iterable[str],
        spaces: Iterable[str],
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> dict[str, Embeddings]:
        return self._run(self._session.embed_spaces(texts, spaces, Options(**options)), timeout)

    def embed_outputs(
        self,
        texts: Iterable[Item],
        outputs: Iterable[str],
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Outputs:
        return self._run(self._session.embed_outputs(texts, outputs, Options(**options)), timeout)

    def embed_stream(
        self,
        texts: Iterable[str],
        *,
        window: int = DEFAULT_WINDOW,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> EmbeddingStream:
        requests.refuse_single(texts)
        wanted, seconds = Options(**options), self._deadline(timeout).seconds
        exchange = self._run(self._session.stream(wanted, window, seconds), seconds)
        connections, sent = self._connections, self._sent
        return EmbeddingStream(
            exchange,
            texts,
            lambda messages: connections.streams.EmbedStream(messages, metadata=sent.get()),
            self._target,
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
        options = Options(encoder=encoder, version=version, truncate=truncate, priority=priority)
        return self._run(self._session.rescore(query, candidates, texts, options), timeout)

    def rerank(
        self,
        query: str,
        texts: Iterable[str],
        *,
        top_n: int | None = None,
        output: str = "",
        partial: bool = False,
        encoder: str = "",
        version: str = "",
        truncate: Truncate = "end",
        priority: Priority = "interactive",
        timeout: float | None = None,
    ) -> Ranking:
        options = Options(encoder=encoder, version=version, truncate=truncate, priority=priority)
        return self._run(self._session.rerank(query, texts, top_n, output, partial, options), timeout)

    def encoders(self, *, timeout: float | None = None) -> list[Encoder]:
        return self._run(self._session.encoders(), timeout)

    def adapters(self, encoder: str = "", *, timeout: float | None = None) -> list[Adapter]:
        return self._run(self._session.adapters(encoder), timeout)

    def encoder(self, name: str = "", version: str = "", *, timeout: float | None = None) -> Encoder:
        return self._run(self._session.encoder(name, version), timeout)

    def _run(self, steps: Steps[Result], timeout: float | None) -> Result:
        deadline = self._deadline(timeout)
        return run(steps, lambda step: self._perform(step, deadline))

    def _perform(self, step: Step, deadline: channel.Deadline) -> Any:
        if isinstance(step, Fetch):
            return step.texts(step.ids)
        with channel.translated(self._target, deadline):
            if isinstance(step, Await):
                return step.call.result()
            method = getattr(self._connections.calls, step.method)
            send = method.future if isinstance(step, Begin) else method
            return send(step.request, timeout=deadline.left(), metadata=self._sent.get())
