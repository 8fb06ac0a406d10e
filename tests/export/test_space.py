"""A space's name follows from all that places a vector, shown by a tensor or not, and from no more."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import tiny_encoders
from onnx import TensorProto, helper, numpy_helper

from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import manifest as manifests
from trimtab.artifacts import space
from trimtab.errors import BundleError
from trimtab_export.load import load, structure
from trimtab_export.source import Settings


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny encoder of each family."""
    families = ("bert", "distilbert", "roberta")
    return {name: tiny_encoders.huggingface(name, tmp_path_factory.mktemp(name)) for name in families}


def parts(source: Path) -> manifests.SpaceParts:
    return load(Settings(str(source), pooling="mean")).space_parts


def configured(source: Path, target: Path, **changes: Any) -> manifests.SpaceParts:
    """The same weights under another config.json."""
    shutil.copytree(source, target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return parts(target)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bert", {"num_attention_heads": 4}),
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"layer_norm_eps": 1e-3}),
        ("bert", {"is_decoder": True}),
        ("bert", {"rope_theta": 5000.0}),  # unknown to this class
        ("distilbert", {"n_heads": 4}),
        ("distilbert", {"activation": "relu"}),
        ("roberta", {"num_attention_heads": 4}),
        ("roberta", {"pad_token_id": 2}),  # positions begin there
    ],
)
def test_what_no_tensor_shows(
    folders: dict[str, Path], family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    whole, other = parts(folders[family]), configured(folders[family], tmp_path / "other", **changes)
    assert other.weights_sha256 == whole.weights_sha256
    assert other.structure != whole.structure


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_version": "3.0", "architectures": ["BertForMaskedLM"], "_name_or_path": "elsewhere"},
        {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.2, "attention_probs_dropout_prob": 0.0},
        {"id2label": {"0": "no", "1": "yes", "2": "perhaps"}, "label2id": {"no": 0, "yes": 1, "perhaps": 2}},
        {"initializer_range": 1.0, "use_cache": False, "torch_dtype": "float16"},
        {"hidden_act": "gelu", "layer_norm_eps": 1e-12},  # what the class says anyway
    ],
)
def test_what_places_nothing(folders: dict[str, Path], changes: dict[str, Any], tmp_path: Path) -> None:
    whole = parts(folders["bert"])
    assert configured(folders["bert"], tmp_path / "other", **changes) == whole


def graph(scale: float = 2.0, axis: int = 1, operator: str = "Tanh", names: str = "t") -> onnx.ModelProto:
    """ids -> a table's rows, scaled, summed in a subgraph, and one node that nothing reads."""
    made = [f"{names}{number}" for number in range(6)]
    value = helper.make_tensor_value_info
    inner = helper.make_graph(
        [helper.make_node("ReduceSum", [made[2], "axis"], [f"{names}sum"], keepdims=0)],
        "inner", [], [value(f"{names}sum", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([axis]), "axis")],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("ReduceMax", [made[2], "axis"], [f"{names}max"], keepdims=0)],
        "other", [], [value(f"{names}max", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([1]), "axis")],
    )  # fmt: skip
    nodes = [
        helper.make_node("Gather", [f"{names}table", "input_ids"], [made[0]]),
        helper.make_node("Constant", [], [made[1]], value=numpy_helper.from_array(np.float32([scale]))),
        helper.make_node("Mul", [made[0], made[1]], [made[2]]),
        helper.make_node("If", [f"{names}yes"], [made[3]], then_branch=inner, else_branch=other),
        helper.make_node(operator, [made[3]], ["embeddings"]),
        helper.make_node("Neg", [made[0]], [made[5]]),
    ]
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    constants = {f"{names}table": table, f"{names}yes": np.array(True)}
    built = helper.make_graph(
        nodes, "g", [value("input_ids", TensorProto.INT64, ["n", "l"])],
        [value("embeddings", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(built, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def digest(model: onnx.ModelProto, path: Path = Path("model.onnx")) -> dict[str, Any]:
    return structure.of_graph(model, path, "embeddings")


@pytest.mark.parametrize("changes", [{"scale": 2.5}, {"axis": 0}, {"operator": "Relu"}])
def test_another_computation(changes: dict[str, Any]) -> None:
    assert digest(graph(**changes)) != digest(graph())


def test_other_inputs() -> None:
    swapped = graph()
    del swapped.graph.node[2].input[:]
    swapped.graph.node[2].input.extend(["t0", "t0"])
    assert digest(swapped) != digest(graph())
    later = graph()
    later.opset_import[0].version = 19
    assert digest(later) != digest(graph())


def test_the_same_computation(tmp_path: Path) -> None:
    """Names, order, documentation, dead nodes, and where the weights lie."""
    whole = digest(graph())
    assert digest(graph(names="renamed")) == whole
    moved = graph()
    nodes = list(moved.graph.node)
    del moved.graph.node[:]
    moved.graph.node.extend([nodes[1], nodes[0], *nodes[2:5]])
    moved.graph.node[0].doc_string = moved.producer_name = "elsewhere"
    assert digest(moved) == whole
    path = tmp_path / "model.onnx"
    onnx.save(
        graph(), path, save_as_external_data=True, location="data.bin", size_threshold=0,
        convert_attribute=True,
    )  # fmt: skip
    assert (tmp_path / "data.bin").stat().st_size
    assert digest(onnx.load(path, load_external_data=False), path) == whole


@pytest.mark.parametrize(
    "edit",
    [
        lambda given, output: given["prompts"].update(query="query: "),
        lambda given, output: given["processor"].update(sha256="0" * 64),
        lambda given, output: given["settings"].update(lower_case=True),
        lambda given, output: output.update(normalized=not output["normalized"]),
        lambda given, output: output.update(pooling="cls"),
        lambda given, output: output.update(space="0" * 16),
        lambda given, output: output["space_parts"]["structure"].update(num_attention_heads=4),
        lambda given, output: output["space_parts"].update(weights_sha256="0" * 64),
        lambda given, output: output.update(settings={"most": 3}),
    ],
    ids=["prompt", "tokenizer", "setting", "normalized", "pooling", "space", "heads", "weights", "settings"],
)
def test_an_edited_manifest(edit: Callable[[Any, Any], object], tiny_bundle: Path, tmp_path: Path) -> None:
    """It keeps no space that it is not of: a request for that space would be answered by something else."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "1")
    path = folder / bundles.MANIFEST
    content = json.loads(path.read_text())
    edit(content["inputs"][0], content["outputs"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"names the space [0-9a-f]{16}, and what it says .* it was edited"):
        bundles.read(folder, verify=False)


def test_what_is_compared_and_how_much_is_read_places_nothing(tiny_bundle: Path) -> None:
    """Nor does what fills up a batch."""
    manifest = bundles.read(tiny_bundle).manifest
    given = msgspec.structs.replace(manifest.input, most_units=17, settings={"pad_id": 3})
    output = msgspec.structs.replace(manifest.output, similarity="dot", int8_limit=0.5, space="0" * 16)
    assert space.digest(output, [given]) == manifest.space


def test_spaces_of_text_and_dense_vectors_have_the_names_that_they_had(tiny_bundle: Path) -> None:
    """An index that was made with a bundle of format 2 is still searched."""
    manifest = bundles.read(tiny_bundle).manifest
    content = {
        "weights": manifest.output.space_parts.weights_sha256,
        "structure": manifest.output.space_parts.structure,
        "tokenizer": manifest.tokenizer.sha256,
        "prompts": {"query": manifest.prompts.query, "passage": manifest.prompts.passage},
        "pooling": manifest.pooling,
        "normalized": manifest.normalized,
    }
    assert manifest.space == hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:16]


@pytest.mark.parametrize("format", [1, 2])
def test_an_older_format(format: int, tiny_bundle: Path, tmp_path: Path) -> None:
    """It lacks what this one asks for, and is told by its number, not by that."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "1")
    path = folder / bundles.MANIFEST
    content = json.loads(path.read_text()) | {"format": format}
    del content["outputs"]
    path.write_text(json.dumps(content))
    message = f"is of format {format}, this Trimtab reads format 3: export it again .*`trimtab export`"
    with pytest.raises(BundleError, match=message):
        bundles.read(folder)
