"""Coverage-guided fuzzing of one target by Atheris (libFuzzer), in this process.

    python -m bench.chaos.fuzz_one wire --seconds 60

Input that reaches new lines is kept, and the next run starts from it. Input that makes a target fail is
reported with a traceback and saved in the folder --found; rerun such a file with --input.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

# Import nothing else of the project before this: the fuzzer does not see code imported earlier.
with atheris.instrument_imports(include=["trimtab", "trimtab_server", "trimtab_export"]):
    from bench import processes
    from bench.chaos import known, live, targets

CORPUS = known.FOLDER / "corpus"
MEMORY_MB = 2048
INPUT_BYTES = 1 << 14


def main() -> None:
    """Fuzz."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=targets.TARGETS)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seconds", type=int, help="how long")
    what.add_argument("--input", type=Path, help="a file of input to run once")
    parser.add_argument("--found", type=Path, default=processes.LOGS, help="folder for input that fails")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with atheris.instrument_imports(include=["trimtab", "trimtab_server", "trimtab_export"]):
            target = targets.TARGETS[options.target](Path(folder))
        if options.input is not None:
            target.run(options.input.read_bytes())
            return
        corpus = CORPUS / options.target
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(target.seeds):
            (corpus / f"seed-{number}").write_bytes(seed)
        atheris.Setup(
            [
                sys.argv[0], str(corpus), f"-max_total_time={options.seconds}",
                f"-timeout={round(2 * live.HANG_SECONDS)}", f"-rss_limit_mb={MEMORY_MB}",
                f"-max_len={INPUT_BYTES}", f"-artifact_prefix={options.found}/", "-print_final_stats=1",
            ],
            target.run,
        )  # fmt: skip
        atheris.Fuzz()


if __name__ == "__main__":
    main()
