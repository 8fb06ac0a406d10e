"""Searches for the fastest variants that keep a floor of quality, or several floors.

First come the precisions, which take seconds, each in the runtime that is fastest at it. Then cuts, each
healed, in the best precision, by bisection over a list of ever faster cuts. Quality falls along the list, so
a few tries find the fastest cut that keeps a floor; the search for a lower floor goes on from there. Layers
go first and neurons last, since a few whole layers learn faster than more halved ones. Of all variants made
that keep the lowest floor, those stay that no other beats in both quality and speed.
"""

from collections.abc import Sequence

import msgspec

from trimtab.artifacts.manifest import Passes
from trimtab.errors import ExportError
from trimtab.kinds import Precision
from trimtab_export.passes import anatomy
from trimtab_export.source import Device, Graph, Target
from trimtab_export.variants import fidelity, pace
from trimtab_export.variants.candidates import VariantCandidate, VariantMaker, summary

# Which of them is the faster one depends on the encoder and the processor.
FAST: tuple[Precision, ...] = ("int8", "bf16")
CLOSE = 0.95  # of the fastest: such a difference may be another machine's the other way round
# Slower than int8, and only worth it for their size: bf16 also makes the table of words smaller.
SMALLEST: tuple[Precision, ...] = ("int4-weights", "bf16")
# The share of layers that is removed, and of feed-forward neurons that stays; ever faster.
# At the same speed, half of the layers, whole, keep more than two thirds of them with fewer neurons.
CUTS = (
    (1 / 12, 1.0), (1 / 6, 1.0), (1 / 4, 1.0), (1 / 3, 1.0), (5 / 12, 1.0), (1 / 2, 1.0), (1 / 2, 0.8),
    (1 / 2, 0.65), (1 / 2, 0.5),
)  # fmt: skip
# Cuts that share the minutes: about as many as a search makes, for its first floor and for each other one.
FIRST_CUTS, MORE_CUTS = 3, 1


def search(
    maker: VariantMaker, floors: Sequence[float], target: Target, device: Device, minutes: float
) -> tuple[list[VariantCandidate], list[VariantCandidate]]:
    """Variants that keep `floors` of the nDCG, the best for `target` first; none is beaten in both by
    another.

    Args:
        floors: shares of the nDCG, at least one; the fastest variant that keeps it is searched for each.
        minutes: how long all cuts may train, together.

    Raises ExportError, with the best that was found, if none keeps the lowest floor.

    Returns the variants, and all that were measured on the way.
    """
    seen: list[VariantCandidate] = []
    for each in precisions(target, device):
        slower = target != "size" and each.precision not in FAST
        if slower and any(keeps(candidate, max(floors)) for candidate in seen):
            break
        made = _try(maker, each)
        # Another runtime is worth having for its speed alone.
        if made is not None and each.runner != "onnx" and worth(made, target) <= 1:
            maker.tell(f"{each.name}: no faster than the encoder as it is here, so it is left out")
            continue
        seen += [] if made is None else [made]
    floor = min(floors)
    keeping = [candidate for candidate in seen if keeps(candidate, floor)]
    backbone = maker.shop.source.backbone
    if not isinstance(backbone, Graph) and backbone.config.model_type in anatomy.KNOWN and seen:
        seen += _bisect(maker, floors, _base(keeping or seen, target).passes, minutes)
    keeping = [candidate for candidate in seen if keeps(candidate, floor)]
    if not keeping:
        nearest = max(seen, key=lambda candidate: candidate.fidelity.ndcg.value, default=None)
        can = (
            f"the nearest is {nearest.passes.name} with {summary(nearest.fidelity)}"
            if nearest
            else "none works"
        )
        raise ExportError(
            f"no variant of this encoder keeps --min-quality {floor:g} over every judging set: {can}. Ask "
            "for less, or leave --min-quality out"
        )
    return sorted(front(keeping, target), key=lambda candidate: -worth(candidate, target)), seen


def precisions(target: Target, device: Device) -> tuple[Passes, ...]:
    """The precisions worth trying on a device, with their runtimes, fastest first."""
    if device == "cuda":
        return (Passes(name="fp16", precision="fp16"),)
    plain: tuple[Precision, ...] = ("int8", "int8-weights", *(SMALLEST if target == "size" else ()))
    int8, *slower = (Passes(name=each, precision=each) for each in plain)
    products = Passes(name="bf16", precision="bf16", runner="openvino")
    return (int8, *([] if target == "size" else [products]), *slower)


def _base(candidates: Sequence[VariantCandidate], target: Target) -> VariantCandidate:
    """The one to make cuts in: of those that are about as fast as the fastest, the nearest to the encoder."""
    fastest = max(worth(each, target) for each in candidates)
    close = [each for each in candidates if worth(each, target) >= CLOSE * fastest]
    return max(close, key=lambda each: each.fidelity.ndcg.value)


def keeps(candidate: VariantCandidate, floor: float) -> bool:
    """Whether a variant keeps that share of the nDCG over each judging set."""
    return candidate.fidelity.ndcg.value >= floor


def worth(candidate: VariantCandidate, target: Target) -> float:
    """The figure that a target maximises: the speed of single texts, the speed of batches, or smallness."""
    figures = candidate.fidelity
    if target == "size":
        return 1.0 / figures.bytes
    single = [each for each in figures.speedup if (each.batch == 1) == (target == "latency")]
    return fidelity.typical(single or figures.speedup)


def front(candidates: Sequence[VariantCandidate], target: Target) -> list[VariantCandidate]:
    """The Pareto front: those that no other beats in both quality and worth."""

    def beats(one: VariantCandidate, other: VariantCandidate) -> bool:
        mine = (one.fidelity.ndcg.value, worth(one, target))
        theirs = (other.fidelity.ndcg.value, worth(other, target))
        return mine != theirs and mine[0] >= theirs[0] and mine[1] >= theirs[1]

    return [one for one in candidates if not any(beats(other, one) for other in candidates)]


def cuts(layers: int, order: Sequence[int], base: Passes) -> list[Passes]:
    """The list of ever faster cuts for an encoder with so many layers, which can be removed in this `order`;
    in the precision and the runtime of `base`."""
    found: list[Passes] = []
    for gone, ffn in CUTS:
        count = min(max(1, round(gone * layers)), layers - 1)
        if not count and ffn == 1:
            continue  # there is no layer to take out
        kept = tuple(sorted(set(range(layers)) - set(order[:count])))
        width = "" if ffn == 1 else f"-ffn{round(100 * ffn)}"
        passes = Passes(
            name=f"layers{len(kept)}{width}-{base.precision}",
            precision=base.precision,
            runner=base.runner,
            layers=kept if count else None,
            ffn=ffn,
        )
        if passes.name not in [each.name for each in found]:
            found.append(passes)
    return found


def _bisect(
    maker: VariantMaker, floors: Sequence[float], base: Passes, minutes: float
) -> list[VariantCandidate]:
    """The cuts made to find the fastest one that keeps each floor."""
    shop = maker.shop
    layers = len(anatomy.blocks(shop.source.backbone))
    maker.tell("finding the layers that matter least")
    plans = cuts(layers, shop.layer_order, base)
    share = minutes / (FIRST_CUTS + MORE_CUTS * (len(floors) - 1))
    made: dict[int, VariantCandidate | None] = {}
    low = 0
    for floor in sorted(floors, reverse=True):
        # What was made for a higher floor and misses this one, too, need not be looked beyond.
        missing = (number for number, each in made.items() if each is None or not keeps(each, floor))
        high = min(missing, default=len(plans))
        while low < high:
            middle = (low + high) // 2
            if middle not in made:
                plan = plans[middle]
                heal = pace.millions(share, len(plan.layers or range(layers)), plan.ffn, shop)
                made[middle] = _try(maker, msgspec.structs.replace(plan, heal=heal))
            candidate = made[middle]
            if candidate is not None and keeps(candidate, floor):
                low = middle + 1
            else:
                high = middle
    return [candidate for candidate in made.values() if candidate is not None]


def _try(maker: VariantMaker, passes: Passes) -> VariantCandidate | None:
    """A candidate, or None if the pass does not work for this encoder: the search says so, and goes on."""
    try:
        return maker.candidate(passes)
    except ExportError as error:
        maker.tell(f"{passes.name}: not possible: {error}")
        return None
