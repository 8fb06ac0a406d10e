"""Adapters come, change and go while the server runs, and no request fails for it."""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc.aio

import trimtab
from tests import adapters_made
from tests.server import spaces_made as made
from tests.server.server_process import NAME, serve
from tests.server.spaces_made import unit
from tests.texts import TEXTS
from trimtab.artifacts import adapter as adapters

TOLERANCE = 1e-5
SOME = TEXTS[:6]
STEPS = 6


async def test_adapters_come_and_go_under_load(minilm_repository: Path, tmp_path: Path) -> None:
    """The ways into a space change again and again, by hand-over from one adapter to the next.

    Those that read inner states bring another graph of the encoder with them, which takes over while it is
    asked without a break.
    """
    spaces = made.make(minilm_repository, tmp_path / "models")
    folder = spaces.repository / NAME / adapters.FOLDER
    shutil.rmtree(folder / "tampered")  # a load would say so each time
    inner = unit(made.states_rows(spaces, SOME) @ spaces.by_states)
    with serve(spaces.repository, tmp_path) as server:
        async with (
            trimtab.AsyncClient(server.url, timeout=100) as client,
            tritonclient.grpc.aio.InferenceServerClient(server.url) as triton,
        ):
            hammer = Hammer(client, spaces, await client.embed(SOME, encoder=NAME))
            tasks = [asyncio.create_task(hammer.run()) for _ in range(4)]
            await hammer.goes_through(f"{NAME}/to-turned")
            for step in range(1, STEPS):
                # The successor is loaded before its predecessor goes.
                add_step(spaces, step, spaces.to_v2, created=f"2027-01-0{step}T00:00:00+00:00")
                shutil.rmtree(folder / ("to-turned" if step == 1 else f"step-{step - 1}"))
                if step == 2:
                    made.add_states_adapter(spaces)
                if step == 4:
                    shutil.rmtree(folder / "by-states")
                await triton.load_model(NAME)
                await hammer.goes_through(f"{NAME}/step-{step}")
                if step in (2, 3):
                    await check_states(client, spaces, hammer.own, inner)
                if step == 4:
                    with pytest.raises(trimtab.NotFound):
                        await client.embed(SOME, encoder=NAME, space=made.BY_STATES)
            add_step(spaces, STEPS - 1, -spaces.to_v2)  # changed in place, under its own name
            hammer.stop.set()
            await asyncio.gather(*tasks)
            await triton.load_model(NAME)
            turned_round = await client.embed(SOME, encoder=NAME, space=spaces.v2.manifest.space)
            np.testing.assert_allclose(turned_round, -hammer.expected, atol=TOLERANCE)
            # An encoder that has only adapters left still lends them to routes.
            await triton.unload_model("turned")
            shutil.rmtree(spaces.v2.path)
            chain = await client.embed_detailed(SOME, encoder=NAME, space=spaces.v1.manifest.space)
            assert chain.adapters == (f"{NAME}/step-{STEPS - 1}", "turned/to-older")
    assert set(hammer.served) == {f"{NAME}/to-turned", *(f"{NAME}/step-{step}" for step in range(1, STEPS))}


class Hammer:
    """Texts into their own space and into another one, again and again, compared with what they must give."""

    def __init__(self, client: trimtab.AsyncClient, spaces: made.Spaces, own: np.ndarray) -> None:
        self.own, self.expected = own, unit(own @ spaces.to_v2)
        self.served: list[str] = []  # the adapters of each answer
        self.stop = asyncio.Event()
        self._client, self._space = client, spaces.v2.manifest.space

    async def run(self) -> None:
        while not self.stop.is_set():
            answer = await self._client.embed_detailed(SOME, encoder=NAME, space=self._space, timeout=240)
            np.testing.assert_allclose(answer.vectors, self.expected, atol=TOLERANCE)
            self.served.extend(answer.adapters)
            native = await self._client.embed(SOME, encoder=NAME, timeout=240)
            np.testing.assert_allclose(native, self.own, atol=TOLERANCE)

    async def goes_through(self, adapter: str) -> None:
        """Wait until an answer came through this adapter."""
        async with asyncio.timeout(120):
            while not self.served or self.served[-1] != adapter:
                await asyncio.sleep(0.01)


def add_step(spaces: made.Spaces, step: int, matrix: np.ndarray, **more: str) -> None:
    """A way from the encoder to `turned`."""
    new, turned = (adapters_made.end(each.manifest) for each in (spaces.v3, spaces.v2))
    adapters_made.adapter(
        spaces.repository, f"step-{step}", new, turned, adapters_made.linear(matrix), **more
    )


async def check_states(
    client: trimtab.AsyncClient, spaces: made.Spaces, own: np.ndarray, inner: np.ndarray
) -> None:
    """The adapter that reads inner states, alone and beside others."""
    states = await client.embed_detailed(SOME, encoder=NAME, space=made.BY_STATES)
    assert states.adapters == (f"{NAME}/by-states",)
    np.testing.assert_allclose(states.vectors, inner, atol=1e-4)
    both = await client.embed_spaces(
        SOME, [spaces.space, made.BY_STATES, spaces.v1.manifest.space], encoder=NAME
    )
    np.testing.assert_allclose(both[made.BY_STATES].vectors, inner, atol=1e-4)
    np.testing.assert_allclose(both[spaces.space].vectors, own, atol=TOLERANCE)


def test_states_are_there_from_the_start_where_an_adapter_wants_them(
    minilm_repository: Path, tmp_path: Path
) -> None:
    spaces = made.make(minilm_repository, tmp_path / "models")
    shutil.rmtree(spaces.v2.path.parent)
    shutil.rmtree(spaces.v1.path.parent)
    made.add_states_adapter(spaces)
    inner = unit(made.states_rows(spaces, SOME) @ spaces.by_states)
    with serve(spaces.repository, tmp_path, "[sharing]\ncache_bytes = 10000000\n") as server:
        with trimtab.Client(server.url, timeout=100) as client:
            for _ in range(2):  # computed, then remembered
                got = client.embed(SOME, space=made.BY_STATES)
                np.testing.assert_allclose(got, inner, atol=1e-4)
                assert client.embed(SOME).shape == (len(SOME), 384)
                assert client.embed(SOME, dimensions=64).shape == (len(SOME), 64)
            assert len(client.rescore(SOME[0], SOME)) == len(SOME)
