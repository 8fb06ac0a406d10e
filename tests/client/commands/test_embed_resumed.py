"""`trimtab embed`: a stopped run goes on to the same file, and writes over nothing of anybody else's."""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.commands.test_embed import Run, command, leftovers, many, refused, run, source, write
from tests.client.fake_server import FakeServer, vectors
from tests.client.sdk.test_stream import until
from trimtab.commands import embed, vector_files
from trimtab.v1 import encoder_pb2 as pb

__all__ = ["run", "source"]


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
    # The server may still have been reading what the killed run had sent, which is all further on.
    assert min(int(text.removeprefix("text ")) for text in server.texts()) == 10_000
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
    server.ended.get(timeout=100)  # the server may still be reading what was sent ahead
    server.requests.clear()
    return output


def test_an_error_leaves_what_can_be_gone_on_with(
    run: Run, server: FakeServer, begun: Path, source: Path
) -> None:
    assert run(source, "--output", begun) == 0
    assert server.texts() == many(1_000)[500:]
    assert np.array_equal(np.load(begun), vectors(many(1_000)))


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
