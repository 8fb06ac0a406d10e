"""Every metric of the server, declared once. The registry is handed in."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from trimtab_server.batching.batch import Batch, Model

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


@dataclass(frozen=True, slots=True)
class _Request:
    """The metrics of one encoder version and protocol, looked up once: that costs more than to count."""

    total: Histogram
    tokenize: Histogram
    queue: Histogram
    compute: Histogram
    texts: Counter
    tokens: Counter
    in_flight: Gauge


@dataclass(frozen=True, slots=True)
class _Runs:
    """The metrics of one model's runs on one device, looked up once, too."""

    seconds: Histogram
    size: Histogram
    tokens: Histogram
    padding: Histogram
    busy: Counter


class Metrics:
    """The server's metrics, by encoder, version and protocol (requests) or device (batches)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._by_request: dict[tuple[str, int, str], _Request] = {}
        self._by_device: dict[tuple[str, int, str], _Runs] = {}
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
        self._adapted = Counter(
            "trimtab_adapted_texts", "Texts whose vectors passed through an adapter",
            ("encoder", "version", "adapter"), registry=registry,
        )  # fmt: skip
        self._variants = Counter(
            "trimtab_variant_texts", "Texts answered, by the variant of the encoder that computed them",
            ("encoder", "version", "variant"), registry=registry,
        )  # fmt: skip
        self._browned_out = Counter(
            "trimtab_brownout_texts",
            "Texts answered by a cheaper variant, because the queue was too long for the encoder itself",
            ("encoder", "version", "variant"), registry=registry,
        )  # fmt: skip
        self._brownout = Gauge(
            "trimtab_brownout", "1 while a cheaper variant stands in for an encoder, for any tenant",
            ("encoder", "version"), registry=registry,
        )  # fmt: skip
        self._failures = Counter(
            "trimtab_failures",
            "Requests not answered with vectors, by the gRPC code they were answered with",
            (*_REQUEST, "reason"), registry=registry,
        )  # fmt: skip
        self._refused = Counter(
            "trimtab_refused_calls", "Calls that were not let in, by the gRPC code they were answered with",
            ("reason",), registry=registry,
        )  # fmt: skip
        self._not_admitted = Counter(
            "trimtab_not_admitted",
            "Requests that were refused at the door with RESOURCE_EXHAUSTED: over the tenant's quota (rate, "
            "in_flight), over its share of the room (share), no room (full), or no time (late). Tenants "
            "without a quota of their own are `other`",
            ("tenant", "reason"), registry=registry,
        )  # fmt: skip
        self._canary = Counter(
            "trimtab_canary_requests",
            "Requests that fell to a canary's share: given to it, or kept, because no bridge leads from it "
            "into the space of the version that answers them",
            ("encoder", "version", "outcome"), registry=registry,
        )  # fmt: skip
        self._in_flight = Gauge(
            "trimtab_requests_in_flight", "Requests that were taken up and not answered yet",
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
            "trimtab_batch_tokens", "Tokens that the linear layers computed of a batch",
            _BATCH, buckets=TOKENS, registry=registry,
        )  # fmt: skip
        self._padding = Histogram(
            "trimtab_padding_ratio", "Share of the tokens in trimtab_batch_tokens that were padding",
            _BATCH, buckets=RATIOS, registry=registry,
        )  # fmt: skip
        self._device_up = Gauge(
            "trimtab_device_up", "1 while a device is in service", ("device",), registry=registry
        )
        self._device_failures = Counter(
            "trimtab_device_failures",
            "Why a device was taken out of service (raised, hung, lost, memory), or not put back (probe)",
            ("device", "reason"), registry=registry,
        )  # fmt: skip
        self._device_restarts = Counter(
            "trimtab_device_restarts", "Processes of devices that were started in place of others",
            ("device",), registry=registry,
        )  # fmt: skip
        self._busy = Counter(
            "trimtab_device_busy_seconds", "Seconds of runs, of all workers of a device together",
            ("device",), registry=registry,
        )  # fmt: skip
        self._shared = Counter(
            "trimtab_shared_texts",
            "Texts that were not computed, because the same text was on its way or remembered",
            ("encoder", "version", "how"), registry=registry,
        )  # fmt: skip
        self._cached = Gauge("trimtab_cache_bytes", "Size of the vectors remembered", registry=registry)
        self._start = Gauge(
            "trimtab_start_seconds",
            "How long the server took to start: process (until its parts were made), encoders (until all "
            "were loaded and warm) and ready (both)",
            ("stage",), registry=registry,
        )  # fmt: skip
        self._load = Gauge(
            "trimtab_load_seconds",
            "How long the last load of an encoder version took: read (its hashes, too), tokenizer, graph "
            "(opened and warmed on every device)",
            ("encoder", "version", "stage"), registry=registry,
        )  # fmt: skip
        self._ready = Gauge(
            "trimtab_encoder_ready", "1 while an encoder version is warm and serves", ("encoder", "version"),
            registry=registry,
        )  # fmt: skip

        self._of_versions = (
            self._requests, self._tokenize, self._queue, self._compute, self._texts, self._tokens,
            self._adapted, self._failures, self._in_flight, self._batch_seconds, self._batch_size,
            self._batch_tokens, self._padding, self._shared, self._canary, self._load, self._variants,
            self._browned_out, self._brownout, self._ready,
        )  # fmt: skip

    def _request(self, encoder: str, version: int, protocol: str) -> "_Request":
        key = (encoder, version, protocol)
        if key not in self._by_request:
            self._by_request[key] = _Request(
                total=self._requests.labels(*key),
                tokenize=self._tokenize.labels(*key),
                queue=self._queue.labels(*key),
                compute=self._compute.labels(*key),
                texts=self._texts.labels(*key),
                tokens=self._tokens.labels(*key),
                in_flight=self._in_flight.labels(*key),
            )
        return self._by_request[key]

    def began(self, encoder: str, version: int, protocol: str) -> None:
        """A request was taken up."""
        self._request(encoder, version, protocol).in_flight.inc()

    def ended(self, encoder: str, version: int, protocol: str) -> None:
        """A request left, answered or not."""
        self._request(encoder, version, protocol).in_flight.dec()

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
        request = self._request(encoder, version, protocol)
        request.total.observe(total)
        request.tokenize.observe(tokenize)
        request.queue.observe(queue)
        request.compute.observe(compute)
        request.texts.inc(texts)
        request.tokens.inc(tokens)
        statistics = self.statistics[encoder, version]
        statistics.success.add(total)
        statistics.tokenize.add(tokenize)
        statistics.queue.add(queue)
        statistics.compute.add(compute)
        statistics.output.add(output)
        statistics.texts += texts
        statistics.last_ms = now_ms

    def adapted(self, encoder: str, version: int, adapter: str, texts: int) -> None:
        """So many texts of an encoder version passed through an adapter, ENCODER/NAME."""
        self._adapted.labels(encoder, version, adapter).inc(texts)

    def computed_by(self, encoder: str, version: int, variant: str, texts: int, *, browned_out: bool) -> None:
        """So many texts were answered by a variant of an encoder version, perhaps in a brownout."""
        self._variants.labels(encoder, version, variant).inc(texts)
        if browned_out:
            self._browned_out.labels(encoder, version, variant).inc(texts)

    def watch_brownout(self, encoder: str, version: int, on: Callable[[], bool]) -> None:
        """How to know whether an encoder version is in a brownout; asked at each scrape."""
        self._brownout.labels(encoder, version).set_function(on)

    def failed(self, encoder: str, version: int | None, protocol: str, reason: str, seconds: float) -> None:
        """A request was refused, failed or was cancelled.

        Where no encoder was found there is no name and no version: a caller's invention is no label.
        """
        self._failures.labels(encoder, "" if version is None else version, protocol, reason).inc()
        if version is not None:
            self.statistics[encoder, version].fail.add(seconds)

    def refused(self, reason: str) -> None:
        """A call came without the credentials that it needs."""
        self._refused.labels(reason).inc()

    def not_admitted(self, tenant: str, reason: str) -> None:
        """A request was refused at the door; `tenant` is one of the configuration's, or OTHER."""
        self._not_admitted.labels(tenant, reason).inc()

    def canary(self, encoder: str, version: int, *, given: bool) -> None:
        """A request fell to a canary's share, and was given to it or not."""
        self._canary.labels(encoder, version, "given" if given else "kept").inc()

    def batch(self, batch: Batch, device: str, seconds: float) -> None:
        """A device ran a batch."""
        key = (batch.model.encoder, batch.model.version, device)
        runs = self._by_device.get(key)
        if runs is None:
            runs = self._by_device[key] = _Runs(
                seconds=self._batch_seconds.labels(*key),
                size=self._batch_size.labels(*key),
                tokens=self._batch_tokens.labels(*key),
                padding=self._padding.labels(*key),
                busy=self._busy.labels(device),
            )
        size, computed = len(batch.items), batch.computed_tokens
        runs.seconds.observe(seconds)
        runs.size.observe(size)
        runs.tokens.observe(computed)
        runs.padding.observe(1 - batch.tokens / computed)
        runs.busy.inc(seconds)
        self.statistics[batch.model.encoder, batch.model.version].batches[size].add(seconds)

    def watch(
        self, texts: Callable[[], float], tokens: Callable[[], float], cached: Callable[[], float]
    ) -> None:
        """How to know what waits for a device, and what is remembered; asked at each scrape."""
        self._queued_texts.set_function(texts)
        self._queued_tokens.set_function(tokens)
        self._cached.set_function(cached)

    def device(self, device: str, *, up: bool) -> None:
        """A device is or is not in service."""
        self._device_up.labels(device).set(int(up))

    def device_failed(self, device: str, reason: str) -> None:
        """A device was taken out of service, or was not well yet when it was probed."""
        self._device_failures.labels(device, reason).inc()

    def device_restarted(self, device: str) -> None:
        """A device is to have a new process."""
        self._device_restarts.labels(device).inc()

    def shared(self, model: Model, how: Literal["in_flight", "cache"], texts: int) -> None:
        """So many texts need no run of their own."""
        if texts:
            self._shared.labels(model.encoder, model.version, how).inc(texts)

    def started(self, process: float, encoders: float) -> None:
        """The server is ready: seconds of its process until it began to load, and of the loads."""
        for stage, seconds in (("process", process), ("encoders", encoders), ("ready", process + encoders)):
            self._start.labels(stage).set(seconds)

    def loaded(self, encoder: str, version: int, seconds: Mapping[str, float]) -> None:
        """An encoder version was loaded, in so many seconds of each stage."""
        for stage, each in seconds.items():
            self._load.labels(encoder, version, stage).set(each)

    def ready(self, encoder: str, version: int, serving: bool) -> None:
        """An encoder version began or ceased to serve."""
        self._ready.labels(encoder, version).set(int(serving))

    def forget(self, encoder: str, version: int) -> None:
        """An encoder version will not be served any more, and nothing of it is in flight.

        Its series end: a server whose versions come and go would otherwise grow with each of them.
        """
        for kept in (self._by_request, self._by_device):
            for key in [key for key in list(kept) if key[:2] == (encoder, version)]:  # workers add to it
                del kept[key]
        self.statistics.pop((encoder, version), None)
        for metric in self._of_versions:
            metric.remove_by_labels({"encoder": encoder, "version": str(version)})
