"""The dashboard, the rules and the autoscalers ask in PromQL for what a real server exports."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from helm_python import Chart
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import trimtab
from tests.server.server_process import ServerProcess
from trimtab_server.observing.metrics import Metrics
from trimtab_server.policies.shadow import ShadowMetrics
from trimtab_server.spaces.watching import DriftMonitor

CHART = Path(__file__).parents[2] / "helm" / "trimtab"
# What Prometheus adds to every sample of a pod.
TARGET = {"namespace", "pod", "instance", "job", "container", "service"}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
Labels = dict[str, set[str]]


@pytest.fixture(scope="module")
def exported(server: ServerProcess) -> Labels:
    """The labels of every sample that the server exports, by its name."""
    with trimtab.Client(server.url, timeout=100) as client:
        client.embed(["a text"] * 3)
        with pytest.raises(trimtab.InvalidArgument):
            client.embed(["a text"], dimensions=10_000)
    found: Labels = {}
    # A family that has had nothing to count yet exports its name alone; its labels are as it declares them.
    registry = CollectorRegistry()
    Metrics(registry)
    DriftMonitor(registry).stop()
    ShadowMetrics(registry)
    declared = {each.name: set(names) for each, names in _declared(registry)}
    for family in text_string_to_metric_families(server.scrape()):
        if family.name.endswith("_created"):
            continue
        for suffix in SUFFIXES.get(family.type, ("",)):
            labels = set(declared.get(family.name, ()))
            found[family.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
        for sample in family.samples:
            assert set(sample.labels) <= found[sample.name]
    return found


def _declared(registry: CollectorRegistry) -> Iterator[tuple[Any, tuple[str, ...]]]:
    for collector in set(registry._names_to_collectors.values()):
        for family in collector.collect():
            yield family, collector._labelnames  # type: ignore[attr-defined]


def check(expression: Any, known: Labels) -> set[str]:
    """The labels that an expression's result may have; fails where it asks for what is not there."""
    match expression:
        case promql.VectorSelector():
            matchers = {each.name: each.value for each in expression.matchers.matchers}
            by_name = matchers.pop("__name__", "")
            names = [expression.name] if expression.name else by_name.split("|")
            labels = set(TARGET)
            for name in names:
                assert name in known, f"the server does not export {name}"
                labels |= known[name]
                if not by_name:
                    assert matchers.keys() <= known[name] | TARGET, (name, matchers)
            return labels
        case promql.MatrixSelector():
            return check(expression.vector_selector, known)
        case promql.AggregateExpr():
            below = check(expression.expr, known)
            wanted = set(expression.modifier.labels) if expression.modifier else set()
            assert wanted <= below, f"{wanted - below} are no labels of {expression.expr}"
            return wanted
        case promql.Call():
            return set().union(*(check(each, known) for each in expression.args))
        case promql.BinaryExpr():
            left, right = check(expression.lhs, known), check(expression.rhs, known)
            scalar = isinstance(expression.rhs, promql.NumberLiteral)
            assert scalar or left == right, f"the sides of {expression} have the labels {left} and {right}"
            return left
        case promql.ParenExpr() | promql.UnaryExpr():
            return check(expression.expr, known)
        case promql.NumberLiteral() | promql.StringLiteral():
            return set()
    raise AssertionError(f"{type(expression)} is not foreseen: {expression}")


def parse(text: str) -> Any:
    return promql.parse(text.replace("$__rate_interval", "5m"))


def test_rules(exported: Labels) -> None:
    groups = yaml.safe_load((CHART / "monitoring" / "rules.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    known = dict(exported)
    for rule in rules:
        labels = check(parse(rule["expr"]), known)
        if "record" in rule:
            known[rule["record"]] = labels
        else:
            assert rule["labels"]["severity"] in ("warning", "critical")
            for text in rule["annotations"].values():
                used = {part.split(" ")[0].strip("}") for part in text.split("$labels.")[1:]}
                assert used <= labels, (rule["alert"], used)
    assert len({rule.get("alert", rule.get("record")) for rule in rules}) == len(rules)


def test_dashboard(exported: Labels) -> None:
    dashboard = json.loads((CHART / "monitoring" / "dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    for panel in panels:
        for target in panel["targets"]:
            labels = check(parse(target["expr"]), exported)
            used = {part.split("}}")[0].strip() for part in target["legendFormat"].split("{{")[1:]}
            assert used <= labels, (panel["title"], used)
    for variable in dashboard["templating"]["list"][1:]:
        selector, label = variable["query"]["query"].removeprefix("label_values(")[:-1].rsplit(", ", 1)
        assert label in check(parse(selector), exported)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in dashboard["panels"]})


def test_the_dashboard_shows_whatever_is_exported(exported: Labels) -> None:
    text = (CHART / "monitoring" / "dashboard.json").read_text()
    families = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in exported}
    assert not {name for name in families if name.startswith("trimtab") and name not in text}


def test_what_the_autoscalers_ask_for(exported: Labels) -> None:
    adapter = yaml.safe_load((CHART / "monitoring" / "prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    check(parse(rule["seriesQuery"]), exported)
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'pod="a"')
    assert check(parse(query), exported) == {"pod"}
    with Chart.load(CHART) as chart:
        values = {"bundles": {"claim": "models"}, "autoscaling": {"kind": "keda"}}
        rendered = chart.render(values, name="search", namespace="prod")["trimtab/templates/autoscaling.yaml"]
    assert (
        check(parse(yaml.safe_load(rendered)["spec"]["triggers"][0]["metadata"]["query"]), exported) == set()
    )


@pytest.mark.parametrize(
    "wrong",
    [
        "rate(trimtab_requests_total[5m])",
        'trimtab_device_up{encoder="a"}',
        "sum by (device) (rate(trimtab_texts_total[5m]))",
        "sum by (pod) (trimtab_device_up) / sum by (device) (trimtab_device_up)",
    ],
)
def test_the_check_sees_what_is_wrong(wrong: str, exported: Labels) -> None:
    with pytest.raises(AssertionError):
        check(parse(wrong), exported)
