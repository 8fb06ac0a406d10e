"""The metrics of several processes as those of one server."""

from collections.abc import Iterable
from typing import TypeAlias

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

# A sample's name, and its labels.
Key: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]

# Gauges are the largest of all processes, but for these.
SUMMED = frozenset({"trimtab_requests_in_flight"})
SMALLEST = frozenset({"trimtab_encoder_ready"})
COUNTED = frozenset({"counter", "histogram"})


class Series(msgspec.Struct, frozen=True, array_like=True):
    """A metric of one process: its kind, and its samples."""

    name: str
    documentation: str
    kind: str
    samples: list[tuple[str, dict[str, str], float]]


def collected(registry: CollectorRegistry) -> list[Series]:
    """The metrics of this process."""
    return [
        Series(
            metric.name, metric.documentation, metric.type,
            [(each.name, dict(each.labels), each.value) for each in metric.samples],
        )
        for metric in registry.collect()
    ]  # fmt: skip


class MergedMetrics(Collector):
    """Counters and histograms are summed, over the processes that are gone, too: a sum must not fall. Series
    that a process removes, because their encoder version is gone, are removed."""

    def __init__(self) -> None:
        self._metrics: dict[str, Series] = {}  # their names and kinds
        self._now: dict[str, dict[Key, float]] = {}  # by process
        self._before: dict[Key, float] = {}  # counted by processes that are gone
        self._removed: set[Key] = set()  # by some processes, while others still have them

    def put(self, process: str, series: Iterable[Series]) -> None:
        """The metrics of a process as they are now."""
        last, samples = self._now.get(process, {}), dict[Key, float]()
        for each in series:
            self._metrics[each.name] = Series(each.name, each.documentation, each.kind, [])
            for name, labels, value in each.samples:
                samples[name, tuple(sorted(labels.items()))] = value
        self._now[process] = samples
        for key in last.keys() - samples.keys():
            self._before.pop(key, None)
            self._removed.add(key)
        self._removed = {key for key in self._removed if any(key in each for each in self._now.values())}

    def gone(self, process: str) -> None:
        """A process has ended: what it counted stays."""
        counted = {name: each for name, each in self._metrics.items() if each.kind in COUNTED}
        for key, value in self._now.pop(process, {}).items():
            if _metric(key[0], counted) and not key[0].endswith("_created") and key not in self._removed:
                self._before[key] = self._before.get(key, 0.0) + value

    def collect(self) -> Iterable[Metric]:
        """All metrics of the server."""
        merged = {name: Metric(name, each.documentation, each.kind) for name, each in self._metrics.items()}
        values: dict[Key, list[float]] = {key: [value] for key, value in self._before.items()}
        for samples in self._now.values():
            for key, value in samples.items():
                values.setdefault(key, []).append(value)
        for (name, labels), found in values.items():
            if (name, labels) in self._removed:
                continue
            metric = merged[_metric(name, self._metrics)]
            if metric.name in SMALLEST and len(found) < self._having(metric.name):
                found.append(0.0)  # some front end does not know this version
            metric.add_sample(name, dict(labels), _merge(metric, name, found))
        return merged.values()

    def _having(self, metric: str) -> int:
        """How many processes have series of this metric."""
        return sum(any(name == metric for name, _ in samples) for samples in self._now.values())


def _merge(metric: Metric, sample: str, values: list[float]) -> float:
    if sample.endswith("_created") or metric.name in SMALLEST:
        return min(values)
    if metric.type in COUNTED or metric.name in SUMMED:
        return sum(values)
    return max(values)


def _metric(sample: str, metrics: Iterable[str]) -> str:
    """The metric that a sample belongs to; "" if it is none of these."""
    if sample in metrics:
        return sample
    name = sample.rpartition("_")[0]  # _total, _bucket, _sum, _count, _created
    return name if name in metrics else ""
