"""What both clients and both streams have in common: how they are made, and what their methods promise.

The operations are declared here, with their documentation; Client and AsyncClient differ in how they wait.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Unpack

from trimtab.core.answers import Encoder
from trimtab.core.exchange import DEFAULT_WINDOW, Exchange
from trimtab.core.options import EmbedOptions
from trimtab.core.rescoring import Texts
from trimtab.core.session import Session
from trimtab.kinds import Priority, Truncate
from trimtab.sdk import channel
from trimtab.sdk.credentials import CallMetadata
from trimtab.sdk.target import check_target, target


class BaseClient(ABC):
    """A client, except for how it sends and waits."""

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
        self._credentials = channel.check_credentials(tls)
        encrypted = self._credentials is not None
        self._sent = CallMetadata(metadata, token, url=check_target(url), secure=encrypted)
        self._target = target(url, encrypted=encrypted, credentials=self._sent.secret)
        self._options = (channel.call_options(self._target, balancing), channel.stream_options(self._target))
        self._session = Session()
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Open one channel for calls and one for streams."""

    @abstractmethod
    def close(self) -> Any:
        """Close the connection; open streams end."""

    @abstractmethod
    def embed(
        self, texts: Iterable[str], *, timeout: float | None = None, **options: Unpack[EmbedOptions]
    ) -> Any:
        """Embed texts: an (n, d) array, one row a text, in their order.

        The options are those of EmbedOptions: encoder, version, role, dimensions, dtype, truncate, variant
        and others. The array is the caller's own, of float32, float16, int8, or for dtype "ubinary" uint8. As
        many texts as memory holds may be passed: what exceeds the server's limits is split, and all rows are
        of one version and space, or FailedPrecondition is raised. `timeout` bounds the whole call.
        """

    @abstractmethod
    def embed_detailed(
        self, texts: Iterable[str], *, timeout: float | None = None, **options: Unpack[EmbedOptions]
    ) -> Any:
        """As `embed`, with the vectors' space, version and scale, the token counts, the server's times."""

    @abstractmethod
    def embed_spaces(
        self,
        texts: Iterable[str],
        spaces: Iterable[str],
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Any:
        """Embed texts in several spaces at once, from one pass through the encoder: the vectors by space.

        For an index that is half re-embedded, for example. The options are those of EmbedOptions, without
        `space`, and hold for every space alike. Raises as `embed` with one of the spaces would.
        """

    @abstractmethod
    def embed_stream(
        self,
        texts: Iterable[str],
        *,
        window: int = DEFAULT_WINDOW,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Any:
        """Embed any number of texts: an iterator of (d,) vectors, in the texts' order.

        `texts` may be endless: it is read no more than `window` texts ahead of the vectors taken, and a text
        is sent at once, however long the next one takes. What the iterable raises is raised here, after the
        vectors of the texts before it; so is an error of a single request. A connection that breaks is
        opened again, and only what had no answer is sent again. All vectors are of the version that is the
        newest when the stream begins (or of `version`), and of one space. `timeout` is the longest wait for
        an answer while one is owed, in seconds; DeadlineExceeded then.

        The options are those of EmbedOptions. NotFound where the encoder is not served.

        Client begins at once, and reads the texts in a thread of the stream. AsyncClient begins with the
        first vector that is asked for, or with `async with`; `texts` may be an async iterable, and an
        ordinary one is read on the event loop, so it must not block.
        """

    @abstractmethod
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
    ) -> Any:
        """Score candidates for a query in the encoder's own space: float32 (n,), the more the nearer.

        The scores are the encoder's similarity: cosine, dot product, or minus the distance. For the second
        stage of a search whose first stage fetched its candidates from an index of another space.

        `candidates` are texts; with `texts`, they are ids, whose vectors the server remembers from call to
        call (by the caller's tenant), and `texts` tells the text of an id that it does not: a mapping, or a
        function from a list of ids to the list of their texts (for AsyncClient, it may be a coroutine
        function). With a mapping, a text that has changed under its id is noticed, and scored; with a
        function, which is not called for what is remembered, it wants a new id.
        """

    @abstractmethod
    def encoders(self, *, timeout: float | None = None) -> Any:
        """Every version of every encoder that is ready to serve, by name, the newest version first."""

    @abstractmethod
    def adapters(self, encoder: str = "", *, timeout: float | None = None) -> Any:
        """The adapters of the server's repository, by encoder and name, or those that map from `encoder`.

        Those that requests cannot use are among them, and say why. Each has the calibrator that brings
        scores of adapted queries onto the old scale, where it has one.
        """

    @abstractmethod
    def encoder(self, name: str = "", version: str = "", *, timeout: float | None = None) -> Any:
        """One encoder: its newest version, or the one named. NotFound where it is not served.

        `name` may be left out where the server serves only one.
        """

    def _deadline(self, timeout: float | None) -> channel.Deadline:
        return channel.Deadline(self._timeout if timeout is None else timeout)


class BaseStream(ABC):
    """What a stream tells of its last answer."""

    @property
    @abstractmethod
    def _exchange(self) -> Exchange | None:
        """What is said over the stream; None before it has begun."""

    @property
    @abstractmethod
    def encoder(self) -> Encoder | None:
        """The version that embeds all texts of this stream."""

    @property
    def scale(self) -> float:
        """What one step of int8 is worth; 0 for other dtypes, and before the first vector."""
        return self._exchange.scale if self._exchange else 0.0

    @property
    def adapters(self) -> tuple[str, ...]:
        """ENCODER/NAME of the adapters that the last answer's vectors passed through, in order."""
        return self._exchange.adapters if self._exchange else ()

    @property
    def variant(self) -> str:
        """The variant of the encoder that computed the last answer's vectors; "" before the first."""
        return self._exchange.variant if self._exchange else ""

    @property
    def browned_out(self) -> bool:
        """Whether a cheaper variant gave any answer until now, instead of the encoder itself."""
        return self._exchange is not None and self._exchange.browned_out

    @property
    def suspicious(self) -> bool | None:
        """Whether the last vector's passage comes near to far too many queries (see `Embeddings`).

        None where the server did not look at it.
        """
        return self._exchange.suspicious if self._exchange else None
