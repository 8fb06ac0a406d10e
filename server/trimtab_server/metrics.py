"""Every metric of the server, declared once. The registry is handed in."""

from collections import defaultdict
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from trimtab_server.batch import Batch

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS = (8, 32, 128, 512, 2048, 8192, 32768)
RATIOS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

_REQUEST = ("encoder", "version", "protocol")
_BATCH = ("encoder", "version", "device")


@dataclass(slots=True)
class Count:
    """How often something happened, and the nanoseconds it took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Count it once more (or `count` times), `seconds` long."""
        self.count += count
        self.ns += round(seconds * 1e9)


@dataclass(slots=True)
class Statistics:
    """What KServe's ModelStatistics tells of one encoder version, since it was first asked for."""

    success: Count = field(default_factory=Count)
    fail: Count = field(default_factory=Count)
    queue: Count = field(default_factory=Count)
    tokenize: Count = field(default_factory=Count)
    compute: Count = field(default_factory=Count)
    output: Count = field(default_factory=Count)
    texts: int = 0
    last_ms: int = 0
    batches: dict[int, Count] = field(default_factory=lambda: defaultdict(Count))


class Metrics:
    """The server's metrics, by encoder, version and protocol (requests) or device (batches)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.statistics: dict[tuple[str, int], Statistics] = defaultdict(Statistics)
        self._requests = Histogram(
            "trimtab_request_seconds",
            "From a request's arrival until its answer is packed; answered requests only",
            _REQUEST, buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._tokenize = Histogram(
            "trimtab_tokenize_seconds",
            "Waiting for a tokenizer and tokenising, a request",
            _REQUEST, buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._queue = Histogram(
            "trimtab_queue_seconds",
            "From the end of tokenising until the first batch of a request begins",
            _REQUEST, buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._compute = Histogram(
            "trimtab_compute_seconds",
            "From the first batch of a request until the end of its last",
            _REQUEST, buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._texts = Counter("trimtab_texts", "Texts answered", _REQUEST, registry=registry)
        self._tokens = Counter(
            "trimtab_tokens", "Tokens of the texts answered, padding left out", _REQUEST, registry=registry
        )
        self._failures = Counter(
            "trimtab_failures",
            "Requests not answered with vectors, by the gRPC code they were answered with",
            (*_REQUEST, "reason"), registry=registry,
        )  # fmt: skip
        self._in_flight = Gauge(
            "trimtab_requests_in_flight", "Requests that were admitted and not answered yet",
            _REQUEST, registry=registry,
        )  # fmt: skip
        self._queued_texts = Gauge(
            "trimtab_queued_texts", "Texts that wait for a device, of all encoders", registry=registry
        )
        self._queued_tokens = Gauge(
            "trimtab_queued_tokens", "Tokens that wait for a device, of all encoders", registry=registry
        )
        self._batch_seconds = Histogram(
            "trimtab_batch_seconds", "One run of a graph", _BATCH, buckets=SECONDS, registry=registry
        )
        self._batch_size = Histogram(
            "trimtab_batch_size", "Texts in a batch", _BATCH, buckets=SIZES, registry=registry
        )
        self._batch_tokens = Histogram(
            "trimtab_batch_tokens", "Tokens that a batch computed, padding included",
            _BATCH, buckets=TOKENS, registry=registry,
        )  # fmt: skip
        self._padding = Histogram(
            "trimtab_padding_ratio", "Share of a batch's computed tokens that were padding",
            _BATCH, buckets=RATIOS, registry=registry,
        )  # fmt: skip
        self._ready = Gauge(
            "trimtab_encoder_ready", "1 while an encoder version is warm and serves", ("encoder", "version"),
            registry=registry,
        )  # fmt: skip

    def began(self, encoder: str, version: int, protocol: str) -> None:
        """A request was admitted."""
        self._in_flight.labels(encoder, version, protocol).inc()

    def ended(self, encoder: str, version: int, protocol: str) -> None:
        """An admitted request left, answered or not."""
        self._in_flight.labels(encoder, version, protocol).dec()

    def answered(
        self,
        encoder: str,
        version: int,
        protocol: str,
        *,
        texts: int,
        tokens: int,
        tokenize: float,
        queue: float,
        compute: float,
        output: float,
        total: float,
        now_ms: int,
    ) -> None:
        """A request was answered; all times in seconds."""
        labels = (encoder, version, protocol)
        self._requests.labels(*labels).observe(total)
        self._tokenize.labels(*labels).observe(tokenize)
        self._queue.labels(*labels).observe(queue)
        self._compute.labels(*labels).observe(compute)
        self._texts.labels(*labels).inc(texts)
        self._tokens.labels(*labels).inc(tokens)
        statistics = self.statistics[encoder, version]
        statistics.success.add(total)
        statistics.tokenize.add(tokenize)
        statistics.queue.add(queue)
        statistics.compute.add(compute)
        statistics.output.add(output)
        statistics.texts += texts
        statistics.last_ms = now_ms

    def failed(self, encoder: str, version: int | None, protocol: str, reason: str, seconds: float) -> None:
        """A request was refused, failed or was cancelled.

        Where no encoder was found there is no name and no version: a caller's invention is no label.
        """
        self._failures.labels(encoder, "" if version is None else version, protocol, reason).inc()
        if version is not None:
            self.statistics[encoder, version].fail.add(seconds)

    def batch(self, batch: Batch, device: str, seconds: float) -> None:
        """A device ran a batch."""
        labels = (batch.model.encoder, batch.model.version, device)
        size, padded = len(batch.items), batch.padded_tokens
        self._batch_seconds.labels(*labels).observe(seconds)
        self._batch_size.labels(*labels).observe(size)
        self._batch_tokens.labels(*labels).observe(padded)
        self._padding.labels(*labels).observe(1 - batch.tokens / padded)
        self.statistics[batch.model.encoder, batch.model.version].batches[size].add(seconds)

    def queued(self, texts: int, tokens: int) -> None:
        """How much waits for a device now."""
        self._queued_texts.set(texts)
        self._queued_tokens.set(tokens)

    def ready(self, encoder: str, version: int, serving: bool) -> None:
        """An encoder version began or ceased to serve."""
        self._ready.labels(encoder, version).set(int(serving))
