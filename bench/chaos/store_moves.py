"""Runs that move documents from one store to another, and that search both halves."""

import os
import signal
from collections.abc import Collection, Mapping
from typing import Any, cast

import numpy as np

from bench.chaos import application_stores, endings, halves
from bench.chaos.application_stores import ApplicationStore
from bench.chaos.store_run import CallCounts, StoreRun, different, revive, texts_of
from trimtab.migration.half_migrated import (
    HalfMigrated,
    Merge,
)
from trimtab.migration.reindex import Reindex
from trimtab.sdk import client as clients
from trimtab.stores import create_store, open_store

DOCUMENTS, BATCH, QUERIES, CANDIDATES = 90, 16, 6, 30


def reindex(source: ApplicationStore, target: ApplicationStore, before: Any = lambda number: None) -> None:
    """What `trimtab reindex` does."""
    client = cast("clients.Client", halves.InProcessClient(before))
    with (
        open_store(source.url) as old,
        create_store(target.url, halves.NEW, example=0, source=old) as new,
    ):
        encoder = client.encoder()
        work = Reindex(client, old, new, encoder, texts=cast("Any", source.texts), batch=BATCH)
        work.run(sample=8)


def two_stores(run: StoreRun, suffix: str) -> tuple[ApplicationStore, ApplicationStore]:
    """An old store, and a new one that is empty or has some of its documents."""
    texts = texts_of(run, DOCUMENTS)
    some = run.kinds[1] == "taken" or run.random.random() < 0.5
    moved = {id: texts[id] for id in sorted(texts)[:5]} if some else {}
    source = application_stores.make(
        run.kinds[0], run.folder / f"old{suffix}", halves.OLD, halves.old, texts, run.database.url,
        f"old_{run.number}{suffix}",
    )  # fmt: skip
    target = application_stores.make(
        run.kinds[1], run.folder / f"new{suffix}", halves.NEW, halves.new, moved, run.database.url,
        f"new_{run.number}{suffix}",
    )  # fmt: skip
    return source, target


def run_reindex(run: StoreRun, counts: CallCounts) -> None:
    """A re-index that ends badly while both halves are searched, and is then resumed."""
    if not counts.known(run):
        pair = two_stores(run, "_measured")
        counts.measure(run, lambda: reindex(*pair))
    source, target = two_stores(run, "")
    texts, deleted = texts_of(run, DOCUMENTS), []
    before: Any = lambda number: None  # noqa: E731
    at = run.random.randrange(DOCUMENTS - 10)
    if run.ending == "edited":
        changed = {id: f"{texts[id]}, changed" for id in run.random.sample(range(DOCUMENTS), 5)}
        changed |= {DOCUMENTS + extra: f"a new one, {extra} of run {run.number}" for extra in range(3)}
        alone = run.kinds[0] in {"npy", "parquet"}
        deleted = [] if alone else run.random.sample(sorted(set(texts) - set(changed)), 4)
        if run.kinds[0] != "qdrant":  # its folder can be open only once: edited below, between two runs

            def before(number: int) -> None:
                if number == at:
                    source.edit(changed, deleted)

        texts |= changed
    elif run.ending == "failing" and run.kinds[1] == "postgresql":
        server = run.database.process

        def before(number: int) -> None:
            if number == at and server is not None:
                os.kill(server.pid, signal.SIGQUIT)

    started = [endings.start(lambda: reindex(source, target, before), run.said, counts.ending(run, None))]
    if run.ending == "second":
        started.append(endings.start(lambda: reindex(source, target), run.folder / "said-2"))
    for child in started:
        run.ended(child.wait())
    revive(run)
    if run.ending == "edited":
        if run.kinds[0] == "qdrant":
            source.edit(changed, deleted)
        elif run.kinds[0] in {"npy", "parquet"}:
            source.edit(changed, deleted)  # the new file's name died with the child
        for id in deleted:
            texts.pop(id)
        delete(target, deleted)
    else:
        check_searches(run, source, target, texts)
    run.undisturbed(lambda: reindex(source, target))
    compare(run, source, target, texts, deleted)


def delete(target: ApplicationStore, ids: list[int]) -> None:
    """The application deletes documents from the new store, too."""
    if ids:
        with create_store(target.url, halves.NEW, example=0) as store:
            store.delete(ids)


def compare(
    run: StoreRun,
    source: ApplicationStore,
    target: ApplicationStore,
    texts: Mapping[int, str],
    deleted: list[int],
) -> None:
    """Check that everything that must be there is, and nothing else."""
    moves_along(source, target, texts)
    for theirs in (source, target):
        try:
            run.wrong += different(theirs.kind, theirs.contents(), texts, theirs.vectors)
        except Exception as error:
            run.wrong.append(f"{theirs.kind} cannot be read: {error!r:.400}")
            continue
        run.wrong += theirs.strange(deleted)


def moves_along(source: ApplicationStore, target: ApplicationStore, ids: Collection[int]) -> None:
    """Check that, between two Qdrant stores, the payload of these documents has moved too."""
    if source.kind == target.kind == "qdrant":
        target.kept = {id: found for id, found in source.kept.items() if id in ids}


def check_searches(
    run: StoreRun, source: ApplicationStore, target: ApplicationStore, texts: Mapping[int, str]
) -> None:
    """Search both halves in their current state: at least as good as the old half alone."""
    if source.texts is not None:
        merges: tuple[Merge, ...] = ("calibrate",)
    else:
        merges = ("rescore", "calibrate")
    ids = sorted(texts)
    truth = halves.new([texts[id] for id in ids])
    client = halves.InProcessClient()
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


def run_search(run: StoreRun, counts: CallCounts) -> None:
    """A search of both halves that is killed changes nothing."""
    source, target = two_stores(run, "")
    endings.start(lambda: reindex(source, target, stop_at(run.random.randrange(20, 60))), run.said).wait()
    before = [file_bytes(theirs) for theirs in (source, target)]
    there = target.contents()

    def search() -> None:
        client = cast("clients.Client", halves.InProcessClient())
        merge: Merge = "calibrate" if source.texts is not None else "rescore"
        with open_store(source.url) as old, open_store(target.url) as new:
            both = HalfMigrated(client, old=old, new=new, merge=merge, candidates=CANDIDATES)
            for number in range(20):
                both.search(f"query {number} of run {run.number}", 10)

    counts.measure(run, search)
    run.ended(endings.start(search, run.said, counts.ending(run, search)).wait())
    texts = texts_of(run, DOCUMENTS)
    run.wrong += different(source.kind, source.contents(), texts, source.vectors)
    run.wrong += different(target.kind, target.contents(), {id: texts[id] for id in there}, target.vectors)
    if [file_bytes(theirs) for theirs in (source, target)] != before:
        run.wrong.append("a search changed files")
    moves_along(source, target, there)
    run.wrong += source.strange() + target.strange()


def stop_at(number: int) -> Any:
    """Stops a re-index at a text, as a signal would."""

    def stop(at: int) -> None:
        if at == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return stop


def file_bytes(theirs: ApplicationStore) -> dict[str, bytes]:
    """The files of a file-based store; none for Qdrant and PostgreSQL, since their files are not ours."""
    if theirs.kind in {"qdrant", "postgresql"}:
        return {}
    return {path.name: path.read_bytes() for path in theirs.folder.iterdir() if path.name != "lock"}
