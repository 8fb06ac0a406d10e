"""What a message may hold, seen in its bytes: before protobuf makes objects of them, and Python walks these.

Two bytes on the wire are an empty element, and some 60 to 90 bytes in memory, so that a message of 16 MiB can
take a gigabyte and seconds. A valid request has few fields, whatever its size; so they are counted, at every
depth, and the count ends at the limit. Which count it is that is too high the request's own checks say, where
they can; all that they walk is bounded here.

The count refuses no valid request: one with `max_texts` texts has a field for each (a candidate has four:
itself, its id, its text, its digest; so has a pair; a raw tensor none), and some dozens beside them, where
there is room for hundreds. A message so short that it cannot hold too many fields, of two bytes at least, is
not looked at.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor

from trimtab.errors import InvalidArgument

LENGTH = 2  # the wire type of what has a length before it
FIELDS_A_TEXT = 4
FIELDS_BESIDE = 256
# Of what names something. Encoders' own names are shorter; callers choose ids and groups.
NAME_BYTES = 1024
# What holds texts is as long as the message allows; the limits of texts are looked at where they are read.
LONG = frozenset(
    {
        "trimtab.v1.EmbedRequest.texts",
        "trimtab.v1.Input.text",
        "trimtab.v1.Input.image",
        "trimtab.v1.Pair.first",
        "trimtab.v1.Pair.second",
        "trimtab.v1.Tokens.ids",
        "trimtab.v1.RescoreRequest.query",
        "trimtab.v1.Candidate.text",
        "inference.ModelInferRequest.raw_input_contents",
        "inference.InferTensorContents.bytes_contents",
    }
)

# By field number, what is known of the fields that have a length: the message inside, or what it is called.
Shape: TypeAlias = Mapping[int, "Shape | str"]


def bounded(deserialize: Callable[[bytes], Any], max_texts: int) -> Callable[[bytes], Any]:
    """A message class's `FromString` that refuses what holds too much: InvalidArgument, naming the limit.

    ValueError where the bytes are no message at all.
    """
    described = getattr(getattr(deserialize, "__self__", None), "DESCRIPTOR", None)
    if not isinstance(described, Descriptor):
        raise TypeError(f"{deserialize!r} is not the FromString of a message class")
    shape, most = _shape(described), FIELDS_A_TEXT * max_texts + FIELDS_BESIDE

    def parse(data: bytes) -> Any:
        if len(data) > 2 * most and _count(data, 0, len(data), shape, most) < 0:
            raise InvalidArgument(
                f"the message has more than {most} fields, and this server takes {max_texts} texts in one "
                "request (limits.max_texts): split it, or use a stream"
            )
        return deserialize(data)

    return parse


def _shape(described: Descriptor) -> Shape:
    """No message of ours holds itself."""
    shape: dict[int, Shape | str] = {}
    for field in described.fields:
        if field.message_type is not None:
            shape[field.number] = _shape(field.message_type)
        elif field.full_name not in LONG:
            shape[field.number] = field.full_name
    return shape


def _count(data: bytes, position: int, end: int, shape: Shape, left: int) -> int:
    """How many of the fields that are `left` the message from `position` to `end` does not take; below 0
    where it has more."""
    while position < end:
        left -= 1
        if left < 0:
            return left
        key = data[position]  # nearly all are of one byte, and a call for each would be most of the time
        if key < 128:
            position += 1
        else:
            key, position = _number(data, position, end)
        if key & 7 != LENGTH:
            position = _behind(key & 7, data, position, end)
            continue
        if position < end and data[position] < 128:
            size, position = data[position], position + 1
        else:
            size, position = _number(data, position, end)
        after = position + size
        if after > end:
            raise ValueError("a field is longer than its message")
        known = shape.get(key >> 3)
        if isinstance(known, str):
            if size > NAME_BYTES:
                raise InvalidArgument(
                    f"{known} has {size} bytes, and this server takes {NAME_BYTES}: send less"
                )
        elif known is not None:
            left = _count(data, position, after, known, left)
            if left < 0:
                return left
        position = after
    return left


def _behind(kind: int, data: bytes, position: int, end: int) -> int:
    """Where a number ends that begins at `position`."""
    if kind == 0:
        return _number(data, position, end)[1]
    if kind not in (1, 5):
        raise ValueError(f"a field is of the wire type {kind}, which no message of ours has")
    position += 8 if kind == 1 else 4
    if position > end:
        raise ValueError("a field is longer than its message")
    return position


def _number(data: bytes, position: int, end: int) -> tuple[int, int]:
    """The varint at `position`, and where it ends."""
    number = 0
    for place in range(10):
        if position + place >= end:
            raise ValueError("a number is longer than its message")
        byte = data[position + place]
        number |= (byte & 127) << 7 * place
        if byte < 128:
            return number, position + place + 1
    raise ValueError("a number has more than 64 bits")
