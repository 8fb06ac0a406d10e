"""`trimtab embed`: what it writes, what it refuses, and that a stopped run goes on to the same file."""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.client.fake_server import DIMENSIONS, SCALE, Abort, FakeServer, vectors
from tests.client.sdk.test_stream import until
from trimtab import cli
from trimtab.commands import embed, vector_files
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
    return [sys.executable, "-m", "trimtab.cli", "embed", "--url", url, *map(str, arguments)]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "partial" in path.name or "new" in path.name)


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
        done = subprocess.run(
            command(url, source), stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert (done.returncode, done.stderr) == (1, "trimtab embed: [Errno 28] No space left on device\n")


def test_no_texts_are_an_empty_array(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "texts.txt", [])
    assert run(source, "--output", tmp_path / "out.npy", "--dtype", "ubinary") == 0
    assert np.load(tmp_path / "out.npy").shape == (0, DIMENSIONS // 8)


def test_the_header_keeps_its_length() -> None:
    layout = Npy("float32", 384)
    assert len({len(layout.header(rows)) for rows in (0, 1, 10**6, 10**12)}) == 1


# Stopped and taken up again.


@pytest.mark.parametrize("suffix", ["npy", "jsonl"])
def test_killed_at_any_moment_the_next_run_gives_the_same_file(
    run: Run, server: FakeServer, url: str, tmp_path: Path, suffix: str
) -> None:
    texts = many(25_000)
    source = write(tmp_path / "texts.txt", texts)
    short = ("--dimensions", "4")
    assert run(source, "--output", tmp_path / f"whole.{suffix}", *short) == 0
    output = tmp_path / f"out.{suffix}"
    journal = tmp_path / f"out.{suffix}.partial.json"
    released = threading.Event()
    server.faults.gate = lambda asked: "text 12000" in asked and released.wait(60) and None
    process = subprocess.Popen(command(url, source, "--output", output, *short), stderr=subprocess.PIPE)
    until(lambda: journal.exists() and json.loads(journal.read_text())["rows"] > 0, 30)
    process.kill()
    process.communicate()
    server.faults.gate = None
    released.set()
    assert json.loads(journal.read_text())["rows"] == vector_files.CHECKPOINT_ROWS
    # Rows that no journal counts, and half a row: what a crash of the machine may leave.
    with (tmp_path / f"out.{suffix}.partial").open("ab") as stream:
        stream.write(b"\0" * 77)
    server.requests.clear()
    assert run(source, "--output", output, *short) == 0
    assert server.texts()[0] == "text 10000"
    assert output.read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    described = [(tmp_path / f"{name}.{suffix}.json").read_bytes() for name in ("out", "whole")]
    assert described[0] == described[1]
    assert leftovers(tmp_path) == []


def test_an_interrupt_keeps_every_row_and_says_so(
    run: Run, server: FakeServer, url: str, source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.npy"
    released = threading.Event()
    server.faults.gate = lambda asked: "text 700" in asked and released.wait(60) and None
    process = subprocess.Popen(command(url, source, "--output", output), stderr=subprocess.PIPE)
    partial = tmp_path / "out.npy.partial"
    until(lambda: partial.exists() and partial.stat().st_size > 60_000, 30)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    released.set()
    server.faults.gate = None
    assert process.returncode == 130
    message = errors.decode().splitlines()[-1]
    assert "the same command goes on from there" in message
    rows = json.loads((tmp_path / "out.npy.partial.json").read_text())["rows"]
    assert f"stopped after {rows:,} rows" in message
    assert 400 < rows <= 700
    server.requests.clear()
    assert run(source, "--output", output) == 0
    assert server.texts()[0] == f"text {rows}"
    assert np.array_equal(np.load(output), vectors(many(1_000)))


@pytest.fixture
def begun(
    run: Run, server: FakeServer, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    """A file of which 500 rows are there: the server then refused a text."""
    server.faults.refusals = {"text 500": deque([pb.Error(code=3, message="a bad text")])}
    server.limits.max_texts = 1
    output = tmp_path / "out.npy"
    errors = refused(run, capsys, source, "--output", output)
    assert "stopped after 500 rows; the same command goes on from there" in errors
    assert errors.endswith("trimtab embed: a bad text\n")
    assert json.loads((tmp_path / "out.npy.partial.json").read_text())["rows"] == 500
    server.requests.clear()
    return output


def test_an_error_leaves_what_can_be_gone_on_with(
    run: Run, server: FakeServer, begun: Path, source: Path
) -> None:
    assert run(source, "--output", begun) == 0
    assert server.texts() == many(1_000)[500:]
    assert np.array_equal(np.load(begun), vectors(many(1_000)))


def refused(run: Run, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert run(*arguments) == 1
    return capsys.readouterr().err


def test_other_inputs_are_not_mixed_in(
    run: Run, begun: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = many(1_000)
    write(source, ["another", *texts[1:]])
    assert "the first 500 texts of the input are not those" in refused(run, capsys, source, "--output", begun)
    write(source, texts[:300])
    assert "the input has only 300 texts" in refused(run, capsys, source, "--output", begun)
    write(source, [*texts[:500], "changed after the 500th"])
    assert run(source, "--output", begun) == 0
    assert len(np.load(begun)) == 501


def test_other_options_are_not_mixed_in(
    run: Run, begun: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, value, difference in (
        ("--role", "query", "role was None, now it is query"),
        ("--dtype", "float16", "dtype was float32, now it is float16"),
        ("--dimensions", "8", "columns was 32, now it is 8"),
        ("--version", "2", "version was 1, now it is 2"),
    ):
        message = refused(run, capsys, source, "--output", begun, option, value)
        assert difference in message
        assert "--restart" in message
    assert run(source, "--output", begun, "--dimensions", "8", "--restart") == 0
    assert np.array_equal(np.load(begun), vectors(many(1_000))[:, :8])


def test_a_new_version_does_not_enter_a_file_that_was_begun(
    run: Run, server: FakeServer, begun: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.newest = "2"
    server.loaded.discard("1")
    message = refused(run, capsys, source, "--output", begun)
    assert "was begun with fake 1" in message
    assert "--restart" in message
    server.loaded.add("1")
    assert run(source, "--output", begun) == 0
    assert np.array_equal(np.load(begun), vectors(many(1_000), "1"))


def test_a_spoilt_journal_or_rows_are_said(
    run: Run, begun: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = begun.with_name("out.npy.partial")
    os.truncate(partial, 1_000)
    assert "is shorter than the" in refused(run, capsys, source, "--output", begun)
    begun.with_name("out.npy.partial.json").write_text("{")
    for more in ((), ("--restart",)):  # it may be somebody else's
        assert "cannot be read" in refused(run, capsys, source, "--output", begun, *more)
    begun.with_name("out.npy.partial.json").unlink()
    assert "exists without its journal" in refused(run, capsys, source, "--output", begun)
    partial.unlink()
    assert run(source, "--output", begun) == 0


@pytest.mark.parametrize("name", ["out.npy.json", "out.npy.partial", "out.npy.partial.json"])
@pytest.mark.parametrize("more", [(), ("--restart",), ("--overwrite",)])
def test_files_of_somebody_else_beside_the_output_stay(
    run: Run,
    source: Path,
    tmp_path: Path,
    name: str,
    more: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_text('{"of": "the application"}')
    assert name in refused(run, capsys, source, "--output", tmp_path / "out.npy", *more)
    assert (tmp_path / name).read_text() == '{"of": "the application"}'
    assert not (tmp_path / "out.npy").exists()


def test_rows_that_changed_on_the_disk_are_noticed(
    run: Run, begun: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = begun.with_name("out.npy.partial")
    content = bytearray(partial.read_bytes())
    content[500:508] = bytes(8)
    partial.write_bytes(content)
    assert "is damaged: its rows are not those" in refused(run, capsys, source, "--output", begun)
    assert run(source, "--output", begun, "--restart") == 0
    assert np.array_equal(np.load(begun), vectors(many(1_000), "1"))


def test_a_crash_before_the_description_is_made_good(run: Run, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    assert run(source, "--output", output) == 0
    described = output.with_name("out.npy.json")
    described.rename(tmp_path / "out.npy.partial.json")  # as it is between the last two steps
    assert run(source, "--output", output) == 1, "it exists"
    assert described.exists() and not (tmp_path / "out.npy.partial.json").exists()


def test_two_runs_do_not_write_one_file(
    run: Run, begun: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with begun.with_name("out.npy.partial").open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        before = hashlib.sha256(begun.with_name("out.npy.partial").read_bytes()).digest()
        assert "another `trimtab embed` is writing" in refused(run, capsys, source, "--output", begun)
        assert hashlib.sha256(begun.with_name("out.npy.partial").read_bytes()).digest() == before


def test_a_run_that_ends_while_another_begins(
    run: Run,
    begun: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second one has opened what is by now the first one's finished file, and leaves it as it is."""
    lock = fcntl.flock

    def late(*arguments: Any) -> None:
        monkeypatch.undo()
        assert run(source, "--output", begun) == 0
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    assert "another `trimtab embed` is writing" in refused(run, capsys, source, "--output", begun)
    assert np.array_equal(np.load(begun), vectors(many(1_000)))
    assert leftovers(begun.parent) == []


def test_a_description_that_appears_while_the_file_is_made_stays(
    run: Run,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave = embed.Progress.__exit__

    def late(*arguments: Any) -> Any:
        (tmp_path / "out.npy.json").write_text('{"of": "the application"}')
        return leave(*arguments)

    monkeypatch.setattr(embed.Progress, "__exit__", late)
    assert "out.npy.json cannot be read" in refused(run, capsys, source, "--output", tmp_path / "out.npy")
    assert (tmp_path / "out.npy.json").read_text() == '{"of": "the application"}'
    monkeypatch.undo()
    (tmp_path / "out.npy.json").unlink()
    assert run(source, "--output", tmp_path / "out.npy") == 0


@pytest.mark.parametrize("moment", ["_describe", "finish"])
def test_a_file_that_appears_while_it_is_made_stays(
    run: Run,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    output = tmp_path / "out.npy"
    place: Any = embed if moment == "_describe" else embed.Progress
    name = moment if moment == "_describe" else "__exit__"
    call = getattr(place, name)

    def late(*arguments: Any) -> Any:
        output.write_bytes(b"precious")
        return call(*arguments)

    monkeypatch.setattr(place, name, late)
    assert "pass --overwrite" in refused(run, capsys, source, "--output", output)
    assert output.read_bytes() == b"precious"


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
