"""Treats heads as experts and keeps those that a router used: SHRP (Su et al., 2025, arXiv:2512.20635).

In each layer, one feed-forward block, the expander, replaces the output projection and the old feed-forward
block. During training, a router sends each token through a single head. Then the heads that the fewest tokens
used are removed, and the routers as well, so that the rest computes the same for every text: heads, expander,
layer norm.

This follows the paper's outline; the rest is our own. The expander also reads the layer's input, as the old
block did through the residual, and is half as wide. It starts from a least-squares fit to the layer's old
outputs, and is fitted again to the heads that stay. The pruned encoder is healed without routers, since heads
now work together. An expander that read only the heads could not be fitted, and one pass of training did not
repair it.
"""

from collections.abc import Sequence
from typing import Any

import torch

from trimtab_export.passes import anatomy
from trimtab_export.passes.anatomy import TransformerBlock
from trimtab_export.passes.prune import LeastChange, lasting, lasting_neurons
from trimtab_export.passes.student import Student, Tokens, watch

WIDTH = 0.5  # of all expanders, relative to the old feed-forward blocks
SPREAD = 0.02  # of the router's initial weights: no head is preferred, and tokens differ


class ExpertLayer(torch.nn.Module):
    """A layer of an encoder: its heads as they were, a router over them, and the expander.

    Takes over the block's attention; maps (n, length, hidden) to (n, length, hidden). `neurons` are the
    numbers of the old neurons that the expander's replace.
    """

    router: torch.nn.Module | None  # None: all heads are read

    def __init__(self, block: TransformerBlock, kind: str, neurons: torch.Tensor) -> None:
        super().__init__()
        self._distilbert = kind == "distilbert"
        layer, hidden, wide = block.module, block.narrow.out_features, len(neurons)
        if self._distilbert:
            self.attention = block.attention
            self.attention.out_lin = torch.nn.Identity()
            self.activation = layer.ffn.activation
        else:
            self.attention = block.attention.self
            self.activation = layer.intermediate.intermediate_act_fn
        self.norm = anatomy.last_norm(block, kind)
        self.neurons = neurons
        self.up = torch.nn.Linear(block.context.in_features, wide)
        self.beside = torch.nn.Linear(hidden, wide, bias=False)
        self.down = torch.nn.Linear(wide, hidden)
        self.router = None
        for linear in (self.up, self.beside, self.down):
            for weight in linear.parameters():
                torch.nn.init.zeros_(weight)

    def forward(
        self, states: torch.Tensor, mask: torch.Tensor | None = None, *_: Any, **__: Any
    ) -> tuple[torch.Tensor]:
        """The other arguments that transformers passes are for decoders, or say what to return."""
        if self._distilbert:
            (context, *_rest) = self.attention(states, states, states, mask)
        else:
            (context, *_rest) = self.attention(states, attention_mask=mask)
        if self.router is not None:
            shares = torch.softmax(self.router(states), dim=-1)
            first = torch.nn.functional.one_hot(shares.argmax(-1), self.heads).to(shares.dtype)
            gates = first + shares - shares.detach()  # one head forward, the shares' gradient backward
            context = (context.unflatten(-1, (self.heads, -1)) * gates.unsqueeze(-1)).flatten(-2)
        neurons = self.activation(self.up(context) + self.beside(states))
        return (self.norm(states + self.down(neurons)),)

    @property
    def heads(self) -> int:
        """The number of heads."""
        return int(self.attention.n_heads if self._distilbert else self.attention.num_attention_heads)

    @property
    def _projections(self) -> tuple[str, ...]:
        return ("q_lin", "k_lin", "v_lin") if self._distilbert else ("query", "key", "value")

    def keep(self, heads: Sequence[int]) -> None:
        """Remove all heads but these."""
        width = self.up.in_features // self.heads
        columns = torch.cat([torch.arange(head * width, (head + 1) * width) for head in heads])
        for name in self._projections:
            linear = getattr(self.attention, name)
            linear.weight = torch.nn.Parameter(linear.weight[columns].clone())
            linear.bias = torch.nn.Parameter(linear.bias[columns].clone())
            linear.out_features = len(columns)
        self.up.weight = torch.nn.Parameter(self.up.weight[:, columns].clone())
        self.up.in_features = len(columns)
        if self._distilbert:
            self.attention.n_heads, self.attention.dim = len(heads), len(columns)
        else:
            self.attention.num_attention_heads, self.attention.all_head_size = len(heads), len(columns)


def replace(student: Student, batches: Sequence[Tokens]) -> None:
    """Put an expander and a router after the heads of each of the student's layers, to be trained.

    Args:
        batches: of real texts, to fit the expanders on; a few hundred are enough.

    Raises ExportError if heads cannot be removed from the architecture.
    """
    anatomy.check_heads(student.backbone)
    kind = anatomy.architecture(student.backbone)
    whole = student.copy()
    with torch.no_grad():
        neurons = lasting_neurons(whole, batches, WIDTH)
    blocks = anatomy.blocks(student.backbone)
    experts = [ExpertLayer(block, kind, kept) for block, kept in zip(blocks, neurons, strict=True)]
    stack = anatomy.stack(student.backbone)
    del stack[:]
    stack.extend(experts)
    with torch.no_grad():
        _fit(student, whole, batches)
        for number, expert in enumerate(experts):
            expert.router = torch.nn.Linear(expert.beside.in_features, expert.heads)
            seeded = torch.Generator().manual_seed(number)
            expert.router.weight.normal_(std=SPREAD, generator=seeded)
            expert.router.bias.zero_()


def prune(student: Student, whole: Student, batches: Sequence[Tokens], share: float) -> list[int]:
    """Remove the routers and the least used heads, and fit the expanders to the rest.

    Args:
        student: what `replace` made, trained.
        whole: as the student was before `replace`.
        share: of all heads that stays, in (0, 1]; at least one per layer.

    Returns how many heads each layer has now.
    """
    experts = list(anatomy.stack(student.backbone))
    with torch.no_grad():
        for expert, heads in zip(experts, lasting(usage(student, batches), share), strict=True):
            expert.router = None
            expert.keep(heads)
        _fit(student, whole, batches)
    return [expert.heads for expert in experts]


def usage(student: Student, batches: Sequence[Tokens]) -> list[list[float]]:
    """For each layer, the share of tokens whose first choice each head was."""
    routers = [expert.router for expert in anatomy.stack(student.backbone)]
    counts = [torch.zeros(router.out_features) for router in routers]
    with torch.no_grad():
        for batch in batches:
            seen = watch(student, batch, routers)
            counts = [
                count + torch.bincount(logits.argmax(-1), minlength=len(count))
                for count, (_, logits) in zip(counts, seen, strict=True)
            ]
    return [(count / count.sum()).tolist() for count in counts]


def _fit(student: Student, whole: Student, batches: Sequence[Tokens]) -> None:
    """Fit the expanders, from the first layer on, to what the whole encoder's layers give.

    The first matrices are fitted to what the old neurons read, the second to what the old layer added to its
    input before the last layer norm: the whole encoder gives both.
    """
    kind = anatomy.architecture(whole.backbone)
    pairs = zip(anatomy.stack(student.backbone), anatomy.blocks(whole.backbone), strict=True)
    for expert, block in pairs:
        both = torch.nn.Linear(expert.up.in_features + expert.beside.in_features, expert.up.out_features)
        both.weight.copy_(torch.cat([expert.up.weight, expert.beside.weight], dim=1))
        both.bias.copy_(expert.up.bias)
        first, seen = LeastChange(both), []
        for batch in batches:
            (context, _), (states, _) = watch(student, batch, [expert.up, expert.beside])
            (_, wanted), (total, _) = watch(whole, batch, [block.widen, anatomy.last_norm(block, kind)])
            inputs = torch.cat([context, states], dim=1)
            first.add(inputs, wanted[:, expert.neurons] - both(inputs))
            seen.append((inputs, total - states))
        first.make()
        expert.up.weight.copy_(both.weight[:, : expert.up.in_features])
        expert.beside.weight.copy_(both.weight[:, expert.up.in_features :])
        expert.up.bias.copy_(both.bias)
        second = LeastChange(expert.down)
        for inputs, wanted in seen:
            neurons = expert.activation(both(inputs))
            second.add(neurons, wanted - expert.down(neurons))
        second.make()
