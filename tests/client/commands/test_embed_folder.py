"""`trimtab embed --output NAME/`: Parquet files, made by several workers, gone on with, on Ray too."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from tests.client.commands.test_embed import Run, many, run, write
from tests.client.fake_server import SCALE, FakeServer, vectors
from trimtab import stores
from trimtab.commands import bulk

__all__ = ["run"]  # a fixture


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "texts.txt", many(1_000))


def blocks(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def read(folder: Path) -> np.ndarray:
    """All vectors of a folder, in order; their ids are their rows."""
    tables = [parquet.read_table(path) for path in blocks(folder)]
    together = pyarrow.concat_tables(tables)
    assert together["id"].to_pylist() == list(range(len(together)))
    array: np.ndarray = together["vector"].combine_chunks().flatten().to_numpy()
    return array.reshape(len(together), -1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "ubinary"])
def test_a_folder_has_the_vectors_in_blocks(run: Run, source: Path, tmp_path: Path, dtype: str) -> None:
    folder = tmp_path / "out"
    assert run(source, "--output", f"{folder}/", "--block-rows", "300", "--dtype", dtype) == 0
    assert [parquet.read_metadata(path).num_rows for path in blocks(folder)] == [300, 300, 300, 100]
    array, exact = read(folder), vectors(many(1_000))
    if dtype == "ubinary":
        assert np.array_equal(np.unpackbits(array, axis=1), exact > 0)
    elif dtype == "int8":
        metadata = parquet.read_schema(blocks(folder)[0]).metadata
        assert np.abs(array * float(metadata[b"trimtab_scale"]) - exact).max() <= SCALE
    else:
        assert np.array_equal(array, exact.astype(dtype))
    manifest = json.loads((folder / "vectors.json").read_text())
    assert manifest["rows"] == 1_000 and manifest["vectors"]["columns"] == array.shape[1]
    assert not list(folder.glob("*.new"))


def test_the_store_of_files_reads_a_block(run: Run, source: Path, tmp_path: Path) -> None:
    assert run(source, "--output", f"{tmp_path}/out/") == 0
    (block,) = blocks(tmp_path / "out")
    with stores.open_store(str(block)) as store:
        assert store.form.space == "space-1" and store.count() == 1_000


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_columns_in_row_groups_that_are_no_blocks(run: Run, tmp_path: Path, suffix: str) -> None:
    source, texts = tmp_path / f"texts.{suffix}", many(1_000)
    if suffix == "jsonl":
        source.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    else:
        parquet.write_table(pyarrow.table({"body": texts}), source, row_group_size=170)
    assert run(source, "--column", "body", "--output", f"{tmp_path}/out/", "--block-rows", "230") == 0
    assert np.array_equal(read(tmp_path / "out"), vectors(texts))


def test_a_second_run_makes_only_what_is_not_there(
    run: Run, server: FakeServer, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    arguments = (source, "--output", f"{folder}/", "--block-rows", "100")
    assert run(*arguments) == 0
    gone, torn = blocks(folder)[3], blocks(folder)[7]
    before = {path: path.stat().st_mtime_ns for path in blocks(folder)}
    gone.unlink()
    torn.rename(
        folder / f"{torn.name}.{'0' * 32}.new"
    )  # what a kill leaves of a block that was being written
    server.requests.clear()
    assert run(source, "--output", f"{folder}/") == 0  # the length of a block is that of the first run
    assert sorted(server.texts()) == sorted(many(1_000)[300:400] + many(1_000)[700:800])
    assert np.array_equal(read(folder), vectors(many(1_000)))
    assert all(path.stat().st_mtime_ns == before[path] for path in before if path not in (gone, torn))


def test_a_run_that_fails_keeps_the_blocks_it_has(
    run: Run, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (source, "--output", f"{tmp_path}/out/", "--block-rows", "100", "--workers", "1")
    source.write_bytes("".join(f"{text}\n" for text in many(650)).encode() + b"\xff\n")
    assert run(*arguments) == 1
    assert "line 651: byte 1 (0xff) is not UTF-8" in capsys.readouterr().err
    assert len(blocks(tmp_path / "out")) == 6


def test_another_space_or_input_is_refused(
    run: Run, server: FakeServer, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    arguments = (source, "--output", f"{folder}/", "--block-rows", "300")

    def refusal(*more: str) -> str:
        assert run(*arguments, *more) == 1
        return capsys.readouterr().err

    assert run(*arguments) == 0
    capsys.readouterr()
    assert "space was space-1, now it is space-2" in refusal("--version", "2")
    assert "dtype was float32, now it is int8" in refusal("--dtype", "int8")
    assert "begun with blocks of 300 rows" in refusal("--block-rows", "200")
    server.newest = "2"
    assert run(*arguments) == 0, "the version is that of the first run"
    capsys.readouterr()
    write(source, [*many(999), "another"])
    assert "the texts from row 900 of the input on are not those" in refusal()
    write(source, many(600))
    assert "has a block from row 600 on, and the input has only 600 rows" in refusal()
    assert run(*arguments, "--restart") == 0
    assert np.array_equal(read(folder), vectors(many(600), "2"))


@pytest.mark.parametrize("changed", [many(700), [*many(999), "another"], many(1_001)])
def test_an_input_that_changes_while_it_is_read(
    run: Run,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changed: list[str],
) -> None:
    """It is noticed, and what the folder has in the end is of one input."""
    folder, embed = tmp_path / "out", bulk.embed_block

    def late(*arguments: Any) -> int:
        monkeypatch.undo()
        write(source, changed)
        return embed(*arguments)

    monkeypatch.setattr(bulk, "embed_block", late)
    arguments = (source, "--output", f"{folder}/", "--block-rows", "300", "--workers", "1")
    assert run(*arguments) == 1
    assert "was changed while its texts were embedded" in capsys.readouterr().err
    assert json.loads((folder / "vectors.json").read_text())["rows"] is None
    if run(*arguments):
        assert "--restart" in capsys.readouterr().err
        assert run(*arguments, "--restart") == 0
    assert np.array_equal(read(folder), vectors(changed))


def test_a_folder_of_something_else_is_left_alone(
    run: Run, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for more in ((), ("--restart",)):
        assert run(source, "--output", f"{tmp_path}/mine/", *more) == 1
        assert "has no vectors.json, but 'letter.txt'" in capsys.readouterr().err
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    (tmp_path / "mine" / "vectors.json").write_bytes(b'{"of": "the application \xff"}')
    for more in ((), ("--restart",)):
        assert run(source, "--output", f"{tmp_path}/mine/", *more) == 1
        assert "vectors.json cannot be read" in capsys.readouterr().err
    assert (tmp_path / "mine" / "vectors.json").exists()


def test_what_goes_with_a_folder_alone_is_refused_elsewhere(
    run: Run, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, "--output", tmp_path / "out.npy", "--ray") == 1
    assert "go with a folder" in capsys.readouterr().err
    assert run("--output", f"{tmp_path}/out/") == 1
    assert "a folder needs a FILE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(source, "--output", f"{tmp_path}/out/", "--block-rows", "0")


@pytest.mark.timeout(400)
def test_on_ray(server: FakeServer, url: str, source: Path, tmp_path: Path) -> None:
    """In a process of its own: Ray's threads and warnings are not this one's."""
    pytest.importorskip("ray", reason="Ray takes 300 MB: pip install 'trimtab[ray]'")
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "trimtab.cli", "embed", "--url", url, str(source)]
    command += ["--output", f"{folder}/", "--block-rows", "100", "--ray"]
    subprocess.run(command, check=True, timeout=240)
    assert np.array_equal(read(folder), vectors(many(1_000)))
    blocks(folder)[5].unlink()
    server.requests.clear()
    subprocess.run(command, check=True, timeout=240)
    assert sorted(server.texts()) == sorted(many(1_000)[500:600])
    write(source, [*many(999), "another"])
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1 and "the texts from row 900 of the input on are not those" in done.stderr
