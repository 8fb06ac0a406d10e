"""A refusal says when to try again, as gRPC's own libraries for clients read it, in both protocols."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.server.server_process import NAME, ServerProcess, serve
from tests.texts import distinct
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc

# What the first request uses up is long in coming back.
CONFIG = """
[quota]
tokens_per_second = 1.0
burst_tokens = 40
"""


@pytest.fixture(scope="module")
def exhausted(
    minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerProcess, grpc.Channel]]:
    """A server whose quota is used up, and a channel to it that does not try again by itself."""
    with serve(minilm_repository, tmp_path_factory.mktemp("exhausted"), CONFIG) as server:
        with grpc.insecure_channel(server.url, [("grpc.enable_retries", 0)]) as channel:
            stub = encoder_pb2_grpc.EncoderServiceStub(channel)
            assert stub.Embed(pb.EmbedRequest(texts=distinct(1, 200)), timeout=240).token_counts[0] > 150
            yield server, channel


def refusal(channel: grpc.Channel, protocol: str, timeout: float) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        if protocol == "kserve":
            request = service_pb2.ModelInferRequest(model_name=NAME)
            tensor = request.inputs.add(name="text", datatype="BYTES", shape=[1])
            tensor.contents.bytes_contents.append(b"one more")
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=timeout)
        else:
            request = pb.EmbedRequest(texts=["one more"])
            encoder_pb2_grpc.EncoderServiceStub(channel).Embed(request, timeout=timeout)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return caught.value


@pytest.mark.parametrize("protocol", ["trimtab.v1", "kserve"])
def test_a_client_finds_when_to_try_again(
    exhausted: tuple[ServerProcess, grpc.Channel], protocol: str
) -> None:
    error = refusal(exhausted[1], protocol, 10_000)
    status: status_pb2.Status = rpc_status.from_call(error)  # raises where it is not the call's own
    assert status.code == error.code().value[0] and status.message == error.details()
    (detail,) = status.details
    info = error_details_pb2.RetryInfo()
    assert detail.Unpack(info)
    pushback = int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])
    assert info.retry_delay.ToMilliseconds() == pushback > 1000


@pytest.mark.parametrize("protocol", ["trimtab.v1", "kserve"])
def test_where_there_is_no_time_left_none_is_named(
    exhausted: tuple[ServerProcess, grpc.Channel], protocol: str
) -> None:
    error = refusal(exhausted[1], protocol, 20)  # over a hundred tokens are owed, at one a second
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"
    assert rpc_status.from_call(error) is None
