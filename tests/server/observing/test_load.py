"""Reports of load: what gRPC makes of them, and that they forget."""

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from trimtab.errors import ResourceExhausted
from trimtab_server.engine.port import Pressure
from trimtab_server.fronts.grpc.statuses import abort
from trimtab_server.observing.load import (
    FULL_WAIT_SECONDS,
    LEAST,
    PERIOD_SECONDS,
    REPORT_SECONDS,
    TRAILER,
    Load,
)


class World:
    """A clock, and devices that do as they are told."""

    def __init__(self) -> None:
        self.now, self.run, self.workers, self.wait = 100.0, 0.0, 2, 0.0
        self.load = Load(lambda: Pressure(self.run, self.workers, wait_seconds=self.wait), lambda: self.now)

    def live(self, seconds: float, *, calls: int, failed: int = 0, busy: float = 0.0) -> None:
        """So many calls a second, of which so many fail, by devices that are busy for this share."""
        for _ in range(round(seconds / REPORT_SECONDS)):
            self.now += REPORT_SECONDS
            self.run += busy * self.workers * REPORT_SECONDS
            for number in range(round(calls * REPORT_SECONDS)):
                self.load.called(overloaded=number < failed * REPORT_SECONDS)
            self.load.report()

    def read(self) -> tuple[float, float, float]:
        """Calls a second, failed ones, and the utilisation, as protobuf reads the report."""
        self.now += REPORT_SECONDS
        report = orca()
        report.ParseFromString(self.load.report())
        return report.rps_fractional, report.eps, report.application_utilization


def orca() -> object:
    """An empty message of the fields that gRPC reads, by their numbers in xds/data/orca/v3."""
    file = descriptor_pb2.FileDescriptorProto(name="orca.proto", package="test.orca", syntax="proto3")
    message = file.message_type.add(name="OrcaLoadReport")
    for name, number in (("rps_fractional", 6), ("eps", 7), ("application_utilization", 9)):
        message.field.add(name=name, number=number, type=1, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.orca.OrcaLoadReport"))()


def test_it_tells_rates_and_how_busy_the_devices_are() -> None:
    world = World()
    world.live(10, calls=50, failed=10, busy=0.4)
    calls, failed, utilization = world.read()
    assert calls == pytest.approx(50, rel=0.05) and failed == pytest.approx(10, rel=0.05)
    assert utilization == pytest.approx(0.4, rel=0.05)


def test_a_queue_counts_beyond_devices_that_are_full() -> None:
    world = World()
    world.wait = 3 * FULL_WAIT_SECONDS
    world.live(10, calls=50, busy=1.0)
    assert world.read()[2] == pytest.approx(4.0, rel=0.05)


def test_it_forgets() -> None:
    world = World()
    world.wait = 1.0
    world.live(20, calls=50, busy=1.0)
    world.wait = 0.0
    world.live(2 * PERIOD_SECONDS + 1, calls=10, busy=0.1)
    calls, _, utilization = world.read()
    assert calls == pytest.approx(10, rel=0.05) and utilization == pytest.approx(0.1, rel=0.05)


def test_a_server_at_rest_and_one_without_devices_have_a_finite_weight() -> None:
    world = World()
    assert world.read() == (0.0, 0.0, LEAST)
    world.workers = 0
    world.live(10, calls=50, failed=50)
    calls, failed, _ = world.read()
    assert calls == failed > 0


def test_a_report_is_made_now_and_then() -> None:
    world = World()
    first = world.load.report()
    world.load.called(overloaded=False)
    assert world.load.report() is first


async def test_a_call_that_is_refused_brings_its_report_beside_the_pushback() -> None:
    """gRPC's clients keep the report for themselves, so that this looks at what the server hands over."""
    sent: list[object] = []

    class Context:
        def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
            return ((TRAILER, b"report"),)

        def time_remaining(self) -> None:
            return None

        async def abort(self, code: grpc.StatusCode, details: str, trailers: object) -> None:
            sent.extend((code, trailers))
            raise grpc.aio.AbortError

    with pytest.raises(grpc.aio.AbortError):
        await abort(Context(), ResourceExhausted("full", 0.5))  # type: ignore[arg-type]
    code, trailers = sent
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert trailers[:2] == ((TRAILER, b"report"), ("grpc-retry-pushback-ms", "500"))  # type: ignore[index]
