"""One run over vector stores: its settings, its counts, and the check of its documents."""

import random
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.chaos import application_stores, endings
from bench.chaos.application_stores import Contents
from bench.chaos.endings import DONE, REFUSED, Ending
from tests.client.stores.postgres_process import PostgresProcess

SAME = 1e-4


@dataclass(slots=True)
class StoreRun:
    """One run: what it does, how it ends, and what was wrong."""

    number: int
    folder: Path
    random: random.Random
    database: PostgresProcess
    operation: str = ""
    kinds: tuple[str, ...] = ()
    ending: str = ""
    exits: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    worse: int = 0
    searches: int = 0

    @property
    def said(self) -> Path:
        """The file to which children write how they ended."""
        return self.folder / "said"

    def kept(self) -> dict[str, Any]:
        """The run, for the journal."""
        return {
            "run": self.number, "operation": self.operation, "kinds": self.kinds, "ending": self.ending,
            "exits": self.exits, "wrong": self.wrong, "worse": self.worse, "searches": self.searches,
        }  # fmt: skip

    def ended(self, status: int) -> int:
        """Record how a child ended; a crash or a hang is always wrong."""
        self.exits.append(status)
        if status not in {DONE, REFUSED, -signal.SIGKILL}:
            self.wrong.append(f"crashed: {self.said.read_text()[-600:]}")
        return status

    def undisturbed(self, work: Any) -> None:
        """Run it again to its end."""
        if self.ended(endings.start(work, self.said).wait()) != DONE:
            self.wrong.append(f"it cannot be resumed: {self.said.read_text()[-600:]}")


class CallCounts:
    """How many calls each kind of work makes, counted once without faults."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, ...], int] = {}

    def ending(self, run: StoreRun, work: Any) -> Ending:
        """An ending of the kind that was drawn, at a random moment of such work."""
        if run.ending == "full":
            return Ending(full=int(run.random.choice((300, 3_000, 20_000)) * run.random.random()))
        if run.ending == "failing":
            return Ending(failing=run.random.randint(1, 40))
        if run.ending == "kill" or (run.ending == "second" and run.random.random() < 0.5):
            return Ending(kill=run.random.randint(1, self._calls[(run.operation, *run.kinds)]))
        return Ending()

    def measure(self, run: StoreRun, work: Any) -> None:
        """Count the calls, if not yet done; the caller undoes the effects."""
        key = (run.operation, *run.kinds)
        if key not in self._calls:
            self._calls[key] = endings.calls(work, run.said)

    def known(self, run: StoreRun) -> bool:
        """Whether such work was counted."""
        return (run.operation, *run.kinds) in self._calls


def texts_of(run: StoreRun, count: int) -> dict[int, str]:
    """Documents unique to this run."""
    return {id: f"document {id} of run {run.number}" for id in range(count)}


def revive(run: StoreRun) -> None:
    """Restart the database if it was stopped."""
    process = run.database.process
    if process is not None and (run.ending == "failing" and "postgresql" in run.kinds):
        try:
            process.wait(0 if process.poll() is not None else 0.5)
        except Exception:
            return
        run.database.start()


def different(
    name: str, found: Contents, texts: Mapping[int, str], vectors: application_stores.Vectors
) -> list[str]:
    """What is wrong with a store's documents."""
    wrong = []
    if found.keys() != texts.keys():
        lost, extra = sorted(texts.keys() - found.keys()), sorted(found.keys() - texts.keys())
        wrong.append(f"{name}: {len(lost)} lost {lost[:5]}, {len(extra)} too many {extra[:5]}")
    both = sorted(found.keys() & texts.keys())
    if other := [id for id in both if found[id][0] != texts[id]]:
        wrong.append(f"{name}: the texts of {other[:5]} are others")
    if both:
        stored = np.array([found[id][1] for id in both])
        off = np.abs(stored - vectors([str(found[id][0]) for id in both])).max(axis=1)
        if (off > SAME).any():
            wrong.append(f"{name}: {int((off > SAME).sum())} vectors are others")
    return wrong
