"""Turn answers with named outputs into values, by their forms; parts of one call are joined. No IO."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.core.answers import Outputs
from trimtab.core.responses import stage_times, total
from trimtab.errors import FailedPrecondition, InternalError, InvalidArgument
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values import dense, multi_vector, sparse


class Form(NamedTuple):
    """How a field of `trimtab.v1.Output` becomes a value.

    read: the value in a message, one item for each text; InvalidArgument if there is none in it.
    join: the values of consecutive parts of the texts as one.
    alike: what the values of all parts must have in common.
    scale: what one step of an int8 value is worth; 0 for other values.
    """

    read: Callable[[Any], Any]
    join: Callable[[Sequence[Any]], Any]
    alike: Callable[[Any], tuple[Any, ...]]
    scale: Callable[[Any], float] = lambda message: 0.0


def _matrix(message: pb.Matrix) -> NDArray[Any]:
    packed = dense.unpack(message)
    return packed.astype(packed.dtype.newbyteorder("="))


_MATRIX = Form(
    _matrix, np.concatenate, lambda value: (value.dtype.name, value.shape[1]), lambda message: message.scale
)
FORMS: Mapping[str, Form] = {
    "dense": _MATRIX,
    "multi_vector": Form(
        multi_vector.read,
        multi_vector.joined,
        lambda value: (value.dtype, value.vectors.shape[1]),
        lambda message: message.vectors.scale,
    ),
    "sparse": Form(sparse.unpack, sparse.joined, lambda value: (value.values.dtype.name, value.dimensions)),
    "scores": _MATRIX,
}


@dataclass(frozen=True, slots=True)
class Part:
    """One answer of the server to a part of the texts, validated.

    origin: what all parts of one call have in common: encoder, version, and of each output its name, form,
        space, scale, and what its form says.
    """

    origin: tuple[Any, ...]
    values: list[Any]
    messages: Sequence[pb.Output]
    response: pb.EmbedResponse


def parse(response: pb.EmbedResponse, texts: int, names: Sequence[str]) -> Part:
    """The answer to a request of these outputs with so many texts. InternalError if it does not fit the
    request."""
    given = [output.name for output in response.outputs]
    if given != list(names):
        raise InternalError(f"the server answered with the outputs {given} instead of {list(names)}")
    if len(response.token_counts) != texts:
        raise InternalError(
            f"the server answered {texts} texts with {len(response.token_counts)} token counts"
        )
    values, origin = [], []
    for output in response.outputs:
        name = output.WhichOneof("value") or ""
        form = FORMS.get(name)
        if form is None:
            raise InternalError(
                f"the output {output.name} has a form that this client does not know: upgrade the client"
            )
        message = getattr(output, name)
        try:
            value = form.read(message)
        except InvalidArgument as error:
            raise InternalError(f"the output {output.name} cannot be read: {error}") from None
        if len(value) != texts:
            raise InternalError(f"the server answered {texts} texts with {len(value)} of {output.name}")
        values.append(value)
        origin.append((output.name, name, output.space, form.scale(message), form.alike(value)))
    return Part((response.encoder, response.version, *origin), values, response.outputs, response)


def join(parts: Sequence[Part]) -> Outputs:
    """The parts of one call, joined; FailedPrecondition if they are of two spaces or versions."""
    first = parts[0]
    for part in parts:
        if part.origin != first.origin:
            raise FailedPrecondition(
                f"the server's outputs changed during the call, from {first.origin} to {part.origin}; they "
                "must not be mixed. Call again; if it happens again, the servers behind this address hold "
                "different bundles under one version"
            )
    encoder, version, *outputs = first.origin
    forms = {name: form for name, form, *_ in outputs}
    browned = [part.response for part in parts if part.response.browned_out]
    return Outputs(
        by_name={
            name: FORMS[form].join([part.values[place] for part in parts])
            for place, (name, form) in enumerate(forms.items())
        },
        forms=forms,
        spaces={name: space for name, _, space, *_ in outputs},
        scales={name: scale for name, _, _, scale, _ in outputs},
        adapters={
            name: tuple(dict.fromkeys(each for part in parts for each in part.messages[place].adapters))
            for place, name in enumerate(forms)
        },
        token_counts=np.concatenate([np.array(part.response.token_counts, np.uint32) for part in parts]),
        encoder=encoder,
        version=version,
        variant=(browned or [first.response])[0].variant,
        browned_out=bool(browned),
        times=total([stage_times(part.response.times) for part in parts]),
    )
