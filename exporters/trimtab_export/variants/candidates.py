"""Makes and measures variants, and keeps them in a folder, so that an interrupted search resumes there."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trimtab.artifacts import durable
from trimtab.artifacts.cards import Fidelity, ReportCard
from trimtab.artifacts.manifest import Passes
from trimtab_export import runtime
from trimtab_export.passes.curve import Point
from trimtab_export.runtime import AnyGraph
from trimtab_export.variants import fidelity, make, packed
from trimtab_export.variants.fidelity import Reference
from trimtab_export.variants.make import Workshop

MEASURED = "report.json"
UNPADDED = b"unpad/"  # in the names of what `unpad` adds


@dataclass(frozen=True)
class VariantCandidate:
    """A variant on disk with its figures; the graph is the first of the files."""

    passes: Passes
    files: tuple[Path, ...]
    report: ReportCard
    curve: tuple[Point, ...] = ()  # of its training, if it was trained

    @property
    def fidelity(self) -> Fidelity:
        """The fidelity in the report card, which variants always have."""
        assert self.report.fidelity is not None  # noqa: S101
        return self.report.fidelity

    @property
    def unpadded(self) -> bool:
        """Whether the padding was removed from the graph."""
        return UNPADDED in self.files[0].read_bytes()


@dataclass(frozen=True)
class VariantMaker:
    """Makes and measures variants, each once."""

    shop: Workshop
    reference: Reference
    tell: Callable[[str], object]

    def int8_limit(self, graph: AnyGraph) -> float:
        """The range of a graph's packed vectors, over texts that are not used to measure it."""
        texts = self.shop.prompted[: make.CALIBRATION]
        return packed.limit(fidelity.embed(graph, self.shop.collator, texts))

    def candidate(self, passes: Passes) -> VariantCandidate:
        """The variant, made and measured, or read from its folder if an earlier run finished it.

        Raises ExportError if a pass cannot be applied to this encoder, or the result must not be served.
        """
        folder = self.shop.scratch / f"{make.label(passes)}.{passes.precision}.{passes.runner}"
        measured = folder / MEASURED
        if measured.is_file():
            files = tuple(sorted(folder.glob("graph/*"), key=lambda path: path.suffix != ".onnx"))
            report = msgspec.json.decode(measured.read_bytes(), type=ReportCard)
            return VariantCandidate(passes, files, report, tuple(make.curve(passes, self.shop)))
        shutil.rmtree(folder, ignore_errors=True)
        started = time.monotonic()
        self.tell(f"{passes.name}: making it")
        files = make.build(
            passes, self.shop, folder / "graph", lambda text: self.tell(f"{passes.name}: {text}")
        )
        axes = self.shop.axes(passes.width) if passes.width is not None else None
        graph = runtime.graph(files[0], passes.runner, passes.precision)
        report = fidelity.measure(graph, files, self.reference, self.int8_limit(graph), axes)
        durable.replace(measured, msgspec.json.encode(report))
        candidate = VariantCandidate(passes, files, report, tuple(make.curve(passes, self.shop)))
        self.tell(f"{passes.name}: {summary(candidate.fidelity)}, {time.monotonic() - started:.0f} s")
        return candidate


def summary(figures: Fidelity) -> str:
    """The most important figures, in one line."""
    ndcg, query_only = figures.ndcg, figures.query_only_ndcg
    return (
        f"nDCG {ndcg.value:.3f} ({ndcg.low:.3f} to {ndcg.high:.3f}) at worst, over {figures.retrieval}, "
        f"query-only {query_only.value:.3f}, "
        f"cosine {figures.cosine:.4f}, {fidelity.typical(figures.speedup):.2f}x as fast, "
        f"{figures.bytes / 1e6:.1f} MB"
    )
