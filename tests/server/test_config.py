"""Every option has an effect that can be seen; what is not an option is refused."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
import trustme

import trimtab
from tests.server.server_process import NAME, serve
from tests.texts import distinct
from trimtab.errors import ConfigError
from trimtab_server import config as configs
from trimtab_server.engine.fleet import places
from trimtab_server.engine.fleet.places import parse


def refuse(tmp_path: Path, text: str) -> str:
    path = tmp_path / "trimtab.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        configs.read(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fast_queue = true", "fast_queue"),
        ("[limits]\nmax_textes = 5", "max_textes"),
        ("[limits]\nmax_texts = 'five'", "max_texts"),
        ("[limits]\nmax_texts = 0", "limits.max_texts must be at least 1"),
        ("[limits]\nmax_texts = 9\nmax_stream_texts = 5", "max_stream_texts"),
        ("[server]\ndrain_seconds = -1", "drain_seconds"),
        ("devices = []", "devices"),
        ("[engine]\nhang_seconds = 0", "engine.hang_seconds must be more than 0"),
        ("[sharing]\ncache_bytes = -1", "sharing.cache_bytes must not be negative"),
        ("[rescoring]\ncache_bytes = -1", "rescoring.cache_bytes must not be negative"),
        ("[tracing]\nshare = 2.0", "tracing.share is 2.0"),
        ("[tracing]\nendpoint = 'collector:4317'", "tracing.endpoint must begin with http"),
        ("[logging]\nlevel = 'loud'", "loud"),
        ("[server]\nmax_connection_age_seconds = -1", "max_connection_age_seconds"),
        ("[quota]\ntokens_per_second = -1.0", "tokens_per_second"),
        ("[tenants.a]\nburst_tokens = 5", "burst_tokens of a quota has no effect without tokens_per_second"),
        ("[tenants.a]\nweight = 0.0", "weight of a quota must be from 0.01 to 100"),
        ("[tenants.a]\nrate = 5", "rate"),
        ("[canary.a]\nshare = 1.5", "share is 1.5"),
        ("[canary.a]\nversion = 'latest'\nshare = 0.5", "latest"),
        ("[versions]\nnewest = 1\n[shadow.a]\nshare = 0.5", "needs a second version"),
        ("[limits", "trimtab.toml"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, words: str) -> None:
    assert words in refuse(tmp_path, text)


def test_the_command_names_an_unknown_key(tmp_path: Path) -> None:
    path = tmp_path / "trimtab.toml"
    path.write_text("[batching]\nmax_wait_ms = 5\n")
    command = [
        sys.executable,
        "-m",
        "trimtab.cli",
        "serve",
        "--repository",
        str(tmp_path),
        "--config",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and "max_wait_ms" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["8001", "localhost:", ":8001", "host:99999", "host:http"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        configs.split_address(address)


@pytest.mark.parametrize(
    ("providers", "files", "kind"),
    [
        (["CUDAExecutionProvider", "CPUExecutionProvider"], ["nvidia0", "nvidiactl"], "cuda"),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], ["nvidiactl"], "cpu"),
        (["CPUExecutionProvider"], ["nvidia0"], "cpu"),
    ],
)
def test_auto_takes_a_gpu_only_where_there_is_one(
    providers: list[str], files: list[str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(places, "DEV", tmp_path)
    monkeypatch.setattr(places.ort, "get_available_providers", lambda: providers)
    assert parse(("auto",))[0].kind == kind


def test_devices() -> None:
    cores = sorted(os.sched_getaffinity(0))
    everywhere = parse(("cpu",))[0]
    assert (everywhere.kind, everywhere.workers, everywhere.cores) == ("cpu", max(1, len(cores) - 1), None)
    pinned = parse((f"cpu:{cores[0]}",))[0]
    assert (pinned.workers, pinned.cores) == (1, (cores[0],))
    names = ["cpu", f"cpu:{cores[0]}", "cuda:1", "tensorrt:0"]
    assert [str(place) for place in parse(tuple(names))] == names
    if len(cores) > 1 and cores[1] == cores[0] + 1:
        both = parse((f"cpu:{cores[0]}-{cores[1]}",))[0]
        assert (both.workers, str(both)) == (2, f"cpu:{cores[0]}-{cores[1]}")
    with pytest.raises(ConfigError, match="cuda:0 2 times"):
        parse(("cuda:0", "cpu", "cuda:0"))
    for wrong in ("gpu", "cpu:x", "cpu:3-1", "cuda:0-1", "cpu:99999"):
        with pytest.raises(ConfigError, match=wrong):
            parse((wrong,))


@pytest.mark.parametrize("device", ["cuda:0", "tensorrt:0"])
def test_a_device_that_is_not_there_is_a_refusal_to_serve(
    minilm_repository: Path, tmp_path: Path, device: str
) -> None:
    path = tmp_path / "trimtab.toml"
    path.write_text(f'devices = ["{device}"]\n')
    command = [sys.executable, "-m", "trimtab.cli", "serve", "--repository", str(minilm_repository)]
    command += ["--config", str(path), "--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and device in done.stderr and "ExecutionProvider" in done.stderr


def test_limits_and_addresses(minilm_repository: Path, tmp_path: Path) -> None:
    """max_texts, max_text_bytes, max_message_bytes: told to clients (and refused: test_bad_input)."""
    with socket.socket() as probe, socket.socket() as other:
        probe.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        grpc_port, metrics_port = probe.getsockname()[1], other.getsockname()[1]
    text = f"""
        devices = ["cpu"]
        [server]
        grpc_address = "127.0.0.1:{grpc_port}"
        metrics_address = "127.0.0.1:{metrics_port}"
        [limits]
        max_texts = 3
        max_text_bytes = 500
        max_message_bytes = 10000
    """
    with (
        serve(minilm_repository, tmp_path, text) as server,
        trimtab.Client(server.url, timeout=100) as client,
    ):
        assert server.url == f"127.0.0.1:{grpc_port}"
        assert f":{metrics_port}/" in server.metrics_url
        limits = client.encoders()[0].limits
        assert (limits.max_texts, limits.max_text_bytes, limits.max_message_bytes) == (3, 500, 10000)
        assert client.embed(["a", "b", "c", "d"]).shape == (4, 384)
        # A port that is taken is a refusal, not a silent share.
        taken = f"127.0.0.1:{metrics_port}"
        for grpc_address, metrics_address in ((server.url, "127.0.0.1:0"), ("127.0.0.1:0", taken)):
            command = [sys.executable, "-m", "trimtab.cli", "serve", "--repository", str(minilm_repository)]
            command += ["--grpc-address", grpc_address, "--metrics-address", metrics_address]
            done = subprocess.run(command, capture_output=True, text=True, timeout=240)
            assert done.returncode == 1 and "cannot be used" in done.stderr
            assert (server.url if grpc_address == server.url else taken) in done.stderr
            assert "Traceback" not in done.stderr


async def test_tokens_in_flight(minilm_repository: Path, tmp_path: Path) -> None:
    """Over the limit the server says no, and when to come back; below it everything is answered."""
    with serve(minilm_repository, tmp_path, "[limits]\nmax_tokens_in_flight = 4000\n") as server:
        async with grpc.aio.insecure_channel(server.url) as channel:  # without the SDK's retries
            from trimtab.v1 import encoder_pb2 as pb
            from trimtab.v1 import encoder_pb2_grpc

            stub = encoder_pb2_grpc.EncoderServiceStub(channel)
            texts = distinct(100, 150)
            calls = (stub.Embed(pb.EmbedRequest(texts=texts[5 * n : 5 * n + 5])) for n in range(20))
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refused = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
        assert 0 < len(refused) < 20
        for error in refused:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) >= 50
        async with trimtab.AsyncClient(server.url, timeout=240) as client:
            vectors = await client.embed(["word"] * 3, timeout=240)
            assert vectors.shape == (3, 384)
            with pytest.raises(trimtab.InvalidArgument, match="max_tokens_in_flight"):
                await client.embed(["word " * 300] * 100)


def test_batching_bounds(minilm_repository: Path, tmp_path: Path) -> None:
    with serve(
        minilm_repository, tmp_path, "[batching]\nmax_batch_texts = 2\nmax_batch_tokens = 12\n"
    ) as server:
        with trimtab.Client(server.url, timeout=100) as client:
            client.embed([f"{n}" for n in range(8)] + [f"{n} two three four five" for n in range(4)])
        batch = f'{{device="cpu",encoder="{NAME}",version="1"}}'
        pairs = f'{{device="cpu",encoder="{NAME}",le="2.0",version="1"}}'
        metrics = server.metrics()
        count = metrics[f"trimtab_batch_size_count{batch}"]
        # 2 x 3 tokens; 7 tokens alone. More where a busy machine's costs say that batches do not pay.
        assert count >= 4 + 4
        assert metrics[f"trimtab_batch_size_bucket{pairs}"] == count
        assert metrics[f"trimtab_batch_size_sum{batch}"] == 12


@pytest.mark.parametrize("by", ["tenant", "priority"])
async def test_a_small_request_need_not_wait_behind_a_large_one(
    minilm_repository: Path, tmp_path: Path, by: str
) -> None:
    """Another tenant's, or an interactive one behind bulk work: it is answered while the large one waits."""
    text = '[server]\ntenant_header = "X-Tenant"\n[batching]\nmax_batch_texts = 4\n'
    with serve(minilm_repository, tmp_path, text) as server:
        loud: dict[str, str] = {"x-tenant": "loud"} if by == "tenant" else {}
        async with (
            trimtab.AsyncClient(server.url, metadata=loud, timeout=240) as large,
            trimtab.AsyncClient(server.url, metadata={"x-tenant": "quiet"} if loud else {}) as small,
        ):
            priority = "interactive" if by == "tenant" else "bulk"
            waiting = asyncio.create_task(large.embed(distinct(400, 50), priority=priority))
            while (await asyncio.to_thread(server.metrics))["trimtab_queued_texts"] < 300:
                await asyncio.sleep(0)
            await small.embed(["a query"])
            left = (await asyncio.to_thread(server.metrics))["trimtab_queued_texts"]
            assert left > 200 and not waiting.done()
            waiting.cancel()
            await asyncio.wait([waiting])


async def test_drain_seconds(minilm_repository: Path, tmp_path: Path) -> None:
    """With none, SIGTERM cuts off what is in flight."""
    with serve(minilm_repository, tmp_path, "[server]\ndrain_seconds = 0.0\n") as server:
        async with grpc.aio.insecure_channel(server.url) as channel:
            from trimtab.v1 import encoder_pb2 as pb
            from trimtab.v1 import encoder_pb2_grpc

            stub = encoder_pb2_grpc.EncoderServiceStub(channel)
            call = stub.Embed(pb.EmbedRequest(texts=distinct(1000, 200)))
            while not (await asyncio.to_thread(server.metrics))["trimtab_queued_texts"]:
                await asyncio.sleep(0)
            assert await asyncio.to_thread(server.stop) == 0
            assert await call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_mutual_tls(minilm_repository: Path, tmp_path: Path) -> None:
    ca, strangers = trustme.CA(), trustme.CA()
    paths = {name: tmp_path / name for name in ("server.key", "server.pem", "ca.pem")}
    certificate = ca.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(str(paths["server.key"]))
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(paths["server.pem"]), append=True)
    ca.cert_pem.write_to_path(str(paths["ca.pem"]))
    text = f"""
        [server.tls]
        key = "{paths["server.key"]}"
        certificate = "{paths["server.pem"]}"
        client_ca = "{paths["ca.pem"]}"
    """

    def credentials(issuer: trustme.CA) -> grpc.ChannelCredentials:
        own = issuer.issue_cert("client@example.org")
        return grpc.ssl_channel_credentials(
            ca.cert_pem.bytes(), own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes()
        )

    with serve(minilm_repository, tmp_path, text) as server:
        with trimtab.Client(server.url, tls=credentials(ca)) as client:
            assert client.embed(["a secret"]).shape == (1, 384)
        for wrong in (credentials(strangers), paths["ca.pem"], False):
            with trimtab.Client(server.url, tls=wrong, timeout=3) as client:
                with pytest.raises(trimtab.TrimtabError):
                    client.embed(["a secret"])


def test_measured_costs_are_kept_where_the_configuration_says(
    minilm_repository: Path, tmp_path: Path
) -> None:
    costs = tmp_path / "costs"
    with serve(minilm_repository, tmp_path, f'[engine]\ncosts = "{costs}"'):
        assert [path.suffix for path in costs.iterdir()] == [".json"]
