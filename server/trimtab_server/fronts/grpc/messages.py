"""Parses messages, and refuses those that do not parse, are compressed, or are too large for their method."""

from collections.abc import Callable
from typing import Any

from trimtab.errors import InvalidArgument, TrimtabError, Unimplemented

# The methods whose messages hold texts; those of all others fit into SMALL_BYTES.
LARGE = frozenset(
    {
        "/trimtab.v1.EncoderService/Embed",
        "/trimtab.v1.EncoderService/EmbedStream",
        "/trimtab.v1.EncoderService/Rescore",
        "/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ModelStreamInfer",
    }
)
SMALL_BYTES = 16 << 10
# How gzip's output begins, which is never a protobuf, and zlib's, which hardly ever is.
COMPRESSED = (b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")


def parse_with(deserialize: Callable[[bytes], Any], most: int | None) -> Callable[[bytes], Any]:
    """`deserialize`, with an error of ours for what it refuses, or for more than `most` bytes."""

    def parse(data: bytes) -> Any:
        try:
            if most is not None and len(data) > most:
                raise InvalidArgument(
                    f"the message has {len(data)} bytes, and this call takes {most}: send less"
                )
            return deserialize(data)
        except Exception as error:
            refusal = _refused(data, error)
        raise refusal

    return parse


def _refused(data: bytes, error: Exception) -> TrimtabError:
    """Why a message is refused. Never the original error, whose traceback keeps the data."""
    if data.startswith(COMPRESSED):
        return Unimplemented(
            "the message is compressed, which this server does not accept: call without compression "
            "(compression= in gRPC, compression_algorithm= in tritonclient)"
        )
    if isinstance(error, InvalidArgument):
        return InvalidArgument(str(error))
    return InvalidArgument(
        f"the message is not the protobuf that this method takes ({error}): "
        "strings must be UTF-8, and the client must use the server's .proto"
    )
