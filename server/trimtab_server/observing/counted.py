"""Cheap counters for every call: plain numbers, which a scrape turns into Prometheus samples.

prometheus_client's own metrics take a lock for each number and try buckets one by one; that cost more of a
call than everything else that observes it (`python -m bench.observing`). These count without a lock, so only
one thread may count in a series at a time. A scrape may see a series half updated.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, Literal, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString  # so that all bounds are formatted alike

# As prometheus_client does for its own metrics.
CREATED = os.environ.get("PROMETHEUS_DISABLE_CREATED_SERIES", "").lower() not in ("true", "1", "t")

Samples = Iterator[tuple[str, dict[str, str], float]]


class Series(Protocol):
    """The numbers of one set of label values."""

    def samples(self) -> Samples:
        """Each sample's suffix, extra labels, and value."""


class Counter:
    """Counts up: add to `value`."""

    __slots__ = ("_created", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self._created = time.time()

    def samples(self) -> Samples:
        """The count."""
        yield "_total", {}, self.value
        if CREATED:
            yield "_created", {}, self._created


class Gauge:
    """Goes up and down: add to `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def samples(self) -> Samples:
        """The value."""
        yield "", {}, self.value


class Histogram:
    """Counts each value in the first bucket whose bound is not below it (`bounds` ascend); `sum` of all."""

    __slots__ = ("_bounds", "_counts", "_created", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.sum = 0.0
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._created = time.time()

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self._counts)

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def samples(self) -> Samples:
        """The values up to each bound, their number, and their sum."""
        below = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts.copy(), strict=True):
            below += count
            yield "_bucket", {"le": floatToGoString(bound)}, below  # type: ignore[no-untyped-call]
        yield "_count", {}, below
        yield "_sum", {}, self.sum
        if CREATED:
            yield "_created", {}, self._created


S = TypeVar("S", bound=Series)


class Family(Collector, Generic[S]):
    """A metric with labels: a series, made by `make`, for each set of their values."""

    def __init__(
        self,
        kind: Literal["counter", "gauge", "histogram"],
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        make: Callable[[], S],
        registry: CollectorRegistry,
    ) -> None:
        self._kind = kind
        self._name = name
        self._documentation = documentation
        self._labelnames = tuple(labelnames)
        self._make = make
        self._series: dict[tuple[object, ...], S] = {}
        registry.register(self)

    def labels(self, *values: object) -> S:
        """The series of these label values, in the order of the label names."""
        found = self._series.get(values)
        return self._series.setdefault(values, self._make()) if found is None else found

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """Remove every series with these label values."""
        wanted = [(self._labelnames.index(name), value) for name, value in labels.items()]
        for values in list(self._series):  # other threads may add to it
            if all(str(values[place]) == value for place, value in wanted):
                self._series.pop(values, None)

    def describe(self) -> list[Metric]:
        """The family without its samples."""
        return [Metric(self._name, self._documentation, self._kind)]

    def collect(self) -> list[Metric]:
        """The family as it is now; for the scraping thread."""
        (family,) = self.describe()
        for values, series in self._series.copy().items():
            labels = dict(zip(self._labelnames, map(str, values), strict=True))
            for suffix, own, value in series.samples():
                family.add_sample(self._name + suffix, labels | own, value)
        return [family]
