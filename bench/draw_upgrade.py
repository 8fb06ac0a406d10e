"""The picture of an upgrade: the arms, and the quality while documents move."""

from collections.abc import Mapping
from pathlib import Path

COLORS = {
    "old on old": "tab:gray",
    "new on old, naive": "tab:red",
    "adapted": "tab:orange",
    "cascade": "tab:blue",
    "new re-indexed": "tab:green",
}


def draw(
    arms: Mapping[str, float], rescored: Mapping[str, float], calibrated: Mapping[str, float], path: Path
) -> None:
    """Left the arms as bars, right Recall@10 of both halves against the share that has moved."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (bars, lines) = pyplot.subplots(
        1, 2, figsize=(9.6, 3.6), constrained_layout=True, width_ratios=(1, 1.15)
    )
    for place, (arm, color) in enumerate(COLORS.items()):
        bars.bar(place, arms[arm], color=color, width=0.7)
        bars.text(place, arms[arm] + 0.01, f"{arms[arm]:.3f}", ha="center", fontsize=8)
    bars.set_xticks(range(len(COLORS)), [arm.replace(" on old", "\non old") for arm in COLORS], fontsize=7)
    bars.set_ylabel("Recall@10 (higher is better)")
    bars.set_title("the same queries, five ways", fontsize=9)
    for label, figures, color in (
        ("both halves, old candidates rescored", rescored, COLORS["cascade"]),
        ("both halves, scores calibrated", calibrated, COLORS["adapted"]),
    ):
        moved = [float(stage.rstrip("%")) for stage in figures]
        lines.plot(moved, list(figures.values()), color=color, marker="o", markersize=4, label=label)
    for arm in ("new re-indexed", "old on old"):
        lines.axhline(arms[arm], color=COLORS[arm], linestyle="--", linewidth=1, label=arm)
    lowest = min(arms["old on old"], arms["adapted"], *rescored.values(), *calibrated.values())
    lines.set_ylim(lowest - 0.05, arms["new re-indexed"] + 0.03)  # a closer look
    lines.set_xlabel("documents re-indexed, %")
    lines.set_title("while trimtab reindex runs", fontsize=9)
    lines.legend(fontsize=7, frameon=False, loc="lower right")
    for each in (bars, lines):
        each.grid(alpha=0.3, axis="y")
        each.spines[["top", "right"]].set_visible(False)
    figure.suptitle("paraphrase-MiniLM-L3-v2 to all-MiniLM-L6-v2, package descriptions", fontsize=10)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
