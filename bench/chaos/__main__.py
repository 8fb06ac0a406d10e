"""What happens to requests when things go wrong: faults, rollovers, long runs, floods and malformed input.

    python -m bench.chaos                       everything but an hour of fuzzing: some forty minutes
    python -m bench.chaos --quick               a short run of a few minutes
    python -m bench.chaos --parts fuzz --minutes 60

faults     Clients of every kind call two servers behind client-side balancing, and compare each answer with
           the known vector of its text. Meanwhile servers are killed, paused, stopped and restarted; clients
           vanish, stop reading, or send malformed frames and messages; thousands of connections arrive; the
           disk fills; the clock jumps; encoders are loaded and unloaded; certificates are replaced; and
           processes of devices, front ends and engines are killed. Lost, answered twice, answered with
           another's vector: 0, 0, 0.
rollover   Versions are swapped under load, by polling and by the repository's calls, and both servers are
           replaced one after another: no request fails.
soak       Resident memory after a million requests and a hundred reloads, relative to after the warm-up.
floods     A caller floods a server, from one connection and from ten, with and without credentials: the
           server's memory against the figure that docs/configuration.md derives from its limits, and how long
           others wait.
stores     A thousand runs over vector stores that end badly: what is lost or changed.
fuzz       Coverage-guided fuzzing of all parsers, and of a live server: no crash, no hang, no INTERNAL.

Every part ends by itself and makes what it needs: an encoder of a few kilobytes, servers on free ports of
127.0.0.1, files in bench/.logs. Figures are kept in bench/history/chaos.jsonl; the exit status is 1 if a bar
is missed. The clock jumps only if Debian's package faketime is installed.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable

from bench import processes
from bench.chaos import faults, flooding, floods, fuzz, injected, rollover, soak, stores
from bench.chaos.table import PartResult, table
from bench.report import append

PARTS = ("faults", "rollover", "soak", "floods", "stores", "fuzz")


def main() -> None:
    """Run the parts, print the table, append to the history."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these parts")
    parser.add_argument(
        "--requests", type=int, help="requests for faults (default: 200,000) and soak (1,000,000)"
    )
    parser.add_argument(
        "--faults", nargs="+", choices=injected.FAULTS, default=(), metavar="FAULT",
        help="some of the schedule alone: " + ", ".join(injected.FAULTS),
    )  # fmt: skip
    parser.add_argument(
        "--floods", nargs="+", choices=flooding.FLOODS, default=(), metavar="FLOOD",
        help="some of them alone: " + ", ".join(flooding.FLOODS),
    )  # fmt: skip
    parser.add_argument(
        "--credentials", nargs="+", choices=floods.CREDENTIALS, default=floods.CREDENTIALS,
        help="floods only with these",
    )  # fmt: skip
    parser.add_argument("--front-ends", type=int, default=1, help="of one of the two servers of faults")
    parser.add_argument("--minutes", type=float, help="for fuzz, all targets together (default: 60)")
    parser.add_argument("--quick", action="store_true", help="a short run of every part")
    options = parser.parse_args()
    folder = processes.LOGS / f"chaos-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    quick = options.quick
    run: dict[str, Callable[[], PartResult]] = {
        "faults": lambda: faults.run(
            folder / "faults", options.requests or (5_000 if quick else 200_000),
            quick=quick, only=tuple(options.faults), front_ends=options.front_ends,
        ),
        "rollover": lambda: rollover.run(folder / "rollover", 10 if quick else 50),
        "soak": lambda: soak.run(folder / "soak", options.requests or (20_000 if quick else 1_000_000)),
        "floods": lambda: floods.run(
            folder / "floods", 1.0 if quick else 6.0, tuple(options.floods), tuple(options.credentials)
        ),
        "stores": lambda: stores.run(folder / "stores", 40 if quick else 1000),
        "fuzz": lambda: fuzz.run(folder / "fuzz", options.minutes or (1 if quick else 60)),
    }  # fmt: skip
    parts = {}
    for name in options.parts:
        begun = time.monotonic()
        print(f"{name}:", flush=True)
        parts[name] = run[name]()
        print(f"  {time.monotonic() - begun:.0f} s", flush=True)
    print(table(parts))
    append("chaos", quick=quick, parts={name: part.kept() for name, part in parts.items()})
    if not all(bar.passed for part in parts.values() for bar in part.bars):
        print(f"logs of servers and fuzzers are in {folder.relative_to(processes.ROOT)}")
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
