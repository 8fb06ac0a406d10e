"""Coverage-guided fuzzing of every parser: one process per target, each with a time limit."""

import subprocess
import time
from pathlib import Path

from bench import processes
from bench.chaos import known
from bench.chaos.table import Bar, PartResult
from bench.chaos.targets import SHARES, TARGETS

# Extra time to import the instrumented code and read the corpus.
START_SECONDS = 180


def run(folder: Path, minutes: float) -> PartResult:
    """All targets, one after another, in this many minutes."""
    try:
        import atheris  # noqa: F401
    except ModuleNotFoundError:
        raise SystemExit("fuzz needs Atheris: pip install atheris (Linux on x86-64)") from None
    known.bundle()
    shares = {name: SHARES.get(name, 1) for name in TARGETS}
    figures: dict[str, object] = {"minutes": minutes}
    failed: list[str] = []
    for name, share in shares.items():
        seconds = max(1, round(minutes * 60 * share / sum(shares.values())))
        found = folder / name
        found.mkdir(parents=True)
        command = [processes.PYTHON, "-m", "bench.chaos.fuzz_one", name, "--seconds", str(seconds)]
        command += ["--found", str(found)]
        log = found / "log"
        begun = time.monotonic()
        with log.open("wb") as output:
            try:
                process = subprocess.run(
                    command, cwd=processes.ROOT, stdout=output, stderr=output, check=False,
                    timeout=seconds + START_SECONDS,
                )  # fmt: skip
                ended = process.returncode
            except subprocess.TimeoutExpired:
                ended = -1
        written = log.read_text(errors="replace")
        figures[name] = runs = _runs(written)
        print(f"  {name:<12} {time.monotonic() - begun:5.0f} s  {runs:8} inputs", flush=True)
        if ended != 0 or not runs:
            failed.append(name)
            print("    " + "\n    ".join(written.splitlines()[-25:]), flush=True)
    return PartResult({**figures, "failed": failed}, [Bar("crashes, hangs, INTERNAL", len(failed), 0)])


def _runs(log: str) -> int:
    """The number of inputs tried, from libFuzzer's last status line."""
    numbers = [line[1:].split()[0] for line in log.splitlines() if line.startswith("#")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)
