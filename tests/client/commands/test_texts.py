"""The texts of files: every format, and errors that name the place."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trimtab.commands.texts import open_texts
from trimtab.errors import ConfigError, InvalidArgument


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def read(path: Path, format: str | None = None, column: str | None = None) -> list[str]:
    return list(open_texts(path, format, column).texts)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"  a \t\n\n b", ["  a \t", "", " b"]),
        (b"dos\r\nlines\r\n", ["dos", "lines"]),
        (b"\xef\xbb\xbfmarked\n", ["marked"]),
        ("Wörter\n四\x85\u2028x\n".encode(), ["Wörter", "四\x85\u2028x"]),
    ],
)
def test_lines_lose_their_newline_and_nothing_else(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    assert read(write(tmp_path, "texts.txt", content)) == texts


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "T.JSONL"])
def test_a_column_of_jsonl(tmp_path: Path, name: str) -> None:
    lines = [json.dumps({"id": index, "body": f"täxt {index}"}) for index in range(3)]
    path = write(tmp_path, name, "\n".join(lines).encode())
    assert read(path, column="body") == ["täxt 0", "täxt 1", "täxt 2"]


def test_the_format_may_be_said(tmp_path: Path) -> None:
    path = write(tmp_path, "texts.log", b'{"body": "a"}\n')
    assert read(path, "jsonl", "body") == ["a"]
    assert read(path) == ['{"body": "a"}']


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_column_of_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    texts = [f"text {index}" for index in range(3_000)]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": range(3_000), "body": pa.array(texts).cast(kind)}), path)
    source = open_texts(path, None, "body")
    assert source.total == 3_000
    assert list(source.texts) == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"fine\nbad \xff\n", r"t\.txt, line 2: byte 5 \(0xff\) is not UTF-8; .*iconv"),
        ("t.jsonl", b'{"body": "a"}\n{"body": \n', r"line 2 is not JSON"),
        ("t.jsonl", b'{"body": "a"}\n\n', r"line 2 is not JSON"),
        ("t.jsonl", b"[" * 9000, r"line 1 is not JSON"),
        ("t.jsonl", b'{"body": "\xff"}\n', r"line 1: byte 11 \(0xff\) is not UTF-8"),
        ("t.jsonl", b"[1]\n", r"line 1 is not a JSON object with the column 'body'"),
        ("t.jsonl", b'{"body": "a"}\n{"text": "b", "id": 1}\n', "has no column 'body'; it has 'text', 'id'"),
        ("t.jsonl", b'{"body": 3}\n', r"line 1: column 'body' is int, not text"),
        ("t.jsonl", b'{"body": null}\n', r"line 1: column 'body' is empty, not text"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    column = "body" if name.endswith(".jsonl") else None
    with pytest.raises(InvalidArgument, match=message):
        read(write(tmp_path, name, content), column=column)


def test_a_bad_row_of_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"body": ["a", None, "b"], "id": [1, 2, 3]}), path)
    with pytest.raises(InvalidArgument, match=r"row 2: column 'body' is empty"):
        read(path, column="body")
    with pytest.raises(InvalidArgument, match=r"row 1: column 'id' is int"):
        read(path, column="id")
    with pytest.raises(InvalidArgument, match="no column 'text'; it has 'body', 'id'"):
        open_texts(path, None, "text")


def test_what_cannot_be_read_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        open_texts(tmp_path / "nowhere.txt", None, None)
    with pytest.raises(ConfigError, match="is a folder"):
        open_texts(tmp_path, None, None)
    text = write(tmp_path, "t.txt", b"a")
    with pytest.raises(ConfigError, match="--column body: plain lines have no columns"):
        open_texts(text, None, "body")
    with pytest.raises(ConfigError, match="--column is missing"):
        open_texts(write(tmp_path, "t.jsonl", b"{}"), None, None)
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        open_texts(text, "parquet", "body")
    with pytest.raises(ConfigError, match="standard input"):
        open_texts(None, "parquet", "body")
