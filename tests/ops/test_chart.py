"""The Helm chart, rendered by Helm itself: what Kubernetes and the server would read, for many values."""

import itertools
import json
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmError, lint

from bench.chaos import floods
from trimtab_server import config as configs

CHART = Path(__file__).parents[2] / "helm" / "trimtab"
TOLERATIONS = [{"operator": "Exists"}]
CLAIM = {"bundles": {"claim": "models"}}
# What no schema of Kubernetes describes; each must at least say what it stands for.
CUSTOM = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ScaledObject", "Certificate"}
KUBERNETES = "1.34"

VALUES: dict[str, dict[str, Any]] = {
    "claim": CLAIM,
    "image": {"bundles": {"image": "registry.example/models:1", "path": "models"}},
    "init": {
        "bundles": {
            "init": {"image": "fetcher:1", "command": ["fetch"], "args": ["/models"]},
            "initSize": "2Gi",
        }
    },
    "gpu": CLAIM
    | {
        "gpu": {"enabled": True, "count": 2, "runtimeClassName": "nvidia"},
        "tolerations": [{"operator": "Exists"}],
    },
    "gpu, devices named": CLAIM | {"gpu": {"enabled": True}, "config": {"devices": ["tensorrt:0"]}},
    "hpa": CLAIM | {"autoscaling": {"kind": "hpa", "queueSeconds": 0.02}},
    "keda": CLAIM | {"autoscaling": {"kind": "keda", "metrics": [{"type": "cpu"}]}},
    "service monitor": CLAIM
    | {
        "monitoring": {
            "scrape": "service",
            "rules": True,
            "dashboard": True,
            "labels": {"release": "prometheus"},
        }
    },
    "pod monitor": CLAIM | {"monitoring": {"scrape": "pod"}},
    "tls": CLAIM | {"tls": {"secretName": "trimtab-tls"}},
    "mutual tls of cert-manager": CLAIM
    | {"tls": {"mutual": True, "certManager": {"enabled": True, "issuer": {"name": "ca", "kind": "Issuer"}}}},
    "network policy": CLAIM
    | {
        "networkPolicy": {
            "enabled": True,
            "clients": [{"namespaceSelector": {"matchLabels": {"team": "search"}}}],
            "egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}],
        }
    },
    "everything else": CLAIM
    | {
        "image": {"digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "pull"}],
        "fullnameOverride": "vectors",
        "headless": False,
        "podDisruptionBudget": {"enabled": False},
        "serviceAccount": {"create": False, "name": "shared"},
        "secretMounts": [{"secretName": "keys", "path": "/etc/trimtab/keys"}],
        "env": [{"name": "A", "value": "b"}],
        "envFrom": [{"secretRef": {"name": "more"}}],
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
        "nodeSelector": {"disk": "ssd"},
        "affinity": {"podAntiAffinity": {}},
        "priorityClassName": "high",
        "topologySpread": [],
        "rollout": {"maxUnavailable": 1, "maxSurge": 0},
        "service": {"type": "LoadBalancer", "annotations": {"x": "y"}},
        "config": {
            "server": {"grpc_address": "[::]:9001", "drain_seconds": 12.5, "tenant_header": "x-tenant"},
            "limits": {"max_tokens_in_flight": 1073741824, "max_message_bytes": 33554432},
            "sharing": {"cache_bytes": 4294967296},
            "engine": {"hang_seconds": 2.5},
            "devices": ["cpu"],
        },
    },
}


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of a release `search` in the namespace `prod`."""
    with Chart.load(CHART) as chart:
        files = chart.render(values, name="search", namespace="prod")
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


def one(objects: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The only object of this kind and name; by default the name of the release."""
    names = (name,) if name else ("search-trimtab", "vectors")
    found = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] in names]
    assert len(found) == 1, (kind, name, found)
    return found[0]


def pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = one(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


def containers(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    spec = pod(objects)
    return itertools.chain(spec["containers"], spec.get("initContainers", []))


def settings(objects: list[dict[str, Any]], tmp_path: Path) -> configs.Config:
    """The rendered file, as the server reads it: a key that it does not know is refused."""
    path = tmp_path / "trimtab.toml"
    path.write_text(
        next(each for each in objects if "trimtab.toml" in each.get("data", {}))["data"]["trimtab.toml"]
    )
    return configs.read(path)


@pytest.mark.parametrize("name", VALUES)
def test_it_is_linted_and_kubernetes_takes_it(name: str, tmp_path: Path) -> None:
    report = lint(CHART, VALUES[name], strict=True, namespace="prod", kube_version=f"v{KUBERNETES}.0")
    assert not report["errors"] and all(message["severity"] < 2 for message in report["messages"]), report
    objects = render(VALUES[name])
    for each in objects:
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(set(names)) == len(names) and all(len(name) <= 63 for _, name in names)
    settings(objects, tmp_path)


@pytest.mark.parametrize("name", VALUES)
def test_the_pod_is_confined_and_follows_the_configuration(name: str, tmp_path: Path) -> None:
    objects = render(VALUES[name])
    spec, server = pod(objects), settings(objects, tmp_path).server
    main = spec["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in main["ports"]}
    for port, address in (("grpc", server.grpc_address), ("metrics", server.metrics_address)):
        assert ports[port] == configs.split_address(address)[1]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert main[probe]["grpc"]["port"] == configs.split_address(server.health_address)[1]
    ends = main["lifecycle"]["preStop"]["sleep"]["seconds"] + server.drain_seconds
    assert ends < spec["terminationGracePeriodSeconds"] <= ends + 15
    assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"]
    for container in containers(objects):
        confined = container["securityContext"]
        assert confined["readOnlyRootFilesystem"] and not confined["allowPrivilegeEscalation"]
        assert confined["capabilities"] == {"drop": ["ALL"]}
    mounted = {mount["name"] for container in containers(objects) for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}
    labels = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for each in objects:
        if each["kind"] == "Service":
            assert each["spec"]["selector"].items() <= labels.items()
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports.keys()


def test_numbers_reach_the_server_as_they_are(tmp_path: Path) -> None:
    """Helm holds every number as a float, which TOML and the server tell from a whole one."""
    read = settings(render(VALUES["everything else"]), tmp_path)
    assert read.limits.max_tokens_in_flight == 1 << 30 and read.sharing.cache_bytes == 1 << 32
    assert read.server.drain_seconds == 12.5 and read.engine.hang_seconds == 2.5


def test_a_number_in_a_list_and_a_table_in_a_list() -> None:
    nested = {"server": {"drain_seconds": 30}, "some": [{"whole": 3, "part": 0.5}], "numbers": [1, 2.5]}
    objects = render(CLAIM | {"config": nested})
    text = one(objects, "ConfigMap")["data"]["trimtab.toml"]
    assert "whole = 3\n" in text and "part = 0.5" in text and "numbers = [1, 2.5]" in text


def test_an_option_that_the_server_has_not_is_refused_by_it(tmp_path: Path) -> None:
    with pytest.raises(configs.ConfigError, match="max_wait_ms"):
        settings(render(CLAIM | {"config": {"batching": {"max_wait_ms": 5}}}), tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "exactly one of claim, image and init"),
        ({"bundles": {"claim": "a", "image": "b"}}, "claim and image are set"),
        (CLAIM | {"replica": 3}, "replica"),
        (CLAIM | {"bundles": {"claim": "a", "path": "../.."}}, "path"),
        (CLAIM | {"config": {"server": {"health_address": "nowhere"}}}, "health_address"),
        (CLAIM | {"config": {"server": {"tls": {"key": "k"}}}}, "tls"),
        (CLAIM | {"tls": {"certManager": {"enabled": True}}}, "issuer"),
        (CLAIM | {"autoscaling": {"kind": "vpa"}}, "kind"),
        ({"bundles": {"init": {"args": ["/models"]}}}, "init"),
        ({"bundles": {"init": {"image": "a", "securityContext": {"privileged": True}}}}, "securityContext"),
    ],
)
def test_values_that_cannot_work_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(HelmError, match=words):
        render(values)


def test_devices(tmp_path: Path) -> None:
    """A pod with GPUs serves on all of them and on nothing else; what config.devices says stands above."""
    objects = render(VALUES["gpu"])
    assert settings(objects, tmp_path).devices == ("cuda:0", "cuda:1")
    container = pod(objects)["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2 and container["image"].endswith("-gpu")
    assert pod(objects)["runtimeClassName"] == "nvidia" and len(pod(objects)["tolerations"]) == 2
    assert settings(render(VALUES["gpu, devices named"]), tmp_path).devices == ("tensorrt:0",)
    assert settings(render(CLAIM), tmp_path).devices == ("auto",)


def test_tls(tmp_path: Path) -> None:
    objects = render(VALUES["mutual tls of cert-manager"])
    tls = settings(objects, tmp_path).server.tls
    assert tls is not None and tls.client_ca == Path("/etc/trimtab/tls/ca.crt")
    certificate = one(objects, "Certificate")["spec"]
    volume = next(each for each in pod(objects)["volumes"] if each["name"] == "tls")
    assert volume["secret"]["secretName"] == certificate["secretName"] == "search-trimtab-tls"
    assert "search-trimtab-headless.prod.svc" in certificate["dnsNames"]
    objects = render(VALUES["tls"])
    tls = settings(objects, tmp_path).server.tls
    assert tls is not None and tls.client_ca is None


def test_scaling_by_the_time_in_the_queue() -> None:
    scaler = one(render(VALUES["hpa"]), "HorizontalPodAutoscaler")["spec"]
    adapter = yaml.safe_load((CHART / "monitoring" / "prometheus-adapter.yaml").read_text())
    metric = scaler["metrics"][0]["pods"]
    assert metric["metric"]["name"] == adapter["rules"]["custom"][0]["name"]["as"]
    assert metric["target"]["averageValue"] == "20m"
    objects = render(VALUES["keda"])
    triggers = one(objects, "ScaledObject")["spec"]["triggers"]
    assert triggers[0]["metadata"]["threshold"] == "0.05" and len(triggers) == 2
    assert (
        'sum(rate(trimtab_queue_seconds_sum{namespace="prod",pod=~"search-trimtab-.*"}[1m]))'
        in (triggers[0]["metadata"]["query"])
    )
    for each in (objects, render(VALUES["hpa"])):
        assert "replicas" not in one(each, "Deployment")["spec"]


def test_what_prometheus_and_grafana_get() -> None:
    objects = render(VALUES["service monitor"])
    monitor = one(objects, "ServiceMonitor")
    services = [each for each in objects if each["kind"] == "Service"]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert [wanted <= each["metadata"]["labels"].items() for each in services].count(True) == 1
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    rules = yaml.safe_load((CHART / "monitoring" / "rules.yaml").read_text())
    assert one(objects, "PrometheusRule")["spec"] == rules
    dashboard = one(objects, "ConfigMap", "search-trimtab-dashboard")
    shown = json.loads(dashboard["data"]["trimtab.json"])
    assert shown == json.loads((CHART / "monitoring" / "dashboard.json").read_text())
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert (
        one(render(VALUES["pod monitor"]), "PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"]
        == "metrics"
    )


def test_the_network_policy_lets_in_who_is_named() -> None:
    policy = one(render(VALUES["network policy"]), "NetworkPolicy")["spec"]
    calls, scrapes, probes = policy["ingress"]
    assert calls == {
        "from": VALUES["network policy"]["networkPolicy"]["clients"], "ports": [{"port": "grpc"}]
    }  # fmt: skip
    assert scrapes["from"] == [{"podSelector": {}}] and probes == {"ports": [{"port": "health"}]}
    closed = one(render(CLAIM | {"networkPolicy": {"enabled": True}}), "NetworkPolicy")["spec"]
    assert closed["egress"] == [] and "Egress" in closed["policyTypes"]


def test_every_value_is_in_the_schema_and_read_by_a_template() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    assert values.keys() | {"global"} == schema["properties"].keys()
    for name, value in values.items():
        assert f".Values.{name}" in templates, name
        if isinstance(value, dict) and name not in ("config", "resources", "rollout", "affinity"):
            for key in value:
                assert key in schema["properties"][name].get("properties", {key: None}), (name, key)
                assert f".{key}" in templates or f'"{key}"' in templates, (name, key)


def test_the_chart_is_of_this_version() -> None:
    with Chart.load(CHART) as chart:
        assert chart.metadata["appVersion"] == chart.version == metadata.version("trimtab")


def test_the_notes_name_the_address() -> None:
    with Chart.load(CHART) as chart:
        notes = chart.render(CLAIM, name="search", namespace="prod")["trimtab/templates/NOTES.txt"]
    assert "dns:///search-trimtab-headless.prod.svc:8001" in notes and "plain text" in notes


PAGES = (CHART / "README.md", CHART.parent.parent / "docs" / "scale.md")
EXAMPLES = [
    example
    for page in PAGES
    for example in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_examples_of_the_pages(text: str, tmp_path: Path) -> None:
    values = yaml.safe_load(text)
    objects = render(CLAIM | values)
    settings(objects, tmp_path)


def test_the_limit_of_memory_holds_what_callers_can_make_a_server_hold() -> None:
    """By the default limits, beside a small encoder; and docs/configuration.md says the same figure."""
    values, limits = yaml.safe_load((CHART / "values.yaml").read_text()), configs.LimitSettings()
    memory = int(values["resources"]["limits"]["memory"].removesuffix("Gi")) << 30
    worst = floods.bound(0, limits, limits.max_connections)
    assert worst + (300 << 20) <= memory
    said = (CHART.parents[1] / "docs" / "configuration.md").read_text()
    assert f"The total is {worst / (1 << 30):.1f} GiB" in said
