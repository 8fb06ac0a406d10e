"""From a source's files to a running server's answer: what its own library gives, or a refusal by name.

The truth is sentence-transformers (5.7), which reads the same files. The table is `folders.py`.
"""

import contextlib
import io
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import folders
import numpy as np
import onnx
import pytest
import tiny_encoders
from folders import Folder
from onnx import TensorProto, helper, numpy_helper
from tiny_encoders import Layers

import trimtab
from tests.server.server_process import serve
from trimtab.errors import ExportError
from trimtab_export import evaluate
from trimtab_export.graph import head
from trimtab_export.source import Graph, Head

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from optimum.exporters.onnx import onnx_export_from_model
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

NORMALISED = Layers(normalize=True)
BASES = {
    "bert": {"architecture": "bert"},
    "raw": {"architecture": "bert", "layers": Layers()},
    "dense": {"architecture": "bert", "layers": Layers(dense=True, normalize=True)},
    "roberta": {"architecture": "roberta"},
    "xlm-roberta": {"architecture": "xlm-roberta"},
    "mpnet": {"architecture": "mpnet"},
    "distilbert": {"architecture": "distilbert"},
}
LONG = " ".join(
    f"The {number} Résumé of a bird, SAT 猫 over-and {chr(97 + number % 26)}." for number in range(40)
)
TEXTS = [
    "Café Ærø, naïve RÉSUMÉ",
    "猫坐在垫子上 and the cat",
    LONG,
    LONG[200:] + " x" * 300,
    "x" * 400,
    "a " * 70 + "b" * 150 + " tail",
    "",
    "   \n\t ",
    "a",
    "[CLS] literal [SEP] special [PAD] tokens [MASK] <s> </s> <mask> <pad>",
    "zero\u200bwidth\ufeff \u202eright to left, bell\x07 e\u0301",
    "hi",
]


@dataclass
class Outcome:
    """What became of a row: the library's vectors by role (None: of no role), or the refusal."""

    bundle: Path
    said: str = ""
    truth: dict[str | None, Any] = field(default_factory=dict)
    error: ExportError | None = None
    left: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Every row, exported into one repository."""
    home = tmp_path_factory.mktemp("folders")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(evaluate, "MOST_RUNS", 1)  # nobody reads how fast these are
        bases = {name: _base(home / "bases" / name, **kinds) for name, kinds in BASES.items()}
        return {row.name: _outcome(row, bases[row.base], home) for row in folders.FOLDERS}


def _base(folder: Path, architecture: str, layers: Layers = NORMALISED) -> Path:
    made = tiny_encoders.sentence_transformers(architecture, folder, layers=layers)
    # Of the 130 positions of RoBERTa's family 128 are of use, and the library reads on into the others.
    folders.put(made / folders.TOKENIZER, {"model_max_length": 128})
    return made


def _outcome(row: Folder, base: Path, home: Path) -> Outcome:
    folder = folders.make(row, base, home / "sources" / row.name)
    repository = home / "repository"
    outcome = Outcome(repository / row.name / "1")
    if row.refused is None:
        outcome.truth = _truth(row, folder)
    if row.graph is not None:
        _put_graph(row, base, folder)
    if row.after is not None:
        row.after(folder)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            tiny_encoders.export(folder, *row.options, name=row.name, repository=repository)
    except ExportError as error:
        outcome.error = error
        outcome.left = [str(path) for path in (repository / row.name).rglob("*")]
    outcome.said = said.getvalue()
    return outcome


def _truth(row: Folder, folder: Path) -> dict[str | None, Any]:
    """The library's vectors of TEXTS."""
    given = dict(zip(row.options[::2], row.options[1::2], strict=False))
    if (folder / "modules.json").is_file():
        model = SentenceTransformer(str(folder), device="cpu")
    else:
        transformer = Transformer(str(folder))
        pooling = Pooling(transformer.get_embedding_dimension(), given.get("--pooling", "mean"))
        model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")

    def by(encode: Any, option: str) -> Any:
        return encode(TEXTS, prompt=given[option]) if option in given else encode(TEXTS)

    truth = {
        "query": by(model.encode_query, "--query-prompt"),
        "passage": by(model.encode_document, "--passage-prompt"),
    }
    if not any(prompt in given for prompt in ("--query-prompt", "--passage-prompt")):
        truth[None] = model.encode(TEXTS)
    return truth


def _put_graph(row: Folder, base: Path, folder: Path) -> None:
    """Let a graph take the place of the weights."""
    weights = next(folder.rglob("model.safetensors"))
    weights.unlink()
    cached = base.with_name(f"{base.parent.name}-graph")
    if not cached.exists():
        model = transformers.AutoModel.from_pretrained(base)
        onnx_export_from_model(model, output=cached, task="feature-extraction", do_validation=False)
    path = shutil.copyfile(cached / "model.onnx", folder / "model.onnx")
    if row.graph in ("vectors", "both"):
        (made, _) = head.graft_dense(Graph(path, "last_hidden_state"), Head("mean"), 32, folder / "made")
        model = onnx.load(str(made))
        shutil.rmtree(folder / "made")
        model.graph.node.append(helper.make_node("Identity", ["embeddings"], ["sentence_embedding"]))
        kept = {"vectors": ["sentence_embedding"], "both": ["sentence_embedding", "last_hidden_state"]}
        _give(model, kept[row.graph])
        onnx.save(model, str(path))
    if row.graph == "scores":
        model = onnx.load(str(path))
        model.graph.initializer.append(numpy_helper.from_array(np.int64(0), "first"))
        model.graph.initializer.append(numpy_helper.from_array(np.arange(3), "three"))
        model.graph.node.append(helper.make_node("Gather", ["last_hidden_state", "first"], ["token"], axis=1))
        model.graph.node.append(helper.make_node("Gather", ["token", "three"], ["logits"], axis=1))
        _give(model, ["logits"])
        onnx.save(model, str(path))


def _give(model: onnx.ModelProto, names: list[str]) -> None:
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)


@pytest.fixture(scope="module")
def client(
    outcomes: dict[str, Outcome], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[trimtab.Client]:
    """One server of all of them."""
    repository = next(iter(outcomes.values())).bundle.parent.parent
    with serve(repository, tmp_path_factory.mktemp("server")) as server, trimtab.Client(server.url) as client:
        yield client


@pytest.mark.timeout(900)
@pytest.mark.parametrize("row", [row for row in folders.FOLDERS if row.refused], ids=lambda row: row.name)
def test_refused_by_name(row: Folder, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[row.name]
    assert outcome.error is not None, "it was exported"
    message = str(outcome.error)
    assert re.search(row.refused or "", message, re.DOTALL), message
    assert len(message.splitlines()) == 1
    assert outcome.left == []


@pytest.mark.timeout(900)
@pytest.mark.parametrize("row", [row for row in folders.FOLDERS if not row.refused], ids=lambda row: row.name)
def test_served_as_the_library_has_it(
    row: Folder, outcomes: dict[str, Outcome], client: trimtab.Client
) -> None:
    outcome = outcomes[row.name]
    assert outcome.error is None, outcome.error
    assert re.search(row.says, outcome.said) if row.says else "is of no role" not in outcome.said
    for role, wanted in outcome.truth.items():
        try:
            got = client.embed(TEXTS, encoder=row.name, role=role)
        except trimtab.InvalidArgument as error:
            assert role is None and "say which these texts are" in str(error)
            continue
        assert got.shape == wanted.shape
        off = np.abs(got - wanted).max(axis=1)
        assert off.max() <= 1e-4, {
            text[:20]: f"{each:.1e}" for text, each in zip(TEXTS, off, strict=True) if each > 1e-4
        }
