"""Answers into arrays: check that they fit what was asked, and never join vectors of two spaces. No IO."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import FailedPrecondition, InternalError, InvalidArgument, NotFound
from trimtab.types import Embeddings, Encoder, Limits, StageTimes, Vectors
from trimtab.v1 import encoder_pb2 as pb
from trimtab.vectors import FROM_PROTO, Dtype, unpack

_NANOSECOND = 1e-9


@dataclass(frozen=True, slots=True)
class Origin:
    """What must be the same of all rows that a caller gets together."""

    encoder: str
    version: str
    space: str
    dtype: Dtype
    scale: float
    columns: int

    def check(self, other: "Origin") -> None:
        """FailedPrecondition where `other`, of a later answer to the same call, is not the same."""
        if other != self:
            raise FailedPrecondition(
                f"the server's vectors changed during the call, from {self._text()} to {other._text()}; "
                "they must not be mixed. Call again; if it happens again, the servers behind this address "
                "hold different bundles under one version"
            )

    def _text(self) -> str:
        return (
            f"{self.columns} x {self.dtype} of space {self.space} ({self.encoder} {self.version}"
            f"{f', scale {self.scale:g}' if self.scale else ''})"
        )


@dataclass(frozen=True, slots=True)
class Part:
    """One answer of the server, checked."""

    origin: Origin
    vectors: Vectors
    token_counts: NDArray[np.uint32]
    times: StageTimes


def parse(response: pb.EmbedResponse, texts: int) -> Part:
    """The answer to a request of so many texts. InternalError where it does not fit."""
    try:
        packed = unpack(response.embeddings)
    except InvalidArgument as error:
        raise InternalError(f"the server's answer cannot be read: {error}") from None
    counts = np.array(response.token_counts, np.uint32)
    if len(packed) != texts or len(counts) != texts:
        raise InternalError(
            f"the server answered {texts} texts with {len(packed)} vectors and {len(counts)} token counts"
        )
    origin = Origin(
        response.encoder,
        response.version,
        response.space,
        FROM_PROTO[response.embeddings.dtype],
        response.embeddings.scale,
        packed.shape[1],
    )
    times = StageTimes(
        tokenize=response.times.tokenize * _NANOSECOND,
        queue=response.times.queue * _NANOSECOND,
        compute=response.times.compute * _NANOSECOND,
        output=response.times.output * _NANOSECOND,
    )
    # A copy: the caller's own, writable, and in the machine's byte order.
    return Part(origin, packed.astype(packed.dtype.newbyteorder("=")), counts, times)


def join(parts: Sequence[Part]) -> Embeddings:
    """The parts of one call as one; FailedPrecondition where they are of different spaces or versions."""
    origin = parts[0].origin
    for part in parts:
        origin.check(part.origin)
    return Embeddings(
        vectors=parts[0].vectors if len(parts) == 1 else np.concatenate([part.vectors for part in parts]),
        token_counts=np.concatenate([part.token_counts for part in parts]),
        encoder=origin.encoder,
        version=origin.version,
        space=origin.space,
        dtype=origin.dtype,
        scale=origin.scale,
        times=StageTimes(
            tokenize=sum(part.times.tokenize for part in parts),
            queue=sum(part.times.queue for part in parts),
            compute=sum(part.times.compute for part in parts),
            output=sum(part.times.output for part in parts),
        ),
    )


def unloaded(error: NotFound, encoder: str, version: str) -> FailedPrecondition:
    """What NotFound means within a call that is pinned to a version that was there at its start."""
    return FailedPrecondition(
        f"version {version} of {encoder!r} was unloaded during the call ({error}), and another version's "
        "vectors must not be mixed with its own; call again to embed all texts with the version served now"
    )


def describe(message: pb.Encoder) -> Encoder:
    """An encoder as the SDK's own type, without the dtypes of a newer server that this client cannot read."""
    return Encoder(
        name=message.name,
        version=message.version,
        space=message.space,
        dimensions=message.dimensions,
        max_tokens=message.max_tokens,
        similarity=message.similarity,
        pooling=message.pooling,
        normalized=message.normalized,
        query_prompt=message.query_prompt,
        passage_prompt=message.passage_prompt,
        dtypes=tuple(FROM_PROTO[dtype] for dtype in message.dtypes if dtype in FROM_PROTO),
        limits=Limits(
            max_texts=message.limits.max_texts,
            max_text_bytes=message.limits.max_text_bytes,
            max_message_bytes=message.limits.max_message_bytes,
        ),
    )
