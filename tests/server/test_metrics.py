"""Series end with their version, whatever the workers count meanwhile."""

from typing import Any

from prometheus_client import CollectorRegistry

from trimtab_server.observing.metrics import Metrics


class Ran:
    """As much of a batch as is counted of it."""

    items, computed_tokens, tokens = (1,), 3, 3

    def __init__(self, version: int) -> None:
        self.model: Any = self
        self.encoder, self.version = "a", version


def test_a_version_is_forgotten_while_another_one_runs_for_the_first_time() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def run(version: int) -> None:
        batch: Any = Ran(version)
        metrics.batch(batch, "cpu", 0.1)

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
