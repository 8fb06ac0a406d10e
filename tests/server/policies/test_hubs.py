"""Passages that come near to far too many queries are flagged or refused by the server; others pass."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc

import trimtab
from tests.server.server_process import NAME, ServerProcess, serve
from trimtab.hubness import HubnessGuard
from trimtab_server import config

VERBS = ("repair", "clean", "paint", "sharpen", "store", "measure", "replace", "oil", "buy", "lift")
THINGS = (
    "hammer", "saw", "drill", "ladder", "bicycle", "kettle", "window", "clock", "violin", "oven", "boat",
    "lamp", "fence", "carpet", "piano", "engine", "chimney", "mirror", "tent", "plough",
)  # fmt: skip
QUERIES = [f"how do I {verb} a {thing}?" for verb in VERBS for thing in THINGS]
PLACES = (
    "cellar",
    "attic",
    "market",
    "harbour",
    "school",
    "forest",
    "kitchen",
    "museum",
    "field",
    "workshop",
)
ORDINARY = [
    f"The {thing} in the {place} was made in {1801 + 7 * number}, and nobody has used it since."
    for thing in THINGS
    for number, place in enumerate(PLACES)
]
# What the guard never saw, of the same kind.
OTHERS = [
    f"The {thing} in the {place} was made in 1790, and nobody has used it since."
    for thing in THINGS
    for place in ("garden", "station", "castle", "library", "barn")
]
HUB = f"how do I do this? how do I {', '.join(VERBS)} a thing?"


def files(folder: Path, action: str, passages: list[str] = ORDINARY) -> str:
    """The configuration of a guard, whose files are put into the folder."""
    (folder / "queries.txt").write_text("\n".join(QUERIES) + "\n\n")
    (folder / "passages.txt").write_text("\n".join(passages))
    return f"""
devices = ["cpu"]
[encoders.{NAME}.guard]
queries = "{folder}/queries.txt"
passages = "{folder}/passages.txt"
action = "{action}"
"""


@pytest.fixture(scope="module")
def guarded(minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("guarded")
    with serve(minilm_repository, folder, files(folder, "flag")) as server:
        yield server


def counted(server: ServerProcess) -> float:
    name = f'trimtab_suspicious_texts_total{{encoder="{NAME}",version="1"}}'
    return server.metrics().get(name, 0)


def test_a_hub_is_flagged_and_ordinary_passages_are_not(guarded: ServerProcess) -> None:
    before = counted(guarded)
    with trimtab.Client(guarded.url, timeout=100) as client:
        found = client.embed_detailed([*OTHERS, *OTHERS, HUB], role="passage")
        queries, ordinary = client.embed(QUERIES), client.embed(ORDINARY)
        assert found.reach is not None and found.suspicious is not None
        assert found.suspicious.tolist()[-1] and found.suspicious[:-1].mean() < 0.05
        assert counted(guarded) == before + found.suspicious.sum()
        # As the same check of the SDK's says.
        same = HubnessGuard(queries, ordinary)
        np.testing.assert_allclose(found.reach, same.reach(found.vectors), atol=0.011)  # a query of 200
        assert found.reach[-1] == pytest.approx(same.reach(found.vectors[-1:])[0], abs=0.011)
        # Whatever is sent of the vectors, whole ones are looked at.
        cut = client.embed_detailed([HUB, OTHERS[0]], role="passage", dimensions=64, dtype="int8")
        assert cut.suspicious is not None and cut.suspicious.tolist() == [True, False]


def test_queries_are_not_looked_at(guarded: ServerProcess) -> None:
    before = counted(guarded)
    with trimtab.Client(guarded.url, timeout=100) as client:
        for found in (client.embed_detailed([HUB], role="query"), client.embed_detailed([HUB])):
            assert found.reach is None and found.suspicious is None
    assert counted(guarded) == before


async def test_streams_and_tritonclient_say_it_too(guarded: ServerProcess) -> None:
    texts = [*OTHERS[:20], HUB, *OTHERS[20:40]]
    with trimtab.Client(guarded.url, timeout=100) as client:
        expected = client.embed_detailed(texts, role="passage").suspicious
        assert expected is not None
        with client.embed_stream(texts, role="passage") as stream:
            assert stream.suspicious is None
            assert [stream.suspicious for _ in stream] == expected.tolist()
        with client.embed_stream(texts, role="query") as stream:
            assert {stream.suspicious for _ in stream} == {None}
    async with trimtab.AsyncClient(guarded.url, timeout=100) as client:
        rows = client.embed_stream(texts, role="passage")
        assert [rows.suspicious async for _ in rows] == expected.tolist()
    tensor = tritonclient.grpc.InferInput("text", [3], "BYTES")
    tensor.set_data_from_numpy(np.array([HUB.encode(), OTHERS[0].encode(), HUB.encode()], object))
    with tritonclient.grpc.InferenceServerClient(guarded.url) as triton:
        result = triton.infer(NAME, [tensor], parameters={"input_type": "passage"})
        assert result.get_response().parameters["suspicious"].string_param == "0,2"
        result = triton.infer(NAME, [tensor], parameters={"input_type": "query"})
        assert "suspicious" not in result.get_response().parameters


def test_the_command_names_the_rows(guarded: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join([OTHERS[0], HUB, OTHERS[1], *[HUB] * 11]))
    command = [sys.executable, "-m", "trimtab.cli", "embed", str(tmp_path / "texts.txt")]
    command += ["--url", guarded.url, "--output", str(tmp_path / "vectors.npy"), "--role"]
    for role in ("passage", "query"):
        done = subprocess.run([*command, role, "--overwrite"], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        found = "rows 1, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more come near to far more queries"
        assert (found in done.stderr) == (role == "passage")


def test_a_server_may_refuse_them(minilm_repository: Path, tmp_path: Path) -> None:
    with serve(minilm_repository, tmp_path, files(tmp_path, "refuse")) as server:
        with trimtab.Client(server.url, timeout=100) as client:
            ordinary = [text for text in OTHERS[:10] if not suspicious(client, text)]
            assert len(client.embed(ordinary, role="passage")) == len(ordinary) >= 8
            before = counted(server)
            with pytest.raises(trimtab.InvalidArgument, match=r"^texts\[2\] \(\d+\.\d%\) would be shown"):
                client.embed([*ordinary[:2], HUB, ordinary[2]], role="passage")
            assert counted(server) == before + 1
            assert len(client.embed([HUB], role="query")) == 1


def suspicious(client: trimtab.Client, text: str) -> bool:
    try:
        client.embed([text], role="passage")
    except trimtab.InvalidArgument:
        return True
    return False


def test_what_cannot_work_is_a_refusal_to_start(minilm_repository: Path, tmp_path: Path) -> None:
    text = files(tmp_path, "flag", ORDINARY[:50])
    with pytest.raises(AssertionError, match="give at least 200 passages"):
        with serve(minilm_repository, tmp_path, text):
            pass
    (tmp_path / "queries.txt").unlink()
    with pytest.raises(AssertionError, match=r"queries\.txt cannot be read: No such file"):
        with serve(minilm_repository, tmp_path, text):
            pass
    path = tmp_path / "guard.toml"
    path.write_text(text + "false_alarms = 1.5\n")
    with pytest.raises(trimtab.ConfigError, match=r"false_alarms is 1\.5"):
        config.read(path)
