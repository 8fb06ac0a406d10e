"""The part of a space's name that affects vectors but is not in any tensor.

Heads, activations, epsilons, positions and the order of layers: with other values, the same tensors give
other vectors. For torch, this is the configuration without the keys known to be irrelevant, so that an
unknown key makes another space instead of being missed. For an ONNX source, it is the computation.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from trimtab_export.load import weights

# Names, labels, versions, precision, training, and what is done with token states afterwards.
IDLE = {
    "architectures",
    "bad_words_ids",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "do_sample",
    "dtype",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "label2id",
    "max_length",
    "min_length",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "prefix",
    "problem_type",
    "return_dict",
    "sbert_ce_default_activation_function",
    "sentence_transformers",
    "task_specific_params",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
}
TRAINING = ("dropout", "layerdrop")  # in a key's name


def of_torch(backbone: Any) -> dict[str, Any]:
    """The class, and the values of config.json that affect a vector, except the class's defaults.

    So a checkpoint that spells out a default equals one that omits it.
    """
    config = backbone.config
    defaults = {} if config.has_no_defaults_at_init else type(config)().to_dict()
    values = {
        key: value
        for key, value in config.to_dict().items()
        if not (key in IDLE or key.startswith("_") or any(word in key for word in TRAINING))
        and (key not in defaults or value != defaults[key])
    }
    # As it will look when the manifest is read.
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(values, enc_hook=str))
    return {"class": type(backbone).__name__, **plain}


def of_graph(model: Any, path: Path, output: str) -> dict[str, Any]:
    """A digest of how a graph computes `output` from its inputs.

    Args:
        model: the ONNX model, its external data not loaded.
        path: its file; the external data lies next to it.
    """
    digester = _Digester(model, path.parent)
    return {"graph_sha256": digester.graph(model.graph, {}, [output]), "opsets": digester.opsets}


class _Digester:
    """A tensor's digest covers its node: operator, attributes, and the digests of the node's inputs.

    So it does not depend on the names and order of nodes and tensors, on where the weights are stored, or on
    anything that does not affect the output.
    """

    def __init__(self, model: Any, folder: Path) -> None:
        self._folder = str(folder)
        self._functions = {(each.domain, each.name): each for each in model.functions}
        self.opsets = {each.domain or "ai.onnx": each.version for each in model.opset_import}

    def graph(self, graph: Any, outer: Mapping[str, str], outputs: Iterable[str]) -> str:
        """The digests of these outputs; `outer` has the outer tensors that a subgraph can read."""
        known = dict(outer)
        # The model's inputs are fed by name, a subgraph's by position.
        for number, value in enumerate(graph.input):
            known[value.name] = _hash("input", number if outer else value.name)
        for tensor in graph.initializer:
            known[tensor.name] = self._tensor(tensor)
        for sparse in graph.sparse_initializer:
            known[sparse.values.name] = self._sparse(sparse)
        self._nodes(graph.node, known)
        return _hash("graph", *(known[name] for name in outputs))

    def _nodes(self, nodes: Iterable[Any], known: dict[str, str]) -> None:
        for node in nodes:  # in topological order
            digest = _hash(
                "node",
                self._operator(node),
                *(known[name] if name else "" for name in node.input),
                *sorted(self._attribute(each, known) for each in node.attribute),
            )
            known.update((name, _hash(digest, number)) for number, name in enumerate(node.output) if name)

    def _operator(self, node: Any) -> str:
        function = self._functions.get((node.domain, node.op_type))
        if function is None:
            return f"{node.domain or 'ai.onnx'} {node.op_type}"
        known = {name: _hash("input", number) for number, name in enumerate(function.input)}
        self._nodes(function.node, known)
        defaults = sorted(self._attribute(each, known) for each in function.attribute_proto)
        return _hash("function", *(known[name] for name in function.output), *defaults)

    def _attribute(self, attribute: Any, known: Mapping[str, str]) -> str:
        if attribute.ref_attr_name:
            return _hash("reference", attribute.name, attribute.ref_attr_name)
        match attribute.type:
            case AttributeProto.TENSOR | AttributeProto.TENSORS:
                values = [self._tensor(each) for each in (*attribute.tensors, attribute.t)]
            case AttributeProto.SPARSE_TENSOR | AttributeProto.SPARSE_TENSORS:
                values = [self._sparse(each) for each in (*attribute.sparse_tensors, attribute.sparse_tensor)]
            case AttributeProto.GRAPH | AttributeProto.GRAPHS:
                graphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                values = [self.graph(each, known, [output.name for output in each.output]) for each in graphs]
            case _:
                values = [repr(helper.get_attribute_value(attribute))]
        return _hash("attribute", attribute.name, attribute.type, *values)

    def _tensor(self, tensor: Any) -> str:
        array = numpy_helper.to_array(tensor, base_dir=self._folder)
        if tensor.data_type == TensorProto.STRING:
            return _hash("tensor", tensor.data_type, array.shape, *map(repr, array.ravel()))
        return weights.digest([(str(tensor.data_type), array)])

    def _sparse(self, sparse: Any) -> str:
        return _hash("sparse", tuple(sparse.dims), self._tensor(sparse.values), self._tensor(sparse.indices))


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()
