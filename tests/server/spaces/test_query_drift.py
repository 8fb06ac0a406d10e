"""Live queries are compared with those that an adapter was judged on: German ones after English ones."""

import random
import re
import shutil
from pathlib import Path

import msgspec
import pytest

import trimtab
from tests import adapters_made
from tests.server import spaces_made as made
from tests.server.server_process import NAME, ServerProcess, serve

ENGLISH = ["how do I {} my {}?", "{} a {}", "best way to {} the {}", "why can I not {} this {}"]
GERMAN = [
    "Wie kann ich {1} {0}?",
    "{1} {0}",
    "Wie lässt sich {1} am besten {0}?",
    "Warum kann ich {1} nicht {0}",
]
VERBS = {
    "repair": "reparieren", "clean": "putzen", "sell": "verkaufen", "open": "öffnen", "paint": "streichen",
    "move": "umziehen", "insure": "versichern", "print": "drucken", "cook": "kochen", "find": "finden",
}  # fmt: skip
NOUNS = {
    "bicycle": "mein Fahrrad", "kitchen": "die Küche", "invoice": "die Rechnung", "garden": "den Garten",
    "car": "das Auto", "letter": "den Brief", "soup": "die Suppe", "window": "das Fenster",
    "photo": "das Foto", "roof": "das Dach", "computer": "den Rechner", "table": "den Tisch",
}  # fmt: skip


def questions() -> tuple[list[str], list[str]]:
    """480 questions in English, shuffled, and the same in German."""
    rng = random.Random(0)
    english = [form.format(verb, noun) for form in ENGLISH for verb in VERBS for noun in NOUNS]
    german = [
        form.format(verb, noun) for form in GERMAN for verb in VERBS.values() for noun in NOUNS.values()
    ]
    return rng.sample(english, len(english)), rng.sample(german, len(german))


def gauges(server: ServerProcess) -> dict[str, float]:
    """What the server says of the adapter's queries."""
    labels = f'{{adapter="watched",encoder="{NAME}",version="1"}}'
    found = {name: value for name, value in server.metrics().items() if name.endswith(labels)}
    return {name[: -len(labels)].removeprefix("trimtab_query_"): value for name, value in found.items()}


@pytest.fixture
def watched(minilm_repository: Path, tmp_path: Path, server: ServerProcess) -> Path:
    """A repository with an adapter that was judged on 240 of the English questions."""
    repository = tmp_path / "models"
    bundle = adapters_made.copied(minilm_repository / NAME / "1", repository)
    with trimtab.Client(server.url, timeout=100) as client:
        queries = client.embed(questions()[0][:240], encoder=NAME, timeout=240)
    adapters_made.adapter(
        repository, "watched", adapters_made.end(bundle.manifest), made.gone(),
        adapters_made.linear(adapters_made.rotation(384, 384, 1)), queries=queries,
    )  # fmt: skip
    return repository


def until(server: ServerProcess, windows: int) -> dict[str, float]:
    """The gauges once so many windows were judged; the test's own time limit ends a vain wait."""
    while (found := gauges(server)).get("drift_windows_total", 0) < windows:
        pass
    return found


def test_german_after_english(watched: Path, tmp_path: Path) -> None:
    english, german = questions()
    with serve(watched, tmp_path) as server, trimtab.Client(server.url, timeout=240) as client:

        def ask(texts: list[str], **options: object) -> None:
            client.embed(texts, encoder=NAME, **options)

        ask(german[:200], space=made.GONE, role="passage")  # passages are not queries
        ask(german[:200])  # nor does this go through the adapter
        ask(english[240:440], space=made.GONE)
        like = until(server, 2)
        assert like["drift_alarms_total"] == 0 and like["drift_alarm"] == 0
        assert max(like["depth_z"], like["distance_z"]) < 3
        ask(german[200:300], space=made.GONE, role="query")
        unlike = until(server, 3)
        assert unlike["drift_alarm"] == 1 and unlike["drift_alarms_total"] == 1
        assert unlike["distance"] > 2 * like["distance"] and unlike["distance_z"] > 5
        # Its gauges go with the adapter.
        import tritonclient.grpc

        shutil.rmtree(watched / NAME / "adapters" / "watched")
        with tritonclient.grpc.InferenceServerClient(server.url) as triton:
            triton.load_model(NAME)
        assert gauges(server) == {}


def test_the_alert_rule_asks_for_metrics_that_there_are(server: ServerProcess) -> None:
    root = Path(__file__).parents[3]
    rules = msgspec.yaml.decode((root / "server" / "monitoring" / "trimtab-drift.rules.yaml").read_bytes())
    (group,) = rules["groups"]
    asked = {name for rule in group["rules"] for name in re.findall(r"trimtab_\w+", rule["expr"])}
    import urllib.request

    with urllib.request.urlopen(server.metrics_url, timeout=60) as response:
        known = set(re.findall(r"^# TYPE (\w+)", response.read().decode(), re.MULTILINE))
    assert asked and asked <= known | {f"{name}_total" for name in known}
