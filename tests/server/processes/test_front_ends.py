"""A server of three front ends and one engine, in its real processes, is one server to its callers."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import InferenceServerClient, service_pb2, service_pb2_grpc

from tests.server.catalog.test_versions import put
from tests.server.server_process import NAME, ServerProcess, serve
from trimtab import Client
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc

THREE = "[server]\nfrontends = 3\n"
PATIENCE = 120.0
# With so many connections, hardly ever is one of three front ends without any: (2/3)^30 < 1e-5.
CONNECTIONS = 30


class Connection:
    """A connection of its own, without retries, which would hide what a front end says."""

    def __init__(self, url: str) -> None:
        self.channel = grpc.insecure_channel(
            url, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        )
        self.stub = encoder_pb2_grpc.EncoderServiceStub(self.channel)
        self.kserve = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def embed(self, *texts: str, tenant: str = "") -> np.ndarray:
        metadata = (("tenant", tenant),) if tenant else None
        answer = self.stub.Embed(pb.EmbedRequest(texts=texts), timeout=PATIENCE, metadata=metadata)
        return np.frombuffer(answer.embeddings[0].vectors.data, "<f4").reshape(len(texts), -1)

    def works(self) -> bool:
        try:
            self.embed("does it work?")
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            return False
        return True

    def serving(self, service: str = "") -> bool:
        answer = self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@contextlib.contextmanager
def connections(server: ServerProcess, number: int = CONNECTIONS) -> Iterator[list[Connection]]:
    made = [Connection(server.url) for _ in range(number)]
    try:
        yield made
    finally:
        for each in made:
            each.channel.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def children(server: ServerProcess, program: str) -> list[int]:
    """Processes of a program that the server has started, in the order of their starts. The last front end
    is a spare one, until it replaces another."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            if parent == server.process.pid and program.encode() in arguments:
                found.append(int(folder.name))
    return sorted(found)


ENGINE, FRONT_END = "trimtab_server.processes.engine", "trimtab_server.processes.front_end"


@pytest.fixture(scope="module")
def three(minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    config = THREE + 'tenant_header = "tenant"\n[logging]\nformat = "json"\nlevel = "info"\n'
    with serve(minilm_repository, tmp_path_factory.mktemp("three"), config) as running:
        yield running


def test_each_front_end_answers_as_one_process_does(three: ServerProcess, server: ServerProcess) -> None:
    texts = ["a bridge over the river", "", "x" * 3000, "déjà vu"]
    with Client(server.url) as client:
        expected = np.asarray(client.embed(texts))
    with connections(three) as several:
        for each in several:
            np.testing.assert_allclose(each.embed(*texts), expected, atol=1e-6)
        assert len(children(three, FRONT_END)) == 4 and len(children(three, ENGINE)) == 1
        assert all(each.serving() and each.serving(NAME) for each in several)


def test_one_text_a_call_from_many_callers_at_once(three: ServerProcess) -> None:
    """Nothing is lost, answered twice, or answered with another's vector."""
    texts = [f"text number {number} of many" for number in range(300)]
    with Client(three.url) as client:
        expected = np.asarray(client.embed(texts))
    with connections(three) as several, ThreadPoolExecutor(len(several)) as pool:
        places = np.random.default_rng(3).permutation(len(texts))
        answers = pool.map(
            lambda place: several[place % len(several)].embed(texts[place])[0], places.tolist()
        )
        for place, answer in zip(places, answers, strict=True):
            np.testing.assert_allclose(answer, expected[place], atol=1e-5)


def test_metrics_and_statistics_are_those_of_one_server(three: ServerProcess) -> None:
    def figures() -> tuple[float, float, int]:
        metrics = three.metrics()
        labels = f'{{encoder="{NAME}",protocol="trimtab.v1",version="1"}}'
        with InferenceServerClient(three.url) as client:
            found = client.get_inference_statistics(NAME, as_json=True)["model_stats"][0]
        return (
            metrics[f"trimtab_texts_total{labels}"],
            metrics[f"trimtab_request_seconds_count{labels}"],
            int(found["inference_stats"]["success"]["count"]),
        )

    with connections(three) as several:
        several[0].embed("so that there is a figure")
        before = figures()
        for each in several:
            each.embed("one", "two")
        after = figures()
    assert [now - then for now, then in zip(after, before, strict=True)] == [
        2 * len(several), len(several), len(several),
    ]  # fmt: skip
    metrics = three.metrics()
    assert metrics[f'trimtab_encoder_ready{{encoder="{NAME}",version="1"}}'] == 1
    assert metrics['trimtab_device_up{device="cpu"}'] == 1
    assert metrics["trimtab_queued_texts"] == 0
    in_flight = f'trimtab_requests_in_flight{{encoder="{NAME}",protocol="trimtab.v1",version="1"}}'
    assert metrics[in_flight] == 0


def test_logs_name_the_process(three: ServerProcess) -> None:
    records = [json.loads(line) for line in three.log if line.startswith("{")]
    assert {each.get("process") for each in records} >= {
        "engine",
        "front end 1",
        "front end 2",
        "front end 3",
    }


def test_a_load_and_an_unload_are_followed_by_all(minilm_repository: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    put(minilm_repository, repository, 1)
    with serve(repository, tmp_path, THREE) as server, connections(server) as several:
        put(repository, repository, 2)
        several[0].kserve.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name=NAME))
        for each in several:
            answer = each.stub.Embed(pb.EmbedRequest(texts=["which version?"]), timeout=PATIENCE)
            assert answer.version == "2"
        several[1].kserve.RepositoryModelUnload(service_pb2.RepositoryModelUnloadRequest(model_name=NAME))
        for each in several:
            assert code(lambda each=each: each.embed("gone")) is grpc.StatusCode.FAILED_PRECONDITION
        several[2].kserve.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name=NAME))
        with connections(server) as later:
            assert all(each.works() for each in later)


def killed(server: ServerProcess, program: str) -> None:
    """Kill the oldest process of a program."""
    os.kill(children(server, program)[0], signal.SIGKILL)


def begun(server: ServerProcess) -> int:
    """How many front ends have begun so far."""
    return sum("ready after" in line and "[front end" in line for line in server.log)


def test_a_front_end_that_begins_later_serves_what_the_others_serve(
    minilm_repository: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    put(minilm_repository, repository, 1)
    shutil.copytree(repository / NAME, repository / "another", copy_function=os.link)
    manifest = repository / "another/1/manifest.json"
    content = json.loads(manifest.read_text()) | {"name": "another"}
    manifest.unlink()
    manifest.write_text(json.dumps(content))
    unload = service_pb2.RepositoryModelUnloadRequest
    log = '[logging]\nlevel = "info"\n'
    with serve(repository, tmp_path, THREE + log) as server, connections(server) as several:
        request = pb.EmbedRequest(texts=["which version?"], encoder=NAME)
        # It begins while another encoder is unloaded.
        killed(server, FRONT_END)
        several[-1].kserve.RepositoryModelUnload(unload(model_name="another"), wait_for_ready=True)
        until(lambda: begun(server) == 4)
        with connections(server) as later:
            for each in later:
                other = pb.EmbedRequest(texts=["gone"], encoder="another")
                found = code(lambda each=each, other=other: each.stub.Embed(other, timeout=PATIENCE))
                assert found in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)
        # It finds a version that the others have not looked for.
        put(repository, repository, 2)
        killed(server, FRONT_END)
        until(lambda: begun(server) == 5)
        until(lambda: any("different versions" in line for line in server.log))
        with connections(server) as later:
            for each in later:
                until(lambda each=each: each.stub.Embed(request, timeout=PATIENCE).version == "2")
        # It begins even if nothing is served.
        several[-1].kserve.RepositoryModelUnload(unload(model_name=NAME), wait_for_ready=True)
        killed(server, FRONT_END)
        until(lambda: begun(server) == 6)
        several[-1].kserve.RepositoryModelLoad(
            service_pb2.RepositoryModelLoadRequest(model_name=NAME), wait_for_ready=True
        )
        with connections(server) as later:
            assert all(each.stub.Embed(request, timeout=PATIENCE).version == "2" for each in later)


@pytest.mark.parametrize("program", [ENGINE, FRONT_END], ids=["engine", "front end"])
def test_a_process_that_hangs_is_replaced(program: str, minilm_repository: Path, tmp_path: Path) -> None:
    with serve(minilm_repository, tmp_path, THREE) as server, connections(server) as several:
        hung = children(server, program)[0]
        os.kill(hung, signal.SIGSTOP)
        until(lambda: hung not in children(server, program))
        with connections(server) as later:
            until(lambda: all(each.works() for each in later))
            # A load asks all of them.
            later[0].kserve.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name=NAME))
        assert any("has not answered" in line for line in server.log)
        assert several


def code(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    found: grpc.StatusCode = caught.value.code()
    return found


def test_a_quota_is_the_same_over_all_front_ends(minilm_repository: Path, tmp_path: Path) -> None:
    quota = '[quota]\ntokens_per_second = 0.001\nburst_tokens = 300\n[server]\ntenant_header = "tenant"\n'

    def admitted(config: str, folder: str) -> int:
        (tmp_path / folder).mkdir()
        with serve(minilm_repository, tmp_path / folder, config) as server, connections(server) as several:
            number = 0
            for place in range(400):
                try:
                    several[place % len(several)].embed("five tokens", tenant="spread")
                    number += 1
                except grpc.RpcError as error:
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
            several[0].embed("another tenant has its own", tenant="other")
        return number

    one = admitted(quota, "one")
    assert 0 < one < 400
    assert abs(admitted(quota + "frontends = 3\n", "three") - one) <= 1


def test_killed_processes_are_replaced_and_lose_only_their_own(
    minilm_repository: Path, tmp_path: Path
) -> None:
    with serve(minilm_repository, tmp_path, THREE) as server, connections(server) as several:
        assert all(each.works() for each in several)
        counted = f'trimtab_texts_total{{encoder="{NAME}",protocol="trimtab.v1",version="1"}}'
        before = server.metrics()[counted]
        in_flight = counted.replace("texts_total", "requests_in_flight")

        def asked(place: int) -> grpc.StatusCode:
            texts = [f"text {number} of {place} " + "and so on " * 60 for number in range(8)]
            try:
                several[place].embed(*texts)
            except grpc.RpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        with ThreadPoolExecutor(len(several)) as pool:
            working = [pool.submit(asked, place) for place in range(len(several))]
            until(lambda: server.metrics().get(in_flight, 0) > 2 * len(several) / 3)
            killed(server, FRONT_END)
            outcomes = [each.result(PATIENCE) for each in working]
        assert set(outcomes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        until(lambda: len(children(server, FRONT_END)) == 4)
        until(lambda: all(each.works() for each in several))
        assert server.metrics()[counted] >= before, "a counter must not fall"

        (engine,) = children(server, ENGINE)
        expected = several[0].embed("before")
        os.kill(engine, signal.SIGKILL)
        refusals = []
        for each in several:
            try:
                each.embed("meanwhile")
            except grpc.RpcError as error:
                refusals.append(error)
        for refusal in refusals:
            assert refusal.code() is grpc.StatusCode.UNAVAILABLE, refusal
            assert int(dict(refusal.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
        assert refusals
        until(lambda: all(each.works() for each in several))
        np.testing.assert_allclose(several[-1].embed("before"), expected, atol=1e-6)
        assert all(each.serving() for each in several)
        assert children(server, ENGINE) != [engine]
        assert server.stop() == 0


def test_a_client_of_the_sdk_sees_none_of_that(minilm_repository: Path, tmp_path: Path) -> None:
    """Its retries bridge the time without an engine."""
    with serve(minilm_repository, tmp_path, THREE) as server, Client(server.url, timeout=PATIENCE) as client:
        expected = np.asarray(client.embed(["as before"]))
        for program in (FRONT_END, ENGINE, FRONT_END):
            os.kill(children(server, program)[0], signal.SIGKILL)
            np.testing.assert_allclose(np.asarray(client.embed(["as before"])), expected, atol=1e-6)


def test_the_end_under_load_answers_what_was_accepted(minilm_repository: Path, tmp_path: Path) -> None:
    with serve(minilm_repository, tmp_path, THREE) as server, connections(server) as several:
        working, outcomes = threading.Barrier(len(several) + 1), list[str]()

        def work(each: Connection) -> None:
            each.embed("warm")
            working.wait(PATIENCE)
            while True:
                try:
                    each.embed(*[f"text {len(outcomes)} {place}" for place in range(8)])
                    outcomes.append("answered")
                except grpc.RpcError as error:
                    outcomes.append(error.code().name)
                    return

        with ThreadPoolExecutor(len(several)) as pool:
            done = [pool.submit(work, each) for each in several]
            working.wait(PATIENCE)
            until(lambda: len(outcomes) > 2 * len(several))
            processes = children(server, FRONT_END) + children(server, ENGINE)
            assert server.stop() == 0
            for each in done:
                each.result(PATIENCE)
        assert set(outcomes) == {"answered", "UNAVAILABLE"}
        assert not [each for each in processes if Path(f"/proc/{each}").exists()]


def test_no_process_outlives_the_supervisor(minilm_repository: Path, tmp_path: Path) -> None:
    with serve(minilm_repository, tmp_path, THREE) as server:
        processes = children(server, FRONT_END) + children(server, ENGINE)
        assert len(processes) == 5
        server.process.kill()
        server.process.wait()
        until(lambda: not [each for each in processes if _runs(each)])


def _runs(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def refused(*arguments: str, config: str, folder: Path) -> str:
    """What a server says that does not start."""
    path = folder / "refused.toml"
    path.write_text(config)
    command: Sequence[str] = [sys.executable, "-m", "trimtab.cli", "serve", "--config", str(path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_a_port_that_is_taken_is_refused(
    three: ServerProcess, minilm_repository: Path, tmp_path: Path
) -> None:
    """Even by a server whose front ends share it."""
    arguments = ("--repository", str(minilm_repository), "--grpc-address", three.url)
    said = refused(*arguments, "--metrics-address", "127.0.0.1:0", config=THREE, folder=tmp_path)
    assert re.search(rf"gRPC address {three.url} cannot be used: .*in use", said)


def test_what_cannot_be_served_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    addresses = ("--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
    said = refused("--repository", str(tmp_path / "empty"), *addresses, config=THREE, folder=tmp_path)
    assert said.count("no encoder can be served from") == 1 and "it is empty" in said
    many = THREE.replace("3", "65")
    assert "frontends is 65" in refused("--repository", str(tmp_path), config=many, folder=tmp_path)
