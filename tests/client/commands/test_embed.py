"""`trimtab embed`: what it writes, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.client.fake_server import DIMENSIONS, SCALE, Abort, FakeServer, vectors
from trimtab import cli
from trimtab.commands.layouts import Npy
from trimtab.v1 import encoder_pb2 as pb

Run = Callable[..., int]


def many(count: int) -> list[str]:
    return [f"text {index}" for index in range(count)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "texts.txt", many(1_000))


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


@pytest.fixture
def run(url: str) -> Run:
    def run(*arguments: str | Path) -> int:
        return cli.main(["embed", "--url", url, *map(str, arguments)])

    return run


def command(url: str, *arguments: str | Path) -> list[str]:
    return [
        sys.executable,
        "-X",
        "faulthandler",
        "-m",
        "trimtab.cli",
        "embed",
        "--url",
        url,
        *map(str, arguments),
    ]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "partial" in path.name or "new" in path.name)


def refused(run: Run, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert run(*arguments) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("dtype", "stored"), [("float32", "<f4"), ("float16", "<f2"), ("int8", "|i1"), ("ubinary", "|u1")]
)
def test_npy_is_the_file_that_numpy_would_write(
    run: Run, source: Path, tmp_path: Path, dtype: str, stored: str
) -> None:
    output = tmp_path / "out.npy"
    assert run(source, "--output", output, "--dtype", dtype) == 0
    array = np.load(output)
    assert array.dtype.str == stored
    assert len(array) == 1_000
    exact = vectors(many(1_000))
    if dtype == "ubinary":
        assert np.array_equal(np.unpackbits(array, axis=1), exact > 0)
    elif dtype == "int8":
        assert np.abs(array * SCALE - exact).max() <= SCALE
    else:
        assert np.array_equal(array, exact.astype(stored))
    np.save(tmp_path / "by_numpy.npy", array)
    assert output.read_bytes() == (tmp_path / "by_numpy.npy").read_bytes()
    assert leftovers(tmp_path) == []


def test_beside_the_file_stands_what_its_vectors_are(run: Run, source: Path, tmp_path: Path) -> None:
    assert run(source, "--output", tmp_path / "out.npy", "--dtype", "int8", "--role", "query") == 0
    description = json.loads((tmp_path / "out.npy.json").read_text())
    assert description["vectors"] == {
        "encoder": "fake",
        "version": "1",
        "space": "space-1",
        "role": "query",
        "truncate": "end",
        "dtype": "int8",
        "columns": DIMENSIONS,
    }
    assert description["scale"] == pytest.approx(SCALE)
    assert description["rows"] == 1_000


def test_jsonl_has_a_line_a_text(run: Run, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert run(source, "--output", output, "--dimensions", "8") == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(1_000))
    embedded = np.array([line["embedding"] for line in lines], np.float32)
    assert np.array_equal(embedded, vectors(many(1_000))[:, :8])


def test_every_option_reaches_the_server(run: Run, server: FakeServer, source: Path, tmp_path: Path) -> None:
    options = ["--encoder", "fake", "--version", "2", "--role", "passage", "--dimensions", "8"]
    assert run(source, "--output", tmp_path / "out.npy", *options, "--truncate", "none") == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), vectors(many(1_000), "2", pb.ROLE_PASSAGE)[:, :8])
    assert {request.truncate for request in server.requests} == {pb.TRUNCATE_NONE}


def test_standard_input_to_standard_output(url: str) -> None:
    done = subprocess.run(command(url, "--output", "-"), input=b"a\nb\n", capture_output=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert np.array_equal(np.array([line["embedding"] for line in lines], np.float32), vectors(["a", "b"]))


def test_each_line_of_standard_input_is_answered_at_once_and_an_interrupt_ends_it(url: str) -> None:
    process = subprocess.Popen(
        command(url, "--output", "-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    with process:
        for index in range(3):
            process.stdin.write(b"a\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["row"] == index
        process.send_signal(signal.SIGINT)  # while its reader waits for the next line
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    assert errors == b""


def test_a_reader_that_has_had_enough_is_no_error(url: str, tmp_path: Path) -> None:
    source = write(tmp_path / "texts.txt", many(3_000))
    process = subprocess.Popen(
        command(url, source, "--output", "-"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    with process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_standard_output_on_a_full_disk(url: str, source: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(command(url, source), stdout=full, stderr=subprocess.PIPE, text=True)
        try:
            _, errors = process.communicate(timeout=90)  # a call is given up after 60 seconds
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # which shows where its threads are
            _, errors = process.communicate()
    assert (process.returncode, errors) == (1, "trimtab embed: [Errno 28] No space left on device\n")


def test_no_texts_are_an_empty_array(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "texts.txt", [])
    assert run(source, "--output", tmp_path / "out.npy", "--dtype", "ubinary") == 0
    assert np.load(tmp_path / "out.npy").shape == (0, DIMENSIONS // 8)


def test_the_header_keeps_its_length() -> None:
    layout = Npy("float32", 384)
    assert len({len(layout.header(rows)) for rows in (0, 1, 10**6, 10**12)}) == 1


# What is refused.


def test_an_output_that_is_no_file_stays(
    run: Run, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")
    for name in ("folder.npy", "pipe.npy"):
        assert "is not a file" in refused(run, capsys, source, "--output", tmp_path / name, "--overwrite")
        assert not (tmp_path / name).is_file()
    assert leftovers(tmp_path) == []


def test_a_file_that_exists_is_only_replaced_on_demand(
    run: Run, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = write(tmp_path / "out.jsonl", ["precious"])
    assert "pass --overwrite" in refused(run, capsys, source, "--output", output)
    (tmp_path / "link.jsonl").symlink_to(output)
    same = ("--output", tmp_path / "link.jsonl", "--overwrite", "--format", "lines")
    assert "is also the input" in refused(run, capsys, output, *same)
    assert output.read_text() == "precious\n"
    assert run(source, "--output", output, "--overwrite") == 0
    assert output.read_text().startswith('{"row":0')


def test_a_failed_run_without_rows_leaves_nothing(
    run: Run, server: FakeServer, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults.breaks = deque([(0, Abort(grpc.StatusCode.INTERNAL, "id 123"))])
    assert "id 123" in refused(run, capsys, source, "--output", tmp_path / "out.npy")
    assert leftovers(tmp_path) == []


def test_a_folder_that_is_not_there_is_named(
    run: Run, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(run, capsys, source, "--output", tmp_path / "nowhere" / "out.npy")
    assert "out.npy.partial cannot be written: No such file or directory" in message


def test_an_output_of_unknown_kind_is_a_usage_error(
    run: Run, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(source, "--output", "out.csv")
    assert (
        "'out.csv' is none of these: a .npy or .jsonl file, a folder with / at its end, or -"
        in capsys.readouterr().err
    )


def test_a_bad_line_is_named_and_the_rows_before_it_kept(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "texts.txt"
    source.write_bytes(b"a\nb\n\xff\n")
    message = refused(run, capsys, source, "--output", tmp_path / "out.npy")
    assert "line 3: byte 1 (0xff) is not UTF-8" in message
    assert "stopped after 2 rows" in message
    write(source, ["a", "b", "c"])
    assert run(source, "--output", tmp_path / "out.npy") == 0
    assert len(np.load(tmp_path / "out.npy")) == 3
