"""`trimtab embed --outputs`: several outputs of each text, as lines of JSON and in Parquet folders."""

import json
import re
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from tests.client.commands.test_embed import Run, leftovers, many, refused, run, write
from tests.client.fake_server import DIMENSIONS, OUTPUTS, FakeServer, sparse_of, vectors, words_of
from trimtab.stores import open_store
from trimtab.v1 import encoder_pb2 as pb

__all__ = ["run"]  # a fixture
ALL = "dense,sparse,multi_vector"


@pytest.fixture(autouse=True)
def all_outputs(server: FakeServer) -> None:
    server.outputs = OUTPUTS


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "texts.txt", many(300))


def check_lines(lines: list[dict[str, Any]], texts: list[str]) -> None:
    """Each line has what the server gives of its text, as JSON can say it."""
    dense, words = vectors(texts), words_of(texts)
    sparse = sparse_of(dense)
    assert [line["row"] for line in lines] == list(range(len(texts)))
    for place, line in enumerate(lines):
        assert line.keys() == {"row", "dense", "sparse", "multi_vector"}
        np.testing.assert_array_equal(np.array(line["dense"], np.float32), dense[place])
        np.testing.assert_array_equal(line["sparse"]["indices"], sparse[place][0])
        np.testing.assert_array_equal(np.array(line["sparse"]["values"], np.float32), sparse[place][1])
        np.testing.assert_array_equal(np.array(line["multi_vector"], np.float32), words[place])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_all_outputs(run: Run, server: FakeServer, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert run(source, "--output", output, "--outputs", ALL) == 0
    check_lines(read(output), many(300))
    assert {tuple(request.outputs) for request in server.requests} == {("dense", "sparse", "multi_vector")}
    assert {request.priority for request in server.requests} == {pb.PRIORITY_BULK}
    described = json.loads((tmp_path / "out.jsonl.json").read_text())
    assert described["rows"] == 300 and described["vectors"]["space"] == "space-1"
    assert described["vectors"]["outputs"] == {
        "dense": {"form": "dense", "space": "space-1", "dimensions": DIMENSIONS, "similarity": "cosine"},
        "sparse": {"form": "sparse", "space": "sparse-1", "dimensions": DIMENSIONS, "similarity": "dot"},
        "multi_vector": {
            "form": "multi_vector",
            "space": "multi_vector-1",
            "dimensions": DIMENSIONS,
            "similarity": "maxsim",
        },
    }


@pytest.mark.parametrize("output", ["out.jsonl", "folder/"])
@pytest.mark.parametrize(("allowed", "most"), [(7, 7), (500, 64)])
def test_a_call_has_no_more_texts_than_the_encoder_takes(
    run: Run, server: FakeServer, source: Path, tmp_path: Path, output: str, allowed: int, most: int
) -> None:
    """One request at a time: a call that the SDK splits would have four in flight."""
    server.limits.max_texts = allowed
    pinned = server.describes
    assert run(source, "--output", f"{tmp_path}/{output}", "--outputs", ALL) == 0
    sizes = [len(request.texts) for request in server.requests if list(request.texts) != ["first"]]
    assert sizes == [most] * (300 // most) + [300 % most] and sum(sizes) == 300
    assert server.describes - pinned < 6  # a call that is split asks for the version


def test_standard_output(run: Run, source: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(source, "--outputs", "sparse") == 0
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [line["row"] for line in lines] == list(range(300)) and lines[0].keys() == {"row", "sparse"}
    np.testing.assert_array_equal(lines[7]["sparse"]["indices"], sparse_of(vectors(["text 7"]))[0][0])


def test_float16(run: Run, source: Path, tmp_path: Path) -> None:
    assert run(source, "--output", tmp_path / "out.jsonl", "--outputs", "dense", "--dtype", "float16") == 0
    lines = read(tmp_path / "out.jsonl")
    half = vectors(many(300)).astype(np.float16)
    np.testing.assert_array_equal(np.array([line["dense"] for line in lines], np.float16), half)


def test_a_run_that_stops_goes_on(
    run: Run, server: FakeServer, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    server.faults.refusals["text 200"] = deque([pb.Error(code=3, message="a text that is refused once")])
    message = refused(run, capsys, source, "--output", output, "--outputs", ALL)
    assert "refused once" in message and "goes on from there" in message
    assert "partial" in " ".join(leftovers(tmp_path))
    other = refused(run, capsys, source, "--output", output, "--outputs", "dense,sparse")
    assert "was begun with other vectors: outputs was" in other
    server.requests.clear()
    assert run(source, "--output", output, "--outputs", ALL) == 0
    check_lines(read(output), many(300))
    assert "text 0" not in server.texts(), "what was done is not done again"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("rows", ["120", "1000"])
def test_a_folder_has_columns_for_each_output(run: Run, source: Path, tmp_path: Path, rows: str) -> None:
    assert run(source, "--output", f"{tmp_path}/out/", "--outputs", ALL, "--block-rows", rows) == 0
    blocks = sorted((tmp_path / "out").glob("*.parquet"))
    assert len(blocks) == (3 if rows == "120" else 1)
    lines = []
    for block in blocks:
        table = parquet.read_table(block)
        assert table.column_names == ["id", "dense", "sparse_indices", "sparse_values", "multi_vector"]
        assert str(table.schema.field("dense").type) == f"fixed_size_list<element: float>[{DIMENSIONS}]"
        recorded = json.loads(table.schema.metadata[b"trimtab_outputs"])
        assert {name: each["space"] for name, each in recorded.items()} == {
            "dense": "space-1",
            "sparse": "sparse-1",
            "multi_vector": "multi_vector-1",
        }
        lines += [
            {
                "row": row["id"],
                "dense": row["dense"],
                "sparse": {"indices": row["sparse_indices"], "values": row["sparse_values"]},
                "multi_vector": row["multi_vector"],
            }
            for row in table.to_pylist()
        ]
    check_lines(lines, many(300))
    with open_store(str(blocks[0])) as store:
        assert list(store.outputs) == ["dense", "sparse", "multi_vector"]
        assert store.others["multi_vector"].similarity == "dot" and store.form.space == "space-1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "out.npy", "--outputs", "sparse"], "a .npy file is one array, .* name a .jsonl file"),
        (["--outputs", "sparse", "--dtype", "int8"], "--dtype int8 does not go with --outputs; take float32"),
        (["--outputs", "dense", "--dtype", "ubinary"], "--dtype ubinary does not go"),
        (["--outputs", "dense", "--space", "reversed"], "each output has a space of its own"),
        (["--outputs", "row,dense"], "the output 'row' has the name of the rows' numbers"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    run: Run, server: FakeServer, source: Path, capsys: pytest.CaptureFixture[str], arguments: list[str],
    message: str,
) -> None:  # fmt: skip
    assert re.search(message, refused(run, capsys, source, *arguments))
    assert not server.requests


@pytest.mark.parametrize("value", ["", "dense,", "dense,dense"])
def test_lists_that_are_none(run: Run, source: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    with pytest.raises(SystemExit):
        run(source, "--outputs", value)
    assert "is no list of outputs; name them as in dense,sparse" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["out.jsonl", "out/"])
def test_outputs_that_change_meanwhile(
    run: Run,
    server: FakeServer,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    output: str,
) -> None:
    def tamper(response: pb.EmbedResponse) -> None:
        if len(response.token_counts) > 1:  # not the first text, which shows what they are
            response.outputs[0].space = "elsewhere"

    server.faults.tamper = tamper
    message = refused(run, capsys, source, "--output", f"{tmp_path}/{output}", "--outputs", "sparse")
    assert "the output 'sparse' was of space sparse-1, and now is of elsewhere: pass --restart" in message
