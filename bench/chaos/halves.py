"""An old and a new encoder in this process, with known vectors: the part of a client that a re-index uses."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np

from trimtab.core.answers import (
    Encoder,
    Limits,
)
from trimtab.stores import Form, Matrix

OLD = Form(space="the-old-space", dimensions=12)
NEW = Form(space="the-new-space", dimensions=16)
NOISE = 0.2  # in the old space, which makes it worse
_TURN = np.linalg.qr(np.random.default_rng(3).standard_normal((NEW.dimensions, NEW.dimensions)))[0]
_LIMITS = Limits(max_texts=64, max_text_bytes=1 << 18, max_message_bytes=1 << 22)


def new(texts: Sequence[str]) -> Matrix:
    """The new encoder's vectors: (n, 16)."""
    return _unit(_random(texts, NEW.dimensions, b"new"))


def old(texts: Sequence[str]) -> Matrix:
    """The old encoder's vectors: (n, 12)."""
    return _unit(_turned(new(texts)) + NOISE * _random(texts, OLD.dimensions, b"old"))


class InProcessClient:
    """Answers in this process. `before` is called with each text's number before the text is read."""

    def __init__(self, before: Callable[[int], None] = lambda number: None) -> None:
        self._before = before

    def encoders(self, timeout: float | None = None) -> list[Encoder]:
        """Both encoders."""
        return [_encoder("new", NEW), _encoder("old", OLD)]

    def encoder(self, name: str = "", version: str = "") -> Encoder:
        """The new encoder."""
        return self.encoders()[0]

    def embed(self, texts: Sequence[str], *, encoder: str = "", **options: Any) -> Matrix:
        """One vector per text."""
        return old(texts) if encoder == "old" else new(texts)

    def embed_stream(
        self, texts: Iterator[str], *, window: int, **options: Any
    ) -> "AbstractContextManager[Any]":
        """One vector per text, reading `window` texts ahead."""
        return nullcontext(_Stream(texts, window, self._before, self.encoder()))

    def embed_spaces(self, texts: Sequence[str], spaces: Sequence[str], **options: Any) -> dict[str, Any]:
        """The queries in both spaces; the adapter is exact except for the old encoder's own noise."""
        vectors = {NEW.space: new(texts), OLD.space: _unit(_turned(new(texts)))}
        return {space: SimpleNamespace(vectors=vectors[space]) for space in spaces}

    def rescore(self, query: str, names: Sequence[str], *, texts: dict[str, str], **options: Any) -> Matrix:
        """Similarities in the new space."""
        found: Matrix = new([texts[name] for name in names]) @ new([query])[0]
        return found


class _Stream:
    def __init__(
        self, texts: Iterator[str], window: int, before: Callable[[int], None], encoder: Encoder
    ) -> None:
        self._texts, self._window, self._before, self.encoder = texts, window, before, encoder
        self.adapters: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Matrix]:
        number = 0
        while part := list(islice(self._texts, self._window)):
            for vector in new(part):
                self._before(number)
                number += 1
                yield vector


def _encoder(name: str, form: Form) -> Encoder:
    return Encoder(
        name=name, version="1", space=str(form.space), dimensions=form.dimensions, max_tokens=512,
        similarity=form.similarity, pooling="mean", normalized=True, query_prompt="", passage_prompt="",
        dtypes=("float32",), limits=_LIMITS,
    )  # fmt: skip


def _turned(vectors: Matrix) -> Matrix:
    found: Matrix = (vectors @ _TURN)[:, : OLD.dimensions].astype(np.float32)
    return found


def _random(texts: Sequence[str], dimensions: int, name: bytes) -> Matrix:
    seeds = [hashlib.blake2b(text.encode(), key=name, digest_size=8).digest() for text in texts]
    rows = [np.random.default_rng(int.from_bytes(seed)).standard_normal(dimensions) for seed in seeds]
    return np.array(rows, np.float32).reshape(len(texts), dimensions)


def _unit(vectors: Matrix) -> Matrix:
    found: Matrix = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return found
