"""Speeds up linear layers in training by bfloat16 products, on processors with instructions for them.

Sums within a product are float32, and so is everything else: weights, layer norms, attention, the optimiser.
Autocast would also compute attention in bfloat16, whose gradient is slower than float32's on a CPU.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # torch's names for what a processor can do


def where_faster() -> AbstractContextManager[Any]:
    """A context in which linear layers are faster on such a processor, and unchanged on others."""
    can = torch.cpu.get_capabilities()
    return _Bfloat16() if any(can.get(name) for name in INSTRUCTIONS) else nullcontext()


class _Bfloat16(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear and not kwargs:
            inputs, weight, bias = (*args, None)[:3]
            product = _Product.apply(inputs, weight)  # type: ignore[no-untyped-call]
            return product if bias is None else product + bias
        return func(*args, **(kwargs or {}))


class _Product(torch.autograd.Function):
    """(..., in) times (out, in) gives (..., out), all float32."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows, short = inputs.reshape(-1, inputs.shape[-1]).bfloat16(), weight.bfloat16()
        ctx.save_for_backward(rows, short)
        return (rows @ short.t()).float().reshape(*inputs.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        rows, short = ctx.saved_tensors
        (gradient,) = gradients
        shape = gradient.shape
        rows_gradient = gradient.reshape(-1, shape[-1]).bfloat16()
        inputs = (rows_gradient @ short).float().reshape(*shape[:-1], -1) if ctx.needs_input_grad[0] else None
        weight = (rows_gradient.t() @ rows).float() if ctx.needs_input_grad[1] else None
        return inputs, weight
