"""When a brownout begins and ends, and what may answer in it; by a clock of the test's own."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tests import adapters_made as made
from tests import manifests_made, variants_made
from tests.adapters import samples
from trimtab.artifacts import variants
from trimtab.artifacts.artifact import Interval
from trimtab.artifacts.manifest import Manifest
from trimtab.errors import ConfigError, FailedPrecondition, InvalidArgument, NotFound
from trimtab.inputs.text import TextInput
from trimtab_server import config
from trimtab_server.catalog import encoder as encoders
from trimtab_server.catalog.encoder import LoadedEncoder, model_of
from trimtab_server.policies import brownout
from trimtab_server.policies.brownout import Brownout
from trimtab_server.spaces.adapters import Adapters
from trimtab_server.spaces.route import LoadedAdapter, own
from trimtab_server.spaces.watching import DriftMonitor

SETTINGS = config.BrownoutSettings(variant="small", min_quality=0.97, above_seconds=0.2, calm_seconds=5.0)


def test_it_begins_above_the_threshold_and_ends_after_a_calm() -> None:
    it = Brownout(SETTINGS)
    seen = [
        it.look(queue, now)
        for queue, now in [
            (0.0, 0.0), (0.19, 1.0), (0.21, 2.0), (0.15, 3.0), (0.09, 4.0), (0.0, 7.9), (0.0, 8.0),
            (0.15, 9.0),
        ]
    ]  # fmt: skip
    assert seen == [False, False, True, True, True, True, False, False]


def test_a_queue_that_is_long_again_begins_the_calm_anew() -> None:
    it = Brownout(SETTINGS)
    assert [it.look(queue, now) for queue, now in [(1, 0), (0, 4), (0.11, 4.5), (0, 9), (0, 9.5)]] == [
        True, True, True, True, False
    ]  # fmt: skip


def test_after_a_silence_the_first_look_ends_it() -> None:
    it = Brownout(SETTINGS)
    assert it.look(1.0, 10.0)
    assert not it.look(0.0, 1000.0)


def test_names_that_callers_make_up_fill_no_memory() -> None:
    it = Brownout(SETTINGS)
    assert all(it.look(1.0, 1.0, f"made-up-{number}") for number in range(3 * brownout.MOST_TENANTS))
    assert len(it._long) == brownout.MOST_TENANTS
    assert not it.look(0.0, 1.0, f"made-up-{2 * brownout.MOST_TENANTS}")  # its queue is short
    assert it.look(1.0, 100.0, "another")
    assert list(it._long) == ["another"]


def test_who_asks_whether_it_lasts_changes_nothing() -> None:
    it = Brownout(SETTINGS)
    assert not it.lasts(1.0) and not it.look(0.0, 1.0)
    it.look(1.0, 2.0)
    assert [it.lasts(now) for now in (6.9, 7, 2)] == [True, False, True]
    assert it.look(0.0, 6.9) and not it.look(0.0, 7.0)


def test_a_flood_of_one_tenant_is_no_brownout_for_the_others() -> None:
    it = Brownout(SETTINGS)
    assert it.look(1.0, 0.0, "flood") and not it.look(0.19, 0.1, "quiet")
    assert it.look(0.0, 0.2, "flood") and not it.look(0.0, 0.3, "quiet")


def test_tenants_who_come_once_are_forgotten() -> None:
    it = Brownout(SETTINGS)
    for number in range(1000):
        assert it.look(1.0, number / 10, f"tenant {number}")
    assert len(it._long) <= 10 * (SETTINGS.calm_seconds + brownout.LATELY)


@given(
    looks=st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 3)), max_size=60),
    calm=st.floats(0.5, 10),
)
def test_it_does_not_flap(looks: list[tuple[float, float]], calm: float) -> None:
    """It is on at every look above the threshold, and ends only a whole calm after the last long queue."""
    it = Brownout(msgspec.structs.replace(SETTINGS, calm_seconds=calm))
    now, long, before = 0.0, float("-inf"), False
    for queue, step in looks:
        now += step
        on = it.look(queue, now)
        if queue > 0.2:
            assert on
        elif not before:
            assert not on, "only a queue above the threshold begins it"
        if before and not on:
            assert now - long >= calm
        if queue > 0.1:
            long = now
        before = on


@pytest.fixture
def mapped() -> Iterator[Adapters]:
    watch = DriftMonitor(CollectorRegistry())
    yield Adapters(watch)
    watch.stop()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return variants_made.bundle(tmp_path_factory.mktemp("bundle")).manifest


def alone(whole: Manifest, name: str) -> Manifest:
    variant = variants.named(whole, name)
    assert variant is not None
    return variants.alone(whole, variant)


def adapter(
    mapped: Adapters, repository: Path, whole: Manifest, keeps: float, **changes: Any
) -> list[LoadedAdapter]:
    """An adapter from early-16 to the whole, as the repository would have read it."""
    report = msgspec.structs.replace(samples.REPORT, against_old=Interval(value=keeps, low=keeps, high=keeps))
    made.adapter(
        repository, "widen", made.end(alone(whole, "early-16")), made.end(whole),
        made.linear(made.rotation(32, 16, 1).T), report=report, **changes,
    )  # fmt: skip
    mapped.put(whole.name, asyncio.run(mapped.read(repository, whole.name)))
    mapped.publish([(whole, 0)])
    return mapped.usable(whole.name)


def ask(variant: str, least: float) -> config.BrownoutSettings:
    return config.BrownoutSettings(variant=variant, min_quality=least)


def test_queries_that_keep_enough_by_their_card_answer_as_they_are(whole: Manifest) -> None:
    assert brownout.fallback_route(ask("small", 0.98), whole, ()) == own(whole)
    with pytest.raises(ConfigError, match=r"its queries alone keep 0\.980 of nDCG@10.*name another variant"):
        brownout.fallback_route(ask("small", 0.981), whole, ())
    with pytest.raises(ConfigError, match=r"keep 0\.400"):
        brownout.fallback_route(ask("early", 0.5), whole, ())


def test_narrow_queries_need_an_adapter_that_was_judged_good_enough(
    mapped: Adapters, whole: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"nothing was measured there.*--from layered/1:early-16"):
        brownout.fallback_route(ask("early-16", 0.3), whole, ())
    adapters = adapter(mapped, tmp_path, whole, 0.95)
    route = brownout.fallback_route(ask("early-16", 0.95), whole, adapters)
    assert (route.space, route.names, route.dimensions) == (whole.space, ["layered/widen"], 32)
    assert route.int8_limit == whole.int8_limit
    with pytest.raises(ConfigError, match=r"adapter layered/widen keeps 0\.950 of R@10"):
        brownout.fallback_route(ask("early-16", 0.96), whole, adapters)


def test_a_provisional_card_or_adapter_answers_nothing(
    mapped: Adapters, whole: Manifest, tmp_path: Path
) -> None:
    small = whole.variants[1]
    trained_on = msgspec.structs.replace(small, report=variants_made.card(0.99, "trained on"))
    unsure = manifests_made.with_variants(whole, (whole.variants[0], trained_on, *whole.variants[2:]))
    with pytest.raises(
        ConfigError, match=r"keep 0\.990 .*; which is provisional: judged by the kind of text"
    ):
        brownout.fallback_route(ask("small", 0.98), unsure, ())
    with pytest.raises(ConfigError, match="nothing was measured there"):
        brownout.fallback_route(
            ask("early-16", 0.9), whole, adapter(mapped, tmp_path, whole, 0.99, provisional=True)
        )


@pytest.mark.parametrize("verdict", ["cascade", "re-index", "stay"])
def test_an_adapter_that_is_no_bridge_answers_nothing(
    mapped: Adapters, whole: Manifest, tmp_path: Path, verdict: str
) -> None:
    with pytest.raises(ConfigError, match="nothing was measured there"):
        brownout.fallback_route(
            ask("early-16", 0.9), whole, adapter(mapped, tmp_path, whole, 0.99, verdict=verdict)
        )


@pytest.mark.parametrize("name", ["fp32", "tiny"])
def test_the_encoder_itself_and_nobody_cannot_be_the_fallback(whole: Manifest, name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"'{name}': give one of small, early, early-16 of layered version 1"
    ):
        brownout.fallback_route(ask(name, 0.5), whole, ())


def test_of_several_variants_of_a_depth_the_narrowest_that_is_enough(tmp_path: Path) -> None:
    bundle = variants_made.bundle(tmp_path)
    whole = bundle.manifest
    loaded = {}
    for variant in whole.variants:
        manifest = variants.alone(whole, variant)
        model = model_of(bundle, variant, TextInput(variant.inputs))
        loaded[variant.name] = LoadedEncoder(manifest, None, model, 1, encoders.given(manifest))  # type: ignore[arg-type]
    first = loaded.pop("fp32")
    encoder = LoadedEncoder(whole, first.reader, first.model, 1, encoders.given(whole), loaded)
    names = {
        ("", 0, 0): "fp32", ("fp32", 0, 0): "fp32", ("fp32", 8, 0): "fp32", ("", 8, 4): "fp32",
        ("", 4, 0): "early", ("", 4, 32): "early", ("", 4, 17): "early", ("", 4, 16): "early-16",
        ("", 4, 8): "early-16", ("early", 4, 8): "early", ("", 2, 0): "small", ("", 4, 99): "early",
    }  # fmt: skip
    for (name, layers, dimensions), expected in names.items():
        assert encoder.choose(name, layers, dimensions).model.variant == expected, (name, layers, dimensions)
    for name, layers, error in (("x", 0, NotFound), ("", 1, NotFound), ("small", 8, InvalidArgument)):
        with pytest.raises(error):
            encoder.choose(name, layers, 0)
    with pytest.raises(FailedPrecondition, match=r"variant early \(4 layers\), early-16 \(4 layers\)"):
        LoadedEncoder(whole, first.reader, first.model, 1, encoders.given(whole)).choose("", 4, 0)
