"""`trimtab adapter fit` and `report` on whole bundles: files in, an adapter out, clear words where not."""

import argparse
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests import variants_made
from tests.adapters.samples import docstrings
from tests.export import tiny_encoders
from trimtab.artifacts import adapter as adapters
from trimtab.artifacts import bundle as bundles
from trimtab.errors import AdapterError, BundleError, ConfigError, InvalidArgument, TrimtabError
from trimtab_export import adapter_command
from trimtab_export.adapters import encode
from trimtab_export.adapters.encode import BundleEncoder
from trimtab_export.export import export
from trimtab_export.source import Settings

pytestmark = pytest.mark.timeout(600)
ROWS, PAIRS = 900, 300
LONGEST = 150  # characters of a document


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny encoders of different families."""
    repository = tmp_path_factory.mktemp("tiny-repository")
    for name, family in (("new", "bert"), ("old", "roberta")):
        source = tiny_encoders.sentence_transformers(family, tmp_path_factory.mktemp(name))
        export(Settings(str(source)), name, repository)
    return repository


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """texts.txt, queries.jsonl, pairs.jsonl."""
    rows = docstrings(LONGEST)[:ROWS]
    (tmp_path / "texts.txt").write_text("".join(f"{document}\n" for _, document in rows))
    queries = [{"query": query, "group": "long" if len(query) > 50 else ""} for query, _ in rows[PAIRS:]]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(each) + "\n" for each in queries))
    pairs = [{"query": query, "document": document} for query, document in rows[:PAIRS]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in pairs))
    return tmp_path


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    adapter_command.configure(parser)
    return adapter_command.run(parser.parse_args([str(word) for word in words]))


def fit(repository: Path, files: Path, *options: object, name: str) -> adapters.AdapterFolder:
    words = ["fit", "--from", repository / "new" / "1", "--to", repository / "old" / "1"]
    words += ["--texts", files / "texts.txt", "--name", name, *options]
    assert run(*words) == 0
    return adapters.read(repository / "new" / "adapters" / name)


class Page(HTMLParser):
    """The tags of a page, and what they name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"href", "src"}]


def test_an_adapter_is_fitted_and_reported(
    repository: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = fit(
        repository,
        files,
        "--queries",
        files / "queries.jsonl",
        "--pairs",
        files / "pairs.jsonl",
        name="whole",
    )
    manifest, report = adapter.manifest, adapter.manifest.report
    printed = capsys.readouterr()
    assert f"verdict: {manifest.verdict}" in printed.out
    assert all(reason in printed.out for reason in manifest.reasons)
    assert "fitting: ridge" in printed.err
    old = bundles.read(repository / "old" / "1").manifest
    assert (manifest.target.space, manifest.target.version) == (old.space, 1)
    assert not manifest.provisional
    assert manifest.calibrator is not None
    assert report.truth == "pairs"
    assert report.counts.documents == ROWS
    assert report.counts.test_queries == 120
    assert report.microseconds_alone > 0
    assert "pairs.jsonl" in manifest.provenance.command
    assert str(files) not in (adapter.path / adapters.MANIFEST).read_text(), "no paths of this machine"

    session = onnxruntime.InferenceSession(adapter.file(manifest.graph))
    inputs = {value.name: value.shape for value in session.get_inputs()}
    assert ("group" in inputs) == bool(manifest.groups)
    width = inputs["vectors"][1]
    states = bundles.read(repository / "new" / "1").manifest.variants[0].states
    assert states is not None
    assert width == manifest.source.dimensions + (states.width if manifest.reads == "states" else 0)
    baseline = adapter.baseline()
    assert baseline is not None
    assert baseline.shape == (120, manifest.source.dimensions)
    assert not list((repository / "new" / "adapters").glob(".*")), "the stage is cleared away"

    page = files / "page.html"
    assert run("report", adapter.path, "--output", page) == 0
    text = page.read_text()
    parsed = Page(text)
    assert parsed.tags.count("svg") == 2
    assert not parsed.links
    assert "http" not in text, "the page needs nothing else"
    assert all(rung.name in text for rung in report.rungs)
    with pytest.raises(ConfigError, match="cannot be written"):
        run("report", adapter.path, "--output", files / "nowhere" / "page.html")
    with pytest.raises(AdapterError, match="an adapter is never changed"):
        fit(repository, files, name="whole")


def test_without_queries_and_pairs_it_is_provisional(repository: Path, files: Path) -> None:
    manifest = fit(repository, files, "--documents", 500, name="bare").manifest
    assert manifest.provisional
    assert manifest.queries is None
    assert manifest.report.truth == "old ranking"
    assert manifest.report.counts.documents == 500
    assert manifest.reasons[0].startswith("provisional")


def test_a_fit_goes_on_where_one_was_stopped(
    repository: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "ROWS_A_CHECKPOINT", 64)
    ran: list[int] = []
    real = BundleEncoder.compute

    def stopping(self: BundleEncoder, texts: list[str], prompt: str) -> encode.Floats:
        ran.append(len(texts))
        if sum(ran) > 800:
            raise KeyboardInterrupt
        return real(self, texts, prompt)

    monkeypatch.setattr(BundleEncoder, "compute", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(repository, files, name="resumed")
    first = sum(ran)
    monkeypatch.setattr(BundleEncoder, "compute", lambda *words: (ran.append(len(words[1])), real(*words))[1])
    ran.clear()
    fit(repository, files, name="resumed")
    fresh = sum(ran)
    ran.clear()
    fit(repository, files, name="unbroken")
    assert sum(ran) - fresh >= first - 2 * 64


def test_old_vectors_come_from_a_store(repository: Path, files: Path) -> None:
    old = BundleEncoder(bundles.read(repository / "old" / "1"))
    texts = (files / "texts.txt").read_text().splitlines()
    vectors = old.vectors(texts, "passage")
    np.save(files / "old.npy", vectors)
    manifest = fit(repository, files, "--old-vectors", files / "old.npy", name="stored").manifest
    assert manifest.provenance.old_vectors is not None

    def refused(array: np.ndarray, message: str, texts: Path = files / "texts.txt") -> None:  # type: ignore[type-arg]
        np.save(files / "bad.npy", array)
        with pytest.raises(TrimtabError, match=message):
            fit(repository, files, "--old-vectors", files / "bad.npy", "--texts", texts, name="refused")

    refused(vectors[:-1], "899 vectors without texts, but there are 900 texts")
    refused(vectors[:, :-1], "31 dimensions, but the old encoder's have 32")
    refused(np.where(np.arange(900)[:, None] == 7, np.nan, vectors), "of 7 holds NaN")
    refused(np.random.default_rng(0).normal(size=vectors.shape), "not of the space")
    (files / "bad.npy.json").write_text(json.dumps({"vectors": {"space": "0123456789abcdef"}}))
    refused(vectors, "records its vectors in space 0123456789abcdef")
    assert not (repository / "new" / "adapters" / "refused").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("texts.txt", "", "holds no texts"),
        ("pairs.jsonl", '{"query": "a"}\n', "line 1 is not"),
        ("pairs.jsonl", '{"query": "a", "document": "b"}\n', "at least 100 of each are needed"),
        ("queries.jsonl", '{"query": "a", "group": 3}\n', "'group' is int, not text"),
        ("queries.jsonl", '{"text": "a"}\n', "has no column 'query'"),
    ],
)
def test_wrong_files_are_named(name: str, content: str, message: str, repository: Path, files: Path) -> None:
    (files / name).write_text(content)
    options = [word for each in ("queries", "pairs") for word in (f"--{each}", files / f"{each}.jsonl")]
    with pytest.raises((AdapterError, InvalidArgument), match=message):
        fit(repository, files, *options, name="wrong")


def test_equal_spaces_need_no_adapter(repository: Path, files: Path) -> None:
    bundle = repository / "new" / "1"
    with pytest.raises(AdapterError, match="have the same space"):
        run("fit", "--from", bundle, "--to", bundle, "--texts", files / "texts.txt")


def test_the_options_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("fit", "--from", "a", "--to", "b", "--texts", "c", "--documents", "0")
    assert "is not a whole number from 1 on" in capsys.readouterr().err


def test_a_variant_of_a_bundle_is_an_end(tmp_path: Path) -> None:
    bundle = variants_made.bundle(tmp_path / "repository")
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(variants_made.WORDS, 12)) for _ in range(500)]
    (tmp_path / "texts.txt").write_text("\n".join(lines[:250]) + "\n")
    (tmp_path / "queries.txt").write_text("\n".join(lines[250:]) + "\n")
    inputs = ["--texts", tmp_path / "texts.txt", "--queries", tmp_path / "queries.txt"]
    assert run("fit", "--from", f"{bundle.path}:early", "--to", bundle.path, *inputs) == 0
    manifest = adapters.read(bundle.path.parent / "adapters" / "early-v1-to-layered-v1").manifest
    assert manifest.source.space == variants_made.space(bundle, "early")
    assert (manifest.target.space, manifest.reads) == (bundle.manifest.space, "embeddings")
    assert "--from layered/1:early --to layered/1" in manifest.provenance.command
    with pytest.raises(BundleError, match="has no variant 'middle'; it has fp32, small, early, early-16"):
        run("fit", "--from", f"{bundle.path}:middle", "--to", bundle.path, *inputs)
    with pytest.raises(AdapterError, match="have the same space"):
        run("fit", "--from", f"{bundle.path}:fp32", "--to", bundle.path, *inputs)
