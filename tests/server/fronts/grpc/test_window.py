"""What a stream may have unanswered: texts, by whatever protocol they came."""

import asyncio

from tritonclient.grpc import service_pb2 as inference

from trimtab_server.fronts.grpc.kserve_messages import rows
from trimtab_server.fronts.grpc.window import BYTES_A_TEXT, Window, weight


def test_a_request_weighs_its_texts_or_its_bytes() -> None:
    assert weight(0, 0) == weight(0, BYTES_A_TEXT) == weight(1, 100) == 1
    assert weight(700, 9000) == 700
    assert weight(2, 10 * BYTES_A_TEXT) == 10


def test_a_request_of_kserve_weighs_as_many_texts_as_its_shape_says() -> None:
    """One whose shape lies is refused before it waits for anything."""
    request = inference.ModelInferRequest()
    assert rows(request) == 0
    request.inputs.add(name="text")
    assert rows(request) == 0
    request.inputs[0].shape.extend((1000, 1))
    assert rows(request) == 1000


async def test_a_request_enters_when_there_is_room_or_nothing_else() -> None:
    window = Window(10)
    await window.enter(1000)  # of any size, where there is nothing else
    waiting = asyncio.ensure_future(window.enter(4))
    await asyncio.sleep(0)
    assert not waiting.done()
    window.leave(1000)
    await waiting
    await window.enter(6)
    other = asyncio.ensure_future(window.enter(1))
    await asyncio.sleep(0)
    assert not other.done()
    window.leave(4)
    await other
