"""Text to token ids, on threads. Texts that wait at the same time are tokenised together."""

import asyncio
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers

from trimtab.errors import InvalidArgument
from trimtab_server.batch import Ids

Truncate = Literal["end", "start", "none"]

# Texts of one job: a large request is cut into jobs of this size, so that others get in between.
JOB_TEXTS = 32
# Jobs that a thread takes at once.
JOBS_AT_ONCE = 16


class Tokenizer:
    """A bundle's tokenizer, with its own truncation, so that the full length of a text is known."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # How many special tokens stand before and after a text: they survive truncation.
        mask = self._tokenizer.encode("a").special_tokens_mask
        self._head = next((i for i, special in enumerate(mask) if not special), len(mask))
        self._tail = next((i for i, special in enumerate(reversed(mask)) if not special), 0)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, special tokens included, however long. Releases the GIL."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]

    def truncate(self, ids: list[int], how: Truncate, row: int) -> Ids:
        """Cut ids to `max_tokens`; InvalidArgument names the text `row` where `how` is "none"."""
        if len(ids) > self.max_tokens:
            if how == "none":
                raise InvalidArgument(
                    f"texts[{row}] has {len(ids)} tokens, this encoder reads {self.max_tokens}: "
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
    future: asyncio.Future[list[list[int]]]


class Tokenization:
    """The threads that tokenise. Its queue is bounded by what admission lets in."""

    def __init__(self, threads: int) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._threads = [
            threading.Thread(target=self._work, name=f"tokenizer-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def encode(self, tokenizer: Tokenizer, texts: Sequence[str], how: Truncate) -> list[Ids]:
        """The ids of each text, cut to what the encoder reads.

        Raises InvalidArgument where `how` is "none" and a text is too long.
        """
        jobs = [
            _Job(tokenizer, texts[start : start + JOB_TEXTS], self._loop.create_future())
            for start in range(0, len(texts), JOB_TEXTS)
        ]
        for job in jobs:
            self._jobs.put(job)
        try:
            encoded = [ids for job in jobs for ids in await job.future]
        finally:
            for job in jobs:
                job.future.cancel()
        return [tokenizer.truncate(ids, how, row) for row, ids in enumerate(encoded)]

    def stop(self) -> None:
        """Stop the threads after what is queued."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        stopping = False
        while not stopping:
            jobs = [self._jobs.get()]
            while len(jobs) < JOBS_AT_ONCE and jobs[-1] is not None:
                try:
                    jobs.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
            stopping = jobs[-1] is None
            # A job whose caller has gone is not worth the work.
            wanted = [job for job in jobs if job is not None and not job.future.cancelled()]
            for tokenizer in {job.tokenizer for job in wanted}:
                self._encode(tokenizer, [job for job in wanted if job.tokenizer is tokenizer])

    def _encode(self, tokenizer: Tokenizer, jobs: list[_Job]) -> None:
        try:
            encoded = iter(tokenizer.encode([text for job in jobs for text in job.texts]))
            results: list[list[list[int]]] = [[next(encoded) for _ in job.texts] for job in jobs]
        except Exception as error:
            self._loop.call_soon_threadsafe(_fail, jobs, error)
        else:
            self._loop.call_soon_threadsafe(_deliver, jobs, results)


def _deliver(jobs: list[_Job], results: list[list[list[int]]]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if not job.future.done():
            job.future.set_result(result)


def _fail(jobs: list[_Job], error: Exception) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(error)
