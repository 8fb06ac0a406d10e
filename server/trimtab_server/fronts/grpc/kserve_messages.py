"""KServe's inference messages, from and to the pipeline's: parameters and tensors, each checked.

Texts come in as `text`, BYTES (n,) or (n, 1); `embeddings` (n, d) and `token_count` (n, 1) go out, always
as raw_output_contents.
"""

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from trimtab.core import options
from trimtab.core.option_kinds import whole
from trimtab.errors import InvalidArgument, Unimplemented
from trimtab.values.dense import STORAGE
from trimtab_server.callers.call import Call
from trimtab_server.outputs.dense import Matrix
from trimtab_server.tasks.embed import EmbedResult
from trimtab_server.tasks.pipeline import check_count
from trimtab_server.tasks.plan import EmbedRequest

TRITON_DTYPE = {"float32": "FP32", "float16": "FP16", "int8": "INT8", "ubinary": "UINT8"}
OUTPUTS = ("embeddings", "token_count")
PARAMETERS = (*options.PARAMETERS, "timeout")


def _parameters(request: Any) -> dict[str, Any]:
    """A request's parameters; unknown ones are refused."""
    given = {}
    for name, value in request.parameters.items():
        if name == "triton_enable_empty_final_response":  # a stream's own; see ModelStreamInfer
            continue
        if name not in PARAMETERS:
            raise InvalidArgument(
                f"parameter {name!r} is not known; this server takes {', '.join(PARAMETERS)}"
            )
        kind = value.WhichOneof("parameter_choice")
        given[name] = getattr(value, kind) if kind else None
    return given


def rows(request: Any) -> int:
    """How many texts a request says it has; `parse` refuses one that lies."""
    return max((tensor.shape[0] for tensor in request.inputs[:1] if tensor.shape), default=0)


def parse(call: Call, request: Any, max_texts: int) -> tuple[Call, EmbedRequest]:
    """A ModelInferRequest as the tasks take it; InvalidArgument names what is wrong with it."""
    given = _parameters(request)
    _wanted(request)
    seconds = None
    if "timeout" in given:  # microseconds, as Triton's
        seconds = whole("timeout", given.pop("timeout")) / 1e6
    asked = options.from_parameters(given)
    space, priority = asked.pop("space"), asked.pop("priority")
    return call.asking(priority, seconds), EmbedRequest(
        texts=_texts(request, max_texts),
        spaces=(space,) if space else (),
        **{**asked, "encoder": request.model_name, "version": request.model_version},
    )


def _texts(request: Any, most: int) -> list[str]:
    """The request's texts, `most` of them at most; InvalidArgument names the tensor or element at fault."""
    if len(request.inputs) != 1:
        raise InvalidArgument(f"the request has {len(request.inputs)} inputs; this encoder takes one, 'text'")
    tensor = request.inputs[0]
    if tensor.name != "text":
        raise InvalidArgument(f"the request has the input {tensor.name!r}; this encoder takes one, 'text'")
    if tensor.datatype != "BYTES":
        raise InvalidArgument(f"input 'text' is {tensor.datatype}; it must be BYTES")
    for name in tensor.parameters:
        if name == "binary_data_size":  # KServe's client repeats what the content itself tells
            continue
        raise InvalidArgument(f"input parameter {name!r} is not supported: send the texts in the request")
    if len(tensor.shape) not in (1, 2):
        raise InvalidArgument(
            f"the shape of input 'text' has {len(tensor.shape)} dimensions; it must be [n] or [n, 1]"
        )
    count, *columns = tensor.shape
    if columns not in ([], [1]) or count < 0:
        raise InvalidArgument(f"input 'text' has the shape {list(tensor.shape)}; it must be [n] or [n, 1]")
    check_count(count, most)
    if not request.raw_input_contents:
        elements, there = tensor.contents.bytes_contents, len(tensor.contents.bytes_contents)
    elif len(request.raw_input_contents) == 1:
        elements = list(islice(_elements(request.raw_input_contents[0]), count + 1))
        there = len(elements)
    else:
        raise InvalidArgument(
            f"raw_input_contents has {len(request.raw_input_contents)} entries for one input"
        )
    if there != count:
        given = f"{there} elements" if there < count else f"more than {count} elements"
        raise InvalidArgument(f"input 'text' has {given}, its shape {list(tensor.shape)} says {count}")
    return [_decode(element, row) for row, element in enumerate(elements)]


def _elements(data: bytes) -> Iterator[bytes]:
    """The elements of a raw BYTES tensor: each with its length before it, four bytes little-endian."""
    position, row = 0, 0
    while position < len(data):
        start = position + 4
        end = start + struct.unpack_from("<I", data, position)[0] if start <= len(data) else -1
        if not start <= end <= len(data):
            raise InvalidArgument(f"input 'text': element {row} is cut off at byte {len(data)} of the tensor")
        yield data[start:end]
        position, row = end, row + 1


def _decode(element: bytes, row: int) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"text[{row}] is not UTF-8: {error.reason} at byte {error.start}") from None


def _wanted(request: Any) -> list[str]:
    """The names of the requested outputs; all, if none is named."""
    if len(request.outputs) > len(OUTPUTS):
        raise InvalidArgument(
            f"the request names {len(request.outputs)} outputs, and there are {len(OUTPUTS)}: "
            f"{', '.join(OUTPUTS)}. Name each of them once"
        )
    if len(request.outputs) > len({output.name for output in request.outputs}):
        # Each would be a copy of all vectors: a message of megabytes could ask for terabytes.
        raise InvalidArgument("an output is named twice: name each of them once")
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise InvalidArgument(f"output {output.name!r} is not known; there are {', '.join(OUTPUTS)}")
        if output.parameters:
            name = next(iter(output.parameters))
            raise InvalidArgument(f"output parameter {name!r} is not supported")
    return [output.name for output in request.outputs] or list(OUTPUTS)


def respond(request: Any, result: EmbedResult) -> Any:
    """The ModelInferResponse with the outputs that the request wanted."""
    (answer,) = result.outputs
    route, output = answer.route, answer.finished
    if not isinstance(output, Matrix):
        raise Unimplemented(
            f"encoder {result.encoder.name} gives {answer.output.kind.kind}, and over KServe v2 this server "
            "gives dense vectors: use trimtab.v1"
        )
    tensors = {
        "embeddings": (TRITON_DTYPE[output.dtype], output.matrix.astype(STORAGE[output.dtype], copy=False)),
        "token_count": ("INT32", np.array(result.token_counts, "<i4")[:, None]),
    }
    response = pb.ModelInferResponse(
        id=request.id,
        model_name=result.encoder.name,
        model_version=str(result.encoder.version),
    )
    for name in _wanted(request):
        datatype, array = tensors[name]
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    response.parameters["space"].string_param = route.space
    response.parameters["variant"].string_param = result.encoder.variant.name
    if result.browned_out:
        response.parameters["browned_out"].bool_param = True
    if result.hubness is not None:
        response.parameters["suspicious"].string_param = ",".join(map(str, result.hubness.suspicious))
    if route.hops:
        response.parameters["adapters"].string_param = ",".join(route.names)
    if output.dtype == "int8":
        response.parameters["scale"].double_param = output.scale
    for stage in ("tokenize", "queue", "compute", "output"):
        response.parameters[f"{stage}_ns"].int64_param = round(getattr(result.times, stage) * 1e9)
    return response
