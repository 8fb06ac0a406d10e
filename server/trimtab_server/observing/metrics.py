"""Counts what happens in the server, for Prometheus and for KServe's statistics."""

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry

from trimtab_server.observing.counted import Counter, Gauge, Histogram
from trimtab_server.observing.families import AnswerMetrics, DeviceMetrics, RequestMetrics, VersionMetrics


@dataclass(slots=True)
class Count:
    """How often something happened, and its total nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Add one event, or `count` events, of `seconds` in total."""
        self.count += count
        self.ns += round(seconds * 1e9)

    def join(self, other: "Count") -> None:
        """Add what another process has counted."""
        self.count += other.count
        self.ns += other.ns


@dataclass(slots=True)
class Statistics:
    """The statistics of one encoder version since it was loaded, as in KServe's ModelStatistics."""

    success: Count = field(default_factory=Count)
    fail: Count = field(default_factory=Count)
    queue: Count = field(default_factory=Count)
    tokenize: Count = field(default_factory=Count)
    compute: Count = field(default_factory=Count)
    output: Count = field(default_factory=Count)
    texts: int = 0
    last_ms: int = 0
    batches: dict[int, Count] = field(default_factory=dict)

    def join(self, other: "Statistics") -> None:
        """Add what another process has counted."""
        for name in ("success", "fail", "queue", "tokenize", "compute", "output"):
            getattr(self, name).join(getattr(other, name))
        self.texts += other.texts
        self.last_ms = max(self.last_ms, other.last_ms)
        for size, count in other.batches.items():
            self.batches.setdefault(size, Count()).join(count)


@dataclass(slots=True)
class _Requests:
    """The request metrics of one encoder version and protocol; looked up once per call."""

    total: Histogram
    tokenize: Histogram
    queue: Histogram
    compute: Histogram
    texts: Counter
    tokens: Counter
    in_flight: Gauge
    output: float = 0.0  # seconds; only for KServe
    last_ms: int = 0


@dataclass(frozen=True, slots=True)
class _Runs:
    """The metrics of one model's runs on one device."""

    seconds: Histogram
    size: Histogram
    tokens: Histogram
    padding: Histogram
    busy: Counter
    by_size: dict[int, Count] = field(default_factory=lambda: defaultdict(Count))


class Metrics:
    """Counts requests, only on the event loop, and batches, from workers' threads under a lock."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = RequestMetrics(registry)
        self._answers = AnswerMetrics(registry)
        self._devices = DeviceMetrics(registry)
        self._versions = VersionMetrics(registry)
        self._by_request: dict[tuple[str, int, str], _Requests] = {}
        self._by_device: dict[tuple[str, int, str], _Runs] = {}
        self._failed: dict[tuple[str, int], Count] = defaultdict(Count)
        self._batches = threading.Lock()

    def _request(self, encoder: str, version: int, protocol: str) -> _Requests:
        key = (encoder, version, protocol)
        found = self._by_request.get(key)
        if found is None:
            found = self._by_request[key] = _Requests(
                total=self._requests.requests.labels(*key),
                tokenize=self._requests.tokenize.labels(*key),
                queue=self._requests.queue.labels(*key),
                compute=self._requests.compute.labels(*key),
                texts=self._requests.texts.labels(*key),
                tokens=self._requests.tokens.labels(*key),
                in_flight=self._requests.in_flight.labels(*key),
            )
        return found

    def began(self, encoder: str, version: int, protocol: str) -> None:
        """A request was accepted."""
        self._request(encoder, version, protocol).in_flight.value += 1

    def ended(self, encoder: str, version: int, protocol: str) -> None:
        """A request left, answered or not."""
        self._request(encoder, version, protocol).in_flight.value -= 1

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
        requests = self._request(encoder, version, protocol)
        requests.total.observe(total)
        requests.tokenize.observe(tokenize)
        requests.queue.observe(queue)
        requests.compute.observe(compute)
        requests.texts.value += texts
        requests.tokens.value += tokens
        requests.output += output
        requests.last_ms = now_ms

    def adapted(self, encoder: str, version: int, adapter: str, texts: int) -> None:
        """Texts of an encoder version passed through an adapter, ENCODER/NAME."""
        self._answers.adapted.labels(encoder, version, adapter).value += texts

    def gave(self, encoder: str, version: int, output: str, rows: int) -> None:
        """So many rows were computed for an output that has several for an item."""
        self._answers.rows.labels(encoder, version, output).value += rows

    def computed_by(self, encoder: str, version: int, variant: str, texts: int, *, browned_out: bool) -> None:
        """Texts were answered by a variant of an encoder version, perhaps in a brownout."""
        self._answers.variants.labels(encoder, version, variant).value += texts
        if browned_out:
            self._answers.browned_out.labels(encoder, version, variant).inc(texts)

    def suspicious(self, encoder: str, version: int, texts: int) -> None:
        """Passages were checked, and this many of them flagged."""
        self._answers.suspicious.labels(encoder, version).inc(texts)

    def watch_brownout(self, encoder: str, version: int, on: Callable[[], bool]) -> None:
        """Set how each scrape finds out whether an encoder version is in a brownout."""
        self._versions.brownout.labels(encoder, version).set_function(on)

    def failed(self, encoder: str, version: int | None, protocol: str, reason: str, seconds: float) -> None:
        """A request was refused, failed or was cancelled.

        If no encoder was found, name and version are empty: callers cannot create labels.
        """
        self._requests.failures.labels(encoder, "" if version is None else version, protocol, reason).inc()
        if version is not None:
            self._failed[encoder, version].add(seconds)

    def refused(self, reason: str) -> None:
        """A call was refused for its credentials."""
        self._answers.refused.labels(reason).inc()

    def not_admitted(self, tenant: str, reason: str) -> None:
        """A request was refused on admission; `tenant` is one from the configuration, or OTHER."""
        self._answers.not_admitted.labels(tenant, reason).inc()

    def canary(self, encoder: str, version: int, given: bool) -> None:
        """A request was in a canary's share, and was given to it or kept."""
        self._answers.canary.labels(encoder, version, "given" if given else "kept").inc()

    def batch(
        self,
        encoder: str,
        version: int,
        device: str,
        *,
        size: int,
        tokens: int,
        computed: int,
        seconds: float,
    ) -> None:
        """A device ran a batch of `size` items; `computed` is `tokens` and the padding that was computed."""
        key = (encoder, version, device)
        with self._batches:
            runs = self._by_device.get(key)
            if runs is None:
                runs = self._by_device[key] = _Runs(
                    seconds=self._devices.batch_seconds.labels(*key),
                    size=self._devices.batch_size.labels(*key),
                    tokens=self._devices.batch_tokens.labels(*key),
                    padding=self._devices.padding.labels(*key),
                    busy=self._devices.busy.labels(device),
                )
            runs.seconds.observe(seconds)
            runs.size.observe(size)
            runs.tokens.observe(computed)
            runs.padding.observe(1 - tokens / computed)
            runs.busy.value += seconds
            runs.by_size[size].add(seconds)

    def statistics(self, encoder: str, version: int) -> Statistics:
        """The statistics of an encoder version, over all protocols and devices."""
        found = Statistics()
        found.fail.join(self._failed.get((encoder, version), Count()))
        for key, requests in self._by_request.items():
            if key[:2] != (encoder, version):
                continue
            number = requests.total.count
            found.success.add(requests.total.sum, number)
            found.tokenize.add(requests.tokenize.sum, number)
            found.queue.add(requests.queue.sum, number)
            found.compute.add(requests.compute.sum, number)
            found.output.add(requests.output, number)
            found.texts += int(requests.texts.value)
            found.last_ms = max(found.last_ms, requests.last_ms)
        with self._batches:
            for key, runs in self._by_device.items():
                if key[:2] == (encoder, version):
                    for size, count in runs.by_size.items():
                        found.batches.setdefault(size, Count()).join(count)
        return found

    def watch(
        self, texts: Callable[[], float], tokens: Callable[[], float], cached: Callable[[], float]
    ) -> None:
        """Set how each scrape finds out the queue and the cache size."""
        self._devices.queued_texts.set_function(texts)
        self._devices.queued_tokens.set_function(tokens)
        self._devices.cached.set_function(cached)

    def device(self, device: str, *, up: bool) -> None:
        """A device is or is not in service."""
        self._devices.device_up.labels(device).set(int(up))

    def device_failed(self, device: str, reason: str) -> None:
        """A device was taken out of service, or failed a probe."""
        self._devices.device_failures.labels(device, reason).inc()

    def device_restarted(self, device: str) -> None:
        """A device gets a new process."""
        self._devices.device_restarts.labels(device).inc()

    def shared(self, encoder: str, version: int, how: Literal["in_flight", "cache"], texts: int) -> None:
        """Texts were answered without a run of their own."""
        if texts:
            self._answers.shared.labels(encoder, version, how).value += texts

    def started(self, process: float, encoders: float) -> None:
        """The server is ready: seconds from process start to loading, and seconds of the loads."""
        for stage, seconds in (("process", process), ("encoders", encoders), ("ready", process + encoders)):
            self._versions.start.labels(stage).set(seconds)

    def loaded(self, encoder: str, version: int, seconds: Mapping[str, float]) -> None:
        """An encoder version was loaded; `seconds` per stage."""
        for stage, each in seconds.items():
            self._versions.load.labels(encoder, version, stage).set(each)

    def ready(self, encoder: str, version: int, serving: bool) -> None:
        """An encoder version started or stopped serving."""
        self._versions.ready.labels(encoder, version).set(int(serving))

    def forget(self, encoder: str, version: int) -> None:
        """An encoder version is unloaded, and nothing of it is in flight.

        Its series are removed; otherwise they would accumulate as versions come and go.
        """
        for kept in (self._by_request, self._by_device):
            for key in [key for key in list(kept) if key[:2] == (encoder, version)]:  # workers may add to it
                del kept[key]
        self._failed.pop((encoder, version), None)
        for families in (self._requests, self._answers, self._devices, self._versions):
            for metric in families.of_versions:
                metric.remove_by_labels({"encoder": encoder, "version": str(version)})
