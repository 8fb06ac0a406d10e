"""The KServe v2 / Triton protocol as its clients see it: all 20 RPCs, and KServe's own Python client."""

import json
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

import trimtab
from tests.server.server_process import NAME, ServerProcess
from tests.texts import TEXTS


@pytest.fixture
def client(server: ServerProcess):
    with tritonclient.grpc.InferenceServerClient(server.url) as client:
        yield client


def test_every_rpc_is_answered(server: ServerProcess) -> None:
    """With empty requests: an answer, or the error that is the truth; UNIMPLEMENTED only where it is."""
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    expected = {
        "ModelMetadata": "OK",
        "ModelConfig": "OK",
        "ModelInfer": "INVALID_ARGUMENT",
        "RepositoryModelLoad": "NOT_FOUND",
        "RepositoryModelUnload": "NOT_FOUND",
        "SystemSharedMemoryRegister": "UNIMPLEMENTED",
        "CudaSharedMemoryRegister": "UNIMPLEMENTED",
        "TraceSetting": "UNIMPLEMENTED",
        "LogSettings": "UNIMPLEMENTED",
    }
    seen = {}
    with grpc.insecure_channel(server.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for method in service.methods:
            request = getattr(service_pb2, method.input_type.name)()
            try:
                if method.client_streaming:
                    list(getattr(stub, method.name)(iter([request])))
                else:
                    getattr(stub, method.name)(request)
                seen[method.name] = "OK"
            except grpc.RpcError as error:
                seen[method.name] = error.code().name
                assert error.details(), f"{method.name} says why"
    assert len(seen) == 20
    assert seen == {name: expected.get(name, "OK") for name in seen}


def test_state_and_metadata(client: tritonclient.grpc.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(NAME) and client.is_model_ready(NAME, "1")
    assert not client.is_model_ready(NAME, "2") and not client.is_model_ready("nope")
    assert client.get_server_metadata().name == "trimtab"
    metadata = client.get_model_metadata(NAME, as_json=True)
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": ["-1", "1"]}]
    assert [output["name"] for output in metadata["outputs"]] == ["embeddings", "token_count"]
    config = client.get_model_config(NAME).config
    assert config.name == NAME and config.max_batch_size == 1024
    assert config.parameters["similarity"].string_value == "cosine"
    index = client.get_model_repository_index()
    assert [(entry.name, entry.version, entry.state) for entry in index.models] == [(NAME, "1", "READY")]


def infer(client: tritonclient.grpc.InferenceServerClient, texts: list[str], **options: object):
    tensor = tritonclient.grpc.InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], object))
    return client.infer(NAME, [tensor], **options)


def test_parameters(client: tritonclient.grpc.InferenceServerClient, server: ServerProcess) -> None:
    with trimtab.Client(server.url, timeout=100) as sdk:
        for dtype, triton in (
            ("float32", "FP32"),
            ("float16", "FP16"),
            ("int8", "INT8"),
            ("ubinary", "UINT8"),
        ):
            parameters = {"embedding_type": dtype, "dimensions": 64, "input_type": "query"}
            result = infer(client, TEXTS[:3], parameters=parameters)
            expected = sdk.embed_detailed(TEXTS[:3], dtype=dtype, dimensions=64)
            got = result.as_numpy("embeddings")
            assert result.get_output("embeddings").datatype == triton and got.shape == expected.vectors.shape
            step = 1 if dtype == "int8" else 1e-3
            np.testing.assert_allclose(got.astype(float), expected.vectors.astype(float), atol=step)
            sent = result.get_response().parameters
            assert sent["space"].string_param == expected.space
            if dtype == "int8":
                assert sent["scale"].double_param == pytest.approx(expected.scale)
        long = " ".join(f"word{number}" for number in range(400))
        start = infer(client, [long], parameters={"truncate": "START"}).as_numpy("embeddings")
        end = infer(client, [long], parameters={"truncate": "END"}).as_numpy("embeddings")
        np.testing.assert_allclose(start, sdk.embed([long], truncate="start"), atol=1e-5)
        np.testing.assert_allclose(end, sdk.embed([long]), atol=1e-5)
        assert np.abs(start - end).max() > 1e-2


def test_only_the_outputs_asked_for(client: tritonclient.grpc.InferenceServerClient) -> None:
    wanted = [tritonclient.grpc.InferRequestedOutput("token_count")]
    result = infer(client, ["hello world"], outputs=wanted)
    assert result.as_numpy("embeddings") is None
    assert result.as_numpy("token_count").tolist() == [[4]]


def test_a_timeout_that_cannot_be_met(client: tritonclient.grpc.InferenceServerClient) -> None:
    with pytest.raises(tritonclient.grpc.InferenceServerException) as caught:
        infer(client, ["a " * 200] * 8, timeout=1000)  # microseconds
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_statistics_count(client: tritonclient.grpc.InferenceServerClient) -> None:
    before = client.get_inference_statistics(NAME, "1").model_stats[0]
    infer(client, TEXTS[:5])
    after = client.get_inference_statistics(NAME, "1").model_stats[0]
    assert after.inference_count == before.inference_count + 5
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1
    assert after.execution_count > before.execution_count
    for stage in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(after.inference_stats, stage).ns > getattr(before.inference_stats, stage).ns
    computed = [
        sum(batch.batch_size * batch.compute_infer.count for batch in each.batch_stats)
        for each in (before, after)
    ]
    assert computed[1] == computed[0] + 5


KSERVE_CLIENT = """
import asyncio, json, sys
import numpy as np
from kserve import InferInput, InferRequest, InferenceGRPCClient

async def main(url, name, texts, raw):
    client = InferenceGRPCClient(url)
    assert await client.is_server_live() and await client.is_server_ready()
    assert await client.is_model_ready(name)
    tensor = InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], object), binary_data=raw)
    response = await client.infer(InferRequest(name, [tensor]))
    for output in response.outputs:
        if output.name == "embeddings":
            print(json.dumps(output.as_numpy().tolist()))
    await client.close()

asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4] == "raw"))
"""


@pytest.mark.parametrize("contents", ["raw", "typed"])
def test_kserves_own_client(server: ServerProcess, truth: np.ndarray, contents: str) -> None:
    """In a process of its own: its stubs and tritonclient's cannot live in one."""
    texts = TEXTS[:6]
    command = [sys.executable, "-c", KSERVE_CLIENT, server.url, NAME, json.dumps(texts), contents]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), truth[:6], atol=1e-4)
