"""What a port lets in and lets go: connections beyond its open files, idle ones, clients that are gone."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import trimtab
from bench.chaos import known
from bench.chaos.attacks import GOAWAY, PING, PREFACE, SETTINGS, frame
from tests.server.server_process import serve
from trimtab_server.config import Config, ServerSettings
from trimtab_server.fronts.grpc import listeners
from trimtab_server.fronts.grpc.health import Health

ACKNOWLEDGED = 1


def test_open_files_bound_the_connections(tmp_path: Path) -> None:
    """More come than there are files: those who are there are served, by both ports."""
    files = ("sh", "-c", 'ulimit -n 320; exec "$@"', "sh")
    with serve(known.bundle().parent.parent, tmp_path, under=files) as server:
        assert "64 connections" in server.log[0] and "limits.max_connections" in server.log[0]
        with trimtab.Client(server.url, timeout=100) as client, contextlib.ExitStack() as stack:
            client.embed(["w1"])
            for port in (server.url, server.metrics_url.removesuffix("/metrics")):
                address = ("127.0.0.1", int(port.rpartition(":")[2]))
                for _ in range(400):
                    with contextlib.suppress(ConnectionError):
                        stack.enter_context(socket.create_connection(address, 60))
            assert "trimtab_encoder_ready" in server.scrape()
            assert client.embed(["w2"]).shape == (1, known.WIDTH)


@contextlib.asynccontextmanager
async def listening(config: ServerSettings) -> AsyncIterator[int]:
    """A port for clients, which serves nothing but health."""
    server = listeners.make(Config(server=config), [])
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    port = listeners.bind(server, "127.0.0.1:0", None)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def until_closed(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionResetError):
            while await reader.read(1 << 16):
                pass


async def test_a_client_that_is_gone_without_a_word_is_forgotten() -> None:
    """keepalive_seconds: no call is on the connection, and nobody answers the server's ping."""
    async with listening(ServerSettings(keepalive_seconds=0.2, max_idle_seconds=0)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACKNOWLEDGED, 0))
        await until_closed(reader)
        writer.close()


async def test_a_connection_without_calls_is_closed() -> None:
    """max_idle_seconds; its client connects again when it calls."""
    async with listening(ServerSettings(max_idle_seconds=0.2)) as port:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.channel_ready()
            async with asyncio.timeout(60):
                await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
            stub: Any = health_pb2_grpc.HealthStub(channel)
            assert await stub.Check(health_pb2.HealthCheckRequest(), timeout=60)


async def test_a_client_without_calls_may_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as one with calls: gRPC's own rule for it is once in two hours."""
    monkeypatch.setattr(listeners, "PING_SECONDS", 0)
    async with listening(ServerSettings()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACKNOWLEDGED, 0))
        answered = 0
        async with asyncio.timeout(60):
            for number in range(10):
                writer.write(frame(PING, 0, 0, number.to_bytes(8, "big")))
                while True:
                    head = await reader.readexactly(9)
                    content = await reader.readexactly(int.from_bytes(head[:3], "big"))
                    assert head[3] != GOAWAY, content
                    if head[3] == PING and head[4] & ACKNOWLEDGED:
                        assert int.from_bytes(content, "big") == number
                        answered += 1
                        break
        assert answered == 10
        writer.close()
