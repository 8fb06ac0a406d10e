"""Real texts for the benchmarks: the descriptions of Debian's packages, some 40,000 short and long pairs.

They come through the machine's own `apt-get` into a folder of their own, so that its lists stay as they
are, and are kept in bench/.data for the next run.
"""

import json
import os
import random
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(__file__).parent / ".data" / "debian.jsonl"
LONG_CHARACTERS = 600
# The share of documents in a mix; the rest are queries.
MIXES = {"short": 0.0, "mixed": 0.3, "long": 1.0}


def pairs(language: str = "en") -> list[tuple[str, str]]:
    """(short description, long description) of packages, each text once, in a fixed random order.

    In English, or as far as Debian's translators have come in another language: some thousands in "de".
    """
    cache = CACHE if language == "en" else CACHE.with_stem(f"{CACHE.stem}-{language}")
    if not cache.exists():
        cache.parent.mkdir(exist_ok=True)
        partial = cache.with_suffix(".partial")
        partial.write_text("".join(json.dumps(pair) + "\n" for pair in _fetch(language)))
        partial.rename(cache)
    return [tuple(json.loads(line)) for line in cache.read_text().splitlines()]


def mix(name: str, count: int) -> list[str]:
    """`count` texts: "short" (queries), "long" (documents) or "mixed" (7 queries in 10)."""
    rng = random.Random(0)
    documents = MIXES[name]
    return [long[:LONG_CHARACTERS] if rng.random() < documents else short for short, long in pairs()[:count]]


def _fetch(language: str) -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "lists" / "partial").mkdir(parents=True)
        config = folder / "apt.conf"
        config.write_text(
            f'Dir::Etc::Parts "/dev/null";\nDir::State::Lists "{folder}/lists";\n'
            f'Acquire::Languages {{ "{language}"; }};\n'
        )
        environment = {**os.environ, "APT_CONFIG": str(config)}
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment, stderr=subprocess.DEVNULL)
        found: dict[str, str] = {}
        for path in sorted((folder / "lists").glob(f"*Translation-{language}")):
            for record in path.read_text().split("\n\n"):
                short, _, body = record.partition(f"Description-{language}:")[2].strip().partition("\n")
                lines = [line.strip() for line in body.splitlines() if line.startswith(" ")]
                long = " ".join(line for line in lines if line != ".")
                if len(short.split()) >= 3 and len(long) >= 80:
                    found.setdefault(short, long)
    rows = list({long: (short, long) for short, long in found.items()}.values())
    if not rows:
        raise SystemExit(
            "apt-get gave no package descriptions: the benchmarks need a Debian or Ubuntu machine"
        )
    random.Random(0).shuffle(rows)
    return rows
