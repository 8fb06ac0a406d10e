"""An adapter's report as one self-contained HTML page: figures, and pictures as SVG."""

from collections.abc import Iterator, Sequence
from html import escape

from trimtab.artifacts.adapter import SERVED, AdapterManifest, Quality, Rung
from trimtab.artifacts.artifact import Interval

WIDTH, LEFT, RIGHT, ROW = 760, 230, 60, 30
COLORS = {
    "old on old": "#7a7a7a",
    "new on old, no adapter": "#c0504d",
    "adapted": "#2e75b6",
    "cascade": "#3a9a6e",
    "new, re-indexed": "#404040",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 800px; margin: 2em auto; }
h1 { font-size: 1.5em; }
h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; }
td, th { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; }
.no { color: #b03030; }
.yes { color: #2c7a4b; }
.verdict { font-size: 1.2em; font-weight: 600; }
svg { width: 100%; height: auto; }
svg text { font-size: 13px; }
"""
MEANING = {
    "bridge": "the new encoder's queries may search the old index through this adapter",
    "cascade": "let the adapted query fetch candidates, and rescore them in the new space",
    "re-index": "only re-indexing helps; the server refuses this adapter",
    "stay": "the upgrade gains nothing: stay with the old encoder; the server refuses this adapter",
}
TRUTHS = {
    "pairs": "given pairs of query and document",
    "old ranking": "the document that the old encoder ranks first (no pairs were given)",
}


def page(manifest: AdapterManifest) -> str:
    """The whole page."""
    parts = [*_verdict(manifest), *_ways(manifest), *_rungs(manifest), *_checks(manifest), *_cost(manifest)]
    title = f"{escape(manifest.name)}: {manifest.verdict}"
    body = "\n".join(parts)
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _verdict(manifest: AdapterManifest) -> Iterator[str]:
    source, target, verdict = manifest.source, manifest.target, manifest.verdict
    yield (
        f"<h1>{escape(source.encoder)} {source.version} &rarr; {escape(target.encoder)} {target.version}</h1>"
    )
    good, provisional = "yes" if verdict in SERVED else "no", "provisional " * manifest.provisional
    yield f"<p class='verdict {good}'>{provisional}verdict: {verdict} &ndash; {MEANING[verdict]}</p>"
    yield _list([escape(reason) for reason in manifest.reasons])


def _ways(manifest: AdapterManifest) -> Iterator[str]:
    report, counts, arms = manifest.report, manifest.report.counts, _arms(manifest)
    yield "<h2>Ways to search</h2>"
    yield _bars([(name, quality.recall_10, COLORS[name]) for name, quality in arms], "Recall@10")
    yield _table(
        ("", "Recall@1", "Recall@10", "Recall@100", "nDCG@10"),
        [
            (name, *(f"{value:.3f}" for value in (q.recall_1, q.recall_10, q.recall_100, q.ndcg_10)))
            for name, q in arms
        ],
    )
    cascade = f"cascade of {report.cascade_depth} / new re-indexed"
    yield _table(
        ("Recall@10 of", "ratio", "95% interval"),
        [
            ("adapted / old on old", *_interval(report.against_old)),
            ("adapted / new re-indexed", *_interval(report.against_reindexed)),
            (cascade, *_interval(report.cascade_against_reindexed)),
        ],
    )
    yield (
        f"<p>{counts.test_queries:,} held-out queries over {counts.documents:,} documents; right is "
        f"{TRUTHS[report.truth]}.</p>"
    )


def _rungs(manifest: AdapterManifest) -> Iterator[str]:
    report = manifest.report
    yield "<h2>The rungs</h2>"
    yield (
        f"<p>How far each is behind the best, in Recall@10 of {report.counts.select_queries:,} select "
        "queries, with the paired bootstrap's 95% interval. "
        f"Taken: <b>{escape(manifest.rung)}</b>.</p>"
    )
    yield _intervals(report.rungs, manifest.rung)
    yield _table(
        ("rung", "Recall@10", "behind the best", "fitted in"),
        [
            (escape(r.name), f"{r.recall_10:.3f}", f"{r.behind.value:.3f}", f"{r.seconds:,.1f} s")
            for r in report.rungs
        ],
    )


def _checks(manifest: AdapterManifest) -> Iterator[str]:
    yield "<h2>Checks of the inputs</h2>"
    yield _list(
        [
            f"<span class='{'yes' if each.passed else 'no'}'>{'passed' if each.passed else 'failed'}</span>: "
            f"{escape(each.name)} &ndash; {escape(each.finding)}"
            for each in manifest.report.checks
        ]
    )


def _cost(manifest: AdapterManifest) -> Iterator[str]:
    report, counts = manifest.report, manifest.report.counts
    source, target = manifest.source, manifest.target
    yield "<h2>Cost and training data</h2>"
    yield _list(
        [
            f"{report.microseconds_alone:.0f} &micro;s for a query alone, {report.microseconds_batched:.1f} "
            f"&micro;s in a batch of 64 ({escape(report.machine)})",
            f"learned from {counts.fit_queries:,} queries, {counts.fit_pairs:,} of them with their "
            f"documents, and {counts.fit_texts:,} documents; reads {manifest.reads}",
            f"space {source.space} ({source.dimensions} dimensions) to {target.space} ({target.dimensions})",
            f"<code>{escape(manifest.provenance.command)}</code>, {escape(manifest.created)}",
        ]
    )


def _arms(manifest: AdapterManifest) -> list[tuple[str, Quality]]:
    arms = manifest.report.arms
    naive = [] if arms.naive is None else [("new on old, no adapter", arms.naive)]
    return [
        ("old on old", arms.old_on_old),
        *naive,
        ("adapted", arms.adapted),
        ("cascade", arms.cascade),
        ("new, re-indexed", arms.reindexed),
    ]


def _bars(rows: Sequence[tuple[str, float, str]], title: str) -> str:
    scale = WIDTH - LEFT - RIGHT
    drawn = [
        f"<text x='{LEFT - 10}' y='{ROW * number + 20}' text-anchor='end'>{escape(name)}</text>"
        f"<rect x='{LEFT}' y='{ROW * number + 5}' width='{scale * value:.1f}' height='{ROW - 10}' "
        f"fill='{color}'/>"
        f"<text x='{LEFT + scale * value + 6:.1f}' y='{ROW * number + 20}'>{value:.3f}</text>"
        for number, (name, value, color) in enumerate(rows)
    ]
    return _svg(ROW * len(rows), title, drawn)


def _intervals(rungs: Sequence[Rung], taken: str) -> str:
    """A point and a line for each rung: how far it is behind the best; further left is better."""
    widest = max([rung.behind.high for rung in rungs] + [0.01])
    least = min([rung.behind.low for rung in rungs] + [0.0])
    scale = (WIDTH - LEFT - RIGHT) / (widest - least)

    def at(value: float) -> float:
        return LEFT + (value - least) * scale

    zero = at(0.0)
    drawn = [f"<line x1='{zero:.1f}' x2='{zero:.1f}' y1='0' y2='{ROW * len(rungs)}' stroke='#bbb'/>"]
    for number, rung in enumerate(rungs):
        middle, color = ROW * number + 15, "#2e75b6" if rung.name == taken else "#8a8a8a"
        weight = " font-weight='600'" if rung.name == taken else ""
        drawn.append(
            f"<text x='{LEFT - 10}' y='{middle + 5}' text-anchor='end'{weight}>{escape(rung.name)}</text>"
            f"<line x1='{at(rung.behind.low):.1f}' x2='{at(rung.behind.high):.1f}' y1='{middle}' "
            f"y2='{middle}' "
            f"stroke='{color}' stroke-width='3'/>"
            f"<circle cx='{at(rung.behind.value):.1f}' cy='{middle}' r='5' fill='{color}'/>"
        )
    return _svg(ROW * len(rungs), "behind the best rung, Recall@10", drawn)


def _svg(height: int, title: str, drawn: Sequence[str]) -> str:
    return (
        f"<svg viewBox='0 0 {WIDTH} {height}' role='img'><title>{escape(title)}</title>{''.join(drawn)}</svg>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(kind: str, values: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{value}</{kind}>" for value in values) + "</tr>"

    return "<table>" + cells("th", head) + "".join(cells("td", row) for row in rows) + "</table>"


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def _interval(interval: Interval) -> tuple[str, str]:
    return f"{interval.value:.3f}", f"{interval.low:.3f} &ndash; {interval.high:.3f}"
