"""The link between two processes: frames that may be cut anywhere, and what leaves together."""

import asyncio
import socket
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.engine.apart import PATIENCE
from trimtab.values.column import Column
from trimtab_server.engine.port import Computed
from trimtab_server.engine.remote import messages
from trimtab_server.link import LENGTH, Link


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


arrays = st.builds(
    lambda dtype, shape, order: np.asarray(np.arange(np.prod(shape)).reshape(shape), dtype, order=order),
    st.sampled_from(["<i4", "<f4", "<f2", "i1"]),
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.sampled_from("CF"),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(arrays, min_size=1, max_size=6), st.data())
def test_frames_may_be_cut_anywhere(values: list[np.ndarray], data: st.DataObject) -> None:
    """However the bytes of frames arrive, each message comes once, whole and in order."""
    sent = [
        messages.Answer(call, Computed({"column": Column(each, None)}, 0.5, 0.25))
        for call, each in enumerate(values)
    ]
    frames = []
    for message in sent:
        encoded = messages.encode([message, messages.Done(message.call, 9)])
        frames.append(LENGTH.pack(len(encoded)) + encoded)
    stream = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    got: list[Any] = []

    async def receive() -> None:
        link = Link(messages.encode, messages.decode_to_front_end, got.append, lambda: None)
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            link.data_received(stream[start:end])

    asyncio.run(receive())
    assert [each.call for each in got] == [call for call in range(len(values)) for _ in range(2)]
    for message, array in zip(got[::2], values, strict=True):
        arrived = message.computed.result["column"].values
        np.testing.assert_array_equal(arrived, array)
        assert arrived.dtype == array.dtype and arrived.shape == array.shape


async def test_messages_of_one_pass_leave_in_one_frame() -> None:
    one, other = socket.socketpair()
    frames: list[int] = []

    def decode(data: memoryview) -> list[Any]:
        found = messages.decode_to_engine(data)
        frames.append(len(found))
        return found

    got: list[Any] = []
    sender = Link(messages.encode, messages.decode_to_front_end, lambda message: None, lambda: None)
    receiver = Link(messages.encode, decode, got.append, lambda: None)
    await sender.open(one)
    await receiver.open(other)
    for call in range(5):
        sender.send(messages.Cancel(call))
    await until(lambda: len(got) == 5)
    assert frames == [5]
    await sender.close()
    await until(lambda: receiver._transport is None)


async def test_one_that_cannot_be_sent_holds_up_no_other() -> None:
    one, other = socket.socketpair()
    got: list[Any] = []
    sender = Link(messages.encode, messages.decode_to_front_end, lambda message: None, lambda: None)
    receiver = Link(messages.encode, messages.decode_to_engine, got.append, lambda: None)
    sender.send(messages.Cancel(1))
    sender.send(object())
    sender.send(messages.Cancel(2))
    await sender.open(one)
    await receiver.open(other)
    await until(lambda: len(got) == 2)
    assert [each.call for each in got] == [1, 2]
    await sender.close()
    await until(lambda: receiver._transport is None)
