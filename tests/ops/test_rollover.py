"""An upgrade under load, as a Deployment does it: one replica after the other ends and comes back."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import trimtab
from tests.server.server_process import ServerProcess, free_port, serve

TEXTS = [f"text number {number}" for number in range(16)]
CALLERS = 4


async def test_no_call_fails_and_none_gets_anothers_vector(minilm_repository: Path, tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    failed: list[Exception] = []
    answered = 0
    over = asyncio.Event()

    def start(number: int, replica: int) -> ServerProcess:
        folder = tmp_path / f"{replica}-{number}"
        folder.mkdir()
        config = f'[server]\ngrpc_address = "127.0.0.1:{ports[replica]}"\n'
        return stack.enter_context(serve(minilm_repository, folder, config))

    async def call(client: trimtab.AsyncClient, expected: np.ndarray, first: int) -> None:
        nonlocal answered
        number = first
        while not over.is_set():
            number = (number + 1) % len(TEXTS)
            try:
                vector = (await client.embed([TEXTS[number]]))[0]
                np.testing.assert_allclose(vector, expected[number], atol=1e-5)
                answered += 1
            except (trimtab.TrimtabError, AssertionError) as error:
                failed.append(error)

    with ExitStack() as stack:
        replicas = [await asyncio.to_thread(start, 0, replica) for replica in (0, 1)]
        url = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        async with trimtab.AsyncClient(url, timeout=100) as client:
            expected = await client.embed(TEXTS)
            callers = [asyncio.create_task(call(client, expected, number)) for number in range(CALLERS)]
            for replica in (0, 1):
                before = answered
                while answered < before + 20:
                    await asyncio.sleep(0)
                assert await asyncio.to_thread(replicas[replica].stop) == 0
                replicas[replica] = await asyncio.to_thread(start, 1, replica)
                while not any(
                    "trimtab_texts_total" in name
                    for name in await asyncio.to_thread(replicas[replica].metrics)
                ):
                    await asyncio.sleep(0)  # until the client has found the new one
            over.set()
            await asyncio.gather(*callers)
    assert not failed and answered > 40, failed
