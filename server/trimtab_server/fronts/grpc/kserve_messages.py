"""KServe's inference messages, from and to the pipeline's: parameters and tensors, each checked.

Texts come in as `text`, BYTES (n,) or (n, 1). For an encoder of pairs, `query` comes beside it: a row for
each text, or one for all. Outputs go out as tensors, always as raw_output_contents. The encoder's first
output, if dense, is `embeddings` (n, d). What else there is, each kind of output names by the output's name.
`token_count` is (n, 1).
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from trimtab.core import options
from trimtab.core.option_kinds import whole
from trimtab.errors import InvalidArgument, Unimplemented
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import LoadedEncoder, ServedOutput
from trimtab_server.outputs.kind import TensorForm
from trimtab_server.tasks.embed import EmbedResult
from trimtab_server.tasks.pipeline import check_count
from trimtab_server.tasks.plan import EmbedRequest

# Triton's names of numpy's dtypes.
TRITON_DTYPE = {"float32": "FP32", "float16": "FP16", "int8": "INT8", "uint8": "UINT8", "int32": "INT32"}
TEXT, PAIR = "text", ("query", "text")  # the inputs
EMBEDDINGS, COUNT = "embeddings", "token_count"
MOST_OUTPUTS = 256  # in a request
NAME = 64  # characters of a tensor's name in a message
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
    return max((tensor.shape[0] for tensor in request.inputs[: len(PAIR)] if tensor.shape), default=0)


def inputs(encoder: LoadedEncoder) -> tuple[str, ...]:
    """The tensors that carry an encoder's items."""
    return PAIR if encoder.reader.form == "pair" else (TEXT,)


def forms(encoder: LoadedEncoder) -> dict[str, list[TensorForm]]:
    """For each output of an encoder, the tensors that carry it, if there are any."""
    return {
        output.name: [
            form._replace(name=_tensor(encoder, output, form.name))
            for form in output.kind.tensor_forms(output.name, output.own)
        ]
        for output in encoder.outputs.values()
    }


def _tensor(encoder: LoadedEncoder, output: ServedOutput, name: str) -> str:
    """What a tensor of an output is called: as before there were other outputs, if it is the first one's."""
    first = output.name == encoder.output.name and output.kind.kind == "dense"
    return EMBEDDINGS if first else name


def parse(
    call: Call, request: Any, max_texts: int, find: Callable[[str, str], LoadedEncoder]
) -> tuple[Call, EmbedRequest]:
    """A ModelInferRequest as the tasks take it; InvalidArgument names what is wrong with it. `find` finds an
    encoder by name and version."""
    given = _parameters(request)
    names = _named(request)
    outputs = _outputs(names, find(request.model_name, request.model_version)) if names else []
    seconds = None
    if "timeout" in given:  # microseconds, as Triton's
        seconds = whole("timeout", given.pop("timeout")) / 1e6
    asked = options.from_parameters(given)
    space, priority = asked.pop("space"), asked.pop("priority")
    items, form = _items(request, max_texts)
    return call.asking(priority, seconds), EmbedRequest(
        texts=items,
        form=form,
        spaces=(space,) if space else (),
        outputs=outputs,
        **{**asked, "encoder": request.model_name, "version": request.model_version},
    )


def _items(request: Any, most: int) -> tuple[Sequence[Any], str]:
    """The request's texts or pairs, `most` of them at most, and their form; InvalidArgument names the tensor
    or element at fault."""
    names = [tensor.name for tensor in request.inputs]
    if names == [TEXT]:
        return _texts(request, 0, most), "text"
    if sorted(names) != sorted(PAIR):
        given = ", ".join(repr(name[:NAME]) for name in names[: len(PAIR) + 1]) or "none"
        raise InvalidArgument(
            f"the request has {len(names)} inputs ({given}); an encoder of texts takes one, 'text', and "
            "one of pairs takes 'query' and 'text'"
        )
    queries, texts = (_texts(request, names.index(name), most) for name in PAIR)
    if len(queries) not in (1, len(texts)):
        raise InvalidArgument(
            f"input 'query' has {len(queries)} elements, and 'text' has {len(texts)}: send one query for all "
            "texts, or one for each"
        )
    if len(queries) == 1:
        queries = queries * len(texts)
    return list(zip(queries, texts, strict=True)), "pair"


def _texts(request: Any, place: int, most: int) -> list[str]:
    """The texts of the tensor at this place."""
    tensor = request.inputs[place]
    name = tensor.name
    if tensor.datatype != "BYTES":
        raise InvalidArgument(f"input {name!r} is {tensor.datatype}; it must be BYTES")
    for parameter in tensor.parameters:
        if parameter == "binary_data_size":  # KServe's client repeats what the content itself tells
            continue
        raise InvalidArgument(
            f"input parameter {parameter!r} is not supported: send the texts in the request"
        )
    if len(tensor.shape) not in (1, 2):
        raise InvalidArgument(
            f"the shape of input {name!r} has {len(tensor.shape)} dimensions; it must be [n] or [n, 1]"
        )
    count, *columns = tensor.shape
    if columns not in ([], [1]) or count < 0:
        raise InvalidArgument(f"input {name!r} has the shape {list(tensor.shape)}; it must be [n] or [n, 1]")
    check_count(count, most)
    raw, tensors = len(request.raw_input_contents), len(request.inputs)
    if not raw:
        elements, there = tensor.contents.bytes_contents, len(tensor.contents.bytes_contents)
    elif raw == tensors:
        elements = list(islice(_elements(request.raw_input_contents[place], name), count + 1))
        there = len(elements)
    else:
        many = "one input" if tensors == 1 else f"{tensors} inputs"
        raise InvalidArgument(f"raw_input_contents has {raw} entries for {many}")
    if there != count:
        given = f"{there} elements" if there < count else f"more than {count} elements"
        raise InvalidArgument(f"input {name!r} has {given}, its shape {list(tensor.shape)} says {count}")
    return [_decode(element, name, row) for row, element in enumerate(elements)]


def _elements(data: bytes, name: str) -> Iterator[bytes]:
    """The elements of a raw BYTES tensor: each with its length before it, four bytes little-endian."""
    position, row = 0, 0
    while position < len(data):
        start = position + 4
        end = start + struct.unpack_from("<I", data, position)[0] if start <= len(data) else -1
        if not start <= end <= len(data):
            raise InvalidArgument(
                f"input {name!r}: element {row} is cut off at byte {len(data)} of the tensor"
            )
        yield data[start:end]
        position, row = end, row + 1


def _decode(element: bytes, name: str, row: int) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{name}[{row}] is not UTF-8: {error.reason} at byte {error.start}") from None


def _named(request: Any) -> list[str]:
    """The names of the tensors that a request wants; none: those of the first output."""
    if len(request.outputs) > MOST_OUTPUTS:
        raise InvalidArgument(
            f"the request names {len(request.outputs)} outputs, and this server takes {MOST_OUTPUTS}: name "
            "each of them once"
        )
    names = [output.name for output in request.outputs]
    if len(names) > len(set(names)):
        # Each would be a copy of all vectors: a message of megabytes could ask for terabytes.
        raise InvalidArgument("an output is named twice: name each of them once")
    for output in request.outputs:
        if output.parameters:
            name = next(iter(output.parameters))
            raise InvalidArgument(f"output parameter {name!r} is not supported")
    return names


def _outputs(names: list[str], encoder: LoadedEncoder) -> list[str]:
    """The outputs that these tensors carry; none, if that is the first one alone."""
    owners = {form.name: output for output, each in forms(encoder).items() for form in each}
    for name in names:
        if name not in owners and name != COUNT:
            raise InvalidArgument(f"output {name!r} is not known; there are {', '.join([*owners, COUNT])}")
    wanted = list(dict.fromkeys(owners[name] for name in names if name != COUNT))
    return [] if wanted in ([], [encoder.output.name]) else wanted


def respond(request: Any, result: EmbedResult) -> Any:
    """The ModelInferResponse with the outputs that the request wanted."""
    first, *others = result.outputs
    tensors = _tensors(result)
    response = pb.ModelInferResponse(
        id=request.id,
        model_name=result.encoder.name,
        model_version=str(result.encoder.version),
    )
    for name in [output.name for output in request.outputs] or list(tensors):
        array = tensors[name]
        response.outputs.add(name=name, datatype=TRITON_DTYPE[array.dtype.name], shape=array.shape)
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        response.raw_output_contents.append(little.tobytes())
    parameters = response.parameters
    parameters["space"].string_param = first.route.space
    for answer in others:
        parameters[f"{answer.output.name}_space"].string_param = answer.route.space
    parameters["variant"].string_param = result.encoder.variant.name
    if result.browned_out:
        parameters["browned_out"].bool_param = True
    if result.hubness is not None:
        parameters["suspicious"].string_param = ",".join(map(str, result.hubness.suspicious))
    for answer in result.outputs:
        if answer.route.hops:
            parameters["adapters"].string_param = ",".join(answer.route.names)
        if scale := getattr(answer.finished, "scale", 0.0):  # of int8
            name = "scale" if answer is first else f"{answer.output.name}_scale"
            parameters[name].double_param = scale
    for stage in ("tokenize", "queue", "compute", "output"):
        parameters[f"{stage}_ns"].int64_param = round(getattr(result.times, stage) * 1e9)
    return response


def _tensors(result: EmbedResult) -> Mapping[str, Any]:
    """The arrays of a result by their names; Unimplemented for what has none."""
    known = forms(result.encoder)
    found: dict[str, Any] = {}
    for answer in result.outputs:
        kind, names = answer.output.kind, [form.name for form in known[answer.output.name]]
        if not names:
            raise Unimplemented(
                f"encoder {result.encoder.name} gives {kind.kind}, which this server does not give over "
                "KServe v2: use trimtab.v1"
            )
        found.update(zip(names, kind.tensors(answer.finished), strict=True))
    return {**found, COUNT: np.array(result.token_counts, "<i4")[:, None]}
