"""The ports beside the one for clients, and what a connection is allowed."""

import resource
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.ops.certificates import Certificates
from tests.server.server_process import free_port, serve
from trimtab.errors import ConfigError
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc
from trimtab_server.config import Config, LimitSettings, ServerSettings
from trimtab_server.engine.fleet import cores
from trimtab_server.fronts.grpc import open_files

SERVING = health_pb2.HealthCheckResponse.SERVING


def test_probes_need_no_tls(minilm_repository: Path, tmp_path: Path) -> None:
    """health_address answers in plain text, beside TLS for clients, and offers nothing else."""
    probes = f"127.0.0.1:{free_port()}"
    tls = Certificates(tmp_path).config()
    with serve(minilm_repository, tmp_path, f'[server]\nhealth_address = "{probes}"\n{tls}'):
        with grpc.insecure_channel(probes) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status == SERVING
            with pytest.raises(grpc.RpcError) as caught:
                stub.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=60)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            with pytest.raises(grpc.RpcError) as caught:
                encoder_pb2_grpc.EncoderServiceStub(channel).Embed(pb.EmbedRequest(texts=["a"]), timeout=60)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_connections_end_and_calls_of_one_are_bounded(minilm_repository: Path, tmp_path: Path) -> None:
    """max_connection_age_seconds, max_calls_per_connection."""
    text = "[server]\nmax_connection_age_seconds = 2.0\n[limits]\nmax_calls_per_connection = 2\n"
    with serve(minilm_repository, tmp_path, text) as server:
        async with grpc.aio.insecure_channel(server.url) as channel:
            await channel.channel_ready()
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)  # told to go, unasked
            health = health_pb2_grpc.HealthStub(channel)
            watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
            for watch in watches:
                assert (await watch.read()).status == SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health.Check(health_pb2.HealthCheckRequest(), timeout=0.2)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            watches[0].cancel()
            assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=60)).status == SERVING


def test_more_connections_than_allowed_are_closed_as_they_come(
    minilm_repository: Path, tmp_path: Path
) -> None:
    """max_connections."""

    def well(channel: grpc.Channel, timeout: float) -> bool:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        return bool(stub.Check(request, timeout=timeout, wait_for_ready=True).status == SERVING)

    alone = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100)]
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[1] // 2, files[1]))
    with serve(minilm_repository, tmp_path, "[limits]\nmax_connections = 2\n") as server:
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
        # Each connection is an open file: it takes all that it may.
        assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (files[1], files[1])
        with grpc.insecure_channel(server.url, alone) as first:
            with grpc.insecure_channel(server.url, alone) as second:
                assert well(first, 10)
                assert well(second, 10)
                with grpc.insecure_channel(server.url, alone) as third:
                    with pytest.raises(grpc.RpcError):
                        well(third, 1)
                    assert well(first, 10)  # those who are there stay
                    second.close()
                    assert well(third, 30)  # there is room again


def test_a_port_takes_no_more_connections_than_there_are_files(caplog: pytest.LogCaptureFixture) -> None:
    limits = LimitSettings(max_connections=4096)
    config = Config(limits=limits)
    assert open_files.within(config, 1 << 20) is open_files.within(config, resource.RLIM_INFINITY) is config
    assert not caplog.messages
    assert open_files.within(config, 1256).limits.max_connections == 1000
    assert "raise it to 4352" in caplog.messages[0]
    ports = ServerSettings(admin_address="127.0.0.1:1", health_address="127.0.0.1:2")
    assert open_files.within(Config(server=ports, limits=limits), 1256).limits.max_connections == 333
    with pytest.raises(ConfigError, match="the limit of open files is 256"):
        open_files.within(config, 256)


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container_bounds_the_workers(
    files: dict[str, str], most: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores.usable(tmp_path) == (most or len(cores.available()))
