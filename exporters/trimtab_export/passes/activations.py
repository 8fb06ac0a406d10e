"""Quantises the inputs of linear layers to 8 bits, by a fixed scale or by one for each token.

A fixed scale costs least. But after an activation function, some neurons of some tokens reach 25 where most
stay below 3: one scale for all would leave those few steps. There, each token gets a scale from its own
largest value when it is read. It depends on no other token, so a text's vector does not depend on its
neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from trimtab_export.graph.head import AXES_AS_INPUT
from trimtab_export.passes import smooth
from trimtab_export.passes.linear import Writer
from trimtab_export.passes.ranges import Range

Floats: TypeAlias = NDArray[np.float32]

MOST_SIGNED, MOST_UNSIGNED = 127, 255
BELOW = 16  # of the 255 steps, those below 0 if tokens have their own scale
ROWS_OPSET = 13  # QuantizeLinear takes scales of rows; inputs without padding have a row per token
ONE_SIDED = 0.2  # an input is one-sided if it reaches at most this far below 0, relative to above


@dataclass(frozen=True)
class QuantisedInput:
    """A tensor in 8 bits: the names that its layers' products read."""

    nodes: list[Any]  # that make it
    quantised: str
    scale: str
    zero: str
    factors: Floats | None = None  # (in,): the weights must be multiplied by these
    tokens: str | None = None  # (tokens, 1): the products must still be multiplied by these


def unsigned(writer: Writer, name: str, measured: Range, weights: Sequence[Floats]) -> QuantisedInput:
    """Unsigned bytes, by the scheme that should lose least for its cost.

    Args:
        measured: the range of the tensor `name`.
        weights: of the layers that read it, each (in, out).
    """
    plain = np.ones_like(measured.reach)
    factors = smooth.factors(measured, weights)
    best = smooth.error(measured, weights, plain if factors is None else factors)
    by_rows = writer.opset >= ROWS_OPSET and measured.packed
    if by_rows and _one_sided(measured) and _error_by_token(measured, weights) < smooth.WORTH * best:
        return _by_token(writer, name, measured)
    divided, nodes, source = _divided(writer, name, measured, factors)
    low, high = divided.ends
    scale = max(high - low, 1e-8) / MOST_UNSIGNED
    return _fixed(writer, name, nodes, source, scale, np.uint8(round(-low / scale)), factors)


def signed(writer: Writer, name: str, measured: Range, weights: Sequence[Floats]) -> QuantisedInput:
    """Signed bytes with a fixed scale, as many steps below 0 as above. See `unsigned`."""
    factors = smooth.factors(measured, weights)
    divided, nodes, source = _divided(writer, name, measured, factors)
    scale = max(float(divided.reach.max()), 1e-8) / MOST_SIGNED
    return _fixed(writer, name, nodes, source, scale, np.int8(0), factors)


def _divided(
    writer: Writer, name: str, measured: Range, factors: Floats | None
) -> tuple[Range, list[Any], str]:
    if factors is None:
        return measured, [], name
    source = writer.name(f"{name}/smooth")
    inverse = writer.constant(f"{name}/factors", 1 / factors)
    return measured.divided(factors), [helper.make_node("Mul", [name, inverse], [source])], source


def _fixed(
    writer: Writer, name: str, nodes: list[Any], source: str, scale: float, zero: Any, factors: Floats | None
) -> QuantisedInput:
    made = QuantisedInput(
        nodes,
        writer.name(name),
        writer.constant(f"{name}/scale", np.float32(scale)),
        writer.constant(f"{name}/zero", zero),
        factors,
    )
    nodes.append(helper.make_node("QuantizeLinear", [source, made.scale, made.zero], [made.quantised]))
    return made


def _one_sided(measured: Range) -> bool:
    """Whether an input looks like the output of an activation function."""
    low, high = measured.ends
    return -low < ONE_SIDED * high


def _error_by_token(measured: Range, weights: Sequence[Floats]) -> float:
    step = max(measured.top, 1e-16) ** 0.5 / (MOST_UNSIGNED - BELOW)
    return smooth.error(measured, weights, np.ones_like(measured.reach), step)


def _by_token(writer: Writer, name: str, measured: Range) -> QuantisedInput:
    """A scale for each token, from its own largest value; the function's lowest value is the same for all."""
    nodes: list[Any] = []

    def node(operator: str, inputs: list[str], **attributes: Any) -> str:
        output = writer.name(f"{name}/{operator}")
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    last = writer.constant("last", np.array([-1], np.int64))
    if writer.opset >= AXES_AS_INPUT["ReduceMax"]:
        top = node("ReduceMax", [name, last], keepdims=1)
    else:
        top = node("ReduceMax", [name], axes=[-1], keepdims=1)
    by_top = node("Mul", [top, writer.constant("above", np.float32(1 / (MOST_UNSIGNED - BELOW)))])
    by_least = writer.constant(f"{name}/least", np.float32(max(-measured.ends[0], 1e-8) / BELOW))
    scales = node("Max", [by_top, by_least])
    flat = node("Squeeze", [scales, last])
    zero = writer.constant("below", np.uint8(BELOW))
    zeros = node("Expand", [zero, node("Shape", [flat])])
    quantised = node("QuantizeLinear", [name, flat, zeros], axis=0)
    return QuantisedInput(nodes, quantised, writer.constant("one", np.float32(1)), zero, tokens=scales)
