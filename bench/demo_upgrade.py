"""Change the encoder of a running search, and compare the ways to do it: `make demo-upgrade`.

An index of real texts (Debian's package descriptions) is made with paraphrase-MiniLM-L3-v2. Then the server
also gets all-MiniLM-L6-v2. The demo measures how often a package's description is among the first ten
documents for its one-line summary, over queries that were not used for fitting:

    old on old            before the change
    new on old, naive     the new encoder's queries on the old index
    adapted               the same through an adapter (`trimtab adapter fit`)
    cascade               the adapted query fetches 100 candidates, the new encoder scores them again
    new re-indexed        after everything has been embedded again

Then `trimtab reindex` runs, is killed with SIGKILL at each quarter and restarted, and both halves are
searched at each stage. The table goes to the terminal and to bench/history, the picture to docs/upgrade.png.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tritonclient.grpc as triton

import trimtab
from bench import data, draw_upgrade, encoders, processes
from bench.processes import PYTHON, ROOT
from trimtab import stores
from trimtab.core.answers import Adapter
from trimtab.migration.half_migrated import Merge
from trimtab.progress import Progress
from trimtab.stores import Document, Form, Hit, Rows, Store

WORK = ROOT / "bench" / ".data" / "upgrade"
HISTORY = ROOT / "bench" / "history" / "demo-upgrade.jsonl"
PICTURE = ROOT / "docs" / "upgrade.png"
OLD, NEW = "paraphrase-minilm-l3-v2", "all-minilm-l6-v2"
SOURCES = {OLD: encoders.L3, NEW: encoders.L6}
CHARACTERS = 300  # of a description: typical of such an index, and fast enough for a demo
K, CANDIDATES = 10, 100
QUARTERS = (0.25, 0.5, 0.75)
BATCH = 64


@dataclass(frozen=True, slots=True)
class DemoSizes:
    """How much of everything."""

    documents: int = 1500
    queries: int = 300  # asked at the end; the fit never sees them
    fit_queries: int = 4000  # without documents in the index


QUICK = DemoSizes(documents=800, queries=150, fit_queries=1500)


@dataclass(frozen=True, slots=True)
class DemoTexts:
    """The index's documents, and the summaries of them and of others.

    `asked` are the queries by their documents' numbers, evenly spread: the re-index goes by numbers.
    """

    documents: list[str]
    asked: dict[int, str]
    judged: list[tuple[str, str]]  # (query, document) for the fit's own judgement
    others: list[str]


@dataclass(slots=True)
class Findings:
    """Recall@10 by arm, and by the share of documents moved."""

    arms: dict[str, float] = field(default_factory=dict)
    rescored: dict[str, float] = field(default_factory=dict)
    calibrated: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    adapter: dict[str, str] = field(default_factory=dict)
    cpu_seconds: float = 0.0  # of all processes, the server and the fit among them


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make demo-upgrade", description="change the encoder, keep the index"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a short run with fewer texts; nothing is recorded"
    )
    quick = parser.parse_args().quick
    sizes = QUICK if quick else DemoSizes()
    texts = prepare(sizes)
    repository = bundles()
    before = cpu_seconds()
    found = Findings()
    core = min(os.sched_getaffinity(0))
    with processes.trimtab(repository, core) as server, trimtab.Client(server.url, timeout=300) as client:
        with timed(found, f"index {sizes.documents:,} documents with {OLD}"):
            old = fill(client, OLD, texts.documents)
        with timed(found, "fit the adapter"):
            adapter = fit(repository, texts, old, server.url, client)
        found.adapter = {"rung": adapter.rung, "verdict": adapter.verdict}
        with timed(found, "ask"):
            measure(client, texts, old, found)
        with timed(found, "re-index, searching at each quarter"):
            migrate(client, server.url, texts, old, found)
        found.cpu_seconds = round(cpu_seconds() - before + server.cpu_seconds(), 1)
    print(table(found))
    if quick:
        return
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "make demo-upgrade",
        "machine": processes.machine(),
        "plan": asdict(sizes),
        "results": asdict(found),
    }
    with HISTORY.open("a") as history:
        history.write(json.dumps(record) + "\n")
    draw_upgrade.draw(found.arms, found.rescored, found.calibrated, PICTURE)
    print(f"kept in {HISTORY.relative_to(ROOT)}, drawn in {PICTURE.relative_to(ROOT)}")


def prepare(sizes: DemoSizes) -> DemoTexts:
    """The texts, each once."""
    pairs = {long[:CHARACTERS]: short for short, long in data.pairs()}
    documents = list(pairs)[: sizes.documents]
    shorts = list(pairs.values())
    every = sizes.documents // sizes.queries
    asked = {number: shorts[number] for number in range(0, sizes.documents, every)}
    judged = [(shorts[number], document) for number, document in enumerate(documents) if number not in asked]
    others = shorts[sizes.documents : sizes.documents + sizes.fit_queries]
    return DemoTexts(documents, asked, judged, others)


def bundles() -> Path:
    """A repository with both encoders, exported if missing."""
    repository = WORK / "repository"
    for name, source in SOURCES.items():
        shutil.rmtree(repository / name / "adapters", ignore_errors=True)
        if not encoders.exported(repository / name / "1"):
            print(f"export {source}", flush=True)
            trimtab_command("export", encoders.source(source), "--name", name, "--repository", repository)
    return repository


def fill(client: trimtab.Client, name: str, documents: list[str]) -> str:
    """A FAISS store of the documents, whose ids are their numbers, embedded through the server."""
    url = f"faiss:{WORK / 'old'}"
    shutil.rmtree(WORK / "old", ignore_errors=True)
    encoder = client.encoder(name)
    form = Form(space=encoder.space, dimensions=encoder.dimensions)
    with (
        stores.create_store(url, form) as store,
        Progress("indexing", "documents", len(documents)) as progress,
    ):
        for start in range(0, len(documents), BATCH):
            part = documents[start : start + BATCH]
            vectors = client.embed(part, encoder=name, priority="bulk")
            store.upsert(Rows([Document(start + at, text) for at, text in enumerate(part)], vectors))
            progress.advance(len(part))
    return url


def fit(repository: Path, texts: DemoTexts, old: str, server: str, client: trimtab.Client) -> Adapter:
    """Fit the adapter next to the new encoder, and load it into the running server."""
    files = {
        "texts.jsonl": ({"text": text} for text in texts.documents),
        "queries.jsonl": ({"query": query} for query in texts.others),
        "pairs.jsonl": ({"query": query, "document": document} for query, document in texts.judged),
    }
    for name, rows in files.items():
        (WORK / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    trimtab_command(
        *("adapter", "fit", "--from", repository / NEW / "1", "--to", repository / OLD / "1"),
        *("--texts", WORK / "texts.jsonl", "--queries", WORK / "queries.jsonl"),
        *("--pairs", WORK / "pairs.jsonl", "--old-vectors", old, "--name", "to-l3"),
    )
    with triton.InferenceServerClient(server) as control:
        control.load_model(NEW)  # picks up the adapter while the server keeps running
    (adapter,) = client.adapters()
    if adapter.problem:
        raise SystemExit(f"the server does not use the adapter: {adapter.problem}")
    return adapter


def measure(client: trimtab.Client, texts: DemoTexts, old_url: str, found: Findings) -> None:
    """The arms that need no re-index."""
    new_space, old_space = client.encoder(NEW).space, client.encoder(OLD).space
    queries = list(texts.asked.values())
    before = client.embed(queries, encoder=OLD)
    both = client.embed_spaces(queries, [new_space, old_space], encoder=NEW)
    with stores.open_store(old_url) as old:
        for arm, vectors in (
            ("old on old", before),
            ("new on old, naive", both[new_space].vectors),
            ("adapted", both[old_space].vectors),
        ):
            found.arms[arm] = recall(texts.asked, (old.search(vector, K) for vector in vectors), arm)


def migrate(client: trimtab.Client, server: str, texts: DemoTexts, old_url: str, found: Findings) -> None:
    """Re-index, killed at each quarter, and search both halves at every stage."""
    new_url = f"faiss:{WORK / 'new'}"
    shutil.rmtree(WORK / "new", ignore_errors=True)
    encoder = client.encoder(NEW)
    stores.create_store(new_url, Form(space=encoder.space, dimensions=encoder.dimensions)).close()
    command = [PYTHON, "-m", "trimtab.cli", "reindex", "--from", old_url, "--to", new_url]
    command += ["--encoder", NEW, "--url", server, "--batch", str(BATCH)]
    with stores.open_store(old_url) as old, stores.open_store(new_url) as new:
        ask(client, texts, old, new, found)
        found.arms["cascade"] = found.rescored["0%"]
        for share in QUARTERS:
            process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
            with Progress("re-indexing", "documents", len(texts.documents), new.count()) as progress:
                while process.poll() is None and new.count() < share * len(texts.documents):
                    progress.advance(new.count() - progress.done)
                    time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
            ask(client, texts, old, new, found)
        subprocess.run(command, cwd=ROOT, check=True)
        ask(client, texts, old, new, found)
        queries = client.embed(texts.asked.values(), encoder=NEW)
        hits = (new.search(query, K) for query in queries)
        found.arms["new re-indexed"] = recall(texts.asked, hits, "new re-indexed")


def ask(client: trimtab.Client, texts: DemoTexts, old: Store, new: Store, found: Findings) -> None:
    """Search both halves in their current state."""
    stage = f"{new.count() / old.count():.0%}"
    ways: list[tuple[Merge, dict[str, float]]] = [
        ("rescore", found.rescored),
        ("calibrate", found.calibrated),
    ]
    for merge, figures in ways:
        search = trimtab.HalfMigrated(client, old=old, new=new, merge=merge, candidates=CANDIDATES)
        hits = (search.search(query, K) for query in texts.asked.values())
        figures[stage] = recall(texts.asked, hits, f"{stage} moved, {merge}")


def recall(asked: Mapping[int, str], results: Iterator[list[Hit]], label: str) -> float:
    """The share of queries whose document is among the hits."""
    right = 0
    with Progress(label, "queries", len(asked)) as progress:
        for number, hits in zip(asked, results, strict=True):
            right += number in {hit.id for hit in hits}
            progress.advance()
    return round(right / len(asked), 4)


def trimtab_command(*arguments: object) -> None:
    """Run `trimtab`, with its progress on the terminal."""
    command = [PYTHON, "-m", "trimtab.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(done.returncode)


@contextmanager
def timed(found: Findings, step: str) -> Iterator[None]:
    """Print the step, and record how long it took."""
    print(f"\n{step}", flush=True)
    started = time.monotonic()
    yield
    found.seconds[step] = round(time.monotonic() - started, 1)


def cpu_seconds() -> float:
    """CPU seconds of this process and of the children it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def table(found: Findings) -> str:
    """Print the results."""
    arms = ("old on old", "new on old, naive", "adapted", "cascade", "new re-indexed")
    best = found.arms["new re-indexed"]
    lines = ["", f"{'Recall@10':<24}{'':>8}{'of new re-indexed':>20}"]
    lines += [f"{arm:<24}{found.arms[arm]:>8.3f}{found.arms[arm] / best:>20.3f}" for arm in arms]
    lines += ["", f"{'moved':<24}{'rescored':>8}{'calibrated':>20}"]
    lines += [
        f"{stage:<24}{figure:>8.3f}{found.calibrated[stage]:>20.3f}"
        for stage, figure in found.rescored.items()
    ]
    lines += ["", f"adapter: {found.adapter['rung']}, verdict {found.adapter['verdict']}"]
    lines += [f"{seconds:>6.0f} s  {step}" for step, seconds in found.seconds.items()]
    lines.append(f"{found.cpu_seconds:>6.0f} s  of CPU time altogether")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
