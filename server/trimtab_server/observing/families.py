"""The server's metrics, each declared once: its name, what it says, its labels. The registry is handed in.

What each call adds to is of `counted`; the rest, prometheus_client's own.
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


class Requests:
    """Of requests, by encoder, version and protocol.

    `of_versions` are those that end with a version.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(_counter, registry)
        histogram = partial(_histogram, registry)
        rare_counter = partial(prometheus.Counter, registry=registry)
        self.requests = histogram(
            "trimtab_request_seconds",
            "From a request's arrival until its answer is packed; answered requests only",
            _REQUEST,
            SECONDS,
        )
        self.tokenize = histogram(
            "trimtab_tokenize_seconds", "Waiting for a tokenizer and tokenising, a request", _REQUEST, SECONDS
        )
        self.queue = histogram(
            "trimtab_queue_seconds",
            "From the end of tokenising until the first batch of a request begins",
            _REQUEST,
            SECONDS,
        )
        self.compute = histogram(
            "trimtab_compute_seconds",
            "From the first batch of a request until the end of its last",
            _REQUEST,
            SECONDS,
        )
        self.texts = counter("trimtab_texts", "Texts answered", _REQUEST)
        self.tokens = counter("trimtab_tokens", "Tokens of the texts answered, padding left out", _REQUEST)
        self.failures = rare_counter(
            "trimtab_failures",
            "Requests not answered with vectors, by the gRPC code they were answered with",
            (*_REQUEST, "reason"),
        )
        self.in_flight: Family[Gauge] = Family(
            "gauge",
            "trimtab_requests_in_flight",
            "Requests that were taken up and not answered yet",
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


class Answers:
    """Of how requests were answered, by encoder and version, and of those that were turned away.

    `of_versions` are those that end with a version.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(_counter, registry)
        rare_counter = partial(prometheus.Counter, registry=registry)
        self.adapted = counter(
            "trimtab_adapted_texts",
            "Texts whose vectors passed through an adapter",
            ("encoder", "version", "adapter"),
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
            "Passages flagged or refused, because they come near to far more queries than ordinary ones",
            ("encoder", "version"),
        )
        self.canary = rare_counter(
            "trimtab_canary_requests",
            "Requests that fell to a canary's share: given to it, or kept, because no bridge leads from it "
            "into the space of the version that answers them",
            ("encoder", "version", "outcome"),
        )
        self.shared = counter(
            "trimtab_shared_texts",
            "Texts that were not computed, because the same text was on its way or remembered",
            ("encoder", "version", "how"),
        )
        self.refused = rare_counter(
            "trimtab_refused_calls",
            "Calls that were not let in, by the gRPC code they were answered with",
            ("reason",),
        )
        self.not_admitted = rare_counter(
            "trimtab_not_admitted",
            "Requests that were refused at the door with RESOURCE_EXHAUSTED: over the tenant's quota (rate, "
            "in_flight), over its share of the room (share), no room (full), or no time (late). Tenants "
            "without a quota of their own are `other`",
            ("tenant", "reason"),
        )
        self.of_versions = (
            self.adapted,
            self.shared,
            self.canary,
            self.variants,
            self.browned_out,
            self.suspicious,
        )


class Devices:
    """Of runs and of devices, and of what waits for them.

    `of_versions` are those that end with a version.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(_counter, registry)
        histogram = partial(_histogram, registry)
        rare_counter = partial(prometheus.Counter, registry=registry)
        gauge = partial(prometheus.Gauge, registry=registry)
        self.batch_seconds = histogram("trimtab_batch_seconds", "One run of a graph", _BATCH, SECONDS)
        self.batch_size = histogram("trimtab_batch_size", "Texts in a batch", _BATCH, SIZES)
        self.batch_tokens = histogram(
            "trimtab_batch_tokens", "Tokens that the linear layers computed of a batch", _BATCH, TOKENS
        )
        self.padding = histogram(
            "trimtab_padding_ratio",
            "Share of the tokens in trimtab_batch_tokens that were padding",
            _BATCH,
            RATIOS,
        )
        self.busy = counter(
            "trimtab_device_busy_seconds", "Seconds of runs, of all workers of a device together", ("device",)
        )
        self.device_up = gauge("trimtab_device_up", "1 while a device is in service", ("device",))
        self.device_failures = rare_counter(
            "trimtab_device_failures",
            "Why a device was taken out of service (raised, hung, lost, memory), or not put back (probe)",
            ("device", "reason"),
        )
        self.device_restarts = rare_counter(
            "trimtab_device_restarts",
            "Processes of devices that were started in place of others",
            ("device",),
        )
        self.queued_texts = gauge("trimtab_queued_texts", "Texts that wait for a device, of all encoders")
        self.queued_tokens = gauge("trimtab_queued_tokens", "Tokens that wait for a device, of all encoders")
        self.cached = gauge("trimtab_cache_bytes", "Size of the vectors remembered")
        self.of_versions = (
            self.batch_seconds,
            self.batch_size,
            self.batch_tokens,
            self.padding,
        )


class Versions:
    """Of the versions that are served, and of their loads.

    `of_versions` are those that end with a version.
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
            "How long the last load of an encoder version took: read (its hashes, too), tokenizer, rehearsal "
            "(graphs tried in a process of their own), graph (opened and warmed on every device)",
            ("encoder", "version", "stage"),
        )
        self.start = gauge(
            "trimtab_start_seconds",
            "How long the server took to start: process (until its parts were made), encoders (until all "
            "were loaded and warm) and ready (both)",
            ("stage",),
        )
        self.brownout = gauge(
            "trimtab_brownout",
            "1 while a cheaper variant stands in for an encoder, for any tenant",
            ("encoder", "version"),
        )
        self.of_versions = (
            self.load,
            self.brownout,
            self.ready,
        )
