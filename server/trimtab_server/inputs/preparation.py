"""Makes payloads of items, on threads. Items that wait at the same time are read together; flows with many
items take turns."""

import asyncio
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from trimtab.errors import InternalError
from trimtab.kinds import Truncate
from trimtab_server.engine.batch import Payload
from trimtab_server.inputs.reader import ItemReader, Which

# Parallelism comes from the threads of this module, as many as configured; the tokenizers' own would take
# every core.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# The items and characters of a job: a large request is cut into jobs, so that others get in between.
JOB_ITEMS = 32
JOB_CHARACTERS = 1 << 16
# A longer item may take a second if it cannot be cut, so it has a thread of its own.
LONG_CHARACTERS = 1 << 14
# A single item this short is read at once: waking a thread would take longer.
INLINE_CHARACTERS = 256
STOP_SECONDS = 1.0
# How many small jobs a thread takes at once.
JOBS_AT_ONCE = 16


@dataclass(frozen=True, eq=False, slots=True)
class _Job:
    reader: ItemReader
    items: Sequence[Any]
    how: Truncate
    future: asyncio.Future[list[Any]]

    @property
    def characters(self) -> int:
        return sum(map(self.reader.characters, self.items))

    @property
    def long(self) -> bool:
        """Whether one item may take as long as many requests do."""
        return any(self.reader.characters(item) > LONG_CHARACTERS for item in self.items)


class _Jobs:
    """Jobs that wait for the threads: the first of each flow, then the second of each. Admission bounds
    them."""

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
        """Wait for jobs, and take several if they are small; none: there will be no more."""
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
        """Let the threads end when nothing waits."""
        with self._change:
            self._closed = True
            self._change.notify_all()


class Preparation:
    """The threads that read items: so many, and one more for long items, so that nobody else waits behind
    them."""

    def __init__(self, threads: int) -> None:
        self._jobs, self._long = _Jobs(), _Jobs()
        self._loop = asyncio.get_running_loop()
        work = [(f"tokenizer-{number}", self._jobs) for number in range(threads)]
        self._threads = [
            threading.Thread(target=self._work, args=(jobs,), name=name, daemon=True)
            for name, jobs in (*work, ("long-texts", self._long))
        ]
        for thread in self._threads:
            thread.start()

    async def read(
        self,
        reader: ItemReader,
        items: Sequence[Any],
        how: Truncate,
        flow: Hashable = None,
        which: Which = "texts[{}]".format,
    ) -> list[Payload]:
        """Items as payloads, cut to what the encoder reads. Flows take turns.

        Raises InvalidArgument if `how` is "none" and an item is too long.
        """
        if len(items) == 1 and reader.characters(items[0]) <= INLINE_CHARACTERS:
            try:
                read = reader.read(items, how)
            except BaseException as error:  # as on the threads below
                raise _failure(reader, error) from error
            return reader.payloads(read, how, which)
        jobs = [_Job(reader, part, how, self._loop.create_future()) for part in _parts(reader, items)]
        for queue, long in ((self._jobs, False), (self._long, True)):
            if of_it := [job for job in jobs if job.long is long]:
                queue.put(flow, of_it)
        try:
            read = [each for job in jobs for each in await job.future]
        finally:
            for job in jobs:
                job.future.cancel()
        return reader.payloads(read, how, which)

    @property
    def waiting(self) -> int:
        """How many jobs wait for a thread."""
        return len(self._jobs) + len(self._long)

    def stop(self) -> None:
        """Stop the threads, each after what it is doing; one that hangs is left behind."""
        self._jobs.close()
        self._long.close()
        for thread in self._threads:
            thread.join(STOP_SECONDS)

    def _work(self, queue: _Jobs) -> None:
        while jobs := queue.take():
            # A job whose caller has gone is not worth the work.
            wanted = [each for each in jobs if not each.future.cancelled()]
            for alike in {(each.reader, each.how) for each in wanted}:
                self._read(*alike, [each for each in wanted if (each.reader, each.how) == alike])

    def _read(self, reader: ItemReader, how: Truncate, jobs: list[_Job]) -> None:
        try:
            read = iter(reader.read([item for job in jobs for item in job.items], how))
            results = [[next(read) for _ in job.items] for job in jobs]
        except BaseException as error:  # a library's panic is no Exception, and must not end the thread
            self._tell(_fail, jobs, error)
        else:
            self._tell(_deliver, jobs, results)

    def _tell(self, act: Callable[..., None], jobs: list[_Job], what: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server did not wait for this thread
            self._loop.call_soon_threadsafe(act, jobs, what)


def _parts(reader: ItemReader, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The items in slices of JOB_ITEMS and about JOB_CHARACTERS."""
    start, characters = 0, 0
    for row, item in enumerate(items):
        more = reader.characters(item)
        if row > start and (row - start == JOB_ITEMS or characters + more > JOB_CHARACTERS):
            yield items[start:row]
            start, characters = row, 0
        characters += more
    yield items[start:]


def _deliver(jobs: list[_Job], results: list[list[Any]]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if not job.future.done():
            job.future.set_result(result)


def _fail(jobs: list[_Job], error: BaseException) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(_failure(job.reader, error))


def _failure(reader: ItemReader, error: BaseException) -> InternalError:
    failure = InternalError(f"the {reader.processor} failed: {type(error).__name__}")
    failure.__cause__ = error
    return failure
