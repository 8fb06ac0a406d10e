"""Cross-encoders: sentence-transformers' own, and checkpoints or graphs for sequence classification.

sentence-transformers' CrossEncoder reads them, and its `predict` is the reference of the comparison.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder

from trimtab.artifacts.manifest import Prompts, SpaceParts
from trimtab.errors import ExportError
from trimtab.outputs.scores import Activation
from trimtab_export import runtime, tokens
from trimtab_export.kinds import scores
from trimtab_export.load import (
    files,
    from_onnx,
    from_torch,
    graph_model,
    library,
    refused,
    structure,
    weights,
)
from trimtab_export.source import Graph, Head, Settings, Source

CONFIG = "config_sentence_transformers.json"
CLASSIFIER = "ForSequenceClassification"
LOGITS = "logits"
TASK = "sequence-classification"
# By the class's name in torch.nn.
ACTIVATIONS: dict[str, Activation] = {"Sigmoid": "sigmoid", "Softmax": "softmax", "Identity": "identity"}
MODULES: dict[Activation, Any] = {
    "sigmoid": torch.nn.Sigmoid(), "softmax": torch.nn.Softmax(dim=1), "identity": torch.nn.Identity(),
}  # fmt: skip
NO_HEAD = Head(None)
REFERENCE_BATCH = 8
GRAPH_INSTEAD = (
    "an ONNX graph of it, whose output logits is (n, labels), can be the SOURCE, beside the config.json and "
    "the tokenizer.json of a classifier"
)


def is_one(location: str) -> bool:
    """Whether the files of a folder or hub repository are those of a cross-encoder."""
    if files.find(location, "modules.json") is not None:
        return files.mapping(location, CONFIG).get("model_type") == "CrossEncoder"
    return _architecture(location, "").endswith(CLASSIFIER)


def load(settings: Settings, location: str, graph: Path | None) -> Source:
    """Read the source; its graph, if it has one, instead of torch weights."""
    folder = _folder(location)
    refused.check_files(location, folder)
    _check_options(settings, location)
    activation = _activation(location, folder)
    if graph is None:
        model, backbone, parts = _of_torch(location, folder)
        positions = from_torch.positions(backbone)
    else:
        model, backbone, parts = _of_graph(location, folder, graph)
        positions = from_onnx.positions(model[0].config)
    name = graph.name if graph is not None else settings.source
    library.check(name, model, gives="scores", output=LOGITS, task=TASK)
    labels = _labels(name, model.config)
    activation = activation or ("sigmoid" if len(labels) == 1 else "identity")
    if graph is not None:
        model.activation_fn = MODULES[activation]
    notes = _prompts(name, model)
    tokenizer = tokens.from_transformers(model.tokenizer)
    most = library.max_tokens(name, settings.max_tokens, model, positions, pairs=True)
    return Source(
        backbone=backbone,
        outputs=scores.outputs(labels, activation, _predict(name, model, activation, len(labels)), parts),
        tokenizer=tokenizer,
        prompts=Prompts(),
        max_tokens=most,
        architecture=_architecture(location, folder),
        reads="pair",
        task="text-classification",
        notes=notes,
    )


def _of_torch(location: str, folder: str) -> tuple[Any, Any, SpaceParts]:
    """The library's model, its torch module, and what names the space."""
    cure = f"AutoModelForSequenceClassification.from_pretrained({location!r}).save_pretrained({location!r})"
    refused.check_torch(location, folder, cure)
    model = CrossEncoder(
        location, device="cpu", trust_remote_code=False, model_kwargs=dict(from_torch.NO_PICKLE)
    )
    model.eval()
    backbone = model[0].auto_model
    from_torch.check_weights(location, folder, backbone)
    parts = SpaceParts(
        weights_sha256=weights.of_torch(backbone, NO_HEAD), structure=structure.of_torch(backbone)
    )
    return model, backbone, parts


def _of_graph(location: str, folder: str, path: Path) -> tuple[Any, Graph, SpaceParts]:
    """The same of a graph, which takes the torch module's place in the library."""
    proto = from_onnx.read(path)
    outputs = [value.name for value in proto.graph.output]
    if LOGITS not in outputs:
        raise ExportError(
            f"{path.name} has the outputs {', '.join(outputs)}; a classifier's is called {LOGITS}, (n, "
            "labels)"
        )
    backbone = graph_model.Backbone(runtime.session(path), LOGITS)
    model = graph_model.classifier(location, folder, backbone, TASK)
    given, labels = backbone.of_ones(), model.config.num_labels
    if not isinstance(given, np.ndarray) or given.dtype != np.float32 or given.shape != (2, labels):
        raise ExportError(
            f"the output {LOGITS} of {path.name} is not float32 (n, {labels}), as its config.json has "
            f"{labels} labels"
        )
    parts = SpaceParts(
        weights_sha256=weights.of_arrays(from_onnx.initializers(proto, path), NO_HEAD),
        structure=structure.of_graph(proto, path, LOGITS),
    )
    return model, Graph(path, LOGITS), parts


def _folder(location: str) -> str:
    """The subfolder of the transformer; "" for the top."""
    entries = files.read(location, "modules.json", list)
    if entries is None:
        refused.check_orphans(location)
        return ""
    kinds = [str(entry.get("type", "")) if isinstance(entry, dict) else "" for entry in entries]
    names = [kind.rpartition(".")[2] for kind in kinds]
    if names != ["Transformer"] or not kinds[0].startswith("sentence_transformers."):
        why = " It scores by the tokens of a language model." if "LogitScore" in names else ""
        raise ExportError(
            f"the modules of {location} are {', '.join(names)}; a cross-encoder that can be exported is one "
            f"Transformer for sequence classification.{why} {GRAPH_INSTEAD[0].upper()}{GRAPH_INSTEAD[1:]}"
        )
    folder = str(entries[0].get("path", ""))
    if not _architecture(location, folder).endswith(CLASSIFIER):
        raise ExportError(
            f"{location} is a CrossEncoder of {_architecture(location, folder) or 'an unknown class'}; one "
            f"that can be exported ends in {CLASSIFIER}: {GRAPH_INSTEAD}"
        )
    return folder


def _architecture(location: str, folder: str) -> str:
    names = files.mapping(location, "config.json", folder).get("architectures") or [""]
    return str(names[0]) if isinstance(names, list) else str(names)


def _check_options(settings: Settings, location: str) -> None:
    """Refuse options that say something of vectors."""
    for option, value in (
        ("--pooling", settings.pooling), ("--normalize", settings.normalize or None),
        ("--query-prompt", settings.query_prompt), ("--passage-prompt", settings.passage_prompt),
        ("--output", settings.output if settings.output != LOGITS else None),
        ("--reads", settings.reads if settings.reads != "pair" else None),
    ):  # fmt: skip
        if value is not None:
            raise ExportError(
                f"{location} is a cross-encoder, which reads pairs and gives scores: leave {option} out"
            )


def _activation(location: str, folder: str) -> Activation | None:
    """The declared activation; None if there is none, or nothing is said."""
    config = files.mapping(location, "config.json", folder)
    beside = config.get("sentence_transformers")
    said = (
        files.mapping(location, CONFIG).get("activation_fn")
        or (beside.get("activation_fn") if isinstance(beside, dict) else None)
        or config.get("sbert_ce_default_activation_function")
    )
    if said is None:
        return None
    name = str(said)
    known = ACTIVATIONS.get(name.rpartition(".")[2])
    if known is None or not name.startswith("torch.nn."):
        raise ExportError(
            f"{location} declares the activation function {name}; these of torch.nn can be exported: "
            f"{', '.join(ACTIVATIONS)}"
        )
    return known


def _labels(name: str, config: Any) -> list[str]:
    """What the scores mean, in order."""
    named = config.id2label or {}
    if sorted(named) != list(range(config.num_labels)):
        raise ExportError(
            f"id2label in config.json of {name} names {', '.join(map(str, named))}; a name for each of "
            f"{config.num_labels} labels, from 0 on, is needed"
        )
    return [str(named[number]) for number in range(config.num_labels)]


def _prompts(name: str, model: Any) -> tuple[str, ...]:
    """A line for each declared prompt; refused if the library puts one before every query."""
    default = model.prompts.get(model.default_prompt_name) if model.default_prompt_name else None
    if default:
        raise ExportError(
            f"predict() of {name} puts {default!r} before every first text (default_prompt_name "
            f"{model.default_prompt_name}), which a bundle of pairs does not: take it out of {CONFIG}, and "
            "let callers put it before their queries"
        )
    return tuple(
        f"the prompt {each} ({text!r}) is declared: callers put it before their queries themselves"
        for each, text in model.prompts.items()
        if text
    )


def _predict(name: str, model: Any, declared: Activation, labels: int) -> scores.Predict:
    """The library's own answer; with the declared activation, as it applies it by itself."""

    def predict(pairs: list[Any], activation: Activation) -> NDArray[np.float32]:
        function = None if activation == declared else MODULES[activation]
        try:
            found: NDArray[np.float32] = model.predict(
                pairs, activation_fn=function, batch_size=REFERENCE_BATCH, show_progress_bar=False
            )
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(
                f"{name} itself fails on the pairs of the comparison: {runtime.first_line(error)}. "
                "Do its tokenizer and its weights belong together?"
            ) from error
        return found.reshape(len(pairs), labels)

    return predict
