"""Text to token ids, on threads. Texts that wait at the same time are tokenised together; of those who send
much, each gets its turn."""

import asyncio
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers

from trimtab.errors import BundleError, InternalError, InvalidArgument
from trimtab_server.batching.batch import Ids

Truncate = Literal["end", "start", "none"]

# Parallelism comes from the threads of this module, as many as configured; the library's own would take
# every core.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A job holds so many texts and characters: a large request is cut into jobs, so that others get in between.
JOB_TEXTS = 32
JOB_CHARACTERS = 1 << 16
# One text of so few characters is tokenised at once: a thread would take longer to wake up.
INLINE_CHARACTERS = 256
STOP_SECONDS = 1.0
# Jobs that a thread takes at once, where they are small.
JOBS_AT_ONCE = 16
# Of a long text only so many characters a token are read at first, and more where they were not enough.
CHARACTERS_A_TOKEN = 16
# Tokens near a cut may be others than in the whole text: that many more have to be there.
MARGIN = 16


class Tokenizer:
    """A bundle's tokenizer, with its own truncation, so that a text that is too long is known as such.

    Raises BundleError where the tokenizer gives no token for an empty text: there would be no vector.
    """

    def __init__(self, path: Path, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if not self._tokenizer.encode("").ids:
            raise BundleError(
                f"{path} gives no token for an empty text: it lacks the encoder's special tokens"
            )
        # How many special tokens stand before and after a text: they survive truncation.
        mask = self._tokenizer.encode("a").special_tokens_mask
        self._head = next((i for i, special in enumerate(mask) if not special), len(mask))
        self._tail = next((i for i, special in enumerate(reversed(mask)) if not special), 0)

    def encode(self, texts: Sequence[str], how: Truncate) -> list[list[int]]:
        """The ids of each text, special tokens included, at least as far as `how` will keep them.

        Of a text of a megabyte the first pages are tokenised (the last ones for "start"), and the rest
        only where those are not enough. Releases the GIL.
        """
        return self._encode(texts, how, CHARACTERS_A_TOKEN * self.max_tokens)

    def _encode(self, texts: Sequence[str], how: Truncate, characters: int) -> list[list[int]]:
        parts = [text[-characters:] if how == "start" else text[:characters] for text in texts]
        if len(parts) == 1:
            encoded = [self._tokenizer.encode(parts[0]).ids]
        else:
            encoded = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(parts)]
        for row, text in enumerate(texts):
            if len(text) > characters and len(encoded[row]) < self.max_tokens + MARGIN:
                encoded[row] = self._encode([text], how, 4 * characters)[0]
        return encoded

    def truncate(self, ids: list[int], how: Truncate, row: int) -> Ids:
        """Cut ids to `max_tokens`; InvalidArgument names the text `row` where `how` is "none"."""
        if len(ids) > self.max_tokens:
            if how == "none":
                raise InvalidArgument(
                    f"texts[{row}] has {len(ids)} tokens or more, this encoder reads {self.max_tokens}: "
                    "shorten it, or let it be cut with truncate=END or START"
                )
            body = ids[self._head : len(ids) - self._tail]
            room = self.max_tokens - self._head - self._tail
            kept = body[:room] if how == "end" else body[len(body) - room :]
            ids = ids[: self._head] + kept + ids[len(ids) - self._tail :]
        return np.array(ids, np.int32)


@dataclass(frozen=True, eq=False, slots=True)
class _Job:
    tokenizer: Tokenizer
    texts: Sequence[str]
    how: Truncate
    future: asyncio.Future[list[list[int]]]

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts))


class _Jobs:
    """What waits for the threads: of each flow the first job, then of each the second. It is bounded by what
    admission lets in."""

    def __init__(self) -> None:
        self._flows: OrderedDict[Hashable, deque[_Job]] = OrderedDict()
        self._change = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        with self._change:
            return sum(map(len, self._flows.values()))

    def put(self, flow: Hashable, jobs: Sequence[_Job]) -> None:
        """Queue jobs behind the flow's others."""
        with self._change:
            self._flows.setdefault(flow, deque()).extend(jobs)
            self._change.notify(len(jobs))

    def take(self) -> list[_Job]:
        """Wait for jobs, and take several where they are small; none: there will be no more."""
        with self._change:
            self._change.wait_for(lambda: self._flows or self._closed)
            jobs: list[_Job] = []
            characters = 0
            while self._flows and len(jobs) < JOBS_AT_ONCE and characters < JOB_CHARACTERS:
                flow, waiting = self._flows.popitem(last=False)
                jobs.append(waiting.popleft())
                characters += jobs[-1].characters
                if waiting:
                    self._flows[flow] = waiting  # the others come first
            return jobs

    def close(self) -> None:
        """Let the threads end when nothing waits any more."""
        with self._change:
            self._closed = True
            self._change.notify_all()


class Tokenization:
    """The threads that tokenise."""

    def __init__(self, threads: int) -> None:
        self._jobs = _Jobs()
        self._loop = asyncio.get_running_loop()
        self._threads = [
            threading.Thread(target=self._work, name=f"tokenizer-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def encode(
        self, tokenizer: Tokenizer, texts: Sequence[str], how: Truncate, flow: Hashable = None
    ) -> list[Ids]:
        """The ids of each text, cut to what the encoder reads. Flows take turns.

        Raises InvalidArgument where `how` is "none" and a text is too long.
        """
        if len(texts) == 1 and len(texts[0]) <= INLINE_CHARACTERS:
            try:
                ids = tokenizer.encode(texts, how)[0]
            except BaseException as error:  # as on the threads below
                raise _failure(error) from error
            return [tokenizer.truncate(ids, how, 0)]
        jobs = [_Job(tokenizer, part, how, self._loop.create_future()) for part in _parts(texts)]
        self._jobs.put(flow, jobs)
        try:
            encoded = [ids for job in jobs for ids in await job.future]
        finally:
            for job in jobs:
                job.future.cancel()
        return [tokenizer.truncate(ids, how, row) for row, ids in enumerate(encoded)]

    @property
    def waiting(self) -> int:
        """How many jobs wait for a thread."""
        return len(self._jobs)

    def stop(self) -> None:
        """Stop the threads, each after what it is doing; one that hangs is left behind."""
        self._jobs.close()
        for thread in self._threads:
            thread.join(STOP_SECONDS)

    def _work(self) -> None:
        while jobs := self._jobs.take():
            # A job whose caller has gone is not worth the work.
            wanted = [each for each in jobs if not each.future.cancelled()]
            for kind in {(each.tokenizer, each.how) for each in wanted}:
                self._encode(*kind, [each for each in wanted if (each.tokenizer, each.how) == kind])

    def _encode(self, tokenizer: Tokenizer, how: Truncate, jobs: list[_Job]) -> None:
        try:
            encoded = iter(tokenizer.encode([text for job in jobs for text in job.texts], how))
            results: list[list[list[int]]] = [[next(encoded) for _ in job.texts] for job in jobs]
        except (
            BaseException
        ) as error:  # a panic of the library's is no Exception, and must not end the thread
            self._loop.call_soon_threadsafe(_fail, jobs, error)
        else:
            self._loop.call_soon_threadsafe(_deliver, jobs, results)


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in slices of JOB_TEXTS and about JOB_CHARACTERS."""
    start, characters = 0, 0
    for row, text in enumerate(texts):
        if row > start and (row - start == JOB_TEXTS or characters + len(text) > JOB_CHARACTERS):
            yield texts[start:row]
            start, characters = row, 0
        characters += len(text)
    yield texts[start:]


def _deliver(jobs: list[_Job], results: list[list[list[int]]]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if not job.future.done():
            job.future.set_result(result)


def _fail(jobs: list[_Job], error: BaseException) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(_failure(error))


def _failure(error: BaseException) -> InternalError:
    failure = InternalError(f"the tokenizer failed: {type(error).__name__}")
    failure.__cause__ = error
    return failure
