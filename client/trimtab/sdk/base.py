"""What both clients and both streams have in common.

The operations are declared and documented here; Client and AsyncClient differ only in how they wait.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Unpack

from trimtab.core.answers import Encoder
from trimtab.core.exchange import DEFAULT_WINDOW, Exchange
from trimtab.core.options import EmbedOptions, Item
from trimtab.core.rescoring import Texts
from trimtab.core.session import Session
from trimtab.kinds import Priority, Truncate
from trimtab.sdk import channel
from trimtab.sdk.credentials import CallMetadata
from trimtab.sdk.target import check_target, target


class BaseClient(ABC):
    """A client without the code that sends and waits."""

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
        """Open a channel for calls and another for streams."""

    @abstractmethod
    def close(self) -> Any:
        """Close the connection. This ends open streams."""

    @abstractmethod
    def embed(
        self, texts: Iterable[str], *, timeout: float | None = None, **options: Unpack[EmbedOptions]
    ) -> Any:
        """Embed texts. Returns an (n, d) array with one row per text, in the order of the texts.

        The options are those of EmbedOptions: encoder, version, role, dimensions, dtype, truncate, variant
        and others. The array belongs to the caller. It is float32, float16 or int8, or uint8 for dtype
        "ubinary". You may pass as many texts as fit in memory: what exceeds the server's limits is split into
        several requests. All rows are of one version and space; otherwise FailedPrecondition is raised.
        `timeout` bounds the whole call.
        """

    @abstractmethod
    def embed_detailed(
        self, texts: Iterable[str], *, timeout: float | None = None, **options: Unpack[EmbedOptions]
    ) -> Any:
        """As `embed`, with the vectors' space, version and scale, token counts, and the server's times."""

    @abstractmethod
    def embed_spaces(
        self,
        texts: Iterable[str],
        spaces: Iterable[str],
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Any:
        """Embed texts in several spaces at once, with one pass through the encoder. Returns vectors by space.

        This serves an index that is half re-embedded, for example. The options are those of EmbedOptions,
        without `space`, and apply to every space. Raises what `embed` would raise for one of the spaces.
        """

    @abstractmethod
    def embed_outputs(
        self,
        texts: Iterable[Item],
        outputs: Iterable[str],
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Any:
        """Embed texts as each of these outputs of the encoder, such as "dense" and "sparse", with one pass.

        A cross-encoder reads pairs instead of texts, (str, str) each, and gives "scores", (n, labels).
        Returns `Outputs`, a mapping from each name to its value, with the space of each output. The options
        are those of EmbedOptions, and each output must allow them: sparse vectors, for example, have no
        `dimensions` to choose. Raises InvalidArgument if the encoder lacks an output, and what `embed` would
        raise.
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
        """Embed any number of texts. Returns an iterator of (d,) vectors, in the order of the texts.

        `texts` may be endless: it is read at most `window` texts ahead of the vectors taken, and each text
        is sent at once, however long the next one takes. An exception from the iterable is raised here,
        after the vectors of the texts before it; so is an error of a single request. If the connection
        breaks, it is reopened, and only unanswered texts are sent again. All vectors are of one space, and
        of the version that is newest when the stream begins (or of `version`). `timeout` is the longest
        wait, in seconds, for an answer that is due; after it, DeadlineExceeded is raised.

        The options are those of EmbedOptions. Raises NotFound if the encoder is not served.

        Client begins at once and reads the texts in a thread of the stream. AsyncClient begins with the
        first vector requested, or with `async with`. Its `texts` may be an async iterable; an ordinary one
        is read on the event loop, so it must not block.
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
        """Score candidates for a query in the encoder's own space: float32 (n,), higher is nearer.

        The scores are the encoder's similarity: cosine, dot product, or minus the distance. Use this for the
        second stage of a search whose first stage takes its candidates from an index of another space.

        Without `texts`, `candidates` are texts. With `texts`, they are ids. The server remembers the vectors
        of ids from call to call (by the caller's tenant); `texts` gives the text of any id it does not
        remember. `texts` is a mapping, or a function from a list of ids to the list of their texts (for
        AsyncClient, it may be a coroutine function). With a mapping, a text that has changed under its id is
        noticed and scored. A function is not called for remembered ids, so a changed text needs a new id.
        """

    @abstractmethod
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
    ) -> Any:
        """Rank texts for a query, the best first: a Ranking, a sequence of (index, score).

        If the encoder reads pairs (a cross-encoder), it reads the query with each text; otherwise texts are
        ranked by their vectors' similarity to the query. `output` names the output that scores, such as
        "logits" for a cross-encoder's numbers before its activation. `top_n` keeps the best ones; by default
        all are returned. Any number of texts may be given: they are split into requests that the server
        takes, a few of them in flight at a time. No texts make an empty ranking.

        After `timeout`, DeadlineExceeded is raised. With `partial`, the ranking then has the texts that were
        scored in time, and says so in `complete`; DeadlineExceeded is raised only if there are none.
        """

    @abstractmethod
    def encoders(self, *, timeout: float | None = None) -> Any:
        """Every version of every encoder that is ready to serve, sorted by name, newest version first."""

    @abstractmethod
    def adapters(self, encoder: str = "", *, timeout: float | None = None) -> Any:
        """The adapters of the server's repository, sorted by encoder and name, or only those from `encoder`.

        The list includes adapters that requests cannot use; each of these says why. If an adapter has a
        calibrator, which maps scores of adapted queries onto the old scale, it is included.
        """

    @abstractmethod
    def encoder(self, name: str = "", version: str = "", *, timeout: float | None = None) -> Any:
        """One encoder: its newest version, or the one named. Raises NotFound if it is not served.

        `name` may be omitted if the server serves only one encoder.
        """

    def _deadline(self, timeout: float | None) -> channel.Deadline:
        return channel.Deadline(self._timeout if timeout is None else timeout)


class BaseStream(ABC):
    """What a stream reports about its last answer."""

    @property
    @abstractmethod
    def _exchange(self) -> Exchange | None:
        """The exchange of the stream; None before it has begun."""

    @property
    @abstractmethod
    def encoder(self) -> Encoder | None:
        """The version that embeds all texts of this stream."""

    @property
    def scale(self) -> float:
        """The value of one int8 step; 0 for other dtypes, and before the first vector."""
        return self._exchange.scale if self._exchange else 0.0

    @property
    def adapters(self) -> tuple[str, ...]:
        """ENCODER/NAME of each adapter applied to the last answer's vectors, in order."""
        return self._exchange.adapters if self._exchange else ()

    @property
    def variant(self) -> str:
        """The variant of the encoder that computed the last answer's vectors; "" before the first."""
        return self._exchange.variant if self._exchange else ""

    @property
    def browned_out(self) -> bool:
        """Whether a cheaper variant, instead of the encoder itself, has given any answer so far."""
        return self._exchange is not None and self._exchange.browned_out

    @property
    def suspicious(self) -> bool | None:
        """Whether the last vector's passage is near far too many queries (see `Embeddings`).

        None if the server did not check it.
        """
        return self._exchange.suspicious if self._exchange else None
