"""The programs that look for lost and wrong answers would notice them."""

import re
from pathlib import Path

import numpy as np
import pytest

import trimtab
from bench.chaos import floods, known, targets
from bench.chaos.fuzzed import Refusing
from bench.chaos.ledger import CHECKED, Ledger
from bench.chaos.table import Bar, PartResult, table
from bench.limit import Bare
from bench.processes import ROOT
from trimtab_server.config import LimitSettings


def test_the_known_vectors_are_those_of_the_bundle_and_no_two_are_alike() -> None:
    bare = Bare(known.bundle())
    numbers = [*range(2000), *range(16_000_000, 16_000_100)]
    ids = bare.tokenize([known.text(number) for number in numbers])
    served = np.concatenate([bare.run(ids[row : row + 32]) for row in range(0, len(ids), 32)])
    expected = known.vectors(numbers)
    assert np.abs(served - expected).max() < known.TOLERANCE / 10
    near = expected @ expected.T - np.eye(len(numbers))
    assert np.sqrt((2 - 2 * near.max()) / known.WIDTH) > 10 * known.TOLERANCE


def test_the_ledger_notices_what_is_wrong() -> None:
    ledger, numbers = Ledger(), list(range(2 * CHECKED))
    right = known.vectors(numbers)
    ledger.answer(numbers, right)
    assert ledger.counts["wrong"] == 0
    ledger.answer([1, 2], right[[2, 1]])
    ledger.answer([3], right[3:4, :-1])
    ledger.answer([4, 5], right[4:5])
    ledger.answer([6], np.full((1, known.WIDTH), np.nan))
    ledger.error("sdk", trimtab.Unavailable("gone"), 2)
    ledger.finish()
    assert ledger.counts["wrong"] == 2 + 1 + 2 + 1
    assert ledger.told()["by_error"] == {"sdk UNAVAILABLE": 2}


def test_a_bar_that_is_missed_is_shown() -> None:
    shown = table({"faults": PartResult({}, [Bar("lost", 0, 0), Bar("twice", 1, 0)])}).splitlines()
    assert shown[1].endswith("pass")
    assert shown[2].endswith("FAIL")


def test_floods_are_held_against_what_the_documentation_derives() -> None:
    """docs/configuration.md, "What callers can make a server hold"."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    table = re.findall(r"^\| .*\| ([\d.]+) ([MG])iB \|$", text, re.MULTILINE)
    parts = [float(size) * (1024 if unit == "G" else 1) for size, unit in table]
    said = re.search(r"^The total is ([\d.]+) GiB", text, re.MULTILINE)
    limits = LimitSettings()
    most = floods.bound(0, limits, limits.max_connections) / (1 << 20)
    assert len(parts) == 7 and sum(parts) == most
    assert said and float(said[1]) == round(most / 1024, 1)


@pytest.mark.parametrize("name", sorted(set(targets.TARGETS) - {"wire"}))
def test_what_the_fuzzer_begins_with_fails_nothing(name: str, tmp_path: Path) -> None:
    target = targets.TARGETS[name](tmp_path)
    for number, seed in enumerate(target.seeds):
        before = Refusing.count
        target.run(seed)
        assert number >= target.right or Refusing.count == before, f"refused: {seed!r}"
        target.run(seed[: len(seed) // 2])
    target.run(b"")
