"""Which version answers and which is shown what; and how far apart two versions are said to be."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.calls import call
from trimtab.errors import InvalidArgument, PermissionDenied, TrimtabError
from trimtab_server.callers.access import Caller
from trimtab_server.callers.call import Call
from trimtab_server.config import LimitSettings, TrialSettings
from trimtab_server.policies.comparing import FEWEST, NEIGHBOURS, RESERVOIR, Comparison
from trimtab_server.policies.trials import Trials, falls_to
from trimtab_server.tasks.embed import Embedder
from trimtab_server.tasks.pipeline import Pipeline
from trimtab_server.tasks.plan import EmbedRequest, Plan, Policy

NEWEST, THIRD = TrialSettings(share=1.0), TrialSettings(version=3, share=1.0)


@given(st.text(), st.text(), st.floats(0.001, 0.5))
def test_a_text_is_always_in_the_share_or_never_and_stays_in_a_larger_one(
    tenant: str, text: str, share: float
) -> None:
    assert falls_to(share, tenant, text) == falls_to(share, tenant, text)
    assert falls_to(share, tenant, text) <= falls_to(2 * share, tenant, text)
    assert falls_to(1.0, tenant, text)


def test_the_share_is_kept() -> None:
    chosen = sum(falls_to(0.05, "tenant", f"text {number}") for number in range(20_000))
    assert 0.045 < chosen / 20_000 < 0.055


@pytest.mark.parametrize(
    ("trial", "served", "on_trial"),
    [
        (NEWEST, [1, 2, 3], {3}),
        (NEWEST, [1], set()),  # no other version answers
        (NEWEST, [], set()),
        (THIRD, [3, 4], {3}),
        (THIRD, [3], set()),
        (THIRD, [1, 2], set()),
    ],
)
def test_which_version_is_on_trial(trial: TrialSettings, served: list[int], on_trial: set[int]) -> None:
    for trials in (Trials({"a": trial}, {}), Trials({}, {"a": trial})):
        assert trials.versions("a", served) == on_trial
        assert trials.versions("b", served) == set()
        chosen = {trials.canary("a", served, "", "text")} | {
            trials.shadow("a", served, version, "", "text") for version in served
        }
        assert chosen - {None} == on_trial


def test_a_shadow_is_compared_with_the_version_that_answers_all_else() -> None:
    trials = Trials({"a": TrialSettings(version=4, share=0.5)}, {"a": TrialSettings(version=3, share=1.0)})
    assert trials.versions("a", [1, 2, 3, 4]) == {3, 4}
    shown = {version: trials.shadow("a", [1, 2, 3, 4], version, "", "x") for version in (1, 2, 3, 4)}
    assert shown == {1: None, 2: 3, 3: None, 4: None}
    assert trials.shares("a", 4, [1, 2, 3, 4]) == (0.5, 0.0)
    assert trials.shares("a", 3, [1, 2, 3, 4]) == (0.0, 1.0)


def overlaps(old: np.ndarray, new: np.ndarray) -> list[float]:
    comparison = Comparison(old.shape[1], new.shape[1])
    found = [comparison.add(*pair) for pair in zip(old, new, strict=True)]
    assert all(agreement is not None for agreement in found)
    return [each.overlap for each in found if each is not None and each.overlap is not None]


def test_the_overlap_is_one_for_one_ranking_chance_for_none_and_falls_with_the_noise() -> None:
    rng = np.random.default_rng(0)
    old = rng.normal(size=(600, 32)).astype(np.float32)
    turn = np.linalg.qr(rng.normal(size=(32, 32)))[0].astype(np.float32)
    same = overlaps(old, 3 * old @ turn)
    assert len(same) == 600 - FEWEST and np.mean(same) > 0.999
    noise = rng.normal(size=old.shape).astype(np.float32)
    near, far = (np.mean(overlaps(old, old + part * noise)) for part in (0.1, 0.5))
    strangers = np.mean(overlaps(old, rng.normal(size=(600, 48)).astype(np.float32)))
    assert 1 > near > far > strangers
    assert strangers == pytest.approx(NEIGHBOURS / RESERVOIR, abs=0.03)


def test_cosines_are_told_of_equal_widths_alone_and_a_text_that_comes_again_is_passed_over() -> None:
    old, new = np.array([3.0, 4.0], np.float32), np.array([4.0, 3.0], np.float32)
    comparison = Comparison(2, 2)
    agreement = comparison.add(old, new)
    assert agreement is not None and agreement.overlap is None
    assert agreement.cosine == pytest.approx(0.96)
    assert comparison.add(2 * old, new) is None
    other = Comparison(2, 3).add(old, np.ones(3, np.float32))
    assert other is not None and other.cosine is None


@pytest.mark.parametrize(
    ("texts", "denied", "error"),
    [
        (["a"], True, PermissionDenied),
        (["a" * 2000], False, InvalidArgument),
        (["a"] * 9, False, InvalidArgument),
    ],
)
async def test_what_is_refused_is_no_request_of_the_canarys(
    texts: list[str], denied: bool, error: type[TrimtabError]
) -> None:
    """It is neither counted nor hashed: whoever may not use an encoder would move its figures."""
    asked: list[Plan] = []

    class Canary(Policy):
        def plan(self, call: Call, plan: Plan) -> Plan:
            asked.append(plan)
            return plan

    def find(caller: Caller, name: str, version: str = "") -> Any:
        if denied:
            raise PermissionDenied("another's")
        given = SimpleNamespace(kind="text", most_units=8)
        reader = SimpleNamespace(form="text", size=len)
        manifest = SimpleNamespace(input=given)
        return SimpleNamespace(name=name, version=1, manifest=manifest, reader=reader)

    repository = SimpleNamespace(find=find, adapters=SimpleNamespace(retire=None))
    metrics = SimpleNamespace(failed=lambda *failure: None)
    limits = LimitSettings(max_texts=8, max_text_bytes=1000)
    pipeline = Pipeline(limits, repository, None, None, metrics)  # type: ignore[arg-type]
    embedder = Embedder(pipeline, [Canary()])
    with pytest.raises(error):
        await embedder.embed(call(), EmbedRequest("a", "", texts))
    assert not asked
