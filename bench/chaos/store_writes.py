"""Runs that write: documents into one store, with new generations of its files, and files of vectors."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from bench.chaos import application_stores, endings, halves
from bench.chaos.application_stores import ApplicationStore
from bench.chaos.store_run import SAME, CallCounts, StoreRun, different, revive, texts_of
from trimtab.commands import vector_files
from trimtab.commands.description import Description
from trimtab.errors import FailedPrecondition
from trimtab.stores import Document, Rows, Store, open_store

Step: TypeAlias = tuple[dict[int, str], list[int]]  # documents that are written, or ids that are deleted


def run_compaction(run: StoreRun, counts: CallCounts) -> None:
    """Writes and deletions, with a new generation every few of them."""
    (kind,) = run.kinds
    texts = texts_of(run, 12)
    steps = draw_steps(run, 30)
    again = kind in {"faiss", "taken"} and run.random.random() < 0.5  # go on with the same handle
    server = run.database.process
    crash = run.random.randrange(len(steps)) if run.ending == "failing" and kind == "postgresql" else None

    def work(theirs: ApplicationStore, first: int, journal: Path, crash: int | None = None) -> None:
        with open_store(theirs.url) as store, journal.open("ab", 0) as done:
            for number, step in enumerate(steps[first:], first):
                if number == crash and server is not None:
                    os.kill(server.pid, signal.SIGQUIT)
                try:
                    apply(store, step)
                except Exception:
                    if not again or run.ending != "full":
                        raise
                    endings._unlimited()
                    apply(store, step)
                done.write(b".")

    def made(suffix: str) -> ApplicationStore:
        return application_stores.make(
            kind, run.folder / f"new{suffix}", halves.NEW, halves.new, texts, run.database.url,
            f"new_{run.number}{suffix}",
        )  # fmt: skip

    if not counts.known(run):
        first = made("_measured")
        counts.measure(run, lambda: work(first, 0, run.folder / "journal_measured"))
    theirs, journal = made(""), run.folder / "journal"
    journal.touch()
    ending = counts.ending(run, None)
    started = [endings.start(lambda: work(theirs, 0, journal, crash), run.said, ending)]
    if run.ending == "second":
        started.append(
            endings.start(lambda: work(theirs, 0, run.folder / "journal-2"), run.folder / "said-2")
        )
    for child in started:
        run.ended(child.wait())
    revive(run)
    states = states_after(steps, texts)
    done = len(journal.read_bytes())
    if run.ending != "second":
        check_step(run, theirs, states, done)
    run.undisturbed(lambda: work(theirs, done if run.ending != "second" else 0, journal))
    compare_one(run, theirs, states[-1], {id for _, gone in steps for id in gone})


def draw_steps(run: StoreRun, count: int) -> list[Step]:
    """Three in four write documents, the others delete some."""
    steps: list[Step] = []
    for step in range(count):
        ids = run.random.sample(range(40), run.random.randint(1, 6))
        steps.append(
            ({id: f"{id} at step {step} of run {run.number}" for id in ids}, [])
            if run.random.random() < 0.75
            else ({}, ids)
        )
    return steps


def states_after(steps: list[Step], texts: dict[int, str]) -> list[dict[int, str]]:
    """The documents before the first step and after each."""
    states = [dict(texts)]
    for written, gone in steps:
        states.append({id: text for id, text in {**states[-1], **written}.items() if id not in gone})
    return states


def apply(store: Store, step: Step) -> None:
    """Do one step."""
    written, gone = step
    if gone:
        store.delete(gone)
    else:
        documents = [Document(id, text) for id, text in written.items()]
        store.upsert(Rows(documents, halves.new(list(written.values()))))


def check_step(run: StoreRun, theirs: ApplicationStore, states: list[dict[int, str]], done: int) -> None:
    """Check that acknowledged writes are there; the one in progress may be partly there, by document."""
    try:
        found = theirs.contents()
    except Exception as error:
        run.wrong.append(f"{theirs.kind} cannot be read: {error!r:.400}")
        return
    texts = {id: str(text) for id, (text, _) in found.items()}
    before, after = states[done], states[min(done + 1, len(states) - 1)]
    if theirs.kind == "qdrant":
        # It writes point by point, and for an existing point the vector first, then the text.
        changed = [id for id in texts if before.get(id) != after.get(id)]
        either = all(texts.get(id) in {before.get(id), after.get(id)} for id in {*before, *after, *texts})
        for id in changed:
            allowed = theirs.vectors([each[id] for each in (before, after) if id in each])
            either = either and bool((np.abs(allowed - found[id][1]).max(axis=1) <= SAME).any())
            del found[id], texts[id]
    else:
        either = texts in (before, after)
    if not either:
        run.wrong.append(f"{theirs.kind}: neither the state after {done} writes nor after {done + 1}")
    run.wrong += different(theirs.kind, found, texts, theirs.vectors)


def compare_one(run: StoreRun, theirs: ApplicationStore, texts: Mapping[int, str], gone: set[int]) -> None:
    """One store, at the end of all writes."""
    try:
        run.wrong += different(theirs.kind, theirs.contents(), texts, theirs.vectors)
    except Exception as error:
        run.wrong.append(f"{theirs.kind} cannot be read: {error!r:.400}")
        return
    lists = {id: found for id, found in application_stores.access_lists(theirs).items() if found}
    wanted = {id: found for id, found in theirs.kept.items() if id not in gone}
    theirs.kept = {}
    run.wrong += theirs.strange()
    if any(lists.get(id) != found for id, found in wanted.items()):
        run.wrong.append(f"{theirs.kind}: access lists changed")


def run_file(run: StoreRun, counts: CallCounts) -> None:
    """A file of vectors, as `trimtab embed` writes it."""
    (kind,) = run.kinds
    texts = [f"line {number} of run {run.number}" for number in range(200)]
    output = run.folder / "out" / f"docs{kind}"
    description = Description(
        encoder="new", version="1", space="s", role=None, truncate="end", dtype="float32", columns=16
    )
    foreign = {"notes.txt": b"mine", f"docs{kind}.bak": b"mine", f"docs{kind}.json.new": b"mine"}

    def write(path: Path) -> None:
        file = vector_files.VectorFile(path, description, vector_files.read_journal(path))
        source = iter(texts)
        try:
            file.skip(source)
            for text in source:
                file.write(text, halves.new([text])[0], 0.0)
            file.finish()
        except BaseException:
            file.stop()
            raise

    def guarded(path: Path) -> None:
        try:
            if not path.exists():
                write(path)
        except OSError as error:  # as the command does
            raise FailedPrecondition(f"{path}: {error}") from None

    (run.folder / "right").mkdir()
    right = run.folder / "right" / output.name
    guarded(right)
    output.parent.mkdir()
    for name, content in foreign.items():
        (output.parent / name).write_bytes(content)
    if not counts.known(run):
        (run.folder / "measured").mkdir()
        counts.measure(run, lambda: guarded(run.folder / "measured" / output.name))
    started = [endings.start(lambda: guarded(output), run.said, counts.ending(run, None))]
    if run.ending == "second":
        started.append(endings.start(lambda: guarded(output), run.folder / "said-2"))
    for child in started:
        run.ended(child.wait())
    if output.exists() and output.read_bytes() != right.read_bytes():
        run.wrong.append("a file that is not whole has its name")
    run.undisturbed(lambda: guarded(output))
    if not output.exists() or output.read_bytes() != right.read_bytes():
        run.wrong.append("the file differs from one that was never stopped")
    for name, content in foreign.items():
        path = output.parent / name
        if not path.exists() or path.read_bytes() != content:
            run.wrong.append(f"{name}, a foreign file, changed")
