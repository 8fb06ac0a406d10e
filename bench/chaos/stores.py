"""Runs over vector stores that end badly, and what is lost by it.

    python -m bench.chaos.stores --runs 1000 --seed 1       goes on where it stopped

Each run is a re-index with half-migrated searches, a search, writes that make a FAISS index anew, or a file
of vectors, in a process of its own. It is killed, its disk is full or fails, its source is edited, or another
one does the same at the same time. Then the same is begun again, undisturbed, and all that must be there is
compared with what is known: documents, vectors, texts, counts, and whatever lies there that is not Trimtab's.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np

from bench import processes
from bench.chaos import endings, halves, places
from bench.chaos.endings import DONE, REFUSED, Ending
from bench.chaos.places import Contents, Place
from bench.chaos.table import Bar, Part, table
from bench.report import append
from tests.stores.postgres_process import PostgresProcess, postgres
from trimtab import client as clients
from trimtab import migration
from trimtab.commands import vector_files
from trimtab.errors import FailedPrecondition
from trimtab.half_migrated import HalfMigrated, Merge
from trimtab.stores import Document, Rows, create_store, faiss_store, open_store

DOCUMENTS, BATCH, QUERIES, CANDIDATES = 90, 16, 6, 30
SAME = 1e-4
OPERATIONS = {"reindex": 6, "compaction": 4, "search": 1, "file": 1}
ENDINGS = {
    "faiss": ("kill", "kill", "full", "full", "failing", "edited", "second"),
    "taken": ("kill", "kill", "full", "full", "failing", "edited", "second"),
    "qdrant": ("kill", "kill", "full", "edited", "second"),
    "postgresql": ("kill", "kill", "failing", "edited", "second"),
}


@dataclass(slots=True)
class Run:
    """One run: what it does, how it ends, and what was wrong."""

    number: int
    folder: Path
    random: random.Random
    database: PostgresProcess
    operation: str = ""
    kinds: tuple[str, ...] = ()
    ending: str = ""
    exits: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    worse: int = 0
    searches: int = 0

    @property
    def said(self) -> Path:
        """Where children tell what they died of."""
        return self.folder / "said"

    def kept(self) -> dict[str, Any]:
        """For the journal."""
        return {
            "run": self.number, "operation": self.operation, "kinds": self.kinds, "ending": self.ending,
            "exits": self.exits, "wrong": self.wrong, "worse": self.worse, "searches": self.searches,
        }  # fmt: skip

    def ended(self, status: int) -> int:
        """Note how a child ended; a crash or a hang is wrong whatever befell it."""
        self.exits.append(status)
        if status not in {DONE, REFUSED, -signal.SIGKILL}:
            self.wrong.append(f"crashed: {self.said.read_text()[-600:]}")
        return status

    def undisturbed(self, work: Any) -> None:
        """Do it again to its end."""
        if self.ended(endings.start(work, self.said).wait()) != DONE:
            self.wrong.append(f"it cannot be gone on with: {self.said.read_text()[-600:]}")


class Measured:
    """How many calls each kind of work makes, counted once, undisturbed."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, ...], int] = {}

    def ending(self, run: Run, work: Any) -> Ending:
        """An ending of the kind that was drawn, at a random moment of such work."""
        if run.ending == "full":
            return Ending(full=int(run.random.choice((300, 3_000, 20_000)) * run.random.random()))
        if run.ending == "failing":
            return Ending(failing=run.random.randint(1, 40))
        if run.ending == "kill" or (run.ending == "second" and run.random.random() < 0.5):
            return Ending(kill=run.random.randint(1, self._calls[(run.operation, *run.kinds)]))
        return Ending()

    def measure(self, run: Run, work: Any) -> None:
        """Count the calls, where nobody did yet; what it did is undone by the caller."""
        key = (run.operation, *run.kinds)
        if key not in self._calls:
            self._calls[key] = endings.calls(work, run.said)

    def known(self, run: Run) -> bool:
        """Whether such work was counted."""
        return (run.operation, *run.kinds) in self._calls


def texts_of(run: Run, count: int) -> dict[int, str]:
    """Documents that no other run has."""
    return {id: f"document {id} of run {run.number}" for id in range(count)}


def reindex(source: Place, target: Place, before: Any = lambda number: None) -> None:
    """What `trimtab reindex` does."""
    client = cast("clients.Client", halves.Client(before))
    with (
        open_store(source.url) as old,
        create_store(target.url, halves.NEW, example=0, source=old) as new,
    ):
        encoder = client.encoder()
        work = migration.Reindex(client, old, new, encoder, texts=cast("Any", source.texts), batch=BATCH)
        work.run(sample=8)


def two_places(run: Run, suffix: str) -> tuple[Place, Place]:
    """An old store, and a new one that is empty or has some of its documents."""
    texts = texts_of(run, DOCUMENTS)
    some = run.kinds[1] == "taken" or run.random.random() < 0.5
    moved = {id: texts[id] for id in sorted(texts)[:5]} if some else {}
    source = places.make(
        run.kinds[0], run.folder / f"old{suffix}", halves.OLD, halves.old, texts, run.database.url,
        f"old_{run.number}{suffix}",
    )  # fmt: skip
    target = places.make(
        run.kinds[1], run.folder / f"new{suffix}", halves.NEW, halves.new, moved, run.database.url,
        f"new_{run.number}{suffix}",
    )  # fmt: skip
    return source, target


def run_reindex(run: Run, measured: Measured) -> None:
    """A re-index that ends badly, is searched beside, and is gone on with."""
    if not measured.known(run):
        pair = two_places(run, "_measured")
        measured.measure(run, lambda: reindex(*pair))
    source, target = two_places(run, "")
    texts, deleted = texts_of(run, DOCUMENTS), []
    before: Any = lambda number: None  # noqa: E731
    at = run.random.randrange(DOCUMENTS - 10)
    if run.ending == "edited":
        changed = {id: f"{texts[id]}, changed" for id in run.random.sample(range(DOCUMENTS), 5)}
        changed |= {DOCUMENTS + extra: f"a new one, {extra} of run {run.number}" for extra in range(3)}
        alone = run.kinds[0] in {"npy", "parquet"}
        deleted = [] if alone else run.random.sample(sorted(set(texts) - set(changed)), 4)
        if run.kinds[0] != "qdrant":  # of which a folder is open once: edited below, between two runs

            def before(number: int) -> None:
                if number == at:
                    source.edit(changed, deleted)

        texts |= changed
    elif run.ending == "failing" and run.kinds[1] == "postgresql":
        server = run.database.process

        def before(number: int) -> None:
            if number == at and server is not None:
                os.kill(server.pid, signal.SIGQUIT)

    started = [endings.start(lambda: reindex(source, target, before), run.said, measured.ending(run, None))]
    if run.ending == "second":
        started.append(endings.start(lambda: reindex(source, target), run.folder / "said-2"))
    for child in started:
        run.ended(child.wait())
    revive(run)
    if run.ending == "edited":
        if run.kinds[0] == "qdrant":
            source.edit(changed, deleted)
        elif run.kinds[0] in {"npy", "parquet"}:
            source.edit(changed, deleted)  # the child's knowledge of the new file went with it
        for id in deleted:
            texts.pop(id)
        delete(target, deleted)
    else:
        check_searches(run, source, target, texts)
    run.undisturbed(lambda: reindex(source, target))
    compare(run, source, target, texts, deleted)


def revive(run: Run) -> None:
    """Start the database again where it was ended."""
    process = run.database.process
    if process is not None and (run.ending == "failing" and "postgresql" in run.kinds):
        try:
            process.wait(0 if process.poll() is not None else 0.5)
        except Exception:
            return
        run.database.start()


def delete(target: Place, ids: list[int]) -> None:
    """The application deletes documents from the new store, too."""
    if ids:
        with create_store(target.url, halves.NEW, example=0) as store:
            store.delete(ids)


def compare(run: Run, source: Place, target: Place, texts: Mapping[int, str], deleted: list[int]) -> None:
    """Everything that must be there is, and nothing else."""
    moves_along(source, target, texts)
    for place in (source, target):
        try:
            run.wrong += different(place.kind, place.contents(), texts, place.vectors)
        except Exception as error:
            run.wrong.append(f"{place.kind} cannot be read: {error!r:.400}")
            continue
        run.wrong += place.strange(deleted)


def moves_along(source: Place, target: Place, ids: Collection[int]) -> None:
    """The payload of these documents is in the new store by now, too, where both are Qdrant's."""
    if source.kind == target.kind == "qdrant":
        target.kept = {id: found for id, found in source.kept.items() if id in ids}


def different(name: str, found: Contents, texts: Mapping[int, str], vectors: places.Vectors) -> list[str]:
    """What of a store's documents is not as it should be."""
    wrong = []
    if found.keys() != texts.keys():
        lost, extra = sorted(texts.keys() - found.keys()), sorted(found.keys() - texts.keys())
        wrong.append(f"{name}: {len(lost)} lost {lost[:5]}, {len(extra)} too many {extra[:5]}")
    both = sorted(found.keys() & texts.keys())
    if other := [id for id in both if found[id][0] != texts[id]]:
        wrong.append(f"{name}: the texts of {other[:5]} are others")
    if both:
        stored = np.array([found[id][1] for id in both])
        off = np.abs(stored - vectors([str(found[id][0]) for id in both])).max(axis=1)
        if (off > SAME).any():
            wrong.append(f"{name}: {int((off > SAME).sum())} vectors are others")
    return wrong


def check_searches(run: Run, source: Place, target: Place, texts: Mapping[int, str]) -> None:
    """Search both halves as they are now: at least as good as the old half alone."""
    if source.texts is not None:
        merges: tuple[Merge, ...] = ("calibrate",)
    else:
        merges = ("rescore", "calibrate")
    ids = sorted(texts)
    truth = halves.new([texts[id] for id in ids])
    client = halves.Client()
    try:
        with open_store(source.url) as old, create_store(target.url, halves.NEW, example=0) as new:
            for number in range(QUERIES):
                query = f"query {number} of run {run.number}"
                nearest = np.argsort(-(truth @ halves.new([query])[0]))[:10]
                wanted = {ids[at] for at in nearest.tolist()}
                adapted = client.embed_spaces([query], [str(halves.OLD.space)])[str(halves.OLD.space)]
                alone = len(wanted & {int(hit.id) for hit in old.search(adapted.vectors[0], 10)})
                for merge in merges:
                    search = HalfMigrated(
                        cast("clients.Client", client), old=old, new=new, merge=merge, candidates=CANDIDATES
                    )
                    hits = search.search(query, 10)
                    run.searches += 1
                    run.worse += len(wanted & {int(hit.id) for hit in hits}) < alone
                    if len({hit.id for hit in hits}) != 10:
                        run.wrong.append(f"a search of both halves gave {len(hits)} documents of 10")
    except Exception as error:
        run.wrong.append(f"the halves cannot be searched: {error!r:.400}")


def run_search(run: Run, measured: Measured) -> None:
    """A search of both halves that is killed changes nothing."""
    source, target = two_places(run, "")
    endings.start(lambda: reindex(source, target, stop_at(run.random.randrange(20, 60))), run.said).wait()
    before = [places_bytes(place) for place in (source, target)]
    there = target.contents()

    def search() -> None:
        client = cast("clients.Client", halves.Client())
        merge: Merge = "calibrate" if source.texts is not None else "rescore"
        with open_store(source.url) as old, open_store(target.url) as new:
            both = HalfMigrated(client, old=old, new=new, merge=merge, candidates=CANDIDATES)
            for number in range(20):
                both.search(f"query {number} of run {run.number}", 10)

    measured.measure(run, search)
    run.ended(endings.start(search, run.said, measured.ending(run, search)).wait())
    texts = texts_of(run, DOCUMENTS)
    run.wrong += different(source.kind, source.contents(), texts, source.vectors)
    run.wrong += different(target.kind, target.contents(), {id: texts[id] for id in there}, target.vectors)
    if [places_bytes(place) for place in (source, target)] != before:
        run.wrong.append("a search changed files")
    moves_along(source, target, there)
    run.wrong += source.strange() + target.strange()


def stop_at(number: int) -> Any:
    """Stops a re-index at a text, as a signal would."""

    def stop(at: int) -> None:
        if at == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return stop


def places_bytes(place: Place) -> dict[str, bytes]:
    """The files of a store that is files; of Qdrant's and PostgreSQL's, which are not ours, none."""
    if place.kind in {"qdrant", "postgresql"}:
        return {}
    return {path.name: path.read_bytes() for path in place.folder.iterdir() if path.name != "lock"}


def run_compaction(run: Run, measured: Measured) -> None:
    """Writes and deletions, with a new generation every few of them."""
    (kind,) = run.kinds
    texts = texts_of(run, 12)
    steps: list[tuple[dict[int, str], list[int]]] = []
    for step in range(30):
        ids = run.random.sample(range(40), run.random.randint(1, 6))
        steps.append(
            ({id: f"{id} at step {step} of run {run.number}" for id in ids}, [])
            if run.random.random() < 0.75
            else ({}, ids)
        )
    states = [dict(texts)]
    for written, gone in steps:
        states.append({id: text for id, text in {**states[-1], **written}.items() if id not in gone})
    again = kind in {"faiss", "taken"} and run.random.random() < 0.5  # go on with the same handle

    server = run.database.process
    crash = run.random.randrange(len(steps)) if run.ending == "failing" and kind == "postgresql" else None

    def work(place: Place, first: int, journal: Path, crash: int | None = None) -> None:
        with open_store(place.url) as store, journal.open("ab", 0) as done:
            for number, (written, gone) in enumerate(steps[first:], first):
                if number == crash and server is not None:
                    os.kill(server.pid, signal.SIGQUIT)
                try:
                    write(store, written, gone)
                except Exception:
                    if not again or run.ending != "full":
                        raise
                    endings._unlimited()
                    write(store, written, gone)
                done.write(b".")

    def write(store: Any, written: dict[int, str], gone: list[int]) -> None:
        if gone:
            store.delete(gone)
        else:
            documents = [Document(id, text) for id, text in written.items()]
            store.upsert(Rows(documents, halves.new(list(written.values()))))

    def made(suffix: str) -> Place:
        return places.make(
            kind, run.folder / f"new{suffix}", halves.NEW, halves.new, texts, run.database.url,
            f"new_{run.number}{suffix}",
        )  # fmt: skip

    if not measured.known(run):
        first = made("_measured")
        measured.measure(run, lambda: work(first, 0, run.folder / "journal_measured"))
    place, journal = made(""), run.folder / "journal"
    journal.touch()
    ending = measured.ending(run, None)
    started = [endings.start(lambda: work(place, 0, journal, crash), run.said, ending)]
    if run.ending == "second":
        started.append(endings.start(lambda: work(place, 0, run.folder / "journal-2"), run.folder / "said-2"))
    for child in started:
        run.ended(child.wait())
    revive(run)
    done = len(journal.read_bytes())
    if run.ending != "second":
        check_step(run, place, states, done, steps)
    run.undisturbed(lambda: work(place, done if run.ending != "second" else 0, journal))
    compare_one(run, place, states[-1], {id for _, gone in steps for id in gone})


def check_step(
    run: Run,
    place: Place,
    states: list[dict[int, str]],
    done: int,
    steps: list[tuple[dict[int, str], list[int]]],
) -> None:
    """What was acknowledged is there; what was under way is there or not, document by document."""
    try:
        found = place.contents()
    except Exception as error:
        run.wrong.append(f"{place.kind} cannot be read: {error!r:.400}")
        return
    texts = {id: str(text) for id, (text, _) in found.items()}
    before, after = states[done], states[min(done + 1, len(steps))]
    if place.kind == "qdrant":
        # It writes point by point, and of a point that was there first the vector, then the text.
        changed = [id for id in texts if before.get(id) != after.get(id)]
        either = all(texts.get(id) in {before.get(id), after.get(id)} for id in {*before, *after, *texts})
        for id in changed:
            allowed = place.vectors([each[id] for each in (before, after) if id in each])
            either = either and bool((np.abs(allowed - found[id][1]).max(axis=1) <= SAME).any())
            del found[id], texts[id]
    else:
        either = texts in (before, after)
    if not either:
        run.wrong.append(f"{place.kind}: neither the state after {done} writes nor after {done + 1}")
    run.wrong += different(place.kind, found, texts, place.vectors)


def compare_one(run: Run, place: Place, texts: Mapping[int, str], gone: set[int]) -> None:
    """One store, at the end of all writes."""
    try:
        run.wrong += different(place.kind, place.contents(), texts, place.vectors)
    except Exception as error:
        run.wrong.append(f"{place.kind} cannot be read: {error!r:.400}")
        return
    lists = {id: found for id, found in places.access_lists(place).items() if found}
    wanted = {id: found for id, found in place.kept.items() if id not in gone}
    place.kept = {}
    run.wrong += place.strange()
    if any(lists.get(id) != found for id, found in wanted.items()):
        run.wrong.append(f"{place.kind}: access lists changed")


def run_file(run: Run, measured: Measured) -> None:
    """A file of vectors, as `trimtab embed` writes it."""
    (kind,) = run.kinds
    texts = [f"line {number} of run {run.number}" for number in range(200)]
    output = run.folder / "out" / f"docs{kind}"
    description = vector_files.Description(
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
    if not measured.known(run):
        (run.folder / "measured").mkdir()
        measured.measure(run, lambda: guarded(run.folder / "measured" / output.name))
    started = [endings.start(lambda: guarded(output), run.said, measured.ending(run, None))]
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


DO = {"reindex": run_reindex, "compaction": run_compaction, "search": run_search, "file": run_file}


def draw(run: Run) -> None:
    """What the run does, over which stores, and how it ends."""
    run.operation = run.random.choices(list(OPERATIONS), list(OPERATIONS.values()))[0]
    target = run.random.choice(places.TARGETS)
    if run.operation == "file":
        run.kinds = (run.random.choice((".npy", ".jsonl")),)
        run.ending = run.random.choice(("kill", "full", "failing", "second"))
        return
    run.kinds = (run.random.choice(places.SOURCES), target) if run.operation != "compaction" else (target,)
    possible = [each for each in ENDINGS[target] if run.operation == "reindex" or each != "edited"]
    run.ending = "kill" if run.operation == "search" else run.random.choice(possible)


@contextmanager
def small_generations() -> Iterator[None]:
    """New indexes and checkpoints after a few rows, so that they come often."""
    before = faiss_store.LEAST_COMPACTED, vector_files.CHECKPOINT_ROWS
    faiss_store.LEAST_COMPACTED, vector_files.CHECKPOINT_ROWS = 8, 20
    try:
        yield
    finally:
        faiss_store.LEAST_COMPACTED, vector_files.CHECKPOINT_ROWS = before


def runs(
    folder: Path, count: int, seed: int, database: PostgresProcess, first: int = 0
) -> Iterator[dict[str, Any]]:
    """The runs from number `first` on: what became of each."""
    measured = Measured()
    with small_generations():
        for number in range(first, count):
            run = Run(number, folder / f"run-{number}", random.Random(f"{seed}:{number}"), database)
            shutil.rmtree(run.folder, ignore_errors=True)
            run.folder.mkdir(parents=True)
            draw(run)
            DO[run.operation](run, measured)
            if not run.wrong and not run.worse:
                shutil.rmtree(run.folder)
            yield run.kept()


def part(found: list[dict[str, Any]], seconds: float) -> Part:
    """The figures of all runs, by kind, and their bars."""
    lines: dict[str, Counter[str]] = defaultdict(Counter)
    for run in found:
        line = lines[f"{run['operation']} {'->'.join(run['kinds'])} {run['ending']}"]
        line["runs"] += 1
        line["killed"] += -signal.SIGKILL in run["exits"]
        line["refused"] += REFUSED in run["exits"]
        line["wrong"] += bool(run["wrong"])
        line["searches"] += run["searches"]
        line["worse"] += run["worse"]
    totals: Counter[str] = sum(lines.values(), Counter())
    figures = {
        "seconds": round(seconds),
        **totals,
        "kinds": {name: dict(lines[name]) for name in sorted(lines)},
    }
    bars = [
        Bar("runs with something lost or changed", totals["wrong"], 0),
        Bar("searches worse than the old half", totals["worse"], 0),
    ]
    return Part(figures, bars)


def run(folder: Path, count: int, seed: int = 1, *, quiet: bool = False) -> Part:
    """All runs; a second call with the same folder goes on where one stopped."""
    faiss.omp_set_num_threads(1)  # threads do not survive a fork
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / f"seed-{seed}.jsonl"
    found = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    begun = time.monotonic() - sum(each.get("seconds", 0.0) for each in found)
    with postgres() as database, journal.open("a") as kept:
        for each in runs(folder, count, seed, database, first=len(found)):
            each["seconds"] = round(time.monotonic() - begun - sum(one["seconds"] for one in found), 3)
            found.append(each)
            kept.write(json.dumps(each) + "\n")
            kept.flush()
            if each["wrong"] or each["worse"]:
                print(f"  {json.dumps(each)}", flush=True)
            elif not quiet and len(found) % 50 == 0:
                print(f"  {len(found)} of {count} runs, {time.monotonic() - begun:.0f} s", flush=True)
    return part(found[:count], time.monotonic() - begun)


def main() -> None:
    """Run, print a line for each kind of run, append to the history."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos.stores", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--restart", action="store_true", help="forget the runs that were done")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the database ends, too
    folder = processes.LOGS / "stores"
    if options.restart:
        shutil.rmtree(folder, ignore_errors=True)
    done = run(folder, options.runs, options.seed)
    for name, line in done.figures["kinds"].items():
        print(f"{name:<44}" + "".join(f"{what} {count:<5}" for what, count in line.items()))
    print(table({"stores": done}))
    append("chaos", parts={"stores": done.kept()})
    if not all(bar.passed for bar in done.bars):
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
