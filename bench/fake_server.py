"""Our server with encoders that cost nothing, or that only sleep: what remains is the server itself.

--devices N gives it N simulated devices. Each sleeps --seconds-per-token for every token it is given, as a
thread that waits for a GPU does. With --front-ends N, as many processes take the calls, and this module is
also the program of the engine's process.
"""

import argparse
import asyncio
import logging
import os
import signal
import time
from pathlib import Path

import msgspec
import numpy as np

from trimtab.values.column import Column, Columns
from trimtab_server import config as configs
from trimtab_server import memory, serving
from trimtab_server.app import App
from trimtab_server.config import Config, ServerSettings
from trimtab_server.engine.batch import Model, Wanted
from trimtab_server.engine.fleet.homes import Opening
from trimtab_server.engine.fleet.places import Place
from trimtab_server.observing import logs
from trimtab_server.processes import program
from trimtab_server.processes.engine import EngineProgram
from trimtab_server.processes.supervisor import Supervisor

# Set for the engine's process: how many devices, their seconds per token, and per run.
FAKES = "TRIMTAB_BENCH_FAKES"


class Sleeper:
    """A session that sleeps for each token and answers every text with the same unit vector."""

    def __init__(self, model: Model, seconds_per_token: float, seconds_per_run: float = 0.0) -> None:
        self._seconds = seconds_per_token
        self._seconds_per_run = seconds_per_run
        (dense,) = model.specs(["dense"])
        self._vectors = np.full((1024, dense.width), dense.width**-0.5, np.float32)

    def run(self, batch: Columns, wanted: Wanted) -> Columns:
        """The same vector for all texts: float32 (n, dimensions)."""
        if self._seconds or self._seconds_per_run:
            time.sleep(self._seconds * len(batch["ids"].values) + self._seconds_per_run)
        return {"dense": Column(self._vectors[: len(batch["ids"])])}


def fakes(
    devices: int, seconds_per_token: float, seconds_per_run: float = 0.0
) -> tuple[Opening, list[Place]]:
    """How graphs are opened, and where."""

    def open_graph(model: Model, place: Place) -> Sleeper:
        return Sleeper(model, seconds_per_token, seconds_per_run)

    # Named like GPUs, each with its own name; no real GPU is used.
    return Opening(open_graph, foreign=False), [Place("cuda", each, workers=1) for each in range(devices)]


async def serve(
    repository: Path, devices: int, seconds_per_token: float, config: Config, front_ends: int
) -> None:
    """Serve until SIGTERM, at any free ports."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    ports = ServerSettings(grpc_address="127.0.0.1:0", metrics_address="127.0.0.1:0", frontends=front_ends)
    config = msgspec.structs.replace(config, server=ports)
    app: App | Supervisor
    if front_ends > 1:
        os.environ[FAKES] = f"{devices} {seconds_per_token}"
        os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)  # where the engine's process finds this
        app = Supervisor(config, repository, engine="bench.fake_server")
    else:
        app = App(config, repository, *fakes(devices, seconds_per_token))
    await app.start()
    memory.settle()
    metrics = f"http://127.0.0.1:{app.metrics_port}/metrics"
    print(f"trimtab serves a fake on 127.0.0.1:{app.grpc_port}, metrics on {metrics};", flush=True)
    await stopping.wait()
    await app.stop()


def engine() -> EngineProgram:
    """The program of the engine's process."""
    devices, *seconds = os.environ[FAKES].split()
    return EngineProgram(*fakes(int(devices), *map(float, seconds)))


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--front-ends", type=int, default=1)
    parser.add_argument("--seconds-per-token", type=float, default=0.0)
    parser.add_argument("--config", type=Path, help="another configuration; its addresses do not count")
    options = parser.parse_args()
    memory.share_heaps()
    config = configs.read(options.config) if options.config else Config()
    logging.basicConfig()
    logs.configure(config.logging, verbose=False)
    serving.run(
        serve(options.repository, options.devices, options.seconds_per_token, config, options.front_ends)
    )


if __name__ == "__main__":
    if FAKES in os.environ:
        program.main(engine)
    else:
        main()
