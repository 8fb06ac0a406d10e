"""Bad input, each its own test: the right code, a message with the element and the cure, and life goes on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2 as inference
from tritonclient.grpc import service_pb2_grpc as inference_grpc

import trimtab
from tests.server.server_process import NAME, ServerProcess, serve
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc

Code = grpc.StatusCode


@pytest.fixture(scope="module")
def strict(minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with small limits."""
    config = "[limits]\nmax_texts = 4\nmax_text_bytes = 2000\nmax_message_bytes = 65536\n"
    with serve(minilm_repository, tmp_path_factory.mktemp("strict"), config) as running:
        yield running


@pytest.fixture
def channel(strict: ServerProcess) -> Iterator[grpc.Channel]:
    """A channel; after the test, the server must still answer, with the right vector."""
    with grpc.insecure_channel(strict.url) as channel:
        yield channel
        response = encoder_pb2_grpc.EncoderServiceStub(channel).Embed(pb.EmbedRequest(texts=["still here"]))
        assert response.embeddings[0].vectors.rows == 1 and np.isclose(
            np.linalg.norm(vector(response)), 1, atol=1e-5
        )


def vector(response: pb.EmbedResponse) -> np.ndarray:
    return np.frombuffer(response.embeddings[0].vectors.data, "<f4")


def native(channel: grpc.Channel, **fields: Any) -> grpc.RpcError:
    """The error that trimtab.v1 gives for a request."""
    with pytest.raises(grpc.RpcError) as caught:
        encoder_pb2_grpc.EncoderServiceStub(channel).Embed(pb.EmbedRequest(**{"texts": ["a"], **fields}))
    return caught.value


def element(text: bytes) -> bytes:
    return len(text).to_bytes(4, "little") + text


def infer(
    channel: grpc.Channel,
    raw: bytes = element(b"hello"),
    shape: tuple[int, ...] = (1, 1),
    name: str = "text",
    datatype: str = "BYTES",
    model: str = NAME,
    version: str = "",
    outputs: tuple[str, ...] = (),
    **parameters: Any,
) -> grpc.RpcError:
    """The error that KServe gives for a request."""
    request = inference.ModelInferRequest(model_name=model, model_version=version)
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(raw)
    for output in outputs:
        request.outputs.add(name=output)
    for key, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(request.parameters[key], kind, value)
    with pytest.raises(grpc.RpcError) as caught:
        inference_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    return caught.value


def check(error: grpc.RpcError, code: grpc.StatusCode, *words: str) -> None:
    assert error.code() is code, error.details()
    for word in words:
        assert word in error.details(), error.details()


def test_a_limit_of_vectors_of_an_encoder_with_one(channel: grpc.Channel) -> None:
    for error in (native(channel, max_vectors=3), infer(channel, max_vectors=3)):
        check(
            error, Code.INVALID_ARGUMENT, "max_vectors is 3", "dense (dense)", "one vector an item: leave it"
        )


def test_no_texts(channel: grpc.Channel) -> None:
    check(native(channel, texts=[]), Code.INVALID_ARGUMENT, "no texts", "at least one")
    check(infer(channel, raw=b"", shape=(0, 1)), Code.INVALID_ARGUMENT, "no texts")


def test_too_many_texts(channel: grpc.Channel) -> None:
    check(native(channel, texts=["a"] * 5), Code.INVALID_ARGUMENT, "5 texts", "takes 4", "split it")


def test_a_text_of_too_many_bytes(channel: grpc.Channel) -> None:
    error = native(channel, texts=["ok", "ü" * 1001])
    check(error, Code.INVALID_ARGUMENT, "texts[1]", "2002 bytes", "2000", "cut it")


def test_a_text_of_too_many_tokens_with_truncate_none(channel: grpc.Channel) -> None:
    texts = ["ok", "a b " * 200]
    error = native(channel, texts=texts, truncate=pb.TRUNCATE_NONE)
    check(error, Code.INVALID_ARGUMENT, "texts[1]", "402 tokens", "256", "truncate")
    raw = b"".join(element(text.encode()) for text in texts)
    check(infer(channel, raw=raw, shape=(2, 1), truncate="NONE"), Code.INVALID_ARGUMENT, "texts[1]", "402")


def test_a_message_over_the_limit(channel: grpc.Channel) -> None:
    check(native(channel, texts=["a" * 70_000]), Code.RESOURCE_EXHAUSTED, "65536")


def test_unknown_encoder(channel: grpc.Channel) -> None:
    check(native(channel, encoder="nope"), Code.NOT_FOUND, "'nope'", NAME)
    check(infer(channel, model="nope"), Code.NOT_FOUND, "'nope'", NAME)


def test_unknown_version(channel: grpc.Channel) -> None:
    check(native(channel, encoder=NAME, version="7"), Code.NOT_FOUND, "version 7", "version 1")
    check(infer(channel, version="7"), Code.NOT_FOUND, "version 7", "version 1")
    check(native(channel, encoder=NAME, version="../1"), Code.INVALID_ARGUMENT, "whole number")


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", "\x00"])
def test_a_name_that_is_a_path_loads_nothing(channel: grpc.Channel, name: str) -> None:
    stub = inference_grpc.GRPCInferenceServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.RepositoryModelLoad(inference.RepositoryModelLoadRequest(model_name=name))
    check(caught.value, Code.NOT_FOUND)


SERVICE, KSERVE = "/trimtab.v1.EncoderService/", "/inference.GRPCInferenceService/"
TENSOR = inference.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[1, 1])
INPUT = inference.ModelInferRequest(model_name=NAME, inputs=[TENSOR]).SerializeToString()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (f"{SERVICE}Embed", b"\x3a\x00" * 32_000),
        (f"{SERVICE}Embed", b"\x3a\x01a" + b"\x4a\x00" * 32_000),  # spaces
        (f"{SERVICE}Embed", b"\x0a\x00" * 32_000),  # one field again and again
        (f"{SERVICE}EmbedStream", b"\x12\xe0\xf3\x03" + b"\x3a\x00" * 31_984),
        (f"{SERVICE}Rescore", b"\x22\x00" * 32_000),
        (f"{KSERVE}ModelInfer", b"\x2a\x00" * 32_000),  # inputs
        (f"{KSERVE}ModelInfer", b"\x2a\xe0\xf3\x03" + b"\x18\x01" * 31_984),  # a shape
        (f"{KSERVE}ModelInfer", INPUT + b"\x32\x00" * 32_000),  # outputs
        (f"{KSERVE}ModelInfer", INPUT + b"\x3a\x00" * 32_000),  # raw tensors
        (f"{KSERVE}ModelInfer", INPUT + b"\x22\x00" * 32_000),  # parameters
        (f"{KSERVE}ModelStreamInfer", b"\x2a\x00" * 32_000),
        (f"{KSERVE}RepositoryModelLoad", b"\x1a\x00" * 8_000),
        (f"{KSERVE}TraceSetting", b"\x0a\x00" * 8_000),
    ],
)
def test_elements_of_nothing_are_refused_before_they_are_made(
    channel: grpc.Channel, method: str, message: bytes
) -> None:
    """Each is two bytes of the message, and would be a hundred of memory."""
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.stream_stream(method)(iter([message])))
    check(caught.value, Code.INVALID_ARGUMENT, "more than 272 fields", "max_texts")


def test_elements_of_a_raw_tensor_are_not_walked_beyond_what_the_shape_says(channel: grpc.Channel) -> None:
    raw = element(b"") * 10_000
    check(infer(channel, raw=raw, shape=(3,)), Code.INVALID_ARGUMENT, "more than 3 elements", "says 3")
    check(infer(channel, raw=raw, shape=(10_000,)), Code.INVALID_ARGUMENT, "10000 texts", "takes 4")


def test_a_name_of_many_bytes(channel: grpc.Channel) -> None:
    long = "x" * 10_000
    check(native(channel, encoder=long), Code.INVALID_ARGUMENT, "encoder has 10000 bytes", "1024")
    check(infer(channel, model=long), Code.INVALID_ARGUMENT, "model_name has 10000 bytes", "1024")
    check(infer(channel, group=long), Code.INVALID_ARGUMENT, "string_param has 10000 bytes", "1024")


def test_more_dimensions_than_there_are(channel: grpc.Channel) -> None:
    check(native(channel, dimensions=385), Code.INVALID_ARGUMENT, "385", "384", "or fewer")
    check(infer(channel, dimensions=0), Code.INVALID_ARGUMENT, "dimensions", "from 1")
    check(infer(channel, dimensions=True), Code.INVALID_ARGUMENT, "dimensions", "whole number")
    error = native(channel, dimensions=100, dtype=pb.DATA_TYPE_UBINARY)
    check(error, Code.INVALID_ARGUMENT, "multiple of 8")


def test_values_that_no_enumeration_has(channel: grpc.Channel) -> None:
    check(native(channel, dtype=99), Code.INVALID_ARGUMENT, "dtype 99")
    check(native(channel, role=99), Code.INVALID_ARGUMENT, "role 99")
    check(native(channel, truncate=99), Code.INVALID_ARGUMENT, "truncate 99")
    check(native(channel, priority=99), Code.INVALID_ARGUMENT, "priority 99")


def test_unknown_parameter(channel: grpc.Channel) -> None:
    check(infer(channel, temperature="hot"), Code.INVALID_ARGUMENT, "'temperature'", "embedding_type")
    check(infer(channel, sequence_id=7), Code.INVALID_ARGUMENT, "'sequence_id'")


def test_a_parameter_of_no_known_value(channel: grpc.Channel) -> None:
    check(infer(channel, input_type="question"), Code.INVALID_ARGUMENT, "'question'", "query, passage")
    check(infer(channel, truncate="LEFT"), Code.INVALID_ARGUMENT, "'LEFT'", "start")
    check(infer(channel, embedding_type=5), Code.INVALID_ARGUMENT, "5", "float16")


def test_wrong_dtype(channel: grpc.Channel) -> None:
    check(infer(channel, datatype="FP32"), Code.INVALID_ARGUMENT, "'text' is FP32", "BYTES")


@pytest.mark.parametrize("shape", [(1, 2), (1, 1, 1), (), (-1, 1)])
def test_wrong_shape(channel: grpc.Channel, shape: tuple[int, ...]) -> None:
    check(infer(channel, shape=shape), Code.INVALID_ARGUMENT, "shape", "[n, 1]")


def test_a_shape_that_the_content_does_not_fill(channel: grpc.Channel) -> None:
    check(infer(channel, shape=(2, 1)), Code.INVALID_ARGUMENT, "1 elements", "says 2")


@pytest.mark.parametrize("raw", [b"\x05\x00", b"\x09\x00\x00\x00abc", element(b"x") + b"\xff\xff\xff\xffx"])
def test_an_element_that_is_cut_off(channel: grpc.Channel, raw: bytes) -> None:
    check(infer(channel, raw=raw, shape=(2, 1)), Code.INVALID_ARGUMENT, "element", "cut off")


def test_wrong_input_and_output(channel: grpc.Channel) -> None:
    check(infer(channel, name="input_ids"), Code.INVALID_ARGUMENT, "'input_ids'", "'text'")
    check(infer(channel, outputs=("logits",)), Code.INVALID_ARGUMENT, "'logits'", "embeddings")


def test_an_output_that_is_named_twice(channel: grpc.Channel) -> None:
    """Each would be one more copy of all vectors."""
    check(infer(channel, outputs=("embeddings", "embeddings")), Code.INVALID_ARGUMENT, "twice", "once")


def test_text_that_is_not_utf8(channel: grpc.Channel) -> None:
    raw = element(b"fine") + element(b"not \xff utf-8")
    check(infer(channel, raw=raw, shape=(2,)), Code.INVALID_ARGUMENT, "text[1]", "UTF-8", "byte 4")
    # The same in trimtab.v1, where no generated client would write it: field 7, eight bytes.
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/trimtab.v1.EncoderService/Embed")(b"\x3a\x04a\xff\xfeb")
    check(caught.value, Code.INVALID_ARGUMENT, "UTF-8")


def test_bytes_that_are_no_message(channel: grpc.Channel) -> None:
    for method in ("trimtab.v1.EncoderService/Embed", "inference.GRPCInferenceService/ModelInfer"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{method}")(b"\xff\xff\xff\xff")
        check(caught.value, Code.INVALID_ARGUMENT, "protobuf")


def test_unknown_method(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/trimtab.v1.EncoderService/Nope")(b"")
    check(caught.value, Code.UNIMPLEMENTED)


def test_one_bad_request_of_a_stream_fails_alone(channel: grpc.Channel) -> None:
    good = pb.EmbedRequest(texts=["good"])
    bad = pb.EmbedRequest(texts=["bad"], encoder="nope")
    messages = [pb.EmbedStreamRequest(id=n, request=bad if n == 3 else good) for n in range(7)]
    answers = list(encoder_pb2_grpc.EncoderServiceStub(channel).EmbedStream(iter(messages)))
    outcomes = {answer.id: answer.WhichOneof("outcome") for answer in answers}
    assert len(answers) == 7
    assert outcomes == {n: "error" if n == 3 else "response" for n in range(7)}
    error = next(answer.error for answer in answers if answer.id == 3)
    assert error.code == Code.NOT_FOUND.value[0] and "'nope'" in error.message


def test_one_bad_request_of_a_triton_stream_fails_alone(strict: ServerProcess) -> None:
    import queue

    answers: queue.Queue[Any] = queue.Queue()
    tensor = tritonclient.grpc.InferInput("text", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"x"]], object))
    with tritonclient.grpc.InferenceServerClient(strict.url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for name in (NAME, "nope", NAME):
            client.async_stream_infer(name, [tensor])
        outcomes = [answers.get(timeout=120) for _ in range(3)]
        client.stop_stream()
    assert [error is None for _, error in outcomes] == [True, False, True]
    assert "'nope'" in str(outcomes[1][1])


def test_the_sdk_raises_the_error_that_the_server_sent(strict: ServerProcess) -> None:
    with trimtab.Client(strict.url, timeout=100) as client:
        with pytest.raises(trimtab.NotFound, match="nope"):
            client.embed(["a"], encoder="nope")
        with pytest.raises(trimtab.InvalidArgument, match="385"):
            client.embed(["a"], dimensions=385)
        with pytest.raises(trimtab.DeadlineExceeded):
            client.embed(["a " * 200] * 4, timeout=0.001)
        # 9 texts are more than the server takes in one request: the SDK splits them.
        assert client.embed([f"text {number}" for number in range(9)]).shape == (9, 384)
