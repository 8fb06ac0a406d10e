"""Vectors of texts by a bundle's own graph, cached in a folder, so that an interrupted run can resume."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tokenizers
from numpy.typing import NDArray

from trimtab.artifacts import durable
from trimtab.artifacts.bundle import Bundle
from trimtab.errors import AdapterError
from trimtab.kinds import Role
from trimtab.progress import Progress
from trimtab_export import runtime
from trimtab_export.graph.head import OUTPUT
from trimtab_export.source import TokenizerFile
from trimtab_export.tokens import Collator

Floats: TypeAlias = NDArray[np.float32]
Halves: TypeAlias = NDArray[np.float16]

BATCH = 32
ROWS_A_CHECKPOINT = 2048


class BundleEncoder:
    """An encoder that turns texts into vectors and, if its bundle has the graph, into pooled states.

    `cache`: the folder for results, keyed by the content of the graph and the texts; None: no cache.
    """

    def __init__(self, bundle: Bundle, cache: Path | None = None, threads: int = 0) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.manifest = manifest
        variant = manifest.variants[0]
        self._states = variant.states
        graph = variant.files[0] if variant.states is None else variant.states.file
        self._graph = runtime.graph(bundle.file(graph), variant.runner, variant.precision)
        self._graph_file = graph
        self._cache, self._threads = cache, threads
        self._session: Any = None
        json_text = bundle.file(manifest.tokenizer).read_text("utf-8")
        tokenizers.Tokenizer.from_str(json_text)
        self._collator = Collator(TokenizerFile(json=json_text, pad_id=manifest.pad_id), manifest.max_tokens)

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.manifest.name} {self.manifest.version}"

    @property
    def dimensions(self) -> int:
        """The dimensions of an embedding."""
        return self.manifest.dimensions

    @property
    def width(self) -> int:
        """The width of the pooled states of all layers; 0 if the bundle has none."""
        return 0 if self._states is None else self._states.width

    def prompt(self, role: Role) -> str:
        """The encoder's prompt for this role."""
        return self.manifest.prompts.of(role)

    def vectors(self, texts: Sequence[str], role: Role, label: str = "") -> Floats:
        """Only the embeddings, float32 (n, dimensions)."""
        return self._rows(texts, self.prompt(role), label)[0]

    def prompted(self, texts: Sequence[str], prompt: str) -> Floats:
        """The embeddings of texts with a prompt of the caller's choice."""
        return self._rows(texts, prompt, "")[0]

    def rows(self, texts: Sequence[str], role: Role, label: str = "") -> tuple[Floats, Halves]:
        """Embeddings, float32 (n, dimensions), and pooled states, float16 (n, width)."""
        return self._rows(texts, self.prompt(role), label)

    def _rows(self, texts: Sequence[str], prompt: str, label: str) -> tuple[Floats, Halves]:
        dimensions, width = self.manifest.dimensions, 0 if self._states is None else self._states.width
        if not texts:
            return np.empty((0, dimensions), np.float32), np.empty((0, width), np.float16)
        store = _Store(self._cache, self._key(texts, prompt), len(texts), dimensions, width)
        if store.done < len(texts):
            order = np.argsort([len(text) for text in texts], kind="stable")[::-1]  # the most expensive first
            with Progress(label or self.name, "texts", len(texts), store.done) as progress:
                while store.done < len(texts):
                    for start in range(store.done, min(store.done + ROWS_A_CHECKPOINT, len(texts)), BATCH):
                        part = order[start : start + BATCH]
                        store.put(part, self.compute([texts[row] for row in part], prompt))
                        progress.advance(len(part))
                    store.checkpoint(min(store.done + ROWS_A_CHECKPOINT, len(texts)))
        return store.finish()

    def compute(self, texts: list[str], prompt: str) -> Floats:
        """The graph's rows for one batch of texts behind a prompt."""
        if self._session is None:
            self._session = runtime.session(self._graph, self._threads)
        rows = runtime.run(self._session, OUTPUT, self._collator(texts, prompt))
        if not np.isfinite(rows).all():
            bad = texts[int(np.argmin(np.isfinite(rows).all(axis=1)))]
            raise AdapterError(f"{self.manifest.name} gives a vector that is not finite for {bad[:40]!r}")
        return rows

    def _key(self, texts: Sequence[str], prompt: str) -> str:
        content = hashlib.sha256()
        for part in (self._graph_file.sha256, self.manifest.space, prompt, *texts):
            data = part.encode()
            content.update(len(data).to_bytes(8, "little"))
            content.update(data)
        return content.hexdigest()[:32]


def _mapped(file: Path, known: bool, shape: tuple[int, int], dtype: Any) -> NDArray[Any]:
    if not shape[1]:
        return np.empty(shape, dtype)  # an empty file cannot be mapped
    mapped = np.lib.format.open_memmap(file, "r+" if known else "w+", dtype, None if known else shape)
    # Writing to a mapped file without disk space would kill the process at the first missing page.
    with file.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    return mapped


class _Store:
    """Rows being computed: embeddings in full precision, states in half; on disk if there is a cache."""

    def __init__(self, folder: Path | None, key: str, rows: int, dimensions: int, width: int) -> None:
        self._files = (
            None if folder is None else [folder / f"{key}.{part}.npy" for part in ("vectors", "states")]
        )
        self._journal = None if folder is None else folder / f"{key}.json"
        shapes = ((rows, dimensions), np.float32), ((rows, width), np.float16)
        self.done = 0
        if folder is None or self._files is None or self._journal is None:
            self._arrays = [np.empty(shape, dtype) for shape, dtype in shapes]
            return
        folder.mkdir(parents=True, exist_ok=True)
        known = self._journal.exists() and self._files[0].exists()
        self.done = int(json.loads(self._journal.read_text())["rows"]) if known else 0
        self._arrays = [
            _mapped(file, known, shape, dtype)
            for file, (shape, dtype) in zip(self._files, shapes, strict=True)
        ]

    def put(self, rows: NDArray[np.int64], values: Floats) -> None:
        vectors, states = self._arrays
        vectors[rows] = values[:, : vectors.shape[1]]
        states[rows] = values[:, vectors.shape[1] :]

    def checkpoint(self, done: int) -> None:
        """Flush the rows to disk, then the journal that counts them."""
        self.done = done
        if self._journal is not None:
            for array in self._arrays:
                if isinstance(array, np.memmap):
                    array.flush()
            durable.replace(self._journal, json.dumps({"rows": done}).encode())

    def finish(self) -> tuple[Floats, Halves]:
        vectors, states = self._arrays
        return vectors, states
