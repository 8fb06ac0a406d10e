"""Which adapters lead from one space to another: sans-IO.

A route is a chain of adapters, each of which starts in the space that the previous one leads to. The shortest
is taken; of equally short ones, hop by hop, the one whose adapter was judged better: "bridge" before
"cascade", with relevance data before without, then the newest.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from trimtab.artifacts.adapter import (
    SERVED,
    AdapterManifest,
)
from trimtab.errors import FailedPrecondition, NotFound


class Link(Protocol):
    """An adapter, as far as routes are concerned."""

    @property
    def name(self) -> str:
        """ENCODER/NAME."""

    @property
    def manifest(self) -> AdapterManifest:
        """What it is."""

    @property
    def problem(self) -> str:
        """Why it cannot be used, whatever its verdict; empty if it can."""

    @property
    def states_width(self) -> int:
        """How many components it reads besides the embedding; 0: only the embedding."""


L = TypeVar("L", bound=Link)


def find(links: Sequence[L], start: str, wanted: str, states_width: int = 0) -> tuple[L, ...]:
    """The chain from space `start` to space `wanted`; empty if they are the same.

    `states_width` is how many components of inner states the rows have at the start: only the first adapter
    of a chain may read states, and just as many. Raises FailedPrecondition, with the reasons, if all chains
    lead through adapters that may not be used, or start in other spaces; NotFound, naming what is in reach,
    if no adapter leads there.
    """
    if start == wanted:
        return ()
    chain = _walk(_usable(links), start, states_width).get(wanted)
    if chain is not None:
        return chain
    barred = _walk(_ordered(links), start, None).get(wanted)
    if barred is not None:
        reasons = [refusal(link) for link in barred]
        if not reasons[0] and barred[0].states_width not in (0, states_width):
            reasons[0] = (
                f"adapter {barred[0].name} reads inner states, and this encoder version's bundle has not the "
                "same ones: export the encoder again."
            )
        raise FailedPrecondition(f"space {wanted} cannot be given: {' '.join(filter(None, reasons))}")
    others = [link for link in links if link.manifest.target.space == wanted]
    if others:
        from_where = " ".join(_from_elsewhere(link) for link in others)
        raise FailedPrecondition(
            f"space {wanted} is not in reach of this encoder's own, {start}: {from_where}"
        )
    there = ", ".join(reachable(links, start, states_width)) or "none"
    raise NotFound(
        f"space {wanted!r} is not in reach: this encoder's own is {start}, and its adapters lead to {there}. "
        "Name one of these, or fit an adapter with `trimtab adapter fit` and load it"
    )


def reachable(links: Sequence[L], start: str, states_width: int = 0) -> list[str]:
    """The spaces, besides its own, that a request to an encoder of space `start` may name, in order."""
    return sorted(_walk(_usable(links), start, states_width))


def refusal(link: Link) -> str:
    """Why this adapter may not be used, and what would help; empty: it may."""
    manifest, name = link.manifest, link.name
    if link.problem:
        return f"adapter {name}: {link.problem}."
    if manifest.verdict in SERVED:
        return ""
    reasons = "; ".join(manifest.reasons) or "no reason was given"
    new, old = (f"{end.encoder} version {end.version}" for end in (manifest.source, manifest.target))
    cure = (
        f"embed the index again with {new}"
        if manifest.verdict == "re-index"
        else f"stay with {old}, whose space the index is in"
    )
    return (
        f"adapter {name} was judged {manifest.verdict!r} ({reasons}). "
        f"What helps: {cure}, or fit a better adapter on more queries."
    )


def _from_elsewhere(link: Link) -> str:
    source = link.manifest.source
    return refusal(link) or (
        f"adapter {link.name} leads there from space {source.space} of {source.encoder} version "
        f"{source.version}: ask that one, or fit an adapter between the two with `trimtab adapter fit`."
    )


def _usable(links: Iterable[L]) -> list[L]:
    return _ordered(link for link in links if not refusal(link))


def _ordered(links: Iterable[L]) -> list[L]:
    """The better ones first."""
    named = sorted(links, key=lambda link: link.name)
    newest = sorted(named, key=lambda link: link.manifest.created, reverse=True)
    return sorted(newest, key=lambda link: (link.manifest.verdict != "bridge", link.manifest.provisional))


def _walk(links: Sequence[L], start: str, states_width: int | None) -> dict[str, tuple[L, ...]]:
    """The first of the shortest chains to every space in reach, breadth first; None: with any states."""
    chains: dict[str, tuple[L, ...]] = {start: ()}
    queue = deque([start])
    while queue:
        space = queue.popleft()
        chain = chains[space]
        for link in links:
            source, target = link.manifest.source.space, link.manifest.target.space
            if source != space or target in chains:
                continue
            if link.states_width and (chain or states_width not in (None, link.states_width)):
                continue
            chains[target] = (*chain, link)
            queue.append(target)
    del chains[start]
    return chains
