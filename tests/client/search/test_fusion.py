"""Fusion against its formulas, written out document by document."""

import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trimtab
from trimtab.search.fusion import FusedHit, Part, by_ranks, by_scores
from trimtab.stores import Hit, Id

NAMES = ("dense", "sparse", "multi_vector")
scores = st.floats(-1e6, 1e6, width=32)


@st.composite
def searches(draw: st.DrawFn) -> dict[str, list[Hit]]:
    """Hits of one to three searches, as stores give them: each document once, best first."""
    found = {}
    for name in NAMES[: draw(st.integers(1, 3))]:
        ids: list[Id] = draw(st.lists(st.integers(0, 12), unique=True, max_size=10))
        near = sorted(draw(st.lists(scores, min_size=len(ids), max_size=len(ids))), reverse=True)
        found[name] = [Hit(id, f"text {id}", score) for id, score in zip(ids, near, strict=True)]
    return found


weights = st.fixed_dictionaries({name: st.floats(0.01, 10) for name in NAMES})


def place(hits: Sequence[Hit], id: Id) -> int | None:
    return next((rank for rank, hit in enumerate(hits, 1) if hit.id == id), None)


def documents(found: Mapping[str, Sequence[Hit]]) -> set[Id]:
    return {hit.id for hits in found.values() for hit in hits}


def check(
    fused: list[FusedHit], found: Mapping[str, Sequence[Hit]], expected: Mapping[Id, float], k: int
) -> None:
    """The k best by `expected`, in its order, with what each search said."""
    assert len(fused) == min(k, len(expected)) == len({hit.id for hit in fused})
    for hit in fused:
        assert hit.score == pytest.approx(expected[hit.id], rel=1e-12, abs=1e-12)
        assert hit.text == f"text {hit.id}"
        assert hit.parts == {
            name: Part(rank, hits[rank - 1].score)
            for name, hits in found.items()
            if (rank := place(hits, hit.id)) is not None
        }
    assert [hit.score for hit in fused] == sorted((hit.score for hit in fused), reverse=True)
    left = expected.keys() - {hit.id for hit in fused}
    assert all(expected[id] <= fused[-1].score + 1e-9 for id in left)


@given(searches(), weights, st.integers(1, 40), st.floats(0, 100))
def test_reciprocal_rank_fusion(
    found: dict[str, list[Hit]], weights: dict[str, float], k: int, constant: float
) -> None:
    weights = {name: weights[name] for name in found}
    expected = {
        id: math.fsum(
            weights[name] / (constant + rank)
            for name, hits in found.items()
            if (rank := place(hits, id)) is not None
        )
        for id in documents(found)
    }
    check(by_ranks(found, k, weights=weights, constant=constant), found, expected, k)


@given(searches(), weights, st.integers(1, 40))
def test_weighted_scores(found: dict[str, list[Hit]], weights: dict[str, float], k: int) -> None:
    weights = {name: weights[name] for name in found}

    def share(hits: Sequence[Hit], id: Id) -> float:
        rank = place(hits, id)
        if rank is None:
            return 0.0
        first, last = hits[0].score, hits[-1].score
        return 1.0 if first == last else (hits[rank - 1].score - last) / (first - last)

    expected = {
        id: math.fsum(weights[name] * share(hits, id) for name, hits in found.items()) / sum(weights.values())
        for id in documents(found)
    }
    check(by_scores(found, k, weights=weights), found, expected, k)


@given(searches(), st.sampled_from([0.001, 3.0, 1000.0]), st.sampled_from([-5.0, 0.0, 70.0]))
def test_units_and_zeros_of_scores_do_not_matter(
    found: dict[str, list[Hit]], unit: float, zero: float
) -> None:
    def moved(score: float) -> float:
        return unit * score + zero

    # Only where the other unit keeps different scores apart.
    if any(
        len({moved(hit.score) for hit in hits}) != len({hit.score for hit in hits}) for hits in found.values()
    ):
        return
    other = {name: [Hit(hit.id, hit.text, moved(hit.score)) for hit in hits] for name, hits in found.items()}
    same = {hit.id: hit.score for hit in by_scores(other, 40)}
    spreads = [abs(hits[0].score - hits[-1].score) for hits in found.values() if hits]
    if all(spread == 0 or spread > 1e-3 for spread in spreads):
        for hit in by_scores(found, 40):
            assert same[hit.id] == pytest.approx(hit.score, abs=1e-6)
    assert [hit.id for hit in by_ranks(other, 40)] == [hit.id for hit in by_ranks(found, 40)]


def hits(*ids: Id) -> list[Hit]:
    return [Hit(id, None, -float(rank)) for rank, id in enumerate(ids)]


def test_the_constant_is_that_of_the_paper() -> None:
    (first, *_) = by_ranks({"dense": hits("a", "b"), "sparse": hits("b", "a")}, 2)
    assert first.score == pytest.approx(1 / 61 + 1 / 62)


def test_among_equals_the_better_rank_comes_first_then_the_first_listed() -> None:
    found = {"dense": hits("a", "b"), "sparse": hits("c", "d")}
    assert [hit.id for hit in by_ranks(found, 4)] == ["a", "c", "b", "d"]
    # b: 0 + 1, as much as a: 1 + 0; both are first somewhere.
    crossed = {"dense": hits("a", "b"), "sparse": hits("b", "a")}
    assert [hit.id for hit in by_scores(crossed, 4)] == ["a", "b"]


def test_a_weight_of_0_leaves_a_search_out() -> None:
    found = {"dense": hits("a", "b"), "sparse": hits("c", "b")}
    for fuse in (by_ranks, by_scores):
        fused = fuse(found, 3, weights={"sparse": 0})
        assert fused[0].id == "a" and fused[-1].score == 0


def test_no_searches_and_no_hits_are_no_hits() -> None:
    for fuse in (by_ranks, by_scores):
        assert fuse({}, 3) == [] and fuse({"dense": []}, 3) == []


@pytest.mark.parametrize("fuse", [by_ranks, by_scores])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"weights": {"sprase": 1}}, "no such search; there are dense, sparse"),
        ({"weights": {"dense": -1}}, "weight of 'dense' is -1"),
        ({"weights": {"dense": math.nan}}, "weight of 'dense' is nan"),
        ({"weights": {"dense": 0, "sparse": 0}}, "all weights are 0"),
    ],
)
def test_what_makes_no_sense_is_refused(fuse, options: dict, message: str) -> None:  # type: ignore[no-untyped-def, type-arg]
    arguments = {"k": 3, **options}
    with pytest.raises(trimtab.InvalidArgument, match=message):
        fuse({"dense": hits("a"), "sparse": hits("b")}, **arguments)
    with pytest.raises(trimtab.InvalidArgument, match="'dense' has document 'a' twice"):
        fuse({"dense": hits("a", "a")}, 3)


def test_scores_and_constants_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(trimtab.InvalidArgument, match="document 'b' the score nan"):
        by_scores({"dense": [Hit("a", None, 1.0), Hit("b", None, math.nan)]}, 3)
    with pytest.raises(trimtab.InvalidArgument, match="constant is -1"):
        by_ranks({"dense": hits("a")}, 3, constant=-1)
