"""Re-index: embed every document of a store again with a new encoder, into another store.

The target is the only record of progress: a document is done when the target has its id with the same text.
So a run that was killed at any moment resumes where it was and embeds at most one batch twice. The next pass
finds what was added or changed in the source. Passes are repeated until one finds nothing to do. The source
is only read, and stays authoritative for its documents. A document that cannot be moved is set aside and
named at the end; the others move.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from trimtab.core.answers import Encoder
from trimtab.core.exchange import MESSAGE_TEXTS
from trimtab.core.requests import unfit
from trimtab.errors import FailedPrecondition, InternalError, InvalidArgument
from trimtab.kinds import Role, Truncate
from trimtab.migration import claims
from trimtab.migration.making import Making
from trimtab.migration.passing import Advance, Aside, Feed, PassCounts, RateLimit
from trimtab.progress import Progress
from trimtab.sdk.client import Client
from trimtab.stores.base import Document, Rows, Store
from trimtab.stores.checks import check_apart
from trimtab.stores.columns import column
from trimtab.stores.ids import Id

BATCH = 256
WRITE_SECONDS = 5.0  # a slow run writes at least this often
MOST_PASSES = 10
MOST_ASIDE = 10_000  # documents set aside; more are not exceptions

# A document, and its value of each output of the target.
Made: TypeAlias = tuple[Document, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReindexResult:
    """What a re-index did.

    moved: documents that were embedded. kept: documents of the source that the target has now.
    extra: documents that only the target has. sampled: vectors that were embedded again to verify them.
    aside: documents of the source that could not be moved; the target lacks them, or has an earlier text.
    """

    moved: int
    kept: int
    extra: int
    sampled: int
    aside: tuple[Aside, ...] = ()


class Reindex:
    """One re-index from `source` into `target`, with an encoder that `client` reaches.

    encoder: the version to embed with; `target` holds vectors of its spaces: all outputs that it keeps are
        filled.
    role, truncate: how to embed the documents; without a role, encoders with prompts embed them as passages.
    texts: by id, for a source without texts.
    rate: the most texts per second. Without it, the server still lets live queries go first.
    batch: the most documents that are embedded twice after a crash; half as many are written together.
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
        self._making = Making.of(encoder, target)
        if batch < 1:
            raise InvalidArgument(f"batch is {batch}; give at least 1")
        self._client, self._source, self._target = client, source, target
        self._options, self._limits = claims.bulk(encoder, role, truncate), encoder.limits
        self._texts, self._batch, self._rate_limit = texts, batch, RateLimit(rate)
        # What the server or the target refused: the text, and why.
        self._refused: dict[Id, tuple[str | None, str]] = {}

    def run(self, *, sample: int = claims.SAMPLE, progress: type[Progress] | None = None) -> ReindexResult:
        """Move what is missing, pass by pass, and verify the whole.

        If nothing is left to do, it only verifies. progress: shows each pass. Raises Unavailable if a store
        or the server becomes unreachable, and FailedPrecondition if the verification fails or no document can
        be moved; what was moved by then is kept, and another run resumes there.
        """
        claims.check_sample(sample)
        self._source.check_ids()
        self._check_some()
        moved = 0
        for number in range(MOST_PASSES):
            label = "checking" if number else "re-indexing"
            total = self._source.count()
            with progress(label, "documents", total) if progress else nullcontext() as shown:
                done = self._pass(shown.advance if shown else lambda count: None)
            moved += done.moved
            if done.moved == 0 and done.seen in {total, self._source.count()}:
                extra = self._target.count() - done.kept - done.former
                if extra < 0:
                    break  # somebody deletes from the target
                sampled = claims.verify(
                    self._client, self._target, self._making, self._options, self._limits, sample
                )
                aside = tuple(Aside(id, reason) for id, reason in done.aside.items())
                return ReindexResult(moved=moved, kept=done.kept, extra=extra, sampled=sampled, aside=aside)
        raise FailedPrecondition(
            f"{self._source.name} and {self._target.name} still differ after {number + 1} passes: documents "
            f"change faster than they are embedded. The last pass saw {done.seen:,}, and {self._source.name} "
            f"counts {self._source.count():,}. Run again when fewer change"
        )

    def _check_some(self) -> None:
        """FailedPrecondition if no document of a sample can be moved: then something else is wrong."""
        found = self._source.get(self._source.sample(claims.SAMPLE)).documents
        documents = [self._wanted(document) for document in found]
        refusals = [self._refusal(document) for document in documents]
        if documents and all(refusals):
            raise FailedPrecondition(
                f"none of {len(documents)} sampled documents of {self._source.name} can be moved, such as "
                f"document {documents[0].id!r}: {refusals[0]}"
            )

    def _wanted(self, document: Document) -> Document:
        """A document of the source as it is to be in the target."""
        text = document.text if self._texts is None else self._texts.get(document.id)
        return Document(document.id, text, document.payload if self._target.keeps_payload else {})

    def _refusal(self, document: Document) -> str:
        """Why a document cannot be moved; "" if it can, as far as is known."""
        if document.text is None:
            where = (
                f"{self._source.name} has no text for it"
                if self._texts is None
                else "the file of texts has none for it"
            )
            return f"{where}; pass texts by id for all documents"
        if refusal := self._target.refusal(document):
            return refusal
        if refusal := unfit(document.text, self._limits):
            return f"its text {refusal}"
        text, reason = self._refused.get(document.id, (None, ""))
        return reason if text == document.text else ""

    def _pass(self, advance: Advance) -> "PassCounts":
        """Go through the source, and embed what the target lacks or has with another text."""
        done = PassCounts(advance)
        missing = self._missing(done)
        again: deque[Document] = deque()
        while True:
            feed = Feed(again, missing)
            try:
                self._embed(feed, done)
                return done
            except (InvalidArgument, InternalError):
                left = feed.stop()
                if feed.failed or not left:
                    raise
            # The server refuses a whole message: find the text at fault one by one.
            for document in left[:MESSAGE_TEXTS]:
                self._alone(document, done)
            again.extendleft(reversed(left[MESSAGE_TEXTS:]))

    def _missing(self, done: "PassCounts") -> Iterator[Document]:
        """All documents of the source that need embedding."""
        for page in self._source.pages(self._batch):
            documents = [self._wanted(document) for document in page]
            refusals = [self._refusal(document) for document in documents]
            sound = [document.id for document, why in zip(documents, refusals, strict=True) if not why]
            there, payloads = self._target.texts(sound), self._target.payloads(sound)
            behind = []
            for document, refusal in zip(documents, refusals, strict=True):
                done.count(seen=1)
                if refusal:
                    self._set_aside(document.id, refusal, done)
                elif document.id in there and there[document.id] == document.text:
                    if not document.payload.items() <= payloads.get(document.id, {}).items():
                        behind.append(document)
                    done.count(kept=1)
                else:
                    self._rate_limit.wait()
                    yield document
            self._target.carry(behind)

    def _embed(self, feed: "Feed", done: "PassCounts") -> None:
        """Embed what `feed` gives, and write it."""
        ready: list[Made] = []
        written_at = time.monotonic()
        # Texts in flight and vectors not yet written make up one batch: the most that a crash costs.
        window = max(1, self._batch // 2)
        try:
            for made in self._streamed(feed, window) if self._making.first else self._called(feed, window):
                ready.append(made)
                late = time.monotonic() - written_at >= WRITE_SECONDS
                if late or len(ready) >= self._batch - window:
                    written, ready, written_at = ready, [], time.monotonic()
                    self._write(written, done)
        finally:
            if ready:
                self._write(ready, done)

    def _streamed(self, feed: "Feed", window: int) -> Iterator[Made]:
        """The documents with their vectors, by a stream."""
        name = self._target.output
        with self._client.embed_stream(feed, window=window, **self._options.values) as stream:
            encoder = stream.encoder
            self._making.check(encoder.name, encoder.version, {name: encoder.space})
            for vector in stream:
                yield feed.sent.popleft(), {name: vector}

    def _called(self, feed: "Feed", window: int) -> Iterator[Made]:
        """The documents with their values of all outputs, which no stream gives."""
        while texts := list(islice(feed, window)):
            found = self._making.embed(self._client, texts, self._options)
            items = {name: column(form).items(found[name]) for name, form in self._target.outputs.items()}
            for place in range(len(texts)):
                yield feed.sent.popleft(), {name: each[place] for name, each in items.items()}

    def _alone(self, document: Document, done: "PassCounts") -> None:
        """Embed and write one document, or set it aside if the server refuses it."""
        try:
            found = self._making.embed(self._client, [document.text or ""], self._options)
        except (InvalidArgument, InternalError) as error:
            self._refuse(document, f"the server refuses its text: {error}", done)
        else:
            one = {name: column(form).items(found[name])[0] for name, form in self._target.outputs.items()}
            self._write([(document, one)], done)

    def _write(self, ready: Sequence[Made], done: "PassCounts") -> None:
        documents = [document for document, _ in ready]
        values = {
            name: column(form).assembled([made[name] for _, made in ready])
            for name, form in self._target.outputs.items()
        }
        try:
            self._target.upsert(Rows(documents, values.pop(self._target.output), values))
        except InvalidArgument as error:
            if len(ready) == 1:
                self._refuse(documents[0], str(error), done)
            else:
                for each in ready:
                    self._write([each], done)
            return
        # Documents are deleted from the source, then from the target: perhaps just before this write.
        still = self._source.present([document.id for document in documents])
        if gone := [document.id for document in documents if document.id not in still]:
            self._target.delete(gone)
        done.count(moved=len(ready))

    def _refuse(self, document: Document, reason: str, done: "PassCounts") -> None:
        self._refused[document.id] = (document.text, reason)
        self._set_aside(document.id, reason, done)

    def _set_aside(self, id: Id, reason: str, done: "PassCounts") -> None:
        done.aside[id] = reason
        done.count(aside=1, former=len(self._target.present([id])))
        if len(done.aside) > MOST_ASIDE:
            raise FailedPrecondition(
                f"more than {MOST_ASIDE:,} documents of {self._source.name} cannot be moved, such as {id!r}: "
                f"{reason}. Resolve that first; what was moved stays"
            )
