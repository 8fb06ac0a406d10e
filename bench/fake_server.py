"""Our server with encoders that cost nothing, or that only sleep: what remains is the server itself.

--devices N gives it N simulated devices. Each sleeps --seconds-per-token for every token it is given, as a
thread that waits for a GPU does.
"""

import argparse
import asyncio
import logging
import signal
import time
from pathlib import Path

import msgspec
import numpy as np

from trimtab.values.column import Column, Columns
from trimtab_server import config as configs
from trimtab_server.app import App
from trimtab_server.config import Config, ServerSettings
from trimtab_server.engine.batch import Model, Wanted
from trimtab_server.engine.fleet.homes import Opening
from trimtab_server.engine.fleet.places import Place
from trimtab_server.observing import logs


class Sleeper:
    """A session that sleeps for each token and answers every text with the same unit vector."""

    def __init__(self, model: Model, seconds_per_token: float) -> None:
        self._seconds = seconds_per_token
        (dense,) = model.specs(["dense"])
        self._vectors = np.full((1024, dense.width), dense.width**-0.5, np.float32)

    def run(self, batch: Columns, wanted: Wanted) -> Columns:
        """The same vector for all texts: float32 (n, dimensions)."""
        if self._seconds:
            time.sleep(self._seconds * len(batch["ids"].values))
        return {"dense": Column(self._vectors[: len(batch["ids"])])}


async def serve(repository: Path, devices: int, seconds_per_token: float, config: Config) -> None:
    """Serve until SIGTERM, at any free ports."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    ports = ServerSettings(grpc_address="127.0.0.1:0", metrics_address="127.0.0.1:0")
    config = msgspec.structs.replace(config, server=ports)

    def open_graph(model: Model, place: Place) -> Sleeper:
        return Sleeper(model, seconds_per_token)

    # Named like GPUs, each with its own name; no real GPU is used.
    places = [Place("cuda", number, workers=1) for number in range(devices)]
    app = App(config, repository, Opening(open_graph, foreign=False), places)
    await app.start()
    metrics = f"http://127.0.0.1:{app.metrics_port}/metrics"
    print(f"trimtab serves a fake on 127.0.0.1:{app.grpc_port}, metrics on {metrics};", flush=True)
    await stopping.wait()
    await app.stop()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--seconds-per-token", type=float, default=0.0)
    parser.add_argument("--config", type=Path, help="another configuration; its addresses do not count")
    options = parser.parse_args()
    config = configs.read(options.config) if options.config else Config()
    logging.basicConfig()
    logs.configure(config.logging, verbose=False)
    asyncio.run(serve(options.repository, options.devices, options.seconds_per_token, config))


if __name__ == "__main__":
    main()
