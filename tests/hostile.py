"""Encoders and adapters that break, lie, loop or eat memory, each in its own way, and a good one beside them.

All are tiny and made in a moment. `ENCODERS` and `ADAPTERS` say of each what has to be said of it when it is
loaded; those that only misbehave at a certain input say so when they meet it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import tokenizers
from onnx import TensorProto, helper, numpy_helper

from tests import manifests_made
from tests.variants_made import card
from trimtab.artifacts import artifact
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.artifact import File
from trimtab.artifacts.manifest import BundleVariant, SpaceParts

WORDS = [f"w{number}" for number in range(50)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
DIMENSIONS = 16
MOST_TOKENS = 64
TABLE = np.random.default_rng(0).normal(size=(len(WORDS) + len(SPECIAL), DIMENSIONS)).astype(np.float32)
# Bytes that nobody has: more than a rehearsal may take, and not so many that asking for them fails at once.
HUGE = 10_000_000_000

Node = onnx.NodeProto
INT64, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL


def vectors(texts: Sequence[str]) -> np.ndarray:
    """What the good encoder makes of texts of WORDS: float32 (n, DIMENSIONS)."""
    known = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    sums = np.stack([TABLE[[2, *(known[word] for word in text.split()), 3]].sum(axis=0) for text in texts])
    unit: np.ndarray = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return unit


# -- graphs ------------------------------------------------------------------------------------------------


def value(name: str, kind: int, shape: list[Any] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: list[Node], inputs: Any, outputs: Any, constants: dict[str, np.ndarray], *domains: str
) -> bytes:
    """A graph of these parts; what it declares is not checked."""
    initializers = [numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items()]
    graph = helper.make_graph(nodes, "hostile", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(each, 1) for each in domains)]
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return serialized


def encoder(
    more: Sequence[Node] = (),
    *,
    output: Any = None,
    result: str = "unit",
    constants: dict[str, Any] | None = None,
    name: str = "embeddings",
    domains: Sequence[str] = (),
    table: np.ndarray = TABLE,
) -> bytes:
    """The good encoder's graph, with nodes behind it: they read `unit`, float (n, DIMENSIONS), or `ids` and
    `mask`; `result` is what it gives as its output."""
    inputs = [value(each, INT64, ["n", "l"]) for each in ("input_ids", "attention_mask")]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=FLOAT),
        helper.make_node("Unsqueeze", ["real", "two"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], ["unit"], axis=1, p=2),
        *more,
    ]
    nodes.append(helper.make_node("Identity", [result], [name]))
    shared = {"table": table, "one": np.array([1]), "two": np.array([2]), **(constants or {})}
    outputs = [output or value(name, FLOAT, ["n", DIMENSIONS])]
    return model(nodes, inputs, outputs, shared, *domains)


def endless(condition: str, source: str, result: str) -> list[Node]:
    """A loop that goes on while the bool `condition` holds: for ever, or not at all."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["on_"]),
            helper.make_node("Mul", ["x", "unity"], ["x_"]),
        ],
        "body",
        [value("turn", INT64, []), value("on", BOOL, []), value("x", FLOAT, None)],
        [value("on_", BOOL, []), value("x_", FLOAT, None)],
        [numpy_helper.from_array(np.ones((), np.float32), "unity")],
    )
    return [helper.make_node("Loop", ["", condition, source], [result], body=body)]


def length_at_least(tokens: int) -> tuple[list[Node], dict[str, Any]]:
    """The bool `long`: whether the texts are padded to so many tokens."""
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["shape"]),
        helper.make_node("Gather", ["shape", "axis"], ["length"]),
        helper.make_node("GreaterOrEqual", ["length", "limit"], ["long"]),
    ]
    return nodes, {"axis": np.array(1), "limit": np.array(tokens)}


def failing_if(condition: str, source: str, result: str) -> list[Node]:
    """A node that fails where the bool `condition` holds: a row beyond the end is gathered."""
    return [
        helper.make_node("Cast", [condition], ["index"], to=INT64),
        helper.make_node("Gather", ["single", "index"], ["zero"]),
        helper.make_node("Add", [source, "zero"], [result]),
    ]


def length_is(tokens: int) -> tuple[list[Node], dict[str, Any]]:
    """The bool `exact`: whether the texts are padded to just so many tokens."""
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["shape"]),
        helper.make_node("Gather", ["shape", "axis"], ["length"]),
        helper.make_node("Equal", ["length", "wanted"], ["exact"]),
    ]
    return nodes, {"axis": np.array(1), "wanted": np.array(tokens)}


SINGLE = {"single": np.zeros(1, np.float32)}


def looping() -> bytes:
    return encoder(endless("always", "unit", "end"), result="end", constants={"always": np.array(True)})


def looping_when_long(tokens: int) -> bytes:
    nodes, constants = length_at_least(tokens)
    return encoder([*nodes, *endless("long", "unit", "end")], result="end", constants=constants)


def looping_at(tokens: int) -> bytes:
    nodes, constants = length_is(tokens)
    return encoder([*nodes, *endless("exact", "unit", "end")], result="end", constants=constants)


def raising_when_long(tokens: int) -> bytes:
    nodes, constants = length_at_least(tokens)
    more = [*nodes, *failing_if("long", "unit", "end")]
    return encoder(more, result="end", constants={**constants, **SINGLE})


def raising_when_short(tokens: int) -> bytes:
    nodes, constants = length_at_least(tokens)
    more = [*nodes, helper.make_node("Not", ["long"], ["short"]), *failing_if("short", "unit", "end")]
    return encoder(more, result="end", constants={**constants, **SINGLE})


def huge() -> bytes:
    more = [
        helper.make_node("Shape", ["unit"], ["shape"]),
        helper.make_node("Mul", ["shape", "many"], ["large"]),
        helper.make_node("Expand", ["single", "large"], ["filled"]),
        helper.make_node("ReduceSum", ["filled"], ["total"], keepdims=0),
        helper.make_node("Add", ["unit", "total"], ["end"]),
    ]
    many = np.array([1, HUGE // 4 // DIMENSIONS])
    return encoder(more, result="end", constants={"many": many, **SINGLE})


def of_type(kind: int) -> bytes:
    more = [helper.make_node("Cast", ["unit"], ["end"], to=kind)]
    return encoder(more, result="end", output=value("embeddings", kind, ["n", DIMENSIONS]))


def sequence() -> bytes:
    more = [helper.make_node("SequenceConstruct", ["unit"], ["end"])]
    output = helper.make_tensor_sequence_value_info("embeddings", FLOAT, ["n", DIMENSIONS])
    return encoder(more, result="end", output=output)


def optional() -> bytes:
    more = [helper.make_node("Optional", ["unit"], ["end"])]
    kind = helper.make_tensor_type_proto(FLOAT, ["n", DIMENSIONS])
    output = helper.make_value_info("embeddings", helper.make_optional_type_proto(kind))
    return encoder(more, result="end", output=output)


def rank_three() -> bytes:
    more = [helper.make_node("Unsqueeze", ["unit", "one"], ["end"])]
    return encoder(more, result="end", output=value("embeddings", FLOAT, ["n", 1, DIMENSIONS]))


def one_row_more() -> bytes:
    more = [helper.make_node("Concat", ["unit", "row"], ["end"], axis=0)]
    return encoder(more, result="end", constants={"row": np.zeros((1, DIMENSIONS), np.float32)})


def first_row_for_all() -> bytes:
    more = [
        helper.make_node("Gather", ["unit", "first"], ["top"], axis=0),
        helper.make_node("Sub", ["unit", "unit"], ["nothing"]),
        helper.make_node("Add", ["top", "nothing"], ["end"]),
    ]
    return encoder(more, result="end", constants={"first": np.array([0])})


def random(scale: float) -> bytes:
    """Noise of this size is added to each component, other noise each time."""
    more = [
        helper.make_node("RandomNormalLike", ["unit"], ["noise"], scale=scale),
        helper.make_node("Add", ["unit", "noise"], ["noisy"]),
        helper.make_node("LpNormalization", ["noisy"], ["end"], axis=1, p=2),
    ]
    return encoder(more, result="end")


def long_vectors() -> bytes:
    more = [helper.make_node("Add", ["unit", "unit"], ["end"])]
    return encoder(more, result="end")


def nan() -> bytes:
    more = [
        helper.make_node("Sub", ["unit", "unit"], ["nothing"]),
        helper.make_node("Div", ["nothing", "nothing"], ["end"]),
    ]
    return encoder(more, result="end")


def unknown_node(domain: str) -> bytes:
    node = helper.make_node("Nonsense", ["unit"], ["end"], domain=domain)
    return encoder([node], result="end", domains=[domain] if domain else [])


# -- bundles -----------------------------------------------------------------------------------------------


def tokenizer(words: Sequence[str] = WORDS) -> tokenizers.Tokenizer:
    """A word is a token, between two special ones."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *words))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def bundle(
    repository: Path,
    name: str,
    graph: bytes | None = None,
    *,
    tokenizer_json: str | None = None,
    version: int = 1,
    data: Mapping[str, bytes] | None = None,
    harm: Callable[[Path], None] | None = None,
    **changes: Any,
) -> Path:
    """REPOSITORY/NAME/VERSION with this graph and the data beside it; `harm` is done to the whole folder."""
    folder = repository / name / str(version)
    (folder / "fp32").mkdir(parents=True)
    (folder / "fp32" / "model.onnx").write_bytes(encoder() if graph is None else graph)
    for file, content in (data or {}).items():
        (folder / "fp32" / file).write_bytes(content)
    (folder / "tokenizer.json").write_text(tokenizer_json or tokenizer().to_str())
    variant = BundleVariant(
        name="fp32", precision="fp32", inputs=("input_ids", "attention_mask"), unpadded=False,
        tensors=manifests_made.TENSORS,
        files=tuple(entry(folder, f"fp32/{file}") for file in ("model.onnx", *(data or {}))),
        report=msgspec.structs.replace(card(1.0), fidelity=None),
    )  # fmt: skip
    given = manifests_made.text(entry(folder, "tokenizer.json"), MOST_TOKENS)
    output = manifests_made.dense(given, SpaceParts(weights_sha256="0" * 64, structure={}), DIMENSIONS)
    manifest = manifests_made.manifest(name, version, given, output, [variant])
    manifest = manifests_made.changed(manifest, **changes)
    (folder / bundles.MANIFEST).write_bytes(msgspec.json.encode(manifest))
    if harm is not None:
        harm(folder)
    return folder


def entry(folder: Path, path: str) -> File:
    """A file as a manifest names it."""
    return msgspec.structs.replace(artifact.digest(folder / path), path=path)


# -- adapters' graphs: `vectors` float (n, DIMENSIONS) to `adapted`, the same -------------------------------


def adapter(
    nodes: Sequence[Node] = (),
    *,
    result: str = "vectors",
    kind: int = FLOAT,
    shape: Any = ("n", DIMENSIONS),
    output: Any = None,
    constants: dict[str, Any] | None = None,
) -> bytes:
    """The identity, or what `nodes` make of `vectors` as `result`."""
    inputs = [value("vectors", kind, list(shape))]
    outputs = [output or value("adapted", FLOAT, ["n", DIMENSIONS])]
    return model(
        [*nodes, helper.make_node("Identity", [result], ["adapted"])], inputs, outputs, constants or {}
    )


def any_below(limit: float) -> tuple[list[Node], dict[str, Any]]:
    """The bool `below`: whether the first component of the first row is below a limit."""
    nodes = [
        helper.make_node("Gather", ["vectors", "first"], ["row"], axis=0),
        helper.make_node("Gather", ["row", "first"], ["component"], axis=0),
        helper.make_node("Less", ["component", "limit"], ["below"]),
    ]
    return nodes, {"first": np.array(0), "limit": np.array(limit, np.float32)}


def any_like(vector: np.ndarray) -> tuple[list[Node], dict[str, Any]]:
    """The bool `below`: whether any row is this vector of length 1, whatever stands beside it."""
    nodes = [
        helper.make_node("MatMul", ["vectors", "vector"], ["cosines"]),
        helper.make_node("ReduceMax", ["cosines"], ["nearest"], keepdims=0),
        helper.make_node("Greater", ["nearest", "same"], ["below"]),
    ]
    return nodes, {"vector": vector.astype(np.float32), "same": np.array(0.9999, np.float32)}


def looping_adapter(limit: float = 1e9, at: np.ndarray | None = None) -> bytes:
    nodes, constants = any_below(limit) if at is None else any_like(at)
    return adapter([*nodes, *endless("below", "vectors", "end")], result="end", constants=constants)


def raising_adapter(limit: float = 1e9, at: np.ndarray | None = None) -> bytes:
    nodes, constants = any_below(limit) if at is None else any_like(at)
    more = [*nodes, *failing_if("below", "vectors", "end")]
    return adapter(more, result="end", constants={**constants, **SINGLE})


def nan_adapter() -> bytes:
    nodes = [
        helper.make_node("Sub", ["vectors", "vectors"], ["nothing"]),
        helper.make_node("Div", ["nothing", "nothing"], ["end"]),
    ]
    return adapter(nodes, result="end")


def huge_adapter() -> bytes:
    nodes = [
        helper.make_node("Expand", ["single", "large"], ["filled"]),
        helper.make_node("ReduceSum", ["filled"], ["total"], keepdims=0),
        helper.make_node("Add", ["vectors", "total"], ["end"]),
    ]
    return adapter(nodes, result="end", constants={"large": np.array([HUGE // 4]), **SINGLE})


def random_adapter(scale: float) -> bytes:
    nodes = [
        helper.make_node("RandomNormalLike", ["vectors"], ["noise"], scale=scale),
        helper.make_node("Add", ["vectors", "noise"], ["end"]),
    ]
    return adapter(nodes, result="end")


def first_row_adapter() -> bytes:
    nodes = [
        helper.make_node("Gather", ["vectors", "first"], ["top"], axis=0),
        helper.make_node("Sub", ["vectors", "vectors"], ["nothing"]),
        helper.make_node("Add", ["top", "nothing"], ["end"]),
    ]
    return adapter(nodes, result="end", constants={"first": np.array([0])})


def sequence_adapter() -> bytes:
    output = helper.make_tensor_sequence_value_info("adapted", FLOAT, ["n", DIMENSIONS])
    return adapter([helper.make_node("SequenceConstruct", ["vectors"], ["end"])], result="end", output=output)


def scalar_adapter() -> bytes:
    return adapter(shape=())


def half_adapter() -> bytes:
    nodes = [helper.make_node("Cast", ["vectors"], ["end"], to=FLOAT)]
    return adapter(nodes, result="end", kind=TensorProto.FLOAT16)
