"""Graphs that exist already: with token states or ready vectors, with and without the source's configs."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_encoders
from embedder import Embedder
from onnx import TensorProto, helper, numpy_helper
from tiny_encoders import Export, Layers

from tests.server.models_made import ALONE, batch
from trimtab.artifacts import bundle as bundles
from trimtab.errors import ExportError
from trimtab.inputs.text import TextInput
from trimtab_export import sentences
from trimtab_server.catalog.encoder import model_of
from trimtab_server.engine.runners.onnx import OnnxRunner

TEXTS = sentences.load()


def converted(source: Path, folder: Path) -> Path:
    """A folder with a Hugging Face encoder's model.onnx (token states), tokenizer and config, no weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
        from optimum.exporters.onnx import onnx_export_from_model

        model = transformers.AutoModel.from_pretrained(source)
        onnx_export_from_model(model, output=folder, task="feature-extraction", do_validation=False)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copyfile(source / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def states(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Path:
    return converted(bert, tmp_path_factory.mktemp("states"))


@pytest.fixture
def copy(states: Path, tmp_path: Path) -> Path:
    """The same, for a test that changes it."""
    return shutil.copytree(states, tmp_path / "copy")


@pytest.fixture
def pooled(copy: Path, tiny_bundle: Path) -> Path:
    """A folder whose graph gives ready vectors, under the name that sentence-transformers uses."""

    def rename(model: onnx.ModelProto) -> None:
        model.graph.output[0].name = model.graph.node[-1].output[0] = "sentence_embedding"

    return change(copy, rename, tiny_bundle / "fp32" / "model.onnx")


def change(folder: Path, how: Callable[[onnx.ModelProto], object], graph: Path | None = None) -> Path:
    model = onnx.load(str(graph or folder / "model.onnx"))
    how(model)
    onnx.save(model, str(folder / "model.onnx"))
    return folder


def edit_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(
        json.dumps({key: value for key, value in {**content, **changes}.items() if value is not None})
    )


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
def test_states_with_a_given_pooling(pooling: str, states: Path, bert: Path, export: Export) -> None:
    """The graph of an encoder, and the encoder itself, give the same vectors."""
    of_graph = Embedder(export(states, "--pooling", pooling, "--normalize"))
    of_torch = Embedder(export(bert, "--pooling", pooling, "--normalize", name="torch"))
    np.testing.assert_allclose(of_graph(TEXTS), of_torch(TEXTS), atol=1e-5)
    manifest = of_graph.bundle.manifest
    assert (manifest.pooling, manifest.normalized, manifest.max_tokens) == (pooling, True, 130)
    assert manifest.provenance.architecture == "BertModel"


def test_file_in_a_folder_called_onnx(states: Path, tmp_path: Path, export: Export) -> None:
    (tmp_path / "encoder" / "onnx").mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copyfile(states / name, tmp_path / "encoder" / name)
    path = shutil.copyfile(states / "model.onnx", tmp_path / "encoder" / "onnx" / "model.onnx")
    by_file = Embedder(export(path, "--pooling", "mean")).bundle.manifest
    by_folder = Embedder(export(tmp_path / "encoder", "--pooling", "mean", name="folder")).bundle.manifest
    assert by_file.space == by_folder.space
    assert by_file.provenance.source == "model.onnx"


def test_states_without_pooling_are_refused(states: Path, export: Export) -> None:
    with pytest.raises(
        ExportError,
        match=r"does not declare how to pool token states .* give --pooling mean, cls, last or max",
    ):
        export(states)


def test_declared_head_of_sentence_transformers(tmp_path: Path, export: Export) -> None:
    """modules.json beside a graph of token states says all the rest."""
    source = tiny_encoders.sentence_transformers(
        "roberta", tmp_path, pooling="cls", layers=Layers(dense=True, normalize=True),
        prompts={"query": "q: ", "document": "d: "}, max_seq_length=40,
    )  # fmt: skip
    folder = converted(tmp_path / "hf", tmp_path / "onnx")
    for path in source.iterdir():
        if path.suffix == ".json":
            shutil.copyfile(path, folder / path.name)
        elif path.is_dir():
            shutil.copytree(path, folder / path.name)
    embed = Embedder(export(folder))
    manifest = embed.bundle.manifest
    assert (manifest.pooling, manifest.normalized, manifest.dimensions) == ("cls", True, 24)
    assert (manifest.prompts.query, manifest.prompts.passage) == ("q: ", "d: ")
    assert manifest.max_tokens == 40
    wanted = tiny_encoders.encode(source, TEXTS, "q: ")
    np.testing.assert_allclose(embed(TEXTS, "q: "), wanted, atol=1e-4)


def test_positions_of_the_roberta_family_begin_after_the_pad(tmp_path: Path, export: Export) -> None:
    folder = converted(tiny_encoders.huggingface("roberta", tmp_path / "hf"), tmp_path / "onnx")
    assert Embedder(export(folder, "--pooling", "last")).bundle.manifest.max_tokens == 128


def test_pooled_graph(pooled: Path, st_bert: Path, export: Export) -> None:
    embed = Embedder(export(pooled))
    manifest = embed.bundle.manifest
    assert (manifest.pooling, manifest.normalized) == (None, True)  # the norm was measured
    np.testing.assert_allclose(embed(TEXTS), tiny_encoders.encode(st_bert, TEXTS), atol=1e-4)


def test_pooled_graph_of_other_lengths(pooled: Path, export: Export) -> None:
    def double(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.float32(2), "two"))
        model.graph.node.append(helper.make_node("Mul", ["sentence_embedding", "two"], ["doubled"]))
        model.graph.output[0].name = "doubled"

    change(pooled, double)
    with pytest.raises(ExportError, match=r"outputs doubled, and none of them is called .* with --output"):
        export(pooled)
    embed = Embedder(export(pooled, "--output", "doubled"))
    assert "--output doubled" in embed.bundle.manifest.provenance.recipe
    assert not embed.bundle.manifest.normalized
    assert np.linalg.norm(embed(["text"])) == pytest.approx(2, abs=1e-4)
    scaled = Embedder(export(pooled, "--output", "doubled", "--normalize", name="scaled"))
    assert scaled.bundle.manifest.normalized
    assert np.linalg.norm(scaled(["text"])) == pytest.approx(1, abs=1e-4)


def test_pooled_graph_refuses_a_pooling(pooled: Path, export: Export) -> None:
    with pytest.raises(ExportError, match=r"pools already"):
        export(pooled, "--pooling", "mean")


def more_outputs(*names: str) -> Callable[[onnx.ModelProto], None]:
    """The graph's output once more under each of these names, and no longer under its own."""

    def add(model: onnx.ModelProto) -> None:
        (old,) = model.graph.output
        model.graph.node.extend(helper.make_node("Identity", [old.name], [name]) for name in names)
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
        del model.graph.output[:]
        model.graph.output.extend(values)

    return add


def test_of_several_outputs_the_ready_vectors_are_taken(pooled: Path, export: Export) -> None:
    change(pooled, more_outputs("token_embeddings", "sentence_embeddings"))
    assert Embedder(export(pooled)).bundle.manifest.pooling is None


def test_unknown_outputs_are_refused_by_name(copy: Path, export: Export) -> None:
    change(copy, more_outputs("logits", "attentions"))
    with pytest.raises(ExportError, match=r"outputs logits, attentions, and none of them is called"):
        export(copy, "--pooling", "mean")


def test_external_data_beside_the_graph(copy: Path, export: Export) -> None:
    model = onnx.load(str(copy / "model.onnx"))
    onnx.save(
        model, str(copy / "model.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    inside = export(copy, "--pooling", "mean")
    files = Embedder(inside).bundle.manifest.variants[0].files
    assert [file.path for file in files] == ["fp32/model.onnx", "fp32/weights.bin"]


def test_weights_of_a_graph_within_the_graph_stay_inside_it(
    copy: Path, export: Export, tmp_path: Path
) -> None:
    """ONNX Runtime takes none of them from memory, so that a server could not give them."""

    def wrap(model: onnx.ModelProto) -> None:
        graph = model.graph
        table = next(each for each in graph.initializer if each.name == "embeddings.word_embeddings.weight")
        graph.initializer.remove(table)
        inner = onnx.TensorProto()
        inner.CopyFrom(table)
        inner.name = "inner"
        chosen = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)
        branch = helper.make_graph(
            [helper.make_node("Identity", ["inner"], ["chosen"])], "b", [], [chosen], [inner]
        )
        yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
        choose = helper.make_node("If", ["yes"], [table.name], then_branch=branch, else_branch=branch)
        nodes = list(graph.node)
        del graph.node[:]
        graph.node.extend([yes, choose, *nodes])

    path = change(copy, wrap) / "model.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    bundle = bundles.read(export(copy, "--pooling", "mean"))
    model = model_of(bundle, bundle.manifest.variants[0], TextInput(bundle.manifest.variants[0].inputs))
    found = OnnxRunner(model, "cpu").run(batch(np.array([2, 7, 3], np.int32)), ALONE)
    assert found["dense"].values.shape == (1, 32)


def test_external_data_outside_of_the_folder_is_refused(copy: Path, export: Export) -> None:
    def escape(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../etc/passwd")

    model = onnx.load(str(copy / "model.onnx"))
    escape(model)
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"'../../etc/passwd', which lies outside"):
        export(copy, "--pooling", "mean")


def test_other_inputs_are_refused_by_name(copy: Path, export: Export) -> None:
    change(copy, lambda model: model.graph.input.add(name="position_ids"))
    with pytest.raises(ExportError, match=r"also needs the inputs position_ids"):
        export(copy, "--pooling", "mean")


def test_int32_inputs_are_refused(copy: Path, export: Export) -> None:
    def narrow(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32

    with pytest.raises(ExportError, match=r"the input input_ids of model.onnx is int32; int64 is needed"):
        export(change(copy, narrow), "--pooling", "mean")


def test_fixed_shapes_are_refused(copy: Path, export: Export) -> None:
    def fix(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 128

    with pytest.raises(ExportError, match=r"dynamic axes"):
        export(change(copy, fix), "--pooling", "mean")


def test_half_precision_output_is_refused(copy: Path, export: Export) -> None:
    def halve(model: onnx.ModelProto) -> None:
        name = model.graph.output[0].name
        model.graph.node.append(helper.make_node("Cast", [name], ["half"], to=TensorProto.FLOAT16))
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info("half", TensorProto.FLOAT16, None))

    with pytest.raises(ExportError, match=r"output half of model.onnx is float16 with 3 dimensions"):
        export(change(copy, halve), "--output", "half", "--pooling", "mean")


def test_quantised_graph_is_refused(copy: Path, export: Export) -> None:
    from onnxruntime.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_dynamic(str(copy / "model.onnx"), str(copy / "model.onnx"))
    with pytest.raises(ExportError, match=r"int8 weights"):
        export(copy, "--pooling", "mean")


def test_a_graph_whose_vectors_depend_on_the_batch_is_refused(copy: Path, export: Export) -> None:
    """As those with activations quantised dynamically do: one scale for the whole batch."""

    def subtract_the_largest(model: onnx.ModelProto) -> None:
        name = model.graph.output[0].name
        model.graph.node.append(helper.make_node("ReduceMax", [name], ["largest"], keepdims=1))
        model.graph.node.append(helper.make_node("Sub", [name, "largest"], ["centred"]))
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info("centred", TensorProto.FLOAT, None))

    with pytest.raises(ExportError, match=r"changes with its neighbours in the batch"):
        export(change(copy, subtract_the_largest), "--output", "centred", "--pooling", "mean")


def test_no_length_anywhere(copy: Path, export: Export) -> None:
    edit_json(copy / "config.json", model_type="mine", max_position_embeddings=None)
    edit_json(copy / "tokenizer_config.json", model_max_length=10**30)
    with pytest.raises(ExportError, match=r"give --max-tokens"):
        export(copy, "--pooling", "mean")
    assert Embedder(export(copy, "--pooling", "mean", "--max-tokens", "77")).bundle.manifest.max_tokens == 77


def test_a_length_beyond_the_graph(copy: Path, export: Export) -> None:
    edit_json(copy / "config.json", model_type="mine", max_position_embeddings=None)
    with pytest.raises(
        ExportError, match=r"the graph fails on .* texts of [0-9]+ tokens.*smaller --max-tokens"
    ):
        export(copy, "--pooling", "mean", "--max-tokens", "900")


def test_left_padding_is_refused(copy: Path, export: Export) -> None:
    edit_json(copy / "tokenizer_config.json", padding_side="left")
    with pytest.raises(ExportError, match=r"pads on the left"):
        export(copy, "--pooling", "mean")


def test_no_padding_token(copy: Path, export: Export) -> None:
    edit_json(copy / "tokenizer_config.json", pad_token=None, tokenizer_class="PreTrainedTokenizerFast")
    edit_json(copy / "tokenizer.json", padding=None)
    with pytest.raises(ExportError, match=r"give `pad_token`"):
        export(copy, "--pooling", "mean")


def test_no_tokenizer(copy: Path, export: Export) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (copy / name).unlink()
    with pytest.raises(ExportError, match=r"has no tokenizer.json: put the one of its source there"):
        export(copy, "--pooling", "mean")


def test_not_an_onnx(copy: Path, export: Export) -> None:
    (copy / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ExportError, match=r"model.onnx is not an ONNX graph"):
        export(copy, "--pooling", "mean")
