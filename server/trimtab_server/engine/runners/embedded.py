"""An ONNX graph with its external data inside, for runtimes that would read that from files.

Only the part of ONNX's schema that leads to tensors is declared here; protobuf keeps the rest as it is. So
the server does not need the package onnx. Source of the field numbers: onnx.proto of ONNX 1.23.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from trimtab.artifacts import openvino
from trimtab_server.engine.runners.runner import GraphError

EXTERNAL = 1  # TensorProto.DataLocation
MOST_BYTES = (1 << 31) - 1  # of a message of protobuf
MOST_DIGITS = 19  # of a number of bytes
# For each message its fields: a number, a type, and whether there are several.
SCHEMA: dict[str, dict[str, tuple[int, str, bool]]] = {
    "Model": {"graph": (7, "Graph", False), "functions": (25, "Function", True)},
    "Function": {"node": (7, "Node", True), "attribute": (11, "Attribute", True)},
    "Graph": {"node": (1, "Node", True), "initializer": (5, "Tensor", True), "sparse": (15, "Sparse", True)},
    "Node": {"op_type": (4, "", False), "attribute": (5, "Attribute", True), "domain": (7, "", False)},
    "Attribute": {
        "t": (5, "Tensor", False), "g": (6, "Graph", False), "tensors": (10, "Tensor", True),
        "graphs": (11, "Graph", True), "sparse": (22, "Sparse", False), "sparses": (23, "Sparse", True),
    },
    "Sparse": {"values": (1, "Tensor", False), "indices": (2, "Tensor", False)},
    "Tensor": {
        "name": (8, "", False), "raw_data": (9, "", False), "external_data": (13, "Entry", True),
        "data_location": (14, "int", False),
    },
    "Entry": {"key": (1, "", False), "value": (2, "", False)},
}  # fmt: skip
Field = descriptor_pb2.FieldDescriptorProto


def embedded(graph: bytes | bytearray, data: Mapping[str, bytearray], refused: Mapping[str, str]) -> bytes:
    """The graph with its external data, `data` by the graph's names for it, inside.

    Args:
        refused: operators that the graph must not have, with the reason.

    Raises GraphError if it has one of them or one that is not ONNX's own, names other data, or is too large.
    """
    model = _parsed(graph)
    size = len(graph)
    for message in _all(model):
        if message.DESCRIPTOR.name == "Node":
            _check(message, refused)
        elif message.DESCRIPTOR.name == "Tensor" and (message.external_data or message.data_location):
            size += _embed(message, data)
            if size > MOST_BYTES:
                raise GraphError(
                    f"has more than {MOST_BYTES} bytes of weights, more than OpenVINO reads from memory: "
                    "serve a variant for ONNX Runtime"
                )
    whole: bytes = model.SerializeToString()
    return whole


def _parsed(graph: bytes | bytearray) -> Any:
    try:
        return _model().FromString(bytes(graph))
    except DecodeError:
        raise GraphError("cannot be opened: it is no ONNX graph. Export it again") from None


def _check(node: Any, refused: Mapping[str, str]) -> None:
    name, domain = (each.decode("utf-8", "replace") for each in (node.op_type, node.domain))
    if domain not in openvino.DOMAINS:
        raise GraphError(
            f"has the operator {name} of {domain}, and OpenVINO is only given ONNX's own: serve it with "
            "ONNX Runtime"
        )
    if name in refused:
        raise GraphError(f"has the operator {name}, {refused[name]}: serve it with ONNX Runtime")


def _embed(tensor: Any, data: Mapping[str, bytearray]) -> int:
    """Put a tensor's external data into it. Returns its size."""
    told = {each.key: each.value.decode("utf-8", "replace") for each in tensor.external_data}
    name, where = tensor.name.decode("utf-8", "replace"), told.get(b"location", "")
    if tensor.data_location != EXTERNAL or where not in data:
        raise GraphError(f"reads {name!r} from {where!r}, which its manifest does not name: export it again")
    begin = _number(told.get(b"offset", "0"))
    end = begin + _number(told[b"length"]) if b"length" in told else len(data[where])
    if not 0 <= begin <= end <= len(data[where]):
        raise GraphError(f"reads {name!r} from beyond the end of {where!r}: export it again")
    tensor.raw_data = bytes(memoryview(data[where])[begin:end])
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    return end - begin


def _number(text: str) -> int:
    """A number of bytes; one that no file has, if it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < MOST_DIGITS else MOST_BYTES + 1


def _all(message: Any) -> Iterator[Any]:
    """A message, and all that are in it."""
    yield message
    for field, value in message.ListFields():
        if field.type == Field.TYPE_MESSAGE:
            for each in [value] if isinstance(value, Message) else value:
                yield from _all(each)


@cache
def _model() -> Any:
    """The class of whole models."""
    file = descriptor_pb2.FileDescriptorProto(name="trimtab/onnx.proto", package="trimtab.onnx")
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, several) in fields.items():
            made = message.field.add(name=field, number=number)
            made.label = Field.LABEL_REPEATED if several else Field.LABEL_OPTIONAL
            made.type = {"": Field.TYPE_BYTES, "int": Field.TYPE_INT32}.get(kind, Field.TYPE_MESSAGE)
            if made.type == Field.TYPE_MESSAGE:
                made.type_name = f".trimtab.onnx.{kind}"
    pool = descriptor_pool.DescriptorPool()  # of its own: the package onnx has its schema in the default one
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("trimtab.onnx.Model"))
