"""Encoders that several files of tests export, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_encoders
from tiny_encoders import Export

from trimtab.errors import ExportError
from trimtab_export.export import export as export_source
from trimtab_export.source import Settings
from trimtab_export.texts.domain import Domain, Pair, Role
from trimtab_export.texts.gather import Found
from trimtab_export.variants import fidelity, material


@pytest.fixture(autouse=True)
def texts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """As few texts as a tiny encoder needs, of made-up kinds; called with roles, one kind for each."""

    def use(*roles: Role) -> None:
        found = []
        for place, role in enumerate(roles):
            words = [f"w{n} x{n * 7 % 13} y{n * 3 % 17}" for n in range(300 * place, 300 * place + 300)]
            pairs = [Pair(f"what is {w}", f"about {w} there is much to say, {w} again") for w in words]
            found.append(Found(Domain(f"{role} {place}", "made up", role, list), pairs))
        monkeypatch.setattr(material, "texts_at_hand", lambda: found)

    use("train", "judge")
    monkeypatch.setattr(fidelity, "LEAST_NDCG", 0.01)  # a seeded encoder finds little
    for name in ("QUERIES", "YOUR_QUERIES"):
        monkeypatch.setattr(material, name, 40)
    for name in ("DOCUMENTS", "YOUR_DOCUMENTS"):
        monkeypatch.setattr(material, name, 60)
    return use


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Runs the command as `trimtab export SOURCE OPTIONS` and returns the folder of version 1 of `tiny`."""

    def run(source: Path | str, *options: str, name: str = "tiny", repository: Path | None = None) -> Path:
        return tiny_encoders.export(
            source, *options, name=name, repository=repository or tmp_path / "repository"
        )

    return run


@pytest.fixture
def refused(tmp_path: Path, export: Export) -> Callable[[Path, str, str], None]:
    """Asserts that a recipe of these passes is refused with this message, and that nothing is exported."""

    def check(source: Path, passes: str, message: str) -> None:
        (tmp_path / "recipe.toml").write_text(f"[[variants]]\nname = 'odd'\n{passes}\n")
        with pytest.raises(ExportError, match=f"the variant odd: .*{message}"):
            export(source, "--recipe", str(tmp_path / "recipe.toml"))
        assert not (tmp_path / "repository" / "tiny" / "1").exists()

    return check


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder."""
    return tiny_encoders.huggingface("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def st_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: mean pooling, length 1."""
    return tiny_encoders.sentence_transformers("bert", tmp_path_factory.mktemp("st-bert"))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, st_bert: Path) -> Path:
    """The bundle of `st_bert`; tests that change it copy it first."""
    return export_source(Settings(str(st_bert)), "tiny", tmp_path_factory.mktemp("tiny")).path
