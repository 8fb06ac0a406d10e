"""The server's metrics, each declared once with name, help and labels. The registry is passed in.

Metrics that every call adds to are from `counted`; the rest are prometheus_client's own.
"""

from collections.abc import Sequence
from functools import partial

import prometheus_client as prometheus
from prometheus_client import CollectorRegistry

from trimtab_server.observing.counted import Counter, Family, Gauge, Histogram

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS = (8, 32, 128, 512, 2048, 8192, 32768)
RATIOS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

_REQUEST = ("encoder", "version", "protocol")
_BATCH = ("encoder", "version", "device")


def _counter(registry: CollectorRegistry, name: str, what: str, labels: Sequence[str]) -> Family[Counter]:
    return Family("counter", name, what, labels, Counter, registry)


def _histogram(
    registry: CollectorRegistry, name: str, what: str, labels: Sequence[str], bounds: Sequence[float]
) -> Family[Histogram]:
    return Family("histogram", name, what, labels, partial(Histogram, bounds), registry)


class RequestMetrics:
    """Metrics of requests, by encoder, version and protocol.

    `of_versions`: those whose series are removed with their version.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(_counter, registry)
        histogram = partial(_histogram, registry)
        rare_counter = partial(prometheus.Counter, registry=registry)
        self.requests = histogram(
            "trimtab_request_seconds",
            "Time from a request's arrival until its answer is packed; answered requests only",
            _REQUEST,
            SECONDS,
        )
        self.tokenize = histogram(
            "trimtab_tokenize_seconds",
            "Time per request to wait for a tokenizer and to tokenise",
            _REQUEST,
            SECONDS,
        )
        self.queue = histogram(
            "trimtab_queue_seconds",
            "Time from the end of tokenising until the request's first batch starts",
            _REQUEST,
            SECONDS,
        )
        self.compute = histogram(
            "trimtab_compute_seconds",
            "Time from the start of a request's first batch until the end of its last",
            _REQUEST,
            SECONDS,
        )
        self.texts = counter("trimtab_texts", "Texts answered", _REQUEST)
        self.tokens = counter("trimtab_tokens", "Tokens of the texts answered, without padding", _REQUEST)
        self.failures = rare_counter(
            "trimtab_failures",
            "Failed requests, by the gRPC code of the answer",
            (*_REQUEST, "reason"),
        )
        self.in_flight: Family[Gauge] = Family(
            "gauge",
            "trimtab_requests_in_flight",
            "Requests accepted and not yet answered",
            _REQUEST,
            Gauge,
            registry,
        )
        self.of_versions = (
            self.requests,
            self.tokenize,
            self.queue,
            self.compute,
            self.texts,
            self.tokens,
            self.failures,
            self.in_flight,
        )


class AnswerMetrics:
    """Metrics of how requests were answered, by encoder and version, and of refused requests.

    `of_versions`: those whose series are removed with their version.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(_counter, registry)
        rare_counter = partial(prometheus.Counter, registry=registry)
        self.adapted = counter(
            "trimtab_adapted_texts",
            "Texts whose vectors passed through an adapter",
            ("encoder", "version", "adapter"),
        )
        self.rows = counter(
            "trimtab_output_rows",
            "Rows computed for outputs that have several for an item: vectors of tokens, entries of sparse "
            "vectors",
            ("encoder", "version", "output"),
        )
        self.variants = counter(
            "trimtab_variant_texts",
            "Texts answered, by the variant of the encoder that computed them",
            ("encoder", "version", "variant"),
        )
        self.browned_out = rare_counter(
            "trimtab_brownout_texts",
            "Texts answered by a cheaper variant, because the queue was too long for the encoder itself",
            ("encoder", "version", "variant"),
        )
        self.suspicious = rare_counter(
            "trimtab_suspicious_texts",
            "Passages flagged or refused, because they come near far more queries than ordinary ones",
            ("encoder", "version"),
        )
        self.canary = rare_counter(
            "trimtab_canary_requests",
            "Requests in a canary's share: given to it, or kept, because no adapter judged bridge leads from "
            "it into the space of the old version",
            ("encoder", "version", "outcome"),
        )
        self.shared = counter(
            "trimtab_shared_texts",
            "Texts not computed, because the same text was in flight or cached",
            ("encoder", "version", "how"),
        )
        self.refused = rare_counter(
            "trimtab_refused_calls",
            "Calls refused for their credentials, by the gRPC code of the answer",
            ("reason",),
        )
        self.not_admitted = rare_counter(
            "trimtab_not_admitted",
            "Requests refused on admission with RESOURCE_EXHAUSTED: over the tenant's quota (rate, "
            "in_flight), over its share of the server (share), server full (full), or no time until the "
            "deadline (late). Tenants without a quota of their own are `other`",
            ("tenant", "reason"),
        )
        self.of_versions = (
            self.adapted,
            self.rows,
            self.shared,
            self.canary,
            self.variants,
            self.browned_out,
            self.suspicious,
        )


class DeviceMetrics:
    """Metrics of runs, of devices and of their queue.

    `of_versions`: those whose series are removed with their version.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(_counter, registry)
        histogram = partial(_histogram, registry)
        rare_counter = partial(prometheus.Counter, registry=registry)
        gauge = partial(prometheus.Gauge, registry=registry)
        self.batch_seconds = histogram("trimtab_batch_seconds", "Time of one run of a graph", _BATCH, SECONDS)
        self.batch_size = histogram("trimtab_batch_size", "Texts in a batch", _BATCH, SIZES)
        self.batch_tokens = histogram(
            "trimtab_batch_tokens", "Tokens per batch that the linear layers computed", _BATCH, TOKENS
        )
        self.padding = histogram(
            "trimtab_padding_ratio",
            "Share of padding in trimtab_batch_tokens",
            _BATCH,
            RATIOS,
        )
        self.busy = counter(
            "trimtab_device_busy_seconds", "Total seconds of runs, over all workers of a device", ("device",)
        )
        self.device_up = gauge("trimtab_device_up", "1 while a device is in service", ("device",))
        self.device_failures = rare_counter(
            "trimtab_device_failures",
            "Times a device was taken out of service (raised, hung, lost, memory) or failed a probe (probe)",
            ("device", "reason"),
        )
        self.device_restarts = rare_counter(
            "trimtab_device_restarts",
            "Replacements of a device's process",
            ("device",),
        )
        self.queued_texts = gauge("trimtab_queued_texts", "Texts waiting for a device, of all encoders")
        self.queued_tokens = gauge("trimtab_queued_tokens", "Tokens waiting for a device, of all encoders")
        self.cached = gauge("trimtab_cache_bytes", "Size of the cached vectors")
        self.of_versions = (
            self.batch_seconds,
            self.batch_size,
            self.batch_tokens,
            self.padding,
        )


class VersionMetrics:
    """Metrics of the served versions, and of their loads.

    `of_versions`: those whose series are removed with their version.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        gauge = partial(prometheus.Gauge, registry=registry)
        self.ready = gauge(
            "trimtab_encoder_ready",
            "1 while an encoder version is warm and serves",
            ("encoder", "version"),
        )
        self.load = gauge(
            "trimtab_load_seconds",
            "How long the last load of an encoder version took: read (including hashes), tokenizer, "
            "rehearsal (graphs tested in a separate process), graph (opened and warmed up on every device)",
            ("encoder", "version", "stage"),
        )
        self.start = gauge(
            "trimtab_start_seconds",
            "How long the server took to start: process (until loading began), encoders (until all were "
            "loaded and warm) and ready (both)",
            ("stage",),
        )
        self.brownout = gauge(
            "trimtab_brownout",
            "1 while a cheaper variant answers instead of an encoder, for any tenant",
            ("encoder", "version"),
        )
        self.of_versions = (
            self.load,
            self.brownout,
            self.ready,
        )
