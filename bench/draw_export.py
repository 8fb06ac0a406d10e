"""The picture of an export: what each variant keeps of retrieval, against how fast it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw(encoder: str, variants: Sequence[Mapping[str, Any]], path: Path) -> None:
    """nDCG@10 kept over the worst set with its interval, against speed, and what is kept outside."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 3.8), constrained_layout=True)
    axes.axhline(1.0, color="black", linestyle="--", linewidth=1, label="float32, whole")
    for number, variant in enumerate(sorted(variants, key=lambda each: float(each["speed"]))):
        kept, speed = variant["ndcg"], variant["speed"]
        below, above = kept["value"] - kept["low"], kept["high"] - kept["value"]
        axes.errorbar(
            speed,
            kept["value"],
            yerr=[[below], [above]],
            color="tab:blue",
            marker="o",
            markersize=5,
            capsize=2,
            linewidth=1,
            label="worst kind of text that was left out, and its interval" if not number else None,
        )
        axes.plot(
            speed,
            variant["outside"],
            color="tab:orange",
            marker="x",
            linestyle="",
            label="outside: descriptions of Debian's packages" if not number else None,
        )
        axes.annotate(
            variant["name"],
            (speed, kept["high"] if number % 2 else kept["low"]),
            xytext=(0, 4 if number % 2 else -9),
            textcoords="offset points",
            ha="center",
            fontsize=6.5,
        )
    axes.set_xlabel("times as fast as float32, one CPU thread (higher is better)")
    axes.set_ylabel("share of nDCG@10 kept (higher is better)")
    axes.set_title(f"variants of {encoder}", fontsize=10)
    axes.margins(x=0.12)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
