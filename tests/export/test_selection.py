"""Which variants a search tries, which of them it keeps, and how the page shows them."""

import dataclasses
from pathlib import Path

import pytest

from trimtab.artifacts import cards
from trimtab.artifacts.artifact import Interval
from trimtab.artifacts.cards import Fidelity, Speedup
from trimtab.artifacts.manifest import Passes
from trimtab.errors import ExportError
from trimtab_export.passes.curve import Point
from trimtab_export.source import Graph, Target
from trimtab_export.variants import draw, pace, search
from trimtab_export.variants.candidates import VariantCandidate

INT8 = Passes(name="int8", precision="int8")


def candidate(name: str, ndcg: float, single: float, batch: float, size: int) -> VariantCandidate:
    kept = Interval(value=ndcg, low=ndcg, high=ndcg)
    figures = Fidelity(
        retrieval="none", queries=1, documents=1, source_ndcg=1, source_recall=1, ndcg=kept, recall=kept,
        query_only_ndcg=kept, query_only_recall=kept, cosine=1, min_cosine=1, batch_min_cosine=1,
        speedup=(Speedup(batch=1, length=8, factor=single), Speedup(batch=8, length=8, factor=batch)),
        bytes=size,
    )  # fmt: skip
    parity = cards.Parity(texts=1, max_abs_diff=0, min_cosine=1, batch_max_abs_diff=0)
    report = cards.ReportCard(parity=parity, speed=(), machine="none", fidelity=figures)
    return VariantCandidate(Passes(name=name), (), report)


def test_the_page_shows_how_trainings_went(tmp_path: Path) -> None:
    plain = candidate("plain", 0.99, 2.0, 2.0, 50)
    curve = tuple(Point(1000 * n, 60.0 * n, 0.9 + 0.01 * n, 0.8) for n in range(1, 4))
    trained = dataclasses.replace(candidate("trained", 0.95, 3.0, 3.0, 40), curve=curve)
    page = draw.draw("tiny", [plain, trained], (), (0.9,), tmp_path / "one").read_text("utf-8")
    assert "<h2>Training</h2>" in page
    assert (tmp_path / "one" / draw.CURVES).read_bytes()[:4] == b"\x89PNG"
    assert "<h2>Training</h2>" not in draw.draw("tiny", [plain], (), (0.9,), tmp_path / "two").read_text()


def test_the_front_has_what_nothing_beats_in_both() -> None:
    good = candidate("good", 0.99, 2.0, 2.0, 50)
    fast = candidate("fast", 0.95, 3.0, 1.5, 40)
    beaten = candidate("beaten", 0.94, 2.5, 1.4, 60)
    names = lambda target: [each.passes.name for each in search.front([good, fast, beaten], target)]  # noqa: E731
    assert names("latency") == ["good", "fast"]
    assert names("throughput") == ["good"]
    assert names("size") == ["good", "fast"]


def test_cuts_grow_deeper_and_drop_the_layers_that_matter_least() -> None:
    plans = search.cuts(6, [2, 3, 1, 0, 4], INT8)
    assert [plan.name for plan in plans[:3]] == ["layers5-int8", "layers4-int8", "layers3-int8"]
    assert (plans[0].layers, plans[0].ffn) == ((0, 1, 3, 4, 5), 1.0)
    assert (plans[-1].layers, plans[-1].ffn) == ((0, 4, 5), 0.5)
    sizes = [(len(each.layers or ()), each.ffn) for each in plans]
    assert sizes == sorted(sizes, reverse=True)
    assert len({each.layers for each in search.cuts(12, list(range(6)), INT8)}) == 6
    assert [plan.layers for plan in search.cuts(1, [], INT8)] == [None] * 3, "no layer can go: neurons do"


def test_precisions_that_only_make_it_smaller_are_for_size() -> None:
    def tried(target: Target) -> list[tuple[str, str]]:
        return [(each.precision, each.runner) for each in search.precisions(target, "cpu")]

    assert tried("throughput") == [("int8", "onnx"), ("bf16", "openvino"), ("int8-weights", "onnx")]
    assert set(tried("size")) - set(tried("throughput")) == {("int4-weights", "onnx"), ("bf16", "onnx")}
    assert [each.precision for each in search.precisions("size", "cuda")] == ["fp16"]


class Maker:
    """Makes variants of given figures: nDCG, and speed."""

    def __init__(self, figures: dict[str, tuple[float, float]]) -> None:
        self.figures = figures
        self.told: list[str] = []

        class Shop:
            class source:  # of an encoder that cannot be cut
                backbone = Graph(Path("none"), "none")

        self.shop = Shop

    def tell(self, text: str) -> None:
        self.told.append(text)

    def candidate(self, passes: Passes) -> VariantCandidate:
        if passes.name not in self.figures:
            raise ExportError("OpenVINO is not installed")
        ndcg, speed = self.figures[passes.name]
        return dataclasses.replace(candidate(passes.name, ndcg, speed, speed, 1), passes=passes)


@pytest.mark.parametrize(
    ("figures", "found", "seen"),
    [
        ({"int8": (0.98, 2.8), "bf16": (1.0, 2.7), "int8-weights": (1, 1.5)}, ["int8", "bf16"], 2),
        ({"int8": (0.98, 2.8), "bf16": (1.0, 2.9), "int8-weights": (1, 1.5)}, ["bf16"], 2),
        ({"int8": (0.98, 2.8), "bf16": (1.0, 0.9), "int8-weights": (1, 1.5)}, ["int8"], 1),
        ({"int8": (0.98, 2.8), "int8-weights": (1, 1.5)}, ["int8"], 1),
        ({"int8": (0.9, 2.8), "bf16": (0.9, 2.7), "int8-weights": (1, 1.5)}, ["int8-weights"], 3),
    ],
)
def test_a_search_tries_both_fast_precisions(
    figures: dict[str, tuple[float, float]], found: list[str], seen: int
) -> None:
    maker = Maker(figures)
    best, every = search.search(maker, [0.97], "throughput", "cpu", 1)  # type: ignore[arg-type]
    assert [each.passes.name for each in best] == found
    assert len(every) == seen
    assert any("bf16: not possible: OpenVINO" in text for text in maker.told) is ("bf16" not in figures)
    left_out = "bf16: no faster than the encoder as it is here, so it is left out"
    assert (left_out in maker.told) is (figures.get("bf16", (0, 2))[1] < 1)


def test_cuts_are_made_in_the_nearest_of_the_fastest() -> None:
    some = [
        candidate("int8", 0.99, 1, 2.9, 1),
        candidate("bf16", 1.0, 1, 2.8, 1),
        candidate("slow", 1.1, 1, 2, 1),
    ]
    assert search._base(some, "throughput").passes.name == "bf16"
    assert search._base([some[0], some[2]], "throughput").passes.name == "int8"


def test_each_floor_gets_the_deepest_cut_that_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quality falls along the plans; each is made once."""
    plans = search.cuts(6, [2, 3, 1, 0, 4], INT8)
    shares = (0.995, 0.98, 0.96, 0.85, 0.7, 0.6)
    quality = dict(zip([plan.name for plan in plans], shares, strict=True))
    made: list[str] = []

    class Shop:
        source = None
        layer_order = (2, 3, 1, 0, 4)

    class Bench:
        shop = Shop()

        def tell(self, text: str) -> None:
            pass

        def candidate(self, passes: Passes) -> VariantCandidate:
            made.append(passes.name)
            assert 0 < passes.heal < 8 * 60e-3, "all of them have eight minutes together"
            return candidate(passes.name, quality[passes.name], 2, 2, 1)

    class Backbone:
        backbone = None

    Shop.source = Backbone  # type: ignore[assignment]
    monkeypatch.setattr(search.anatomy, "blocks", lambda backbone: range(6))
    monkeypatch.setattr(pace, "_seconds", lambda shop: 1e-3)
    seen = search._bisect(Bench(), (0.84, 0.99, 0.97), INT8, 8)  # type: ignore[arg-type]
    names = [each.passes.name for each in seen]
    assert {plans[0].name, plans[1].name, plans[3].name} <= set(names), "the deepest at each floor"
    assert len(names) == len(set(names)) == len(made)
    seen = search._bisect(Bench(), (0.9, 0.99, 0.97), INT8, 8)  # type: ignore[arg-type]
    names = [each.passes.name for each in seen]
    assert names == [plans[number].name for number in (3, 1, 0, 2)], (
        "nothing beyond one that misses the floor"
    )
