"""Matrices on the wire: raw little-endian bytes with their dtype and shape, never `repeated float`."""

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import InvalidArgument
from trimtab.kinds import Dtype
from trimtab.v1 import encoder_pb2 as pb

# How each dtype is stored. '<' fixes the byte order, whatever the machine's own is.
STORAGE: dict[Dtype, np.dtype[np.generic]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "int8": np.dtype("i1"),
    "ubinary": np.dtype("u1"),
}
TO_PROTO: dict[Dtype, pb.DataType.ValueType] = {
    "float32": pb.DATA_TYPE_FLOAT32,
    "float16": pb.DATA_TYPE_FLOAT16,
    "int8": pb.DATA_TYPE_INT8,
    "ubinary": pb.DATA_TYPE_UBINARY,
}
FROM_PROTO: dict[int, Dtype] = {
    pb.DATA_TYPE_UNSPECIFIED: "float32",
    **{value: name for name, value in TO_PROTO.items()},
}


def pack(matrix: NDArray[np.generic], dtype: Dtype, scale: float = 0.0) -> pb.Matrix:
    """The message for an (n, d) array that already has `dtype`."""
    message = pb.Matrix()
    write(message, matrix, dtype, scale)
    return message


def write(message: pb.Matrix, matrix: NDArray[np.generic], dtype: Dtype, scale: float = 0.0) -> None:
    """As `pack`, but into an empty message: putting a message into another one copies it, with its bytes."""
    message.rows, message.columns = matrix.shape
    message.data = np.ascontiguousarray(matrix, STORAGE[dtype]).tobytes()
    message.dtype = TO_PROTO[dtype]
    message.scale = scale


def unpack(matrix: pb.Matrix) -> NDArray[np.generic]:
    """The message as a read-only (n, d) array that shares the message's bytes.

    Raises InvalidArgument if the bytes do not match the shape.
    """
    dtype = FROM_PROTO.get(matrix.dtype)
    if dtype is None:
        raise InvalidArgument(f"matrix of unknown dtype {matrix.dtype}: a newer server? Upgrade the client")
    storage = STORAGE[dtype]
    expected = matrix.rows * matrix.columns * storage.itemsize
    if len(matrix.data) != expected:
        raise InvalidArgument(
            f"matrix of {matrix.rows} x {matrix.columns} {dtype} needs {expected} bytes, "
            f"got {len(matrix.data)}"
        )
    return np.frombuffer(matrix.data, storage).reshape(matrix.rows, matrix.columns)
