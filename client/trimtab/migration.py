"""Re-index: embed every document of a store again with a new encoder, into another store.

The target is the only record of how far this is: a document is done when the target has its id with the
same text. So a run that was killed at any moment goes on where it was, at most a batch is embedded twice,
and what was added to the source or changed in it meanwhile is found by the next pass. Passes follow one
another until one finds nothing to do. The source is only read, and stays the truth about the documents that
it has.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.bundle import Similarity
from trimtab.client import Client
from trimtab.errors import ConfigError, FailedPrecondition, InvalidArgument
from trimtab.progress import Progress
from trimtab.requests import Options
from trimtab.stores.base import (
    SIMILARITIES,
    Document,
    Form,
    Id,
    Matrix,
    Rows,
    Store,
    check_apart,
    check_form,
    normalised,
)
from trimtab.types import Encoder, Role, Truncate

BATCH = 256
SAMPLE = 64
WRITE_SECONDS = 5.0  # a slow run writes this often, however few vectors there are
MOST_PASSES = 10
# The same text embedded again by the same encoder, on whatever device: fp16 storage costs some 1e-6.
SAME_COSINE = 0.999
SAME_LENGTH = 0.01
# A store may have been filled by another build of the encoder, and a few of its texts may have changed since.
CLAIMED_COSINE = 0.98

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a re-index did.

    moved: documents that were embedded. kept: documents of the source that the target has now.
    extra: documents that the target alone has. sampled: vectors that were embedded again to verify them.
    """

    moved: int
    kept: int
    extra: int
    sampled: int


class Pace:
    """At most `rate` texts a second; None for no limit."""

    def __init__(self, rate: float | None) -> None:
        if rate is not None and not rate > 0:
            raise ConfigError(f"rate is {rate}; give texts a second above 0, or leave it out for no limit")
        self._seconds = 1 / rate if rate else 0.0
        self._next = time.monotonic()

    def wait(self) -> None:
        """Wait until the next text may be sent."""
        if self._seconds:
            now = time.monotonic()
            self._next = max(self._next, now - self._seconds) + self._seconds
            time.sleep(max(0.0, self._next - now))


def target_form(encoder: Encoder) -> Form:
    """What a store for an encoder's vectors must be."""
    similarity = next(known for known in SIMILARITIES if known == encoder.similarity)
    return Form(space=encoder.space, dimensions=encoder.dimensions, similarity=similarity)


def bulk(encoder: Encoder, role: Role | None = None, truncate: Truncate = "end") -> Options:
    """The options for documents: behind live queries, and with prompts as passages where no role is named."""
    if role is None and (encoder.query_prompt or encoder.passage_prompt):
        role = "passage"
    return Options(role=role, truncate=truncate, priority="bulk").pinned(encoder)


def check_source(
    client: Client, source: Store, texts: Mapping[Id, str] | None = None, *, sample: int = SAMPLE
) -> str:
    """See that the source's vectors are of the space it claims, where its encoder is served.

    A sample of its texts is embedded again by that encoder. Returns a sentence that says what was found.
    Raises FailedPrecondition where the vectors are others, or hold NaN.
    """
    _check_sample(sample)
    claimed = source.form.space
    rows = source.get(source.sample(sample))
    bad = ~np.isfinite(rows.vectors).all(axis=1)
    if bad.any():
        raise FailedPrecondition(
            f"{source.name}: the vector of document {rows.documents[int(bad.argmax())].id!r} holds NaN or "
            f"infinity, and {int(bad.sum())} of {len(rows)} sampled do; embed those documents again"
        )
    if claimed is None:
        return f"{source.name} does not name the space of its vectors, which were not checked"
    encoder = next((each for each in client.encoders() if each.space == claimed), None)
    if encoder is None:
        return f"no encoder of space {claimed} is served, so the vectors of {source.name} were not checked"
    if not len(rows):
        return f"{source.name} is empty"
    wanted = bulk(encoder)
    again = client.embed(
        [text_of(document, texts, source) for document in rows.documents], **wanted.keywords()
    )
    if again.shape != rows.vectors.shape:
        raise FailedPrecondition(
            f"{source.name} claims space {claimed}, whose vectors have {again.shape[1]} dimensions, "
            f"and holds vectors of {rows.vectors.shape[1]}; set right what it claims"
        )
    cosines = _cosines(rows.vectors, again)
    if np.median(cosines) < CLAIMED_COSINE:
        raise FailedPrecondition(
            f"{source.name} claims space {claimed}, but {int((cosines < CLAIMED_COSINE).sum())} of "
            f"{len(cosines)} sampled vectors are not what {encoder.name} {encoder.version} makes of their "
            f"texts (median cosine {np.median(cosines):.3f}). Set right what it claims; or were prompts left "
            "out when it was filled, or texts changed since?"
        )
    return (
        f"{len(cosines)} sampled vectors of {source.name} are of the space it claims "
        f"(median cosine {np.median(cosines):.4f})"
    )


class Reindex:
    """One re-index, from `source` into `target`, with an encoder that `client` reaches.

    encoder: the version to embed with; `target` holds vectors of its space.
    role, truncate: of the documents; without a role, encoders with prompts embed them as passages.
    texts: by id, for a source that has none.
    rate: at most so many texts a second. Without it, the server still lets live queries go first.
    batch: how many documents a crash makes it embed twice, at most; half as many are written together.
    """

    def __init__(
        self,
        client: Client,
        source: Store,
        target: Store,
        encoder: Encoder,
        *,
        role: Role | None = None,
        truncate: Truncate = "end",
        texts: Mapping[Id, str] | None = None,
        rate: float | None = None,
        batch: int = BATCH,
    ) -> None:
        check_apart(source, target)
        check_form(target.form, target_form(encoder), target.name)
        if batch < 1:
            raise InvalidArgument(f"batch is {batch}; give at least 1")
        self._client, self._source, self._target = client, source, target
        self._options = bulk(encoder, role, truncate)
        self._texts, self._batch, self._pace = texts, batch, Pace(rate)

    def run(self, *, sample: int = SAMPLE, progress: type[Progress] | None = None) -> Outcome:
        """Move what is not there yet, pass by pass, and verify the whole.

        Where nothing is to do, it does nothing but verify. progress: shows each pass. Raises
        Unavailable where a store or the server goes away, and FailedPrecondition where the verification
        fails; what was moved until then is kept, and another run goes on from there.
        """
        _check_sample(sample)
        moved = 0
        for number in range(MOST_PASSES):
            label = "checking" if number else "re-indexing"
            total = self._source.count()
            with progress(label, "documents", total) if progress else nullcontext() as shown:
                done = self._pass(shown.advance if shown else lambda count: None)
            moved += done.moved
            if done.moved == 0:
                extra = self._target.count() - done.kept
                if extra < 0:
                    break  # somebody deletes from the target
                return Outcome(moved=moved, kept=done.kept, extra=extra, sampled=self.verify(sample))
        raise FailedPrecondition(
            f"{self._source.name} and {self._target.name} still differ after {number + 1} passes: documents "
            "change faster than they are embedded. Run again when fewer do"
        )

    def verify(self, sample: int = SAMPLE) -> int:
        """Embed the texts of so many of the target's documents again, and compare; returns how many.

        FailedPrecondition where one has another vector.
        """
        rows = self._target.get(self._target.sample(sample))
        if not len(rows):
            return 0
        texts = [document.text or "" for document in rows.documents]
        again = self._client.embed(texts, **self._options.keywords())
        same = _same(rows.vectors, again, self._target.form.similarity)
        if not same.all():
            first = rows.ids[int(same.argmin())]
            raise FailedPrecondition(
                f"{self._target.name}: {int((~same).sum())} of {len(rows)} sampled vectors are not those "
                f"of their texts, such as that of document {first!r}. Was it filled with other prompts, or "
                "by another program? Re-index into a store of another name"
            )
        return len(rows)

    def _pass(self, advance: Advance) -> "_Done":
        """Walk over the source, and embed what the target does not have, or has with another text."""
        kept = 0
        counting = threading.Lock()  # the stream reads its texts in a thread of its own

        def count(documents: int) -> None:
            with counting:
                advance(documents)

        def missing() -> Iterator[Document]:
            nonlocal kept
            for documents in self._source.pages(self._batch):
                there = self._target.texts([document.id for document in documents])
                for document in documents:
                    text = text_of(document, self._texts, self._source)
                    if there.get(document.id) == text:
                        kept += 1
                        count(1)
                    else:
                        self._pace.wait()
                        yield Document(document.id, text)

        moved = 0
        sent: deque[Document] = deque()
        ready: list[tuple[Document, Matrix]] = []
        written_at = time.monotonic()
        # What is on its way and what is ready but not written are a batch together: all that a crash costs.
        window = max(1, self._batch // 2)
        texts = _noted(missing(), sent)
        with self._client.embed_stream(texts, window=window, **self._options.keywords()) as stream:
            if stream.encoder.space != self._target.form.space:
                raise FailedPrecondition(
                    f"{stream.encoder.name} {stream.encoder.version} makes vectors of space "
                    f"{stream.encoder.space} by now, and {self._target.name} holds those of space "
                    f"{self._target.form.space}; name another store"
                )
            for vector in stream:
                ready.append((sent.popleft(), vector))
                late = time.monotonic() - written_at >= WRITE_SECONDS
                if late or len(ready) >= self._batch - window:
                    self._write(ready)
                    moved += len(ready)
                    count(len(ready))
                    ready, written_at = [], time.monotonic()
        if ready:
            self._write(ready)
            count(len(ready))
        return _Done(moved + len(ready), kept)

    def _write(self, ready: Sequence[tuple[Document, Matrix]]) -> None:
        documents = [document for document, _ in ready]
        self._target.upsert(Rows(documents, np.stack([vector for _, vector in ready])))
        # Who deletes a document does so in the source, then in the target: perhaps just before this write.
        still = self._source.texts([document.id for document in documents])
        if gone := [document.id for document in documents if document.id not in still]:
            self._target.delete(gone)


@dataclass(frozen=True, slots=True)
class _Done:
    """What one pass did: documents that it embedded, and those that were there."""

    moved: int
    kept: int


def _check_sample(sample: int) -> None:
    if sample < 1:
        raise InvalidArgument(f"sample is {sample}; give at least 1, so that something is verified")


def text_of(document: Document, texts: Mapping[Id, str] | None, source: Store) -> str:
    """The text of a document of the source; FailedPrecondition where there is none."""
    text = document.text if texts is None else texts.get(document.id)
    if text is None:
        where = f"{source.name} has no text" if texts is None else "the file of texts has none"
        raise FailedPrecondition(f"{where} for document {document.id!r}; pass texts by id for all documents")
    return text


def _noted(documents: Iterator[Document], sent: deque[Document]) -> Iterator[str]:
    """The documents' texts, each document noted until its vector is there."""
    for document in documents:
        sent.append(document)
        yield document.text or ""


def _cosines(left: Matrix, right: Matrix) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (normalised(left) * normalised(right)).sum(axis=1)
    return found


def _same(left: Matrix, right: Matrix, similarity: Similarity) -> NDArray[np.bool_]:
    """Which rows are the same vector, up to what storage and another device do to it."""
    same: NDArray[np.bool_] = _cosines(left, right) >= SAME_COSINE
    if similarity != "cosine":  # otherwise a store may keep directions alone
        lengths = np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
        same &= np.abs(lengths - 1) <= SAME_LENGTH
    return same
