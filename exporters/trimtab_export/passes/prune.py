"""Removes neurons, heads and layers from an encoder, and fits what is left to the layers' old outputs.

Of the feed-forward blocks' neurons, those go that matter least: by the energy of a neuron's activation times
that of its outgoing weights. Of the heads, those go whose removal, one at a time, turns the vectors of some
texts the least. Both are compared over all layers, so layers end up with different numbers of them. Then the
matrices after a cut are fitted again, layer by layer, by least squares, to what the whole encoder computes
there on the same texts (Kwon et al., 2022, arXiv:2204.09656). So are those before removed layers.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from trimtab_export.passes import anatomy, bf16_linear
from trimtab_export.passes.student import LayerByLayer, Student, Tokens, watch

RIDGE = 1e-3  # of the mean diagonal
LEAST_SHARE = 0.125  # of a layer's neurons stay at least, however little they matter


def prune(
    student: Student, batches: Sequence[Tokens], repair: Sequence[Tokens], *,
    layers: tuple[int, ...] | None, heads: float, ffn: float,
) -> None:  # fmt: skip
    """Cut the student in place.

    Args:
        batches: of real texts, to choose heads and neurons by; a few hundred are enough.
        repair: of texts, to fit what is left. There should be many times more tokens than a feed-forward
        block has neurons: with fewer, the fit overfits these texts.
        layers: the numbers of the layers that stay, None: all.
        heads, ffn: the share of all heads and neurons that stay, in (0, 1].
    """
    anatomy.architecture(student.backbone)
    if heads < 1:
        anatomy.check_heads(student.backbone)
    if layers is None and heads == 1 and ffn == 1:
        return
    whole = student.copy()
    if layers is not None:
        anatomy.keep_layers(student.backbone, layers)
    with torch.no_grad():
        cut = student.copy()
        if heads < 1:
            _cut_heads(student, _lasting_heads(cut, batches, heads))
        if ffn < 1:
            _cut_neurons(student, lasting_neurons(cut, batches, ffn))
        _repair(student, whole, layers, repair)


def rank_layers(student: Student, kinds: Sequence[Sequence[Tokens]], most: int) -> list[int]:
    """The numbers of the layers that can be removed, the least important first.

    That is the layer whose removal turns the vectors of the worst kind of text the least. Each is chosen with
    the previous ones removed.

    Args:
        kinds: batches of each kind of text.
        most: how many layers to remove at most; at least one stays.
    """
    count = len(anatomy.blocks(student.backbone))
    gone: list[int] = []
    with torch.no_grad(), bf16_linear.where_faster():
        wanted = [[student(batch) for batch in batches] for batches in kinds]
        while len(gone) < min(most, count - 1):
            damages = {}
            for number in set(range(count)) - set(gone):
                cut = student.sharing()
                kept = tuple(sorted(set(range(count)) - {*gone, number}))
                anatomy.keep_layers(cut.backbone, kept)
                damages[number] = max(
                    _damage(cut, batches, vectors) for batches, vectors in zip(kinds, wanted, strict=True)
                )
            gone.append(min(damages, key=lambda number: damages[number]))
    return gone


def _damage(student: Student, batches: Sequence[Tokens], wanted: Sequence[torch.Tensor]) -> float:
    cosines = [
        torch.nn.functional.cosine_similarity(student(batch), vectors)
        for batch, vectors in zip(batches, wanted, strict=True)
    ]
    return 1.0 - float(torch.cat(cosines).mean())


def _lasting_heads(whole: Student, batches: Sequence[Tokens], share: float) -> list[list[int]]:
    """For each layer, the heads that stay, at least one."""
    wanted = [whole(batch) for batch in batches]
    damages: dict[tuple[int, int], float] = {}
    blocks = anatomy.blocks(whole.backbone)
    for layer, block in enumerate(blocks):
        width = block.context.in_features // block.heads
        for head in range(block.heads):
            columns = block.context.weight[:, head * width : (head + 1) * width]
            before = columns.clone()
            columns.zero_()
            damages[layer, head] = _damage(whole, batches, wanted)
            columns.copy_(before)
    return lasting(
        [[damages[layer, head] for head in range(block.heads)] for layer, block in enumerate(blocks)], share
    )


def lasting(worths: Sequence[Sequence[float]], share: float) -> list[list[int]]:
    """For each layer, the numbers of the heads that stay: its best one, and the best of all others.

    Args:
        worths: for each layer, the worth of each of its heads.
        share: of all heads.
    """
    places = {(layer, head): worth for layer, row in enumerate(worths) for head, worth in enumerate(row)}
    best = {(layer, row.index(max(row))) for layer, row in enumerate(worths)}
    count = max(len(best), round(share * len(places)))
    others = sorted(places.keys() - best, key=lambda place: (-places[place], place))
    kept = best | set(others[: count - len(best)])
    return [sorted(head for layer, head in kept if layer == number) for number in range(len(worths))]


def _cut_heads(student: Student, lasting: list[list[int]]) -> None:
    for block, kept in zip(anatomy.blocks(student.backbone), lasting, strict=True):
        gone = set(range(block.heads)) - set(kept)
        if gone:
            block.attention.prune_heads(gone)


def lasting_neurons(whole: Student, batches: Sequence[Tokens], share: float) -> list[torch.Tensor]:
    """For each layer, the numbers of the neurons that stay: this share of the neurons of all layers."""
    blocks = anatomy.blocks(whole.backbone)
    energies = [torch.zeros(block.narrow.in_features) for block in blocks]
    for batch in batches:
        seen = watch(whole, batch, [block.narrow for block in blocks])
        energies = [
            energy + inputs.square().sum(0) for energy, (inputs, _) in zip(energies, seen, strict=True)
        ]
    scores = [
        energy * block.narrow.weight.square().sum(0) for energy, block in zip(energies, blocks, strict=True)
    ]
    scores = [score / score.sum() for score in scores]  # a layer's overall scale says nothing about its worth
    everything = torch.cat(scores)
    least = torch.sort(everything, descending=True).values[round(share * len(everything)) - 1]
    kept = []
    for score in scores:
        count = max(int((score >= least).sum()), round(LEAST_SHARE * len(score)))
        count = min(len(score), 8 * round(count / 8) or 8)  # full vector registers
        kept.append(torch.sort(torch.topk(score, count).indices).values)
    return kept


def _cut_neurons(student: Student, lasting: list[torch.Tensor]) -> None:
    for block, kept in zip(anatomy.blocks(student.backbone), lasting, strict=True):
        block.widen.weight = torch.nn.Parameter(block.widen.weight[kept].clone())
        block.widen.bias = torch.nn.Parameter(block.widen.bias[kept].clone())
        block.narrow.weight = torch.nn.Parameter(block.narrow.weight[:, kept].clone())
        block.widen.out_features = block.narrow.in_features = len(kept)


def _repair(
    student: Student, whole: Student, layers: tuple[int, ...] | None, batches: Sequence[Tokens]
) -> None:
    """Fit the matrices after a cut to what the whole encoder computes there, given the inputs they get now.

    A layer whose successors were removed takes over their part: it ends with the last one's layer norm, and
    what it adds is fitted to the input of that norm.
    """
    kind, old = anatomy.architecture(whole.backbone), anatomy.blocks(whole.backbone)
    blocks = anatomy.blocks(student.backbone)
    numbers = range(len(old)) if layers is None else layers
    ends = anatomy.targets(layers, len(old))
    norms = [anatomy.last_norm(old[end - 1], kind) for end in ends]
    # Of all layers at once, and read only once, so in half the bytes. The fit averages out the rounding.
    wanted = [[inputs.bfloat16() for inputs, _ in watch(whole, batch, norms)] for batch in batches]
    forward: LayerByLayer | None = None  # from the first layer that changes
    for place, (block, number, end) in enumerate(zip(blocks, numbers, ends, strict=True)):
        fewer_heads = block.context.in_features < old[number].context.in_features
        fewer_neurons = block.narrow.in_features < old[number].narrow.in_features
        if forward is None and not (fewer_heads or fewer_neurons or end > number + 1):
            continue
        forward = forward or LayerByLayer(student, batches, block.module)
        if fewer_heads:
            _fit(student, whole, block.context, old[number].context, batches)
        norm = copy.deepcopy(norms[place])
        anatomy.put_last_norm(block, kind, norm)
        change = LeastChange(block.narrow)
        seen = forward.watch(block.module, [block.narrow, norm])
        for ((neurons, _), (total, _)), totals in zip(seen, wanted, strict=True):
            change.add(neurons, totals[place] - total)
        change.make()
        forward.through(block.module)


def _fit(student: Student, whole: Student, linear: Any, wanted: Any, batches: Sequence[Tokens]) -> None:
    change = LeastChange(linear)
    for batch in batches:
        ((inputs, now),) = watch(student, batch, [linear])
        ((_, outputs),) = watch(whole, batch, [wanted])
        change.add(inputs, outputs - now)
    change.make()


class LeastChange:
    """Changes a linear layer as little as needed to correct its outputs, by least squares.

    The ridge penalises the change, so that what is right stays.
    """

    def __init__(self, linear: Any) -> None:
        width = linear.in_features + 1
        self._linear = linear
        self._gram, self._cross = torch.zeros(width, width), torch.zeros(width, linear.out_features)

    def add(self, inputs: torch.Tensor, lacking: torch.Tensor) -> None:
        """Add the tokens it reads, (tokens, in), and the correction of its outputs, (tokens, out)."""
        ones = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
        self._gram += ones.T @ ones
        self._cross += ones.T @ lacking

    def make(self) -> None:
        gram = self._gram + RIDGE * self._gram.diagonal().mean() * torch.eye(len(self._gram))
        change = torch.linalg.solve(gram.double(), self._cross.double()).float()
        self._linear.weight += change[:-1].T
        self._linear.bias += change[-1]
