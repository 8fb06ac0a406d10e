"""What is counted without prometheus_client reads the same; series end with their version."""

import random
from functools import partial

import prometheus_client as prometheus
from prometheus_client import CollectorRegistry, generate_latest

from trimtab_server.observing.counted import Counter, Family, Gauge, Histogram
from trimtab_server.observing.metrics import Count, Metrics


def test_a_version_is_forgotten_while_another_one_runs_for_the_first_time() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def run(version: int) -> None:
        metrics.batch("a", version, "cpu", size=1, tokens=3, computed=3, seconds=0.1)

    class Meanwhile(str):
        """An encoder's name: when it is looked for, a worker counts a batch."""

        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            run(2)
            return str(self) == str(other)

        __hash__ = str.__hash__

    run(1)
    metrics.forget(Meanwhile("a"), 1)
    versions = {
        each.labels.get("version") for metric in registry.collect() for each in metric.samples if each.labels
    }
    assert "2" in versions and "1" not in versions


def test_plain_numbers_are_exposed_as_prometheus_clients_own_are() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    labels, bounds = ("encoder", "version"), (0.0, 0.5, 1, 2.5)
    histogram = Family("histogram", "a_seconds", "Of a.", labels, partial(Histogram, bounds), ours)
    counter = Family("counter", "b", "Of b.", labels, Counter, ours)
    gauge = Family("gauge", "c", "Of c.", labels, Gauge, ours)
    their_histogram = prometheus.Histogram("a_seconds", "Of a.", labels, buckets=bounds, registry=theirs)
    their_counter = prometheus.Counter("b", "Of b.", labels, registry=theirs)
    their_gauge = prometheus.Gauge("c", "Of c.", labels, registry=theirs)
    numbers = random.Random(1)
    for values in (("one", 1), ('tw"o', 2), ("one", 3)):
        # The bounds themselves, too: a value belongs to the bucket that it bounds.
        for value in (*bounds, *(numbers.uniform(0, 3) for _ in range(50))):
            histogram.labels(*values).observe(value)
            their_histogram.labels(*values).observe(value)
            counter.labels(*values).value += value
            their_counter.labels(*values).inc(value)
        gauge.labels(*values).value -= 3
        their_gauge.labels(*values).dec(3)
    histogram.remove_by_labels({"version": "1"})
    their_histogram.remove_by_labels({"version": "1"})

    def text(registry: CollectorRegistry) -> list[str]:
        lines = generate_latest(registry).decode().splitlines()
        return [line.split(" ")[0] if "_created{" in line else line for line in lines]

    assert text(ours) == text(theirs)
    assert 'a_seconds_bucket{encoder="one",le="0.5",version="3"}' in "\n".join(text(ours))


def test_statistics_are_of_all_protocols_and_devices() -> None:
    metrics = Metrics(CollectorRegistry())
    for protocol, version in (("trimtab.v1", 1), ("kserve", 1), ("kserve", 2)):
        for now_ms in (7, 5):
            metrics.answered(
                "a", version, protocol, texts=2, tokens=9, tokenize=0.1, queue=0.2, compute=0.3, output=0.4,
                total=1.0, now_ms=now_ms,
            )  # fmt: skip
    metrics.failed("a", 1, "kserve", "CANCELLED", 0.5)
    for device in ("cuda:0", "cuda:1"):
        metrics.batch("a", 1, device, size=1, tokens=3, computed=3, seconds=0.25)
    found = metrics.statistics("a", 1)
    assert (found.success, found.fail) == (Count(4, 4_000_000_000), Count(1, 500_000_000))
    assert (found.tokenize, found.queue) == (Count(4, 400_000_000), Count(4, 800_000_000))
    assert (found.compute, found.output) == (Count(4, 1_200_000_000), Count(4, 1_600_000_000))
    assert (found.texts, found.last_ms, found.batches) == (8, 5, {1: Count(2, 500_000_000)})
    metrics.forget("a", 1)
    assert metrics.statistics("a", 1).success == metrics.statistics("a", 1).fail == Count()
    assert metrics.statistics("a", 2).success.count == 2
