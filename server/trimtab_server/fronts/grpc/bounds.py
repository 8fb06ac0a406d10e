"""Bounds how many fields a message has, counted in its bytes, before protobuf makes objects of them.

An empty element takes two bytes on the wire, but 60 to 90 in memory, so a message of 16 MiB could take a
gigabyte, and seconds to parse. A valid request has few fields, whatever its size. So they are counted, at
every depth, and the count stops at the limit. What precisely is too much, the request's own checks say
afterwards, if they can; what they go through is bounded here.

No valid request is refused: one with `max_texts` texts has a field for each (a candidate has four: itself,
its id, its text, its digest; so has a pair; a raw tensor has none) and some dozens besides, where there is
room for hundreds. A field has at least two bytes, so a message that is too short to hold too many is not
counted.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor

from trimtab.errors import InvalidArgument

LENGTH = 2  # the wire type of what has a length before it
FIELDS_A_TEXT = 4
FIELDS_BESIDE = 256
# The longest name. Encoders' names are shorter; callers choose ids and groups.
NAME_BYTES = 1024
# Fields with texts may be as long as the message; the limits of texts are checked when they are read.
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

# For fields with a length, by their numbers: the shape of the message inside, or the field's name.
Shape: TypeAlias = Mapping[int, "Shape | str"]


def bounded(deserialize: Callable[[bytes], Any], max_texts: int) -> Callable[[bytes], Any]:
    """A message class's `FromString`, which refuses messages with too many fields: InvalidArgument, naming
    the limit.

    ValueError if the bytes are not a message at all.
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
    """The fields of a message class. This ends, because no message of ours contains itself."""
    shape: dict[int, Shape | str] = {}
    for field in described.fields:
        if field.message_type is not None:
            shape[field.number] = _shape(field.message_type)
        elif field.full_name not in LONG:
            shape[field.number] = field.full_name
    return shape


def _count(data: bytes, position: int, end: int, shape: Shape, left: int) -> int:
    """How many of the `left` fields remain after those from `position` to `end`; below 0 if there are
    more."""
    while position < end:
        left -= 1
        if left < 0:
            return left
        key = data[position]  # nearly always one byte, and a call for each would take most of the time
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
    """Where the number that begins at `position` ends."""
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
