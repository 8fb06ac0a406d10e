"""The picture: throughput and p99 against calls in flight; ours, theirs and the limit."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLORS = {"trimtab": "tab:blue", "triton": "tab:green", "infinity": "tab:orange"}
LABELS = {"trimtab": "Trimtab", "triton": "Triton (Python model)", "infinity": "Infinity (ONNX)"}


def draw(results: Mapping[str, Any], concurrency: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Two columns, short and mixed texts; throughput above, latency below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    mixes = [mix for mix in ("short", "mixed") if mix in results]
    figure, axes = pyplot.subplots(
        2, len(mixes), figsize=(4.8 * len(mixes), 6.4), sharex="col", squeeze=False, constrained_layout=True
    )
    for column, mix in enumerate(mixes):
        rate, latency = axes[0][column], axes[1][column]
        limit = statistics.median(results[mix]["limit"]["limit"]["rate"])
        rate.axhline(
            limit, color="black", linestyle="--", linewidth=1, label="limit: no server, texts sorted"
        )
        for server, color in COLORS.items():
            rows = results[mix].get(server, {})
            points = [number for number in concurrency[mix] if str(number) in rows]
            if not points:
                continue
            medians = {
                name: [statistics.median(rows[str(number)][name]) for number in points]
                for name in ("rate", "p99")
            }
            style: dict[str, Any] = {"color": color, "marker": "o", "markersize": 4, "label": LABELS[server]}
            rate.plot(points, medians["rate"], **style)
            latency.plot(points, medians["p99"], **style)
        rate.set_title(f"{mix} texts")
        rate.set_ylim(bottom=0)
        latency.set_yscale("log")
        latency.set_xscale("log", base=2)
        latency.set_xticks(concurrency[mix], list(map(str, concurrency[mix])))
        latency.set_xlabel("calls in flight, one text each")
        for each in (rate, latency):
            each.grid(alpha=0.3, which="both")
            each.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("texts per second (higher is better)")
    axes[1][0].set_ylabel("p99 latency, ms (lower is better)")
    handles, labels = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.suptitle("all-MiniLM-L6-v2 fp32; server on one CPU core, client on another", fontsize=10)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
