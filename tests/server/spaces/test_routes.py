"""Which adapters lead from one space to another."""

import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import FailedPrecondition, NotFound
from trimtab_server.spaces.routes import find, reachable, refusal

SPACES = "abcdef"


@dataclass(frozen=True)
class Link:
    """An adapter that does nothing."""

    source: str
    target: str
    number: int = 0
    verdict: str = "bridge"
    provisional: bool = False
    problem: str = ""
    states_width: int = 0
    created: str = "2026-01-01"

    @property
    def name(self) -> str:
        return f"encoder-{self.source}/{self.source}-{self.target}-{self.number}"

    @property
    def manifest(self):
        def end(space: str):
            return SimpleNamespace(space=space, encoder=f"encoder-{space}", version=1)

        return SimpleNamespace(
            source=end(self.source),
            target=end(self.target),
            verdict=self.verdict,
            provisional=self.provisional,
            reasons=("it lost too much",),
            created=self.created,
        )


links = st.lists(
    st.builds(
        Link,
        st.sampled_from(SPACES),
        st.sampled_from(SPACES),
        st.integers(0, 3),
        st.sampled_from(["bridge", "bridge", "cascade", "re-index", "stay"]),
        st.booleans(),
        st.sampled_from(["", "", "", "its file is broken"]),
        st.sampled_from([0, 0, 0, 8, 9]),
        st.sampled_from(["2026-01-01", "2026-02-02"]),
    ),
    max_size=14,
    unique_by=lambda link: link.name,
)


def distances(links: list[Link], start: str, states_width: int | None) -> dict[str, int]:
    """Hops to every space in reach, by trying all edges again and again."""
    found = {start: 0}
    for hops in range(len(SPACES)):
        for link in links:
            first_only = link.states_width and (hops or states_width not in (None, link.states_width))
            if found.get(link.source) == hops and not first_only:
                found.setdefault(link.target, hops + 1)
    return found


@given(links, st.sampled_from(SPACES), st.sampled_from(SPACES), st.sampled_from([0, 8]))
def test_the_shortest_chain_of_adapters_that_may_be_used(
    links: list[Link], start: str, wanted: str, states_width: int
) -> None:
    usable = [link for link in links if not refusal(link)]
    near = distances(usable, start, states_width)
    try:
        chain = find(links, start, wanted, states_width)
    except NotFound:
        assert all(link.target != wanted for link in links)
        return
    except FailedPrecondition as error:
        assert wanted not in near
        assert any(link.name in str(error) for link in links)
        return
    assert len(chain) == near[wanted]
    assert all(not refusal(link) for link in chain)
    assert [start, *(link.target for link in chain)] == [*(link.source for link in chain), wanted]
    assert all(link.states_width == 0 for link in chain[1:])
    assert all(link.states_width in (0, states_width) for link in chain[:1])


@given(links, st.sampled_from(SPACES), st.randoms())
def test_the_order_of_the_folders_does_not_matter(links: list[Link], start: str, rng: random.Random) -> None:
    shuffled = rng.sample(links, len(links))
    assert reachable(shuffled, start) == reachable(links, start)
    for wanted in reachable(links, start):
        assert find(shuffled, start, wanted) == find(links, start, wanted)


@given(links, st.sampled_from(SPACES))
def test_what_is_in_reach_is_found_and_nothing_else(links: list[Link], start: str) -> None:
    there = reachable(links, start)
    assert start not in there
    for wanted in set(SPACES) - {start}:
        if wanted in there:
            assert find(links, start, wanted)
        else:
            with pytest.raises((NotFound, FailedPrecondition)):
                find(links, start, wanted)


def test_hops_compose() -> None:
    links = [Link("c", "b"), Link("b", "a")]
    assert [link.name for link in find(links, "c", "a")] == ["encoder-c/c-b-0", "encoder-b/b-a-0"]
    assert find(links, "c", "c") == ()


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Link("b", "a", 1, provisional=True), Link("b", "a", 0, verdict="cascade")),
        (Link("b", "a", 1, created="2025-01-01"), Link("b", "a", 0, provisional=True)),
        (Link("b", "a", 1, created="2026-02-02"), Link("b", "a", 0)),
    ],
)
def test_of_two_adapters_the_better_one(better: Link, worse: Link) -> None:
    assert find([worse, better], "b", "a") == (better,)
    assert find([better, worse], "b", "a") == (better,)


def test_refusals_say_why_and_what_helps() -> None:
    links = [Link("c", "b"), Link("b", "a", verdict="re-index"), Link("b", "d", verdict="stay")]
    with pytest.raises(FailedPrecondition) as caught:
        find(links, "c", "a")
    for part in ("encoder-b/b-a-0", "'re-index'", "it lost too much", "embed the index again", "encoder-b"):
        assert part in str(caught.value)
    with pytest.raises(FailedPrecondition, match="stay with encoder-d version 1"):
        find(links, "c", "d")
    with pytest.raises(FailedPrecondition, match="its file is broken"):
        find([Link("b", "a", problem="its file is broken")], "b", "a")
    with pytest.raises(NotFound, match="this encoder's own is c, and its adapters lead to b"):
        find(links, "c", "nowhere")
