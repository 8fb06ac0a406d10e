"""Readiness, health, loading and unloading, draining: what an orchestrator relies on."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

import trimtab
from bench.chaos import attacks
from tests.server.server_process import NAME, ServerProcess, free_port, serve
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def copy_bundle(repository: Path, to: Path, name: str = NAME, version: int = 1) -> Path:
    """The exported bundle again, as another encoder or version: only the manifest's own lines change."""
    source, target = repository / NAME / "1", to / name / str(version)
    shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    (target / "manifest.json").write_text(json.dumps(manifest | {"name": name, "version": version}))
    return target


def test_health_check(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.url) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", NAME, f"{NAME}/1", "trimtab.v1.EncoderService", "inference.GRPCInferenceService"):
            assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="nope"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_what_is_served(version: str, server: ServerProcess) -> None:
    """grpcurl asks v1 first; the messages of both are the same."""
    with grpc.insecure_channel(server.url) as channel:
        ask = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        (listed,) = ask(iter(requests), timeout=60)
        names = [service.name for service in listed.list_services_response.service]
        symbols = ["trimtab.v1.EncoderService", *names]
        requests = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in symbols]
        described, *others = ask(iter(requests), timeout=60)
    assert {"trimtab.v1.EncoderService", "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(
        names
    )
    assert f"grpc.reflection.{version}.ServerReflection" in names
    # Whatever is listed can be described.
    assert not [other.error_response for other in others if other.HasField("error_response")]
    file = descriptor_pb2.FileDescriptorProto.FromString(
        described.file_descriptor_response.file_descriptor_proto[0]
    )
    assert [method.name for method in file.service[0].method] == [
        "Embed",
        "EmbedStream",
        "Rescore",
        "ListEncoders",
        "GetEncoder",
        "ListAdapters",
    ]


def test_loading_unloading_and_watching(minilm_repository: Path, tmp_path: Path) -> None:
    """Versions come and go by the repository RPCs; those that watch the health are told each time."""
    repository = tmp_path / "models"
    copy_bundle(minilm_repository, repository)
    with serve(repository, tmp_path) as server, grpc.insecure_channel(server.url) as channel:
        triton = tritonclient.grpc.InferenceServerClient(server.url)
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest(service=f"{NAME}/2")) for _ in range(2)]
        assert [next(watch).status for watch in watches] == [UNKNOWN, UNKNOWN]
        watches.pop(0).cancel()  # one that leaves must not deafen the other
        watch = watches[0]

        copy_bundle(minilm_repository, repository, version=2)
        triton.load_model(NAME)
        states = [next(watch).status]
        while states[-1] != SERVING:
            states.append(next(watch).status)
        assert states == [NOT_SERVING, SERVING]
        with trimtab.Client(server.url, timeout=100) as client:
            assert [encoder.version for encoder in client.encoders()] == ["2", "1"]
            assert client.embed_detailed(["a"]).version == "2"
            assert client.embed_detailed(["a"], version="1").version == "1"

            shutil.rmtree(repository / NAME / "1")
            triton.load_model(NAME)
            with pytest.raises(trimtab.FailedPrecondition, match="gone from the repository"):
                client.embed(["a"], version="1")

            triton.unload_model(NAME)
            assert next(watch).status == NOT_SERVING
            with pytest.raises(trimtab.FailedPrecondition, match="unloaded"):
                client.embed(["a"], encoder=NAME)
            triton.load_model(NAME)
            assert client.embed(["a"]).shape == (1, 384)
        triton.close()


def test_unloading_under_load_fails_nothing_that_was_accepted(
    minilm_repository: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    copy_bundle(minilm_repository, repository)
    with serve(repository, tmp_path) as server:

        async def main() -> list[object]:
            async with trimtab.AsyncClient(server.url, timeout=240) as client:
                calls = [asyncio.create_task(client.embed([f"text {n}"] * 8)) for n in range(60)]
                await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                triton = tritonclient.grpc.InferenceServerClient(server.url)
                await asyncio.to_thread(triton.unload_model, NAME)
                triton.close()
                return await asyncio.gather(*calls, return_exceptions=True)

        outcomes = asyncio.run(main())
        refused = [each for each in outcomes if isinstance(each, Exception)]
        assert len(refused) < len(outcomes)
        # Those that came too late are told so; none that was taken in is dropped.
        assert all(
            isinstance(each, trimtab.FailedPrecondition | trimtab.Unavailable | trimtab.InvalidArgument)
            for each in refused
        ), refused
        assert server.metrics().get("trimtab_queued_texts") == 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda bundle: flip(bundle / "fp32" / "model.onnx"), ["model.onnx", "SHA-256"]),
        (lambda bundle: (bundle / "tokenizer.json").unlink(), ["tokenizer.json", "missing"]),
        (lambda bundle: (bundle / "manifest.json").write_text("{"), ["manifest.json", "cannot be read"]),
        (lambda bundle: bundle.rename(bundle.with_name("9")), ["version 1", "own name"]),
    ],
    ids=["tampered graph", "missing tokenizer", "broken manifest", "moved bundle"],
)
def test_a_bad_bundle_is_refused_and_the_others_serve(
    minilm_repository: Path, tmp_path: Path, damage, words: list[str]
) -> None:
    repository = tmp_path / "models"
    copy_bundle(minilm_repository, repository, "good")
    damage(copy_bundle(minilm_repository, repository, "bad"))
    with serve(repository, tmp_path) as server, trimtab.Client(server.url, timeout=100) as client:
        with pytest.raises(trimtab.FailedPrecondition) as caught:
            client.embed(["a"], encoder="bad")
        for word in words:
            assert word in str(caught.value)
        assert client.embed(["a"], encoder="good").shape == (1, 384)
        triton = tritonclient.grpc.InferenceServerClient(server.url)
        states = {entry.name: entry.state for entry in triton.get_model_repository_index().models}
        assert states == {"good": "READY", "bad": "UNAVAILABLE"}
        with pytest.raises(tritonclient.grpc.InferenceServerException, match=words[0]):
            triton.load_model("bad")
        triton.close()


def flip(path: Path) -> None:
    """Change one byte in the middle of a file."""
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 1]))


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trimtab.cli", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_a_server_without_a_single_encoder_does_not_start(tmp_path: Path) -> None:
    done = start(
        "--repository", str(tmp_path), "--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"
    )
    assert done.returncode == 1 and "trimtab export" in done.stderr and "Traceback" not in done.stderr


def test_a_missing_repository_is_named(tmp_path: Path) -> None:
    done = start("--repository", str(tmp_path / "nope"), "--metrics-address", "127.0.0.1:0")
    assert done.returncode == 1 and "nope is not a folder" in done.stderr


def test_sigterm_under_load_answers_what_was_accepted(minilm_repository: Path, tmp_path: Path) -> None:
    """Every call that was in flight is answered; streams are told to go elsewhere; the process ends well."""
    with serve(minilm_repository, tmp_path) as server:

        async def main() -> tuple[int, list[object], list[int], grpc.StatusCode]:
            async with grpc.aio.insecure_channel(server.url) as channel:
                stub = encoder_pb2_grpc.EncoderServiceStub(channel)
                health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                assert (await health.read()).status == SERVING
                stream = stub.EmbedStream()
                for number in range(20):
                    request = pb.EmbedRequest(texts=[f"stream {number}"])
                    await stream.write(pb.EmbedStreamRequest(id=number, request=request))
                await stream.read()  # so that all of them are at the server
                calls = [
                    asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=[f"text {number}"] * 4)))
                    for number in range(100)
                ]
                await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                server.process.send_signal(signal.SIGTERM)
                assert (await health.read()).status == NOT_SERVING
                seen = [0]
                try:
                    while (answer := await stream.read()) is not grpc.aio.EOF:
                        seen.append(answer.id)
                except grpc.aio.AioRpcError:
                    pass
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
                code = await stream.code()
            return await asyncio.to_thread(server.process.wait, 60), list(outcomes), seen, code

        status, outcomes, seen, code = asyncio.run(main())
    assert status == 0
    assert len(seen) == 20 and code is grpc.StatusCode.UNAVAILABLE
    failed = [each for each in outcomes if isinstance(each, grpc.RpcError)]
    # Calls that had not reached the server when it closed its door may go elsewhere; no other error is right.
    assert all(each.code() is grpc.StatusCode.UNAVAILABLE for each in failed), failed
    assert len(outcomes) - len(failed) > 0
    assert not any("Traceback" in line for line in server.log), server.log


@pytest.mark.parametrize("nohup", [False, True])
def test_an_output_that_takes_nothing_ends_no_server_and_a_hang_up_drains_it(
    nohup: bool, minilm_repository: Path, tmp_path: Path
) -> None:
    """A full disk and a closed pipe; a SIGHUP that is ignored, as by nohup, stays so. And no caller writes
    lines of the log: this one has no credentials, and a path with a newline."""
    config, log, port = tmp_path / "trimtab.toml", tmp_path / "log", free_port()
    (tmp_path / "keys.toml").write_text("")
    config.write_text(
        f'[server]\ngrpc_address = "127.0.0.1:{port}"\nmetrics_address = "127.0.0.1:0"\n'
        f'[logging]\ncalls = true\n[auth]\nkeys = "{tmp_path / "keys.toml"}"\n'
    )
    serve = f"{sys.executable} -m trimtab.cli serve --repository {minilm_repository} --config {config}"
    reading, closed = os.pipe()
    os.close(reading)
    ignore = "trap '' HUP; " if nohup else ""
    with log.open("wb") as errors, Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"{ignore}exec {serve}"],
            stdout=closed if nohup else full,
            stderr=errors,
        )
    os.close(closed)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub, state = health_pb2_grpc.HealthStub(channel), NOT_SERVING
            while state != SERVING:
                assert process.poll() is None, log.read_text()
                with contextlib.suppress(grpc.RpcError):
                    state = stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=1).status
            forged = "2026-11-27 12:00:00,000 ERROR trimtab_server: forged"
            attacks.call(port, f"/trimtab.v1.EncoderService/Embed\n{forged}")
            while "forged" not in log.read_text():
                assert process.poll() is None, log.read_text()
            process.send_signal(signal.SIGHUP)
            if nohup:
                assert stub.Check(health_pb2.HealthCheckRequest()).status == SERVING
                process.terminate()
            assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    written = log.read_text()
    assert "standard output cannot be written to" in written and "Traceback" not in written
    assert not any(line.startswith(forged) for line in written.splitlines())


def test_sigterm_while_loading_ends_at_once(minilm_repository: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "trimtab.cli",
        "serve",
        "--repository",
        str(minilm_repository),
        "--verbose",
    ]
    command += ["--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "LOADING" not in (line := process.stderr.readline()):
            assert line, "the server has ended"
        process.terminate()
        assert process.wait(60) == 0
