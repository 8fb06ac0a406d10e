"""What a message may hold is counted in its bytes: too much is refused there, a valid request never."""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as inference

from trimtab.errors import InvalidArgument
from trimtab.v1 import encoder_pb2 as pb
from trimtab_server.fronts.grpc.bounds import FIELDS_A_TEXT, FIELDS_BESIDE, LENGTH, LONG, NAME_BYTES, bounded

FILES = (pb, inference, health_pb2, reflection_pb2)
REQUESTS = {
    method.input_type.full_name: method.input_type
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
MOST = 8  # texts
FIELDS = FIELDS_A_TEXT * MOST + FIELDS_BESIDE


def paths(described: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field of a message, by the fields that lead to it."""
    for field in described.fields:
        yield (*before, field)
        if field.message_type is not None:
            yield from paths(field.message_type, (*before, field))


def number(value: int) -> bytes:
    """A varint."""
    return bytes((value,)) if value < 128 else bytes((value % 128 + 128,)) + number(value // 128)


def inside(path: tuple[Any, ...], content: bytes) -> bytes:
    """`content` within the messages of these fields."""
    for field in reversed(path):
        content = number(field.number << 3 | LENGTH) + number(len(content)) + content
    return content


def parse(described: Any, data: bytes) -> Any:
    return bounded(GetMessageClass(described).FromString, MOST)(data)


ALL = [
    (described, path)
    for described in REQUESTS.values()
    for path in paths(described)
    if path[-1].cpp_type in (FieldDescriptor.CPPTYPE_MESSAGE, FieldDescriptor.CPPTYPE_STRING)
]


def name(value: Any) -> str:
    return ".".join(field.name for field in value) if isinstance(value, tuple) else value.name


@pytest.mark.parametrize(("described", "path"), ALL, ids=name)
def test_too_many_of_anything_are_refused_in_every_message(described: Any, path: tuple[Any, ...]) -> None:
    """Empty elements, which cost the least on the wire and the most in memory."""
    many = inside(path[:-1], inside(path[-1:], b"") * (FIELDS + 1))
    with pytest.raises(InvalidArgument, match=r"more than 288 fields.*max_texts"):
        parse(described, many)


@pytest.mark.parametrize(("described", "path"), ALL, ids=name)
def test_what_names_something_has_a_length(described: Any, path: tuple[Any, ...]) -> None:
    field = path[-1]
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return
    parse(described, inside(path, b"a" * NAME_BYTES))
    if field.full_name in LONG:
        parse(described, inside(path, b"a" * 100_000))
        return
    with pytest.raises(InvalidArgument, match=rf"{field.name} has {NAME_BYTES + 1} bytes.*{NAME_BYTES}"):
        parse(described, inside(path, b"a" * (NAME_BYTES + 1)))


def test_packed_numbers_are_counted_by_their_bytes() -> None:
    described = REQUESTS["inference.ModelInferRequest"]
    tensor = described.fields_by_name["inputs"]
    shape = tensor.message_type.fields_by_name["shape"]
    with pytest.raises(InvalidArgument, match=r"shape has 5000 bytes"):
        parse(described, inside((tensor, shape), bytes(5000)))
    with pytest.raises(InvalidArgument, match="fields"):  # unpacked
        parse(described, inside((tensor,), bytes((shape.number << 3, 0)) * 5000))


texts = st.lists(st.text(max_size=400), min_size=MOST, max_size=MOST)
short = st.text(max_size=40)


@given(texts=texts, names=st.tuples(short, short, short, short), spaces=st.lists(short, max_size=8))
def test_a_full_request_is_taken_as_it_is(
    texts: list[str], names: tuple[str, ...], spaces: list[str]
) -> None:
    encoder, version, group, variant = names
    embed = pb.EmbedRequest(
        encoder=encoder, version=version, texts=texts, spaces=spaces, group=group, variant=variant,
        role=1, truncate=1, dimensions=2**32 - 1, dtype=1, priority=1, layers=1, refuse_brownout=True,
    )  # fmt: skip
    candidates = [pb.Candidate(id=text[:99], text=text) for text in texts]
    rescore = pb.RescoreRequest(
        encoder=encoder, query=texts[0], candidates=candidates, truncate=1, priority=1
    )
    infer = inference.ModelInferRequest(model_name=encoder, id=group)
    infer.inputs.add(name="text", datatype="BYTES", shape=[MOST, 1])
    infer.inputs[0].contents.bytes_contents.extend(text.encode() for text in texts)
    for output in ("embeddings", "token_count"):
        infer.outputs.add(name=output)
    for parameter in "abcdefghijklm":
        infer.parameters[parameter].string_param = variant
    for message in (embed, pb.EmbedStreamRequest(id=2**64 - 1, request=embed), rescore, infer):
        # Beside what this server knows, a few fields of a newer client's.
        data = message.SerializeToString() + bytes((15 << 3 | 5, 1, 2, 3, 4, 14 << 3 | 1, *range(8)))
        assert parse(message.DESCRIPTOR, data) == type(message).FromString(data)


@given(st.sampled_from(sorted(REQUESTS)), st.binary(max_size=80), st.integers(0, 70))
def test_what_is_no_message_is_no_message_however_long(which: str, data: bytes, times: int) -> None:
    """Where the bytes are counted, and where they are too few for that."""
    described = REQUESTS[which]
    data *= times
    try:
        parsed = parse(described, data)
    except InvalidArgument:
        return
    except Exception:
        parsed = None
    try:
        expected = GetMessageClass(described).FromString(data)
    except Exception:
        expected = None
    if expected is None:
        assert parsed is None
    elif parsed is not None:  # refused otherwise: groups, which no message of ours has
        assert parsed == expected


def test_only_classes_of_messages_are_bounded() -> None:
    with pytest.raises(TypeError, match="FromString"):
        bounded(bytes, 1)
