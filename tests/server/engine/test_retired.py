"""Encoders that fail or hang while others run: they are retired, and the devices are not."""

import asyncio
import threading
from pathlib import Path

import grpc
import pytest

from tests.server.engine.test_devices import IMPATIENT, NAME, code
from tests.server.fronts.grpc.test_lifecycle import copy_bundle
from tests.server.misbehaving import PATIENCE, FakeSession, Gate, running
from trimtab.v1 import encoder_pb2 as pb
from trimtab_server.callers.access import SERVER
from trimtab_server.catalog import retrying
from trimtab_server.config import EngineSettings
from trimtab_server.engine.batch import Model
from trimtab_server.engine.fleet.homes import InThreads
from trimtab_server.engine.fleet.places import Place


@pytest.mark.parametrize("places", [("one",), ("one", "two")])
async def test_an_encoder_that_fails_while_others_run_is_retired_and_no_device(
    minilm_repository: Path, tmp_path: Path, places: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says why, and is tried again after a while."""
    monkeypatch.setattr(retrying, "FIRST_TRY", 1.0)
    for name in (NAME, "ill"):
        copy_bundle(minilm_repository, tmp_path, name)
    async with running(tmp_path, *places) as (rig, client):
        assert rig.app is not None
        rig.ill.add("ill")
        good = [client.embed(f"text {number}", encoder=NAME) for number in range(20)]
        bad = [client.embed(f"text {number}", encoder="ill") for number in range(20)]
        await asyncio.wait([*good, *bad])
        assert {code(call) for call in good} == {None}
        refused = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION}
        assert {code(call) for call in bad} <= {grpc.StatusCode.INTERNAL, *refused}
        (entry,) = [each for each in rig.app.repository.index(SERVER) if each.name == "ill"]
        while entry.state != "UNAVAILABLE":
            await asyncio.sleep(0.001)
            (entry,) = [each for each in rig.app.repository.index(SERVER) if each.name == "ill"]
        assert "3 times in a row, while others ran well: this encoder is ill" in entry.reason
        assert not await client.serving("ill") and await client.serving(NAME)
        late = client.embed("a text", encoder="ill")
        await asyncio.wait([late])
        assert code(late) is grpc.StatusCode.FAILED_PRECONDITION and "this encoder is ill" in str(
            late.exception()
        )
        for place in places:
            assert rig.metric("trimtab_device_failures_total", device=f"{place}:0", reason="raised") == 0
        rig.ill.clear()
        async with asyncio.timeout(PATIENCE):
            while not await client.serving("ill"):
                await asyncio.sleep(0.01)
        await client.embed("a text", encoder="ill")


async def test_a_device_comes_back_without_the_encoder_that_fails_there(
    minilm_repository: Path, tmp_path: Path
) -> None:
    for name in (NAME, "ill"):
        copy_bundle(minilm_repository, tmp_path, name)
    gate = Gate()
    async with running(tmp_path, "one", workers=2, engine=IMPATIENT) as (rig, client):
        assert rig.app is not None
        rig.behave = lambda device, ids: gate.wait()
        hung = client.embed("a text", encoder=NAME)
        await gate.arrival()
        await asyncio.wait([hung])
        await rig.until_up("one:0", False)
        rig.ill.add("ill")
        rig.behave = None
        gate.open.set()
        await rig.until_up("one:0", True)
        await client.embed("a text", encoder=NAME)


async def test_a_load_that_hangs_holds_up_no_other_and_no_end(
    minilm_repository: Path, tmp_path: Path
) -> None:
    """Nor is it waited for longer than engine.load_seconds, here by a graph that never opens."""
    copy_bundle(minilm_repository, tmp_path)
    gate = threading.Event()
    async with running(tmp_path, "one", engine=EngineSettings(load_seconds=5.0)) as (rig, client):
        assert rig.app is not None
        served, opened = rig.app.repository, rig.open
        hanging = asyncio.Event()
        loop = asyncio.get_running_loop()

        def open_graph(model: Model, place: Place) -> FakeSession:
            if model.encoder == "hangs":
                loop.call_soon_threadsafe(hanging.set)
                gate.wait(PATIENCE)
            return opened(model, place)

        rig.app._engine.queue._workers._devices[0].home = InThreads(open_graph, Place("one", 0, 1))
        for name in ("fine", "hangs"):
            copy_bundle(minilm_repository, tmp_path, name)
        load = asyncio.create_task(served.load(SERVER, "hangs"))
        await hanging.wait()
        await served.load(SERVER, "fine")
        await served.unload(SERVER, "fine")
        await client.stub.Embed(pb.EmbedRequest(encoder=NAME, texts=["a text"]), timeout=PATIENCE)
        assert not load.done()
        await load
        (entry,) = [each for each in served.index(SERVER) if each.name == "hangs"]
        assert entry.state == "UNAVAILABLE" and "made no progress for 5 s" in entry.reason
        hanging.clear()
        load = asyncio.create_task(served.load(SERVER, "hangs"))
        await hanging.wait()
    with pytest.raises(asyncio.CancelledError):  # the server has stopped meanwhile
        await load
    gate.set()
