"""The parts of the serving benchmark (serve.py), and what each measures."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import overhead, processes
from bench.processes import Cores, Running, Serving, counters, program
from bench.report import Results

CONCURRENCY = {"short": (1, 8, 32, 64), "mixed": (1, 8, 32, 64), "long": (8, 32)}
LEAST_COSINE = 0.999
# Queries during the feed arrive at this share of the limit for short texts.
QUERIES = 0.15


@dataclass(frozen=True, slots=True)
class ServingSizes:
    """How much of everything."""

    rounds: int = 3
    texts: tuple[tuple[str, int], ...] = (("short", 2400), ("mixed", 1000), ("long", 300))
    concurrency: tuple[int, ...] = (1, 8, 32, 64)  # as far as the mix has it
    open_loop: tuple[float, ...] = (0.5, 0.8)  # of the limit
    queries: int = 1200
    documents: int = 1000
    calls: int = 8000
    device_texts: int = 700  # a device
    alone: int = 400


QUICK = ServingSizes(
    rounds=1,
    texts=(("short", 240), ("mixed", 100)),
    concurrency=(1, 32),
    open_loop=(0.5,),
    queries=300,
    documents=512,
    calls=1500,
    device_texts=140,
    alone=60,
)


@dataclass(frozen=True, slots=True)
class Server:
    """A server under test, and the load generator's client for it."""

    name: str
    kind: str
    serve: Callable[[int], Serving]


@dataclass(frozen=True, slots=True)
class ServingRun:
    """What the parts share: the sizes, the encoder's folder, the cores, the servers, and the results."""

    sizes: ServingSizes
    repository: Path
    encoder: str
    width: int
    cores: Cores
    servers: list[Server]
    results: Results

    @property
    def bundle(self) -> Path:
        """The encoder's first version."""
        return self.repository / self.encoder / "1"

    def load(self, server: Running, kind: str, mix: str, texts: int, *loop: object) -> dict[str, float]:
        """One run of the load generator."""
        return program(
            "bench.load", server.url, "--core", self.cores.client, "--kind", kind, "--mix", mix,
            "--texts", texts, "--encoder", self.encoder, "--width", self.width, *loop,
        )  # fmt: skip


def measure_servers(run: ServingRun) -> None:
    """One round of every mix: the limit, then each server in turn."""
    for mix, texts in run.sizes.texts:
        options = ("--core", run.cores.server, "--mix", mix, "--texts", texts)
        rates = program("bench.limit", run.bundle, *options)
        limit = max(rates.values())
        best = max(rates, key=rates.__getitem__)
        run.results.note(mix, "limit", "limit", rate=limit)
        print(f"{mix}: the limit is {limit:.1f} texts/s, in batches of {best}", flush=True)
        for server in run.servers:
            try:
                with server.serve(run.cores.server) as running:
                    _measure_server(run, server, running, mix, texts, limit)
            except (RuntimeError, subprocess.SubprocessError) as error:
                if server.name == "trimtab":
                    raise
                print(f"{server.name} failed on {mix} texts, and is left out there: {error}", flush=True)


def _measure_server(
    run: ServingRun, server: Server, running: Running, mix: str, texts: int, limit: float
) -> None:
    ours = server.name == "trimtab"

    def row(name: str, kind: str, *loop: object, count: int = texts) -> None:
        before = counters(running) if ours else {}
        cpu = running.cpu_seconds()
        figures = run.load(running, kind, mix, count, *loop)
        figures["server_ms"] = (running.cpu_seconds() - cpu) / (count + 32) * 1e3
        figures["server_busy"] = figures["server_ms"] / 1e3 * figures["rate"]
        figures["of_limit"] = figures["rate"] / limit
        if ours:
            now = counters(running)
            if now["trimtab_shared_texts_total"]:
                raise RuntimeError("the server answered texts without computing them: no texts may repeat")
            real, computed = (
                now[counter] - before[counter]
                for counter in ("trimtab_tokens_total", "trimtab_batch_tokens_sum")
            )
            figures["padding"] = 1 - real / computed
        run.results.note(mix, server.name, name, **figures)
        run.results.show(mix, server.name, name)

    for concurrency in CONCURRENCY[mix]:
        if concurrency in run.sizes.concurrency:
            row(str(concurrency), server.kind, "--concurrency", concurrency)
    for share in run.sizes.open_loop:
        row(f"open {share:.0%}", server.kind, "--rate", share * limit, count=texts // 2)
    if ours:
        row("tritonclient 32", "triton", "--concurrency", 32)
        row("stream", "stream")


def measure_feed(run: ServingRun) -> None:
    """Queries alone, documents alone, and both together, at our server."""
    sizes, note = run.sizes, run.results.note
    rates = program(
        "bench.limit", run.bundle, "--core", run.cores.server, "--mix", "short", "--texts", sizes.queries
    )
    rate = ("--rate", QUERIES * max(rates.values()))
    with processes.trimtab(run.repository, run.cores.server) as server:
        alone = run.load(server, "sdk", "short", sizes.queries, *rate)
        note("feed", "trimtab", "queries alone", **alone)
        documents = run.load(server, "stream", "long", sizes.documents)
        note("feed", "trimtab", "documents alone", rate=documents["rate"])
        feed = ("--feed", sizes.documents, "--metrics-url", server.metrics_url)
        both = run.load(server, "sdk", "short", sizes.queries, *rate, *feed)
        note(
            "feed", "trimtab", "queries above feed", **both, feed_share=both["feed_rate"] / documents["rate"]
        )
    for row in ("queries alone", "documents alone", "queries above feed"):
        run.results.show("feed", "trimtab", row)


def measure_overhead(run: ServingRun) -> None:
    """The server's own cost."""
    sizes, cores = run.sizes, run.cores
    rows = {
        "calls": overhead.calls(run.repository, cores, sizes.calls),
        "devices": overhead.devices(run.repository, cores, sizes.device_texts),
    }
    with processes.trimtab(run.repository, cores.server) as server:
        rows["alone"] = overhead.alone(server, run.bundle, cores, sizes.alone)
    for part, figures in rows.items():
        for name, each in figures.items():
            run.results.note(part, "trimtab", name, **each)
            run.results.show(part, "trimtab", name)


def check_agreement(run: ServingRun, server: Server) -> bool:
    """Whether a server returns the vectors of the bundle's graph; prints the result."""
    options = ("--kind", server.kind, "--encoder", run.encoder, "--core", run.cores.client)
    try:
        with server.serve(run.cores.server) as running:
            cosine = program("bench.agree", running.url, run.bundle, *options)["cosine"]
    except (RuntimeError, subprocess.SubprocessError) as error:
        print(f"{server.name} is left out: {error}", flush=True)
        return False
    print(f"{server.name}: cosine to the bundle's graph at least {cosine:.6f}", flush=True)
    run.results.note("agreement", server.name, "all", cosine=cosine)
    return bool(cosine > LEAST_COSINE)
