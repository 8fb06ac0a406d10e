"""The gate on a real encoder: what it lets through, and the six traps that it must say no to, and why."""

import unicodedata
from dataclasses import replace

import numpy as np
import pytest

from tests import variants_made
from trimtab.artifacts.adapter import Check
from trimtab.errors import AdapterError
from trimtab_export.adapters import checks, gate
from trimtab_export.adapters.encode import BundleEncoder, Floats
from trimtab_export.adapters.fit import FitInputs, Fitted, learn
from trimtab_export.adapters.inputs import Query, RelevantPair

pytestmark = pytest.mark.timeout(600)
DOCUMENTS, QUERIES = 1500, 2000


def fitted(
    new: BundleEncoder, old: BundleEncoder, found: FitInputs, known: dict[str, Floats] | None = None
) -> Fitted:
    return learn(new, old, found, known or {}, DOCUMENTS, QUERIES)


def test_a_turned_space_is_bridged(turned: BundleEncoder, minilm: BundleEncoder, found: FitInputs) -> None:
    outcome = fitted(turned, minilm, found).outcome
    assert outcome.verdict == "bridge"
    assert "rotation" in outcome.chosen.name, "the simplest rung that undoes it"
    assert outcome.arms.naive is not None
    assert outcome.arms.naive.recall_10 < 0.1
    assert outcome.against_old.value > 0.98
    assert outcome.arms.adapted.recall_10 == pytest.approx(outcome.arms.old_on_old.recall_10, abs=0.02)
    assert all(check.passed for check in outcome.checks)
    assert outcome.calibrator is not None


def test_a_worse_encoder_is_not_worth_it_and_inner_states_help(
    shallow: BundleEncoder, minilm: BundleEncoder, found: FitInputs
) -> None:
    outcome = fitted(shallow, minilm, found).outcome
    assert outcome.verdict == "stay"
    assert "the upgrade gains nothing" in outcome.reasons[-1]
    recalls = {rung.name: rung.recall_10 for rung in outcome.rungs}
    assert recalls["inner head"] > recalls["identity"]
    assert len(recalls) == 12


def test_without_pairs_the_verdict_is_by_agreement(
    turned: BundleEncoder, minilm: BundleEncoder, found: FitInputs
) -> None:
    outcome = fitted(turned, minilm, replace(found, pairs=[])).outcome
    assert outcome.verdict == "bridge"
    assert outcome.reasons[0].startswith("provisional")

    assert outcome.arms.old_on_old.recall_1 == 1


def test_an_adapter_is_no_surer_than_the_cards_of_its_variants() -> None:
    sure, unsure = (variants_made.card(0.9, kind).fidelity for kind in ("left out", "trained on"))
    assert gate.provisional_ends(sure, None) == ()
    (why,) = gate.provisional_ends(unsure, sure)
    assert why.startswith("provisional: the report card of the new variant was judged by the kind of text")


def test_groups_are_learned(turned: BundleEncoder, minilm: BundleEncoder, found: FitInputs) -> None:
    grouped = replace(
        found, queries=[Query(each.text, "long" if len(each.text) > 50 else "") for each in found.queries]
    )
    done = fitted(turned, minilm, grouped)
    assert done.ground.group_names == ("long",)
    rung = next(rung for rung in done.rungs if rung.name.endswith("group shift"))
    assert rung.map.groups is not None
    assert rung.map.groups.shape == (2, 384)


# The traps


def test_trap_fifty_texts(turned: BundleEncoder, minilm: BundleEncoder, found: FitInputs) -> None:
    pairs = found.pairs[:250]
    few = FitInputs(texts=[pair.document for pair in pairs], queries=[], pairs=pairs)
    outcome = fitted(turned, minilm, few).outcome
    assert outcome.verdict == "re-index"
    assert any("give 500 or more" in reason for reason in outcome.reasons)


def test_trap_other_domain(turned: BundleEncoder, minilm: BundleEncoder, found: FitInputs) -> None:
    names = [
        unicodedata.name(chr(code)).capitalize()
        for code in range(0x3400, 0x2F00, -1)
        if unicodedata.name(chr(code), "")
    ]
    pairs = found.pairs[:400]
    other = FitInputs(texts=names[:700], queries=[Query(name) for name in names[700:1400]], pairs=pairs)
    outcome = fitted(turned, minilm, other).outcome
    assert outcome.verdict == "re-index"
    assert any("of another domain" in reason for reason in outcome.reasons)


def test_trap_shuffled_pairs(turned: BundleEncoder, minilm: BundleEncoder, found: FitInputs) -> None:
    order = np.random.default_rng(0).permutation(len(found.pairs))
    pairs = [
        RelevantPair(pair.query, found.pairs[row].document)
        for pair, row in zip(found.pairs, order, strict=True)
    ]
    outcome = fitted(turned, minilm, replace(found, pairs=pairs)).outcome
    assert outcome.verdict == "re-index"
    assert any("shuffled" in reason for reason in outcome.reasons)


def test_trap_shuffled_vectors(minilm: BundleEncoder, found: FitInputs) -> None:
    vectors = minilm.vectors(found.texts, "passage")
    checks.old_space(vectors, found.texts, minilm, "store")
    shuffled = vectors[np.random.default_rng(1).permutation(len(vectors))]
    with pytest.raises(AdapterError, match=r"not in the same order|not of the space"):
        checks.old_space(shuffled, found.texts, minilm, "store")
    local = np.roll(vectors, 1, axis=0)[:60]
    with pytest.raises(
        AdapterError, match="match those of other texts: vectors and texts are not in the same"
    ):
        checks.old_space(local, found.texts[:60], minilm, "store")


def test_trap_constant_vectors(turned: BundleEncoder, minilm: BundleEncoder, found: FitInputs) -> None:
    constant = dict.fromkeys(found.texts, np.full(384, 0.05, np.float32))
    with pytest.raises(AdapterError, match="constant, or nearly"):
        fitted(turned, minilm, found, constant)


class Prompted(BundleEncoder):
    """The real encoder, declared to want other prompts."""

    PROMPTS = ("search for: ", "a text of the manual that says: ")

    def prompt(self, role: str) -> str:
        return self.PROMPTS[role != "query"]


def test_trap_prompts_left_out_or_roles_mixed_up(minilm: BundleEncoder, found: FitInputs) -> None:
    wants = Prompted(minilm.bundle, threads=1)
    texts = found.texts[:60]
    right = wants.vectors(texts, "passage")
    checks.old_space(right, texts, wants, "store")
    with pytest.raises(AdapterError, match="made without the prompt 'a text of the manual that says: '"):
        checks.old_space(minilm.vectors(texts, "passage"), texts, wants, "store")
    with pytest.raises(AdapterError, match="made in the query's role"):
        checks.old_space(wants.vectors(texts, "query"), texts, wants, "store")
    with pytest.raises(AdapterError, match="not of the space"):
        checks.old_space(-right, texts, wants, "store")


class Deaf(BundleEncoder):
    """The real encoder, as it would be if it understood nothing but behind its prompts."""

    def prompted(self, texts: list[str], prompt: str) -> Floats:  # type: ignore[override]
        if prompt in {"query: ", "passage: "}:
            return super().prompted(texts, "")
        return super().prompted(["".join(sorted(text)) for text in texts], "")


def test_trap_prompts_left_out_of_the_bundle(minilm: BundleEncoder, found: FitInputs) -> None:
    queries, documents = [p.query.text for p in found.pairs[:60]], [p.document for p in found.pairs[:60]]
    assert checks.prompts(minilm, "new", queries, documents).passed
    caught = checks.prompts(Deaf(minilm.bundle, threads=1), "new", queries, documents)
    assert not caught.passed
    assert "its prompts were left out or mixed up" in caught.finding


def test_trap_queries_and_documents_mixed_up(
    turned: BundleEncoder, minilm: BundleEncoder, found: FitInputs
) -> None:
    pairs = [RelevantPair(Query(pair.document), pair.query.text) for pair in found.pairs]
    with pytest.raises(AdapterError, match="queries and documents are mixed up"):
        fitted(turned, minilm, replace(found, pairs=pairs))


# The rules themselves


def searched(
    old: float, adapted: float, cascade: float, reindexed: float, n: int = 1000, documents: int = 10_000
) -> gate.ArmRecalls:
    def hits(share: float) -> gate.Doubles:
        return (np.arange(n) < share * n).astype(float)

    return gate.ArmRecalls(hits(old), hits(adapted), hits(cascade), hits(reindexed), hits(cascade), documents)


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        ((0.80, 0.80, 0.85, 0.90), "bridge"),
        ((0.80, 0.79, 0.80, 0.80), "bridge"),
        ((0.80, 0.76, 0.88, 0.90), "cascade"),
        ((0.80, 0.76, 0.82, 0.90), "re-index"),
        ((0.80, 0.76, 0.79, 0.80), "stay"),
        ((0.80, 0.70, 0.70, 0.70), "stay"),
    ],
)
def test_verdicts(figures: tuple[float, float, float, float], verdict: str) -> None:
    found, reasons = gate.judge(searched(*figures), [], 200)
    assert found == verdict
    assert reasons
    failed = Check(name="something", passed=False, finding="is wrong")
    found, reasons = gate.judge(searched(*figures), [failed], 200)
    assert (found, reasons[0]) == ("re-index", "something: is wrong")


@pytest.mark.parametrize(
    ("documents", "depth", "passed", "good", "fair"),
    [
        (1, 1, False, "re-index", "re-index"),
        (12, 1, False, "re-index", "re-index"),
        (150, 7, False, "re-index", "re-index"),
        (199, 9, False, "re-index", "re-index"),
        (200, 10, True, "cascade", "cascade"),
        (499, 24, True, "cascade", "cascade"),
        (500, 25, True, "bridge", "cascade"),
        (2000, 100, True, "bridge", "cascade"),
        (4000, 200, True, "bridge", "cascade"),
        (100_000, 200, True, "bridge", "cascade"),
    ],
)
def test_figures_over_few_documents_do_not_count(
    documents: int, depth: int, passed: bool, good: str, fair: str
) -> None:
    assert gate.cascade_depth(documents) == depth
    check = gate.few_documents(documents)
    assert check.passed is passed
    for adapted, verdict in ((0.80, good), (0.76, fair)):
        found = searched(0.80, adapted, 0.88, 0.90, documents=documents)
        assert gate.judge(found, [check], depth)[0] == verdict
        agreed = searched(1.0, adapted + 0.15, 0.99, 1.0, documents=documents)
        assert gate.judge_by_agreement(agreed, [check], depth)[0] == verdict


def test_trap_a_dozen_documents(turned: BundleEncoder, minilm: BundleEncoder, found: FitInputs) -> None:
    few = replace(found, texts=found.texts[:12], pairs=[])
    outcome = fitted(turned, minilm, few).outcome
    assert outcome.verdict == "re-index"
    assert any("searched were 12 documents" in reason for reason in outcome.reasons)


def test_the_simplest_rung_within_the_interval_wins() -> None:
    rng = np.random.default_rng(0)
    best = (rng.random(2000) < 0.8).astype(float)
    near = np.where(rng.random(2000) < 0.002, 0, best)
    far = np.where(rng.random(2000) < 0.05, 0, best)
    chosen, behind = gate.choose({"far": far, "near": near, "best": best})
    assert chosen == "near"
    assert behind["far"].low > 0
    few = slice(0, 40)
    chosen, behind = gate.choose({"far": far[few] * (np.arange(40) != 3), "best": best[few]})
    assert chosen == "best", "few queries tell little, and a rung well behind is not taken for that"
