"""A repository of one good encoder with one good adapter, and of everything that must not harm them."""

import io
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tokenizers

from tests import adapters_made, hostile
from tests.hostile import DIMENSIONS
from trimtab.artifacts import adapter as adapters
from trimtab.artifacts import artifact
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.adapter import Endpoint

GOOD = "good"
TARGET = "f" * 16  # the space that the good adapter leads to


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def listening(path: Path) -> None:
    """A socket; its path has to be short, so it is made elsewhere and moved."""
    path.unlink()
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(path.parent, os.O_DIRECTORY)
        made.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2 << 30)


def linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def manifest(harm: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda bundle: harm(bundle / bundles.MANIFEST)


def graph(harm: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda bundle: harm(bundle / "fp32" / "model.onnx")


def tokens(harm: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda bundle: harm(bundle / "tokenizer.json")


def content(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


def wrong_inputs(bundle: Path) -> None:
    path = bundle / bundles.MANIFEST
    path.write_bytes(path.read_bytes().replace(b'["input_ids","attention_mask"]', b'["input_ids"]'))


def growing_tokenizer() -> str:
    """Each x becomes a million letters."""
    made = hostile.tokenizer()
    made.normalizer = tokenizers.normalizers.Replace("x", "y" * 1_000_000)
    text: str = made.to_str()
    return text


def bare_tokenizer() -> str:
    """No special tokens: nothing is left of an empty text."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, "[UNK]"))
    text: str = made.to_str()
    return text


def wide_tokenizer() -> str:
    text: str = hostile.tokenizer([*hostile.WORDS, "beyond"]).to_str()
    return text


# What is made of the good encoder, and what has to be said of it.
ENCODERS: dict[str, tuple[dict[str, Any], str]] = {
    "looping": ({"graph": hostile.looping()}, "made no progress for"),
    "looping-when-long": ({"graph": hostile.looping_when_long(20)}, "made no progress for"),
    "huge": ({"graph": hostile.huge()}, "allocate memory"),
    "raising-when-long": ({"graph": hostile.raising_when_long(20)}, "on texts of 64 tokens"),
    "raising-when-short": ({"graph": hostile.raising_when_short(3)}, "on texts of 2 tokens"),
    "sequence": ({"graph": hostile.sequence()}, "seq"),
    "optional": ({"graph": hostile.optional()}, "optional"),
    "string": ({"graph": hostile.of_type(hostile.TensorProto.STRING)}, "string"),
    "int64": ({"graph": hostile.of_type(hostile.INT64)}, "int64"),
    "bool": ({"graph": hostile.of_type(hostile.BOOL)}, "bool"),
    "float16": ({"graph": hostile.of_type(hostile.TensorProto.FLOAT16)}, "float16"),
    "rank": ({"graph": hostile.rank_three()}, "shape"),
    "width": ({"dimensions": DIMENSIONS + 1}, f"{DIMENSIONS + 1} dimensions"),
    "output": ({"graph": hostile.encoder(name="logits")}, "no output 'embeddings'"),
    "inputs": ({"harm": wrong_inputs}, "reads input_ids"),
    "nan": ({"graph": hostile.nan()}, "not finite"),
    "rows": ({"graph": hostile.one_row_more()}, "instead of float32"),
    "order": ({"graph": hostile.first_row_for_all()}, "another order"),
    "random": ({"graph": hostile.random(0.02)}, "different vector each time"),
    "length": ({"graph": hostile.long_vectors()}, "of length 2, and its manifest says"),
    "node": ({"graph": hostile.unknown_node("")}, "Nonsense"),
    "domain": ({"graph": hostile.unknown_node("com.example")}, "Nonsense"),
    "cut-graph": ({"graph": hostile.encoder()[:-100]}, "cannot be opened"),
    "no-graph": ({"graph": b""}, "cannot be opened"),
    "junk-graph": ({"graph": b"junk" * 100}, "cannot be opened"),
    "graph-folder": ({"harm": graph(folder)}, "model.onnx"),
    "graph-fifo": ({"harm": graph(fifo)}, "model.onnx"),
    "graph-socket": ({"harm": graph(listening)}, "model.onnx"),
    "graph-device": ({"harm": graph(linked)}, "model.onnx"),
    "tokenizer-fifo": ({"harm": tokens(fifo)}, "tokenizer.json"),
    "no-tokenizer": ({"tokenizer_json": "{"}, "no tokenizer"),
    "bare-tokenizer": ({"tokenizer_json": bare_tokenizer()}, "no token for an empty text"),
    "wide-tokenizer": ({"tokenizer_json": wide_tokenizer()}, "ids from 0 to 54"),
    "growing-tokenizer": (
        {"tokenizer_json": growing_tokenizer()},
        "ended the process|memory|made no progress",
    ),
    "manifest-fifo": ({"harm": manifest(fifo)}, "not a regular file"),
    "manifest-folder": ({"harm": manifest(folder)}, "manifest.json"),
    "manifest-socket": ({"harm": manifest(listening)}, "manifest.json"),
    "manifest-sparse": ({"harm": manifest(sparse)}, "manifest-sparse"),
    "manifest-empty": ({"harm": manifest(content(b""))}, "manifest.json"),
    "manifest-latin": ({"harm": manifest(content(b'{"format": 3, "name": "\xff"}'))}, "manifest.json"),
    "manifest-deep": ({"harm": manifest(content(b"[" * 1_000_000))}, "manifest.json"),
    "manifest-types": ({"harm": manifest(content(b'{"format": 3, "name": [1]}'))}, "manifest.json"),
}


def announced(rows: int) -> bytes:
    """The head of an array of so many rows, and nothing behind it."""
    head = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({rows}, {DIMENSIONS}), }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode()


def saved(array: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    np.savez(file, np.ones((60, DIMENSIONS)))
    return file.getvalue()


# Graph and queries of adapters beside the good one, and what has to be said of them.
ADAPTERS: dict[str, tuple[bytes, bytes | None, str]] = {
    "looping": (hostile.looping_adapter(), None, "made no progress for"),
    "looping-when-negative": (hostile.looping_adapter(0.0), None, "made no progress for"),
    "raising": (hostile.raising_adapter(), None, "cannot be run"),
    "raising-when-negative": (hostile.raising_adapter(0.0), None, "cannot be run"),
    "nan": (hostile.nan_adapter(), None, "not finite"),
    "huge": (hostile.huge_adapter(), None, "allocate memory"),
    "order": (hostile.first_row_adapter(), None, "another order"),
    "random": (hostile.random_adapter(0.02), None, "different vector each time"),
    "sequence": (hostile.sequence_adapter(), None, "seq"),
    "scalar": (hostile.scalar_adapter(), None, "vectors of None components"),
    "half": (hostile.half_adapter(), None, "float16"),
    "cut": (hostile.adapter()[:-40], None, "cannot be loaded"),
    "empty": (b"", None, "cannot be loaded"),
    "queries-zip": (hostile.adapter(), zipped(), ""),
    "queries-strings": (hostile.adapter(), saved(np.full((60, DIMENSIONS), "text")), ""),
    "queries-objects": (
        hostile.adapter(), saved(np.full((60, DIMENSIONS), None, object), allow_pickle=True), "",
    ),
    "queries-empty": (hostile.adapter(), b"", ""),
    "queries-endless": (hostile.adapter(), announced(10**13), ""),
}  # fmt: skip

# Adapters that pass their rehearsal, and misbehave at the vector of SETS_OFF; the space that each leads to.
SETS_OFF = " ".join(["w48"] * 50)
OFF = hostile.vectors([SETS_OFF])[0]
LATE = {
    "late-looping": (hostile.looping_adapter(at=OFF), "1" * 16),
    "late-raising": (hostile.raising_adapter(at=OFF), "2" * 16),
}
# An encoder that passes its rehearsal, and loops at texts of so many words.
LATE_ENCODER, LATE_WORDS = "late", 5


def make(repository: Path) -> None:
    """The good encoder, its good adapter, and all the others."""
    good = hostile.bundle(repository, GOOD)
    source = adapters_made.end(bundles.read(good).manifest)
    target = Endpoint(encoder="gone", version=1, space=TARGET, dimensions=DIMENSIONS)
    adapters_made.adapter(repository, "turning", source, target, hostile.adapter())
    for number, (name, (map, queries, _)) in enumerate(ADAPTERS.items()):
        end = msgspec.structs.replace(target, space=f"{number:016x}")
        path = adapters_made.adapter(repository, name, source, end, map)
        if queries is not None:
            (path / "queries.npy").write_bytes(queries)
            described = adapters.KIND.manifest(path, adapters.AdapterManifest)
            entry = msgspec.structs.replace(artifact.digest(path / "queries.npy"), path="queries.npy")
            described = msgspec.structs.replace(described, queries=entry)
            (path / adapters.MANIFEST).write_bytes(msgspec.json.encode(described))
    for name, (map, space) in LATE.items():
        adapters_made.adapter(repository, name, source, msgspec.structs.replace(target, space=space), map)
    hostile.bundle(repository, LATE_ENCODER, hostile.looping_at(LATE_WORDS + 2))
    for name, (changes, _) in ENCODERS.items():
        hostile.bundle(repository, name, **changes)
