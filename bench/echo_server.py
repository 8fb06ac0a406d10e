"""The least that grpc.aio's server can cost: one method that answers each call, unread, with the same bytes.

The bytes are an answer with one vector, as our server sends for a short text. Both servers get the same load.
"""

import argparse
import asyncio
import signal
from typing import Any

import grpc
import numpy as np

from trimtab.v1 import encoder_pb2 as pb
from trimtab.values import dense

METHOD = "Embed"
SERVICE = "trimtab.v1.EncoderService"


def answer(width: int) -> bytes:
    """A response with one unit vector."""
    vector = np.full((1, width), width**-0.5, np.float32)
    embeddings = pb.Embeddings(vectors=dense.pack(vector, "float32"), space="0123456789abcdef")
    return pb.EmbedResponse(
        embeddings=[embeddings], token_counts=[8], encoder="all-minilm-l6-v2", version="1"
    ).SerializeToString()


async def serve(width: int) -> None:
    """Serve until SIGTERM, at any free port."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    same = answer(width)

    async def echo(request: bytes, context: Any) -> bytes:
        return same

    server = grpc.aio.server()
    handlers: dict[str, Any] = {METHOD: grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"trimtab serves an echo on 127.0.0.1:{port}, metrics on nothing;", flush=True)
    await stopping.wait()
    await server.stop(1)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=384, help="of the vector that it answers with")
    asyncio.run(serve(parser.parse_args().width))


if __name__ == "__main__":
    main()
