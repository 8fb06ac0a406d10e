"""Turn answers into arrays: check them against the request, and never join vectors of two spaces. No IO."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.core.answers import (
    Embeddings,
    StageTimes,
    Vectors,
)
from trimtab.errors import FailedPrecondition, InternalError, InvalidArgument, NotFound
from trimtab.kinds import Dtype
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values.dense import FROM_PROTO, unpack

_NANOSECOND = 1e-9


@dataclass(frozen=True, slots=True)
class Origin:
    """What all rows of one result must have in common."""

    encoder: str
    version: str
    space: str
    dtype: Dtype
    scale: float
    columns: int

    def check(self, other: "Origin") -> None:
        """Raise FailedPrecondition if `other`, of a later answer to the same call, is not the same."""
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
    """One answer of the server, in one space, validated."""

    origin: Origin
    vectors: Vectors
    token_counts: NDArray[np.uint32]
    times: StageTimes
    adapters: tuple[str, ...]
    variant: str
    browned_out: bool
    reach: NDArray[np.float32] | None  # None: not checked
    suspicious: NDArray[np.bool_]  # all False if not checked


def parse(response: pb.EmbedResponse, texts: int, spaces: int = 1) -> list[Part]:
    """The answer to a request with so many texts, one part per space. InternalError if it does not fit the
    request; FailedPrecondition if the encoder gives anything but dense vectors."""
    if response.outputs:
        given = ", ".join(f"{output.name} ({output.kind})" for output in response.outputs)
        raise FailedPrecondition(
            f"encoder {response.encoder} gives {given}, and embed gives dense vectors: call embed_outputs, "
            "or name another encoder"
        )
    if len(response.embeddings) != spaces:
        raise InternalError(f"the server answered for {len(response.embeddings)} spaces instead of {spaces}")
    if len(response.token_counts) != texts:  # before anything is done with each of them
        raise InternalError(
            f"the server answered {texts} texts with {len(response.token_counts)} token counts"
        )
    counts = np.array(response.token_counts, np.uint32)
    stages = stage_times(response.times)
    return [_part(response, each, texts, counts, stages) for each in response.embeddings]


def stage_times(times: pb.StageTimes) -> StageTimes:
    """The server's times in seconds."""
    return StageTimes(
        tokenize=times.tokenize * _NANOSECOND,
        queue=times.queue * _NANOSECOND,
        compute=times.compute * _NANOSECOND,
        output=times.output * _NANOSECOND,
    )


def total(times: Sequence[StageTimes]) -> StageTimes:
    """The times of several requests, added up."""
    return StageTimes(
        tokenize=sum(each.tokenize for each in times),
        queue=sum(each.queue for each in times),
        compute=sum(each.compute for each in times),
        output=sum(each.output for each in times),
    )


def _part(
    response: pb.EmbedResponse,
    embeddings: pb.Embeddings,
    texts: int,
    counts: NDArray[np.uint32],
    times: StageTimes,
) -> Part:
    try:
        packed = unpack(embeddings.vectors)
    except InvalidArgument as error:
        raise InternalError(f"the server's answer cannot be read: {error}") from None
    if len(packed) != texts:
        raise InternalError(f"the server answered {texts} texts with {len(packed)} vectors")
    origin = Origin(
        response.encoder,
        response.version,
        embeddings.space,
        FROM_PROTO[embeddings.vectors.dtype],
        embeddings.vectors.scale,
        packed.shape[1],
    )
    # A copy belongs to the caller, is writable, and has the machine's byte order.
    vectors = packed.astype(packed.dtype.newbyteorder("="))
    reach, suspicious = None, np.zeros(texts, np.bool_)
    if response.HasField("hubness"):
        if len(response.hubness.reach) != texts:
            raise InternalError(f"the server checked {len(response.hubness.reach)} of {texts} passages")
        reach = np.array(response.hubness.reach, np.float32)
        suspicious = reach > response.hubness.threshold
    return Part(
        origin,
        vectors,
        counts,
        times,
        tuple(embeddings.adapters),
        response.variant,
        response.browned_out,
        reach,
        suspicious,
    )


def join(parts: Sequence[Part], space: str = "") -> Embeddings:
    """The parts of one call, joined; FailedPrecondition if their spaces or versions differ.

    InternalError if they are not of the requested `space`.
    """
    origin = parts[0].origin
    looked = any(part.reach is not None for part in parts)
    if space not in ("", origin.space):
        raise InternalError(f"the server answered in space {origin.space} instead of {space}")
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
        times=total([part.times for part in parts]),
        adapters=tuple(dict.fromkeys(name for part in parts for name in part.adapters)),
        # If a brownout began or ended in between, name the fallback.
        variant=next((part.variant for part in parts if part.browned_out), parts[0].variant),
        browned_out=any(part.browned_out for part in parts),
        reach=np.concatenate([_reach(part) for part in parts]) if looked else None,
        suspicious=np.concatenate([part.suspicious for part in parts]) if looked else None,
    )


def _reach(part: Part) -> NDArray[np.float32]:
    return np.full(len(part.vectors), np.nan, np.float32) if part.reach is None else part.reach


def join_spaces(answers: Sequence[Sequence[Part]], spaces: Sequence[str]) -> dict[str, Embeddings]:
    """Answers that each cover several spaces, joined by space as `join` does."""
    return {space: join([answer[number] for answer in answers], space) for number, space in enumerate(spaces)}


def unloaded(error: NotFound, encoder: str, version: str) -> FailedPrecondition:
    """The error for a version that was served when the call began and is gone now."""
    return FailedPrecondition(
        f"version {version} of {encoder!r} was unloaded during the call ({error}), and another version's "
        "vectors must not be mixed with its own; call again to embed all texts with the version served now"
    )
