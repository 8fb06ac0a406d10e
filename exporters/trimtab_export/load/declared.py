"""What a sentence-transformers folder declares about itself, checked before anything is loaded.

sentence-transformers is lenient: a model of another kind becomes a mean of token states, an activation that
it does not trust becomes Tanh. An export must not guess, so both are refused here by name.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from trimtab.bundle import Pooling, Prompts, Similarity
from trimtab.errors import ExportError
from trimtab_export.source import Activation, Dense, Head, Layer, Normalize, Settings

PACKAGE = "sentence_transformers."
MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last", "max": "max"}
# The roles of sentence-transformers' prompts that mean a passage, in its own order.
PASSAGE_ROLES = ("document", "passage", "corpus")


@dataclass(frozen=True)
class Declared:
    """modules.json and config_sentence_transformers.json: (class, subfolder) of each module, and the rest."""

    modules: tuple[tuple[str, str], ...]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def transformer_folder(self) -> str:
        return self.modules[0][1]


def read(location: str) -> Declared | None:
    """What the folder or the hub's repository declares; None where it has no modules.json."""
    from sentence_transformers.util import load_file_path

    path = load_file_path(location, "modules.json")
    if path is None:
        return None
    modules = []
    for number, entry in enumerate(json.loads(Path(path).read_text("utf-8"))):
        kind = str(entry["type"]).rpartition(".")[2]
        if not str(entry["type"]).startswith(PACKAGE) or kind not in MODULES:
            raise ExportError(
                f"module {number} of {location} is {entry['type']}, which cannot be exported; "
                f"these can: {', '.join(MODULES)} of sentence-transformers"
            )
        modules.append((kind, str(entry["path"])))
    order = [kind for kind, _ in modules]
    if order[:2] != ["Transformer", "Pooling"] or not set(order[2:]) <= {"Dense", "Normalize"}:
        raise ExportError(
            f"the modules of {location} are {', '.join(order)}; those of an encoder that can be exported are "
            "Transformer, Pooling, and then any of Dense and Normalize"
        )
    config_path = load_file_path(location, "config_sentence_transformers.json")
    config = json.loads(Path(config_path).read_text("utf-8")) if config_path else {}
    _check_config(location, config)
    return Declared(tuple(modules), config)


def _check_config(location: str, config: Mapping[str, Any]) -> None:
    kind = config.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise ExportError(
            f"{location} is a {kind}; only a SentenceTransformer, one vector a text, can be exported"
        )
    if config.get("truncate_dim") is not None:
        raise ExportError(
            f"{location} cuts its vectors to truncate_dim = {config['truncate_dim']}: take it out of "
            "config_sentence_transformers.json, and let each request ask for the dimensions it wants"
        )


def head(location: str, declared: Declared) -> Head:
    """The head: the source's own modules, loaded by their library, as plain data."""
    from sentence_transformers.sentence_transformer.modules import Dense as DenseModule
    from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule

    (_, pooling_folder), *rest = declared.modules[1:]
    pooling = _pooling(PoolingModule.load(location, subfolder=pooling_folder))
    layers: list[Layer] = []
    for kind, folder in rest:
        if kind == "Normalize":
            layers.append(Normalize())
            continue
        config = DenseModule.load_config(location, subfolder=folder)
        activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
        known = activation.rpartition(".")[2]
        if not activation.startswith("torch.nn.") or known not in get_args(Activation):
            raise ExportError(
                f"{folder} of {location} has the activation function {activation}; "
                f"these of torch.nn can be exported: {', '.join(get_args(Activation))}"
            )
        if (name := config.get("module_input_name", "sentence_embedding")) != "sentence_embedding":
            raise ExportError(
                f"{folder} of {location} reads {name}; only a Dense layer after the pooling can be exported"
            )
        layers.append(_dense(DenseModule.load(location, subfolder=folder), cast(Activation, known)))
    return Head(pooling, tuple(layers))


def _pooling(module: Any) -> Pooling:
    mode = module.pooling_mode
    if not isinstance(mode, str):
        raise ExportError(
            f"the pooling joins several modes, {' and '.join(mode)}; one of {', '.join(POOLINGS)} is needed"
        )
    if mode not in POOLINGS:
        raise ExportError(f"the pooling mode {mode} cannot be exported; these can: {', '.join(POOLINGS)}")
    if not module.include_prompt:
        raise ExportError(
            "the pooling leaves the prompt's tokens out (include_prompt = false), which cannot be exported"
        )
    return POOLINGS[mode]


def _dense(module: Any, activation: Activation) -> Dense:
    def array(parameter: Any) -> NDArray[np.float32]:
        values: NDArray[np.float32] = parameter.detach().float().numpy()
        return values

    bias = module.linear.bias
    return Dense(array(module.linear.weight), None if bias is None else array(bias), activation)


def prompts(config: Mapping[str, Any], settings: Settings) -> Prompts:
    """The prompt of each role: the user's where one is given, else the declared one."""
    declared: Mapping[str, str | None] = config.get("prompts") or {}
    passage = next((text for role in PASSAGE_ROLES if (text := declared.get(role))), "")
    return Prompts(
        query=(declared.get("query") or "") if settings.query_prompt is None else settings.query_prompt,
        passage=passage if settings.passage_prompt is None else settings.passage_prompt,
    )


def similarity(config: Mapping[str, Any]) -> Similarity:
    """How vectors are compared: as declared, else by cosine, as sentence-transformers does."""
    name = config.get("similarity_fn_name") or "cosine"
    if name not in get_args(Similarity):
        raise ExportError(f"the similarity {name!r} is not one of {', '.join(get_args(Similarity))}")
    return cast(Similarity, name)


def check_not_overridden(source: str, settings: Settings, declared: Head) -> None:
    """Refuse --pooling and --normalize that contradict what the source declares."""
    if settings.pooling not in (None, declared.pooling):
        raise ExportError(
            f"{source} declares the pooling {declared.pooling}: --pooling {settings.pooling} would make "
            "another encoder. Leave it out"
        )
    if settings.normalize and not declared.normalizes:
        raise ExportError(
            f"{source} declares its modules, and no Normalize at the end: leave --normalize out"
        )


def max_tokens(asked: int | None, limits: Sequence[int | None], positions: int | None) -> int:
    """How many tokens of a text are read.

    Args:
        asked: --max-tokens.
        limits: what the source's files say; None and absurdly large numbers mean that they do not.
        positions: the texts' length that the backbone has positions for; None where it has no such limit.
    """
    if asked is not None:
        if positions is not None and asked > positions:
            raise ExportError(f"--max-tokens {asked} is more than the encoder's {positions} positions")
        return asked
    known = [limit for limit in (*limits, positions) if limit is not None and 0 < limit < UNLIMITED]
    if not known:
        raise ExportError("the source does not say how many tokens of a text it reads: give --max-tokens")
    return min(known)


UNLIMITED = 1_000_000  # tokenizers without a limit say 10**30
