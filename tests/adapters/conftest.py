"""A real encoder, and others made of its vectors, so that one pass over the texts serves all tests."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.adapters.samples import docstrings
from trimtab.artifacts import bundle as bundles
from trimtab.kinds import Role
from trimtab_export.adapters import checks, climb
from trimtab_export.adapters.encode import BundleEncoder, Floats, Halves
from trimtab_export.adapters.fit import FitInputs
from trimtab_export.adapters.inputs import Query, RelevantPair
from trimtab_export.adapters.metrics import unit

TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(384, 384)))[0].astype(np.float32)
PAIRS, OTHERS = 500, 600
LONGEST = 150  # characters of a document: each test embeds them


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Threads of torch that wait for each other are many times slower beside a busy neighbour."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def few_prompted() -> Iterator[None]:
    """Enough pairs to try prompts on, and no more: each prompt embeds them again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "PROMPTED", 60)
        yield


@pytest.fixture(autouse=True, scope="session")
def few_epochs() -> Iterator[None]:
    """The trained rungs take their part, and no test's word hangs on how long they were trained."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLP", "INNER"):
            patch.setattr(climb, name, replace(getattr(climb, name), epochs=3))
        yield


class Turned(BundleEncoder):
    """The real encoder in a coordinate system of its own, without inner states."""

    @property
    def width(self) -> int:
        return 0

    def rows(self, texts: Sequence[str], role: Role, label: str = "") -> tuple[Floats, Halves]:
        return self.vectors(texts, role, label), np.empty((len(texts), 0), np.float16)

    def vectors(self, texts: Sequence[str], role: Role, label: str = "") -> Floats:
        return super().vectors(texts, role, label) @ TURN


class Shallow(BundleEncoder):
    """The real encoder stopped after its second layer, inner states and all."""

    @property
    def width(self) -> int:
        return 3 * self.dimensions

    def rows(self, texts: Sequence[str], role: Role, label: str = "") -> tuple[Floats, Halves]:
        states = super().rows(texts, role, label)[1][:, : self.width]
        return unit(states[:, -self.dimensions :].astype(np.float32)), states

    def vectors(self, texts: Sequence[str], role: Role, label: str = "") -> Floats:
        return self.rows(texts, role, label)[0]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where vectors are kept for all tests."""
    return tmp_path_factory.mktemp("vectors")


@pytest.fixture(scope="session")
def minilm(minilm_repository: Path, cache: Path) -> BundleEncoder:
    """all-MiniLM-L6-v2 from its bundle."""
    return BundleEncoder(bundles.read(minilm_repository / "all-minilm-l6-v2" / "1"), cache, threads=1)


@pytest.fixture(scope="session")
def turned(minilm: BundleEncoder, cache: Path) -> BundleEncoder:
    return Turned(minilm.bundle, cache, threads=1)


@pytest.fixture(scope="session")
def shallow(minilm: BundleEncoder, cache: Path) -> BundleEncoder:
    return Shallow(minilm.bundle, cache, threads=1)


@pytest.fixture(scope="session")
def found() -> FitInputs:
    """Docstrings: 500 pairs, and as many documents and queries more to learn from."""
    rows = docstrings(LONGEST)[: PAIRS + OTHERS]
    return FitInputs(
        texts=[document for _, document in rows],
        queries=[Query(query) for query, _ in rows[PAIRS:]],
        pairs=[RelevantPair(Query(query), document) for query, document in rows[:PAIRS]],
    )
