"""Real texts for the benchmarks: the descriptions of Debian's packages, some 40,000 short and long pairs.

The machine's own `apt-get` fetches them into a separate folder, so its package lists stay as they are. They
are cached in bench/.data. For retrieval there are `examples`: packages with the same description count once,
and thousands of queries also exist in German and French. The environment variable TRIMTAB_BENCH_TEXTS names a
file of other pairs, for machines without a network.
"""

import json
import os
import random
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).parent / ".data" / "debian.jsonl"
EXAMPLES = CACHE.with_name("debian-examples.jsonl")
LANGUAGES = ("de", "fr")
OTHER_TEXTS = "TRIMTAB_BENCH_TEXTS"
SHORTEST = 80  # characters of a document
# The end of a description, where the packages of one program differ.
PART = re.compile(r"\s*This package (?:contains|provides|includes|installs|is|depends)\b.*", re.DOTALL)
KIND = re.compile(
    r"\s*[-(\[]\s*(?:dev|doc|lib|debug|common|data|runtime|shared|header|tool|python|transition)\w*\b.*",
    re.IGNORECASE,
)
LONG_CHARACTERS = 600
# The share of documents in a mix; the rest are queries.
MIXES = {"short": 0.0, "mixed": 0.3, "long": 1.0}


def pairs(language: str = "en") -> list[tuple[str, str]]:
    """(short description, long description) of packages, each text once, in a fixed random order.

    In English, or those that Debian has translated into another language: some thousands in "de".
    """
    cache = CACHE if language == "en" else CACHE.with_stem(f"{CACHE.stem}-{language}")
    if language == "en" and OTHER_TEXTS in os.environ:
        cache = Path(os.environ[OTHER_TEXTS])
    elif not cache.exists():
        cache.parent.mkdir(exist_ok=True)
        partial = cache.with_suffix(".partial")
        partial.write_text("".join(json.dumps(pair) + "\n" for pair in _fetch(language)))
        partial.rename(cache)
    return [tuple(json.loads(line)) for line in cache.read_text().splitlines()]


@dataclass(frozen=True, slots=True)
class Example:
    """A query, the document that answers it, and the query in the other languages that Debian has it in."""

    query: str
    document: str
    others: dict[str, str]


def examples() -> list[Example]:
    """Queries and documents for retrieval, each once, in a fixed random order."""
    if not EXAMPLES.exists():
        EXAMPLES.parent.mkdir(exist_ok=True)
        partial = EXAMPLES.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _fetch_examples()))
        partial.rename(EXAMPLES)
    return [Example(**json.loads(line)) for line in EXAMPLES.read_text().splitlines()]


def mix(name: str, count: int, skip: int = 0) -> list[str]:
    """`count` texts, after the first `skip`: "short" (queries), "long" (documents) or "mixed" (7 queries in
    10). Fewer if there are no more."""
    rng = random.Random(0)
    documents = MIXES[name]
    texts = [
        long[:LONG_CHARACTERS] if rng.random() < documents else short
        for short, long in pairs()[: skip + count]
    ]
    return texts[skip:]


def _fetch(language: str) -> list[tuple[str, str]]:
    with _lists(language) as lists:
        found: dict[str, str] = {}
        for path in sorted(lists.glob(f"*Translation-{language}")):
            for record in path.read_text().split("\n\n"):
                short, _, body = record.partition(f"Description-{language}:")[2].strip().partition("\n")
                lines = [line.strip() for line in body.splitlines() if line.startswith(" ")]
                long = " ".join(line for line in lines if line != ".")
                if len(short.split()) >= 3 and len(long) >= 80:
                    found.setdefault(short, long)
    rows = list({long: (short, long) for short, long in found.items()}.values())
    random.Random(0).shuffle(rows)
    return rows


def _fetch_examples() -> list[dict[str, object]]:
    """One example for all packages whose descriptions differ only in the part that names the package."""
    with _lists("en", *LANGUAGES) as lists:
        families: dict[str, tuple[str, str, str]] = {}  # what they share -> name, query, digest
        for name, digest, short, long in _records(lists, "en"):
            shared = PART.sub("", long)
            shared = shared if len(shared) >= SHORTEST else long
            known = families.get(shared)
            if len(long) >= SHORTEST and (known is None or len(name) < len(known[0])):
                families[shared] = name, KIND.sub("", short).strip(), digest
        translated = {
            language: {digest: short for _, digest, short, _ in _records(lists, language)}
            for language in LANGUAGES
        }
    times: dict[str, int] = {}
    for _, query, _ in families.values():
        times[query.lower()] = times.get(query.lower(), 0) + 1
    rows: list[dict[str, object]] = [
        {
            "query": query,
            "document": document,
            "others": {name: words[digest] for name, words in translated.items() if digest in words},
        }
        for document, (_, query, digest) in families.items()
        if len(query.split()) >= 3 and times[query.lower()] == 1
    ]
    random.Random(0).shuffle(rows)
    return rows


def _records(lists: Path, language: str) -> Iterator[tuple[str, str, str, str]]:
    """Package, digest of the English text, short and long description of every record of a language."""
    for path in sorted(lists.glob(f"*Translation-{language}")):
        for record in path.read_text(encoding="utf-8").split("\n\n"):
            head, _, body = record.partition(f"Description-{language}: ")
            short, _, rest = body.partition("\n")
            fields = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
            words = " ".join(line.strip() for line in rest.splitlines() if line.strip() != ".").split()
            if short and words:
                yield fields["Package"], fields["Description-md5"], short.strip(), " ".join(words)


@contextmanager
def _lists(*languages: str) -> Iterator[Path]:
    """The folder of apt's lists in these languages, apart from the system's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "lists" / "partial").mkdir(parents=True)
        config = folder / "apt.conf"
        wanted = " ".join(f'"{language}";' for language in languages)
        config.write_text(
            f'Dir::Etc::Parts "/dev/null";\nDir::State::Lists "{folder}/lists";\n'
            f"Acquire::Languages {{ {wanted} }};\n"
        )
        environment = {**os.environ, "APT_CONFIG": str(config)}
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment, stderr=subprocess.DEVNULL)
        if not list((folder / "lists").glob("*Translation-*")):
            raise SystemExit(
                "apt-get gave no package descriptions: the benchmarks need a Debian or Ubuntu machine"
            )
        yield folder / "lists"
