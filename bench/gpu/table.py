"""The rows of all parts, as tables."""

from collections.abc import Mapping, Sequence

from bench.gpu.devices import Row
from bench.gpu.part import PARTS, shown

NAMES = ("row", "batch", "way", "threads", "loads", "in_flight")
LEGEND = """\
first_ms, other_shape_ms: the first run, and the first of another shape; taken_mib: memory, which in the first
row includes what the device itself takes; nodes, elsewhere: of the graph, on the device and not
difference: the largest of a component; batch_: a text in a batch against the same text alone
padding: share of padding in the padded batch; ratio: texts a second without padding over those with it
rate: texts a second; ready_rate: without tokenising; of_limit: of the bare loop's rate
device_busy: seconds of runs a second, over all workers; server_cores: CPU seconds a second
pause_s: the longest time without an answer after the kill, while another process opens the graphs"""


def table(found: Mapping[str, Sequence[Row]]) -> str:
    """A table for each part; rows without figures say why."""
    lines = []
    for name, rows in found.items():
        lines += ["", f"{name}: {PARTS[name].what}" if name in PARTS else name]
        figures = [row for row in rows if "reason" not in row]
        columns = [*NAMES, *dict.fromkeys(key for row in figures for key in row if key not in (*NAMES, "on"))]
        columns = [key for key in [*columns, "on"] if any(key in row for row in figures)]
        cells = [columns, *([shown(row.get(key, "")) for key in columns] for row in figures)]
        widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
        for line in cells if figures else []:
            first, *rest = (
                cell.ljust(width) if not place else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            lines.append("  ".join([f"  {first}", *rest]))
        without: dict[str, list[str]] = {}
        for row in rows:
            if "reason" in row:
                title = " ".join(str(row[key]) for key in NAMES if key in row)
                without.setdefault(row["reason"], []).append(title)
        lines += [f"  {', '.join(titles)}: {reason}" for reason, titles in without.items()]
    return "\n".join([*lines, "", LEGEND])
