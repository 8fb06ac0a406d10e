"""Large answers are checked, finished and written off the event loop's thread, and small ones on it."""

import threading
import time
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

import trimtab
from tests.server.server_process import NAME, ServerProcess
from tests.texts import TEXTS
from trimtab.errors import InternalError
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc
from trimtab.values import dense, multi_vector
from trimtab.values.column import Column
from trimtab_server.callers.access import ANYONE
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import RequestedOutput
from trimtab_server.config import LimitSettings
from trimtab_server.fronts.grpc import native
from trimtab_server.outputs.known import KINDS
from trimtab_server.outputs.multi_vector import MultiVectorKind
from trimtab_server.tasks.embed import Embedder
from trimtab_server.tasks.pipeline import ComputedItems, Pipeline, Times
from trimtab_server.tasks.plan import EmbedRequest, Plan
from trimtab_server.turns import INLINE_BYTES

CALL = Call(ANYONE, "", "caller", "protocol", time.monotonic(), None, "interactive", "")
WIDTH = 64
ROWS = INLINE_BYTES // (4 * WIDTH)  # as many as an answer may have on the loop
SPACE = SimpleNamespace(
    hops=(), names=(), space="s", dimensions=WIDTH, normalized=True, int8_limit=0.9, title="encoder e"
)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What was done with an answer, and whether on the event loop's thread."""
    done = []

    def noting(name: str) -> None:
        work = getattr(MultiVectorKind, name)

        def noted(*args: Any) -> Any:
            done.append((name, threading.current_thread() is threading.main_thread()))
            return work(*args)

        monkeypatch.setattr(MultiVectorKind, name, noted)

    noting("finish")
    noting("write")
    return done


def embedder_of(values: np.ndarray) -> tuple[Embedder, Plan]:
    """Answers one text, with these vectors."""
    result = {"multi_vector": Column(values, np.array((0, len(values))))}
    rows = ComputedItems(mock.Mock(result=result), [len(values)], 0.0, 0.0)
    pipeline = mock.Mock(
        spec=Pipeline,
        repository=mock.Mock(), metrics=mock.Mock(), limits=LimitSettings(),
        admit=mock.AsyncMock(return_value=mock.MagicMock(__exit__=mock.Mock(return_value=None))),
        compute=mock.AsyncMock(return_value=rows),
        answered=mock.Mock(return_value=Times(0.0, 0.0, 0.0, 0.0)),
    )  # fmt: skip
    output = SimpleNamespace(kind=KINDS["multi_vector"], columns=("multi_vector",), name="multi_vector")
    encoder: Any = mock.Mock(mapped="dense", version=1, variant=SimpleNamespace(name="int8"))
    encoder.name, encoder.reader.in_role.return_value = "e", ["text"]
    outputs: Any = (RequestedOutput(cast(Any, output), cast(Any, SPACE)),)
    return Embedder(pipeline, ()), Plan(
        EmbedRequest("e", "", ["text"], dtype="int8"), encoder, encoder, outputs
    )


def vectors(rows: int) -> np.ndarray:
    values = np.random.default_rng(rows).normal(size=(rows, WIDTH)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


async def answered(values: np.ndarray, id: int | None = None) -> Any:
    embedder, plan = embedder_of(values)
    result = await embedder._answer(CALL, plan)
    servicer: Any = native.NativeServicer.__new__(native.NativeServicer)
    servicer._embedder = mock.Mock(embed=mock.AsyncMock(return_value=result))
    servicer._pipeline = mock.Mock(read=mock.Mock(return_value=(CALL, None)))
    return await servicer._embed(CALL, pb.EmbedRequest(), id)


@pytest.mark.parametrize(("rows", "inline"), [(1, True), (ROWS, True), (ROWS + 1, False)])
async def test_large_answers_are_made_on_a_thread(
    rows: int, inline: bool, threads: list[tuple[str, bool]]
) -> None:
    values = vectors(rows)
    answer = await answered(values)
    assert threads == [("finish", inline), ("write", inline)]
    assert isinstance(answer, pb.EmbedResponse if inline else bytes)
    response = answer if inline else pb.EmbedResponse.FromString(answer)
    found = multi_vector.read(response.outputs[0].multi_vector)
    assert found.offsets.tolist() == [0, rows] and list(response.token_counts) == [rows]
    np.testing.assert_allclose(found.vectors * found.scale, values, atol=found.scale)


async def test_a_large_answer_in_a_stream_has_its_id() -> None:
    message = pb.EmbedStreamResponse.FromString(await answered(vectors(ROWS + 1), 7))
    assert message.id == 7
    assert message.response == pb.EmbedResponse.FromString(await answered(vectors(ROWS + 1)))


@pytest.mark.parametrize("rows", [1, ROWS + 1])
async def test_what_is_not_finite_is_refused(rows: int, threads: list[tuple[str, bool]]) -> None:
    values = vectors(rows)
    values[-1, -1] = np.nan
    with pytest.raises(InternalError, match=r"no finite vector for texts\[0\]"):
        await answered(values)
    assert not threads


def test_large_answers_are_as_small_ones(server: ServerProcess) -> None:
    """In each protocol, in a call and in a stream."""
    some = TEXTS[:20]
    many = some * 40
    assert len(many) * 384 * 4 > INLINE_BYTES
    with trimtab.Client(server.url, timeout=240) as client:
        expected = np.tile(client.embed(some), (40, 1))
        np.testing.assert_allclose(client.embed(many), expected, atol=1e-5)
    asked = service_pb2.ModelInferRequest(id="large", model_name=NAME)
    asked.inputs.add(name="text", datatype="BYTES", shape=[len(many), 1])
    asked.raw_input_contents.append(serialize_byte_tensor(np.array(many, object)).item())
    asked.parameters["triton_enable_empty_final_response"].bool_param = True
    with grpc.insecure_channel(server.url, [("grpc.max_receive_message_length", -1)]) as channel:
        kserve = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        (streamed,) = kserve.ModelStreamInfer(iter([asked]), timeout=240)
        for answer in (kserve.ModelInfer(asked, timeout=240), streamed.infer_response):
            found = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(expected.shape)
            np.testing.assert_allclose(found, expected, atol=1e-5)
            assert answer.id == "large"
        assert answer.parameters["triton_final_response"].bool_param
        message = pb.EmbedStreamRequest(id=7, request=pb.EmbedRequest(encoder=NAME, texts=many))
        (native_answer,) = encoder_pb2_grpc.EncoderServiceStub(channel).EmbedStream(
            iter([message]), timeout=240
        )
    assert native_answer.id == 7
    np.testing.assert_allclose(
        dense.unpack(native_answer.response.embeddings[0].vectors), expected, atol=1e-5
    )
