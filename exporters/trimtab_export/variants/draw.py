"""Draws what a search found: quality against speed as a PNG, and all figures as one HTML page."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from trimtab.artifacts.artifact import provisional
from trimtab.artifacts.cards import TRAINED_ON, Cell
from trimtab_export.variants.candidates import VariantCandidate
from trimtab_export.variants.fidelity import typical

PNG = "quality-speed.png"
CURVES = "training.png"
PAGE = "report.html"
HEADINGS = (
    "variant", "nDCG@10 kept at worst", "95%", "R@10 kept", "query-only nDCG kept", "cosine, mean (least)",
    "speed over fp32", "at each shape", "MB", "alone against in a batch, least cosine",
)  # fmt: skip
STYLE = (
    "body{font:15px sans-serif;margin:2em}"
    "td,th{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}table{border-collapse:collapse}img{max-width:100%}"
)


def draw(
    name: str,
    candidates: Sequence[VariantCandidate],
    cells: Sequence[Cell],
    floors: Sequence[float],
    folder: Path,
) -> Path:
    """Write the picture and the page into `folder`; the page holds the picture and needs nothing else.

    Args:
        name: of the encoder.
        candidates: all that were measured, in any order.
        cells: what is kept at each depth and width; perhaps none.
        floors: the required qualities, drawn as lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _picture(name, candidates, floors, folder / PNG)
    rows = "".join(_row(candidate) for candidate in candidates)
    heads = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
    picture = base64.b64encode((folder / PNG).read_bytes()).decode()
    figures = candidates[0].fidelity
    unsure = f"<p><b>{html.escape(provisional(TRAINED_ON))}</b></p>" if figures.provisional else ""
    page = folder / PAGE
    page.write_text(
        f"<!doctype html><meta charset=utf-8><title>{html.escape(name)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(name)}</h1>{unsure}<p>{html.escape(candidates[0].report.machine)}.</p>"
        f'<img alt="quality against speed" src="data:image/png;base64,{picture}">'
        f"<table><tr>{heads}</tr>{rows}</table>{_sets(candidates)}{_training(candidates, folder)}"
        f"{_grid(cells)}\n",
        "utf-8",
    )
    return page


def _row(candidate: VariantCandidate) -> str:
    figures = candidate.fidelity
    shapes = ", ".join(f"{each.batch}x{each.length}: {each.factor:.2f}" for each in figures.speedup)
    kept = figures.ndcg
    cells = (
        candidate.passes.name, f"{kept.value:.3f}", f"{kept.low:.3f} to {kept.high:.3f}",
        f"{figures.recall.value:.3f}", f"{figures.query_only_ndcg.value:.3f}",
        f"{figures.cosine:.4f} ({figures.min_cosine:.4f})", f"{typical(figures.speedup):.2f}", shapes,
        f"{figures.bytes / 1e6:.1f}", f"{figures.batch_min_cosine:.7f}",
    )  # fmt: skip
    return f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"


def _training(candidates: Sequence[VariantCandidate], folder: Path) -> str:
    """The training curves of the variants that were trained."""
    trained = [candidate for candidate in candidates if candidate.curve]
    if not trained:
        return ""
    _curves(trained, folder / CURVES)
    picture = base64.b64encode((folder / CURVES).read_bytes()).decode()
    return (
        "<h2>Training</h2><p>nDCG@10 kept on texts of a kind that was not trained on, before the precision. "
        "Where a curve still rises at its end, more minutes bring more.</p>"
        f'<img alt="quality against minutes" src="data:image/png;base64,{picture}">'
    )


def _curves(candidates: Sequence[VariantCandidate], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for candidate in candidates:
        minutes = [point.seconds / 60 for point in candidate.curve]
        axes.plot(minutes, [point.ndcg for point in candidate.curve], "o-", label=candidate.passes.name)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("share of fp32's nDCG@10 kept")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _sets(candidates: Sequence[VariantCandidate]) -> str:
    """The quality kept over each judging set, with the variant's own index and by queries alone."""
    sets = candidates[0].fidelity.sets
    heads = "".join(
        f"<th>{html.escape(each.name)}<br>{each.kind}<br>{' '.join(each.languages)}<br>{each.queries} "
        f"queries, {each.documents} documents<br>fp32 {each.source_ndcg:.3f}</th>"
        for each in sets
    )
    rows = ""
    for candidate in candidates:
        figures = "".join(
            f"<td>{each.ndcg.value:.3f} ({each.ndcg.low:.3f} to {each.ndcg.high:.3f}) / "
            f"{each.query_only_ndcg.value:.3f}</td>"
            for each in candidate.fidelity.sets
        )
        rows += f"<tr><td>{html.escape(candidate.passes.name)}</td>{figures}</tr>"
    return (
        "<h2>What judged</h2><p>nDCG@10 kept over each set, with its 95% interval / by queries alone. The "
        "kinds of text that are left out have made and chosen nothing.</p>"
        f"<table><tr><th>variant</th>{heads}</tr>{rows}</table>"
    )


def _grid(cells: Sequence[Cell]) -> str:
    """Depth by width: the nDCG kept with the variant's own index, and by queries alone."""
    if not cells:
        return ""
    widths = sorted({cell.dimensions for cell in cells}, reverse=True)
    found = {(cell.layers, cell.dimensions): cell for cell in cells}
    heads = "".join(f"<th>{width}</th>" for width in widths)
    rows = ""
    for depth in sorted({cell.layers for cell in cells}):
        row = [found[depth, width] for width in widths]
        figures = "".join(f"<td>{cell.ndcg:.3f} / {cell.query_only_ndcg:.3f}</td>" for cell in row)
        rows += f"<tr><td>{depth}</td>{figures}</tr>"
    return (
        "<h2>Depth by width</h2><p>nDCG@10 kept with an index of its own / with queries alone, in the whole "
        "encoder's index of that width. Heads and axes are fitted, no layer is trained: see exit, width and "
        f"heal.</p><table><tr><th>layers</th>{heads}</tr>{rows}</table>"
    )


def _picture(name: str, candidates: Sequence[VariantCandidate], floors: Sequence[float], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([1.0], [1.0], "s", color="black")
    axes.annotate("fp32", (1.0, 1.0), textcoords="offset points", xytext=(6, 6))
    for candidate in candidates:
        kept, speed = candidate.fidelity.ndcg, typical(candidate.fidelity.speedup)
        axes.errorbar(
            [speed],
            [kept.value],
            yerr=[[kept.value - kept.low], [kept.high - kept.value]],
            fmt="o",
            capsize=3,
        )
        axes.annotate(candidate.passes.name, (speed, kept.value), textcoords="offset points", xytext=(6, 6))
    for floor in floors:
        axes.axhline(floor, linestyle="--", color="grey", linewidth=1)
    axes.set_xlabel("times as fast as fp32, one thread, mean over shapes")
    axes.set_ylabel("share of fp32's nDCG@10 kept, worst set")
    axes.set_title(f"variants of {name}")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
