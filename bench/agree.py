"""Does a server return the same vectors as the bundle's graph? The lowest cosine over some texts.

A server that computes something else is not worth timing.
"""

import argparse
import asyncio
import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import data
from bench.limit import Bare
from bench.load import closed
from bench.load_clients import UNARY, LoadTarget

TEXTS = 48


async def ask(kind: str, target: LoadTarget, texts: list[str], width: int) -> NDArray[np.float32]:
    """The server's vectors, (n, width)."""
    async with UNARY[kind](target) as call:
        return (await closed(call, texts, 8)).vectors(width)


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--kind", choices=UNARY, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--core", type=int, required=True)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    texts = data.mix("mixed", TEXTS)
    bare = Bare(options.bundle)
    expected = np.concatenate([bare.run([ids]) for ids in bare.tokenize(texts)])
    target = LoadTarget(options.url, options.encoder)
    got = asyncio.run(ask(options.kind, target, texts, bare.width))
    print(json.dumps({"cosine": float((got * expected).sum(axis=1).min())}))


if __name__ == "__main__":
    main()
