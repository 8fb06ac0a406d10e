"""How much retrieval quality adapters keep, over twelve changes of the encoder: `make bench-upgrade`.

For each swap, with a new encoder's queries on an old encoder's index: the four arms, every rung of the ladder
on the held-out test queries, the gate's choice against the best in hindsight, and the cascade. Slow results
are cached in bench/.data/upgrade, so an interrupted run resumes.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import data, drifts, encoders, processes
from trimtab.artifacts import artifact
from trimtab.artifacts import bundle as bundles
from trimtab.kinds import Role
from trimtab_export import runtime
from trimtab_export.adapters import metrics
from trimtab_export.adapters.encode import BundleEncoder, Floats, Halves
from trimtab_export.adapters.fit import FitInputs, learn
from trimtab_export.adapters.inputs import Query, RelevantPair
from trimtab_export.export import export
from trimtab_export.source import Settings

HISTORY = processes.ROOT / "bench" / "history" / "upgrade.jsonl"
FOLDER = Path(__file__).parent / ".data" / "upgrade"
DOCUMENTS = 10_000
FIT_QUERIES = 24_000
MILD_FIT_QUERIES = 6_000
BLIND = "embeddings"


@dataclass(frozen=True, slots=True)
class Swap:
    """A change of the encoder."""

    new: str
    old: str
    mild: bool = False

    @property
    def name(self) -> str:
        return f"{self.new} -> {self.old}"


L6, L3, E5 = "l6", "l3", "e5"
PRUNED, TUNED, INT8, SHALLOW, NARROW = "l6-ffn75", "l6-tuned", "l6-int8", "l6-layer4", "l6-256d"
SWAPS = (
    Swap(L6, L3),
    Swap(L3, L6),
    Swap(E5, L6),
    Swap(INT8, L6, mild=True),
    Swap(PRUNED, L6, mild=True),
    Swap(TUNED, L6, mild=True),
    Swap(L6, TUNED, mild=True),
    Swap(SHALLOW, L6, mild=True),
    Swap(NARROW, L6, mild=True),
    Swap(L6, E5),
    Swap(E5, L3),
    Swap(L3, E5),
)
MADE = {
    L6: lambda examples: encoders.source(encoders.L6),
    L3: lambda examples: encoders.source(encoders.L3),
    E5: lambda examples: encoders.source(encoders.E5),
    PRUNED: lambda examples: drifts.made(drifts.PRUNED, examples),
    TUNED: lambda examples: drifts.made(drifts.TUNED, examples),
}


class Shallow(BundleEncoder):
    """L6 stopped after its fourth layer: the mean of that layer's states, at length 1."""

    LAYERS = 5  # the embedding layer included

    @property
    def width(self) -> int:
        return self.LAYERS * self.dimensions

    def rows(self, texts: Sequence[str], role: Role, label: str = "") -> tuple[Floats, Halves]:
        states = super().rows(texts, role, label)[1][:, : self.width]
        return metrics.unit(states[:, -self.dimensions :].astype(np.float32)), states

    def vectors(self, texts: Sequence[str], role: Role, label: str = "") -> Floats:
        return self.rows(texts, role, label)[0]


class Narrow(BundleEncoder):
    """L6 cut to its first 256 dimensions, at length 1, as for a store of that size."""

    @property
    def dimensions(self) -> int:
        return 256

    def rows(self, texts: Sequence[str], role: Role, label: str = "") -> tuple[Floats, Halves]:
        vectors, states = super().rows(texts, role, label)
        return metrics.unit(vectors[:, : self.dimensions]), states

    def vectors(self, texts: Sequence[str], role: Role, label: str = "") -> Floats:
        return metrics.unit(super().vectors(texts, role, label)[:, : self.dimensions])


class Quantised(BundleEncoder):
    """L6 as an int8 graph, pooled here: the exporter does not accept quantised weights as a source."""

    def __init__(self, bundle: bundles.Bundle, cache: Path, threads: int) -> None:
        super().__init__(bundle, cache, threads)
        self._states = None
        self._graph = drifts.made(drifts.INT8, data.examples()[DOCUMENTS:]) / "model.onnx"
        self._graph_file = artifact.digest(self._graph)

    def compute(self, texts: list[str], prompt: str) -> Floats:
        if self._session is None:
            self._session = runtime.session(self._graph, self._threads)
        tokens = self._collator(texts, prompt)
        states = runtime.run(self._session, "last_hidden_state", tokens)
        mask = tokens["attention_mask"][:, :, None]
        return metrics.unit((states * mask).sum(axis=1) / mask.sum(axis=1))


WRAPPERS: dict[str, tuple[str, type[BundleEncoder]]] = {
    SHALLOW: (L6, Shallow),
    NARROW: (L6, Narrow),
    INT8: (L6, Quantised),
}


class SwapMaterial:
    """The examples, and the encoders, loaded on demand."""

    def __init__(self) -> None:
        self.examples = data.examples()
        self.judged, self.others = self.examples[:DOCUMENTS], self.examples[DOCUMENTS:]
        self._encoders: dict[str, BundleEncoder] = {}

    def encoder(self, name: str) -> BundleEncoder:
        """The encoder of this name, exported if missing; its vectors are cached."""
        if name not in self._encoders:
            base, kind = WRAPPERS.get(name, (name, BundleEncoder))
            bundle = FOLDER / "repository" / base / "1"
            if not encoders.exported(bundle):
                folder = MADE[base](self.others)
                export(Settings(str(folder)), base, FOLDER / "repository")
            self._encoders[name] = kind(bundles.read(bundle), FOLDER / "vectors", threads=1)
        return self._encoders[name]

    def inputs(self) -> FitInputs:
        """Texts, queries and pairs."""
        return FitInputs(
            texts=[each.document for each in self.judged],
            queries=[Query(each.query) for each in self.others],
            pairs=[RelevantPair(Query(each.query), each.document) for each in self.judged],
        )


def run(material: SwapMaterial, swap: Swap) -> dict[str, Any]:
    """One swap: its arms, its rungs on the test queries, and how good the gate's choice was."""
    started = time.perf_counter()
    new, old = material.encoder(swap.new), material.encoder(swap.old)
    fitted = learn(new, old, material.inputs(), {}, DOCUMENTS, MILD_FIT_QUERIES if swap.mild else FIT_QUERIES)
    outcome, arms = fitted.outcome, fitted.outcome.arms
    rungs = {
        rung.name: round(float(fitted.indexes.recall(rung.map, rung.reads, fitted.test).mean()), 4)
        for rung in fitted.rungs
    }
    blind = {rung.name: rungs[rung.name] for rung in fitted.rungs if rung.reads == BLIND}
    weaker = min(arms.old_on_old.recall_10, arms.reindexed.recall_10)
    best = max(rungs, key=lambda name: rungs[name])
    return {
        "swap": swap.name,
        "arms": {
            "old on old": arms.old_on_old.recall_10,
            "naive": None if arms.naive is None else arms.naive.recall_10,
            "adapted": arms.adapted.recall_10,
            "cascade": arms.cascade.recall_10,
            "re-indexed": arms.reindexed.recall_10,
        },
        "rungs": rungs,
        "chosen": outcome.chosen.name,
        "best": best,
        "chosen behind best": round(rungs[best] - rungs[outcome.chosen.name], 4),
        "best / weaker": round(rungs[best] / weaker, 4),
        "best blind / weaker": round(max(blind.values()) / weaker, 4),
        "adapted / old on old": round(arms.adapted.recall_10 / arms.old_on_old.recall_10, 4),
        "cascade / re-indexed": round(arms.cascade.recall_10 / arms.reindexed.recall_10, 4),
        "verdict": outcome.verdict,
        "failed checks": [check.name for check in outcome.checks if not check.passed],
        "seconds": round(time.perf_counter() - started),
    }


def told(swap: Swap, result: dict[str, Any]) -> str:
    """A line of the table."""
    arms = result["arms"]
    naive = "   - " if arms["naive"] is None else f"{arms['naive']:.3f}"
    return (
        f"{swap.name:<18}{arms['old on old']:7.3f}{naive:>7}{arms['adapted']:7.3f}{arms['cascade']:7.3f}"
        f"{arms['re-indexed']:7.3f}{result['best / weaker']:8.3f}{result['best blind / weaker']:7.3f}"
        f"{result['cascade / re-indexed']:8.3f}  {result['chosen']} ({-result['chosen behind best']:+.3f}), "
        f"{result['verdict']}"
    )


def keep(results: list[dict[str, Any]]) -> None:
    """Append the run to the history."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=processes.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "command": shlex.join(["python", "-m", "bench.upgrade", *sys.argv[1:]]),
        "machine": processes.machine(),
        "documents": DOCUMENTS,
        "fit_queries": FIT_QUERIES,
        "results": results,
    }
    HISTORY.parent.mkdir(exist_ok=True)
    with HISTORY.open("a") as history:
        history.write(json.dumps(record) + "\n")
    print(f"kept in {HISTORY.relative_to(processes.ROOT)}")


def main() -> None:
    """Run the requested swaps, by default all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--swaps", nargs="+", choices=[swap.name for swap in SWAPS], metavar="NEW -> OLD")
    parser.add_argument("--fresh", action="store_true", help="also refit what an earlier run has fitted")
    options = parser.parse_args()
    material, results = SwapMaterial(), []
    print(f"{'':18}    old  naive adapted cascade re-ind. best/weaker blind cascade/re-ind.")
    for swap in SWAPS:
        if options.swaps is None or swap.name in options.swaps:
            path = FOLDER / "results" / f"{swap.name.replace(' ', '')}.json"
            if options.fresh or not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(run(material, swap), indent=1))
            results.append(json.loads(path.read_text()))
            print(told(swap, results[-1]), flush=True)
    keep(results)


if __name__ == "__main__":
    main()
