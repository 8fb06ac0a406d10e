"""A process that was forked: its own connections, or a refusal by name; no call that hangs, no crash."""

import asyncio
import subprocess
import sys
import threading

import pytest

import trimtab
from tests.client.fake_server import FakeServer

# In a process of its own, since a fork of the one that runs the tests would take their servers along.
SCRIPT = """
import asyncio, os, signal, sys, threading, time
import numpy as np
import trimtab
from trimtab import forks

url, case = sys.argv[1:]
client = trimtab.Client(url, timeout=20)
expected = client.embed(["a"])


async def alone():
    async with trimtab.AsyncClient(url, timeout=20) as made:
        return await made.embed(["a"])


def tell(line):
    os.write(1, f"{line}\\n".encode())  # at once, so that lines of several processes do not mix


def inherited():
    return client.embed(["a"])


def new():
    with trimtab.Client(url, timeout=20) as made:
        return made.embed(["a"])


def streamed():
    try:
        return next(stream)
    finally:
        stream.close()


def forked(work):
    child = os.fork()
    if child:
        return child
    signal.alarm(60)  # a child that hangs fails the test
    try:
        result = np.array_equal(work().reshape(1, -1), expected)
        tell("same" if result else "other")
    except trimtab.FailedPrecondition as error:
        tell(f"refused: {error}")
    os._exit(0)


def all_of(*works):
    for child in [forked(work) for work in works]:
        _, status = os.waitpid(child, 0)
        if status:
            tell(f"ended by {status}")


def run(main):
    return lambda: asyncio.run(main())


if case == "idle":
    all_of(inherited, new, run(alone), inherited)
elif case == "busy":
    held = threading.Thread(target=client.embed, args=(["held"],))
    held.start()
    while not forks.under_way():
        time.sleep(0.001)
    all_of(*[inherited, new, run(alone)] * 3)
    client.embed(["release"])
    held.join()
elif case == "stream":
    stream = client.embed_stream(iter(["a"] * 600))
    assert np.array_equal(next(stream)[None], expected)
    all_of(streamed, inherited)
    assert len(list(stream)) == 599
elif case == "after":
    list(client.embed_stream(["a"] * 10))
    all_of(inherited, new)
assert np.array_equal(client.embed(["a"]), expected), "the parent goes on"
client.close()
"""


def lines(url: str, case: str) -> list[str]:
    command = [sys.executable, "-c", SCRIPT, url, case]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_child_of_a_quiet_parent_opens_its_own_connections(url: str) -> None:
    assert lines(url, "idle") == ["same"] * 4


def test_so_does_a_child_of_one_whose_streams_are_through(url: str) -> None:
    assert lines(url, "after") == ["same"] * 2


def test_a_child_that_was_forked_among_calls_is_refused(server: FakeServer, url: str) -> None:
    release = threading.Event()

    def gate(texts: list[str]) -> None:
        if "release" in texts:
            release.set()
        if "held" in texts:
            assert release.wait(60)

    server.faults.gate = gate
    told = lines(url, "busy")
    assert len(told) == 9
    for each in told:
        assert each.startswith("refused: this process was forked while gRPC calls were in flight")
        assert "'spawn'" in each


def test_a_stream_belongs_to_the_process_that_opened_it(url: str) -> None:
    """Now and then gRPC itself crashes in a child that was forked while a stream was open, before the child
    is refused. No such child may be answered."""
    for _ in range(5):
        told = lines(url, "stream")
        assert not {"same", "other"} & set(told), told
        if not any(each.startswith("ended by") for each in told):
            break
    assert len(told) == 2, told
    assert any("this stream was opened by the parent of this process" in each for each in told), told
    assert any("this process was forked while gRPC calls were in flight" in each for each in told), told


async def test_an_async_client_belongs_to_its_loop(url: str) -> None:
    async with trimtab.AsyncClient(url) as client:
        stream = client.embed_stream(["a"] * 40)
        await anext(stream)

        async def elsewhere() -> list[str]:
            told = []
            for work in (lambda: client.embed(["a"]), lambda: anext(stream), client.close, stream.aclose):
                with pytest.raises(trimtab.FailedPrecondition, match="another event loop") as caught:
                    await work()
                told.append(str(caught.value))
            return told

        told = await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        assert len(set(told)) == 1
        assert len([row async for row in stream]) == 39
