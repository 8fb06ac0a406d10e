"""The declarations of a sentence-transformers folder, checked before anything is loaded.

sentence-transformers is lenient: it turns a model of another kind into a mean of token states, and an
untrusted activation into Tanh. An export must not guess, so both are refused here by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from trimtab.errors import ExportError
from trimtab.kinds import Similarity
from trimtab_export.load import files
from trimtab_export.source import Activation, Head, Settings

PACKAGE = "sentence_transformers."
ENTRY = ("name", "type", "path")
MODULES = ("Transformer", "Pooling", "Dense", "Normalize")


@dataclass(frozen=True)
class Declared:
    """modules.json, as (class, subfolder) of each module, and config_sentence_transformers.json."""

    modules: tuple[tuple[str, str], ...]
    config: Mapping[str, Any]

    @property
    def transformer_folder(self) -> str:
        return self.modules[0][1]

    def folders(self, kind: str) -> list[str]:
        """The subfolders of the modules of this class."""
        return [folder for each, folder in self.modules if each == kind]


def read(location: str) -> Declared | None:
    """The declarations of the folder or hub repository; None if it has no modules.json."""
    entries = files.read(location, "modules.json", list)
    if entries is None:
        return None
    modules = tuple(_module(location, number, entry) for number, entry in enumerate(entries))
    order = [kind for kind, _ in modules]
    if order[:2] != ["Transformer", "Pooling"] or not set(order[2:]) <= {"Dense", "Normalize"}:
        raise ExportError(
            f"the modules of {location} are {', '.join(order)}; an encoder that can be exported has "
            "Transformer, Pooling, and then any of Dense and Normalize"
        )
    config = files.mapping(location, "config_sentence_transformers.json")
    declared = Declared(modules, config)
    check_config(location, config)
    for folder in (*declared.folders("Pooling"), *declared.folders("Dense")):
        if not files.mapping(location, "config.json", folder):
            raise ExportError(
                f"{location} has no {folder}/config.json, or nothing in it, and its modules.json names it"
            )
    for folder in declared.folders("Dense"):
        _check_dense(location, folder, files.mapping(location, "config.json", folder))
    return declared


def _module(location: str, number: int, entry: Any) -> tuple[str, str]:
    """The class (by its name in the library's package) and the folder of an entry of modules.json."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ENTRY):
        raise ExportError(
            f"module {number} in modules.json of {location} lacks one of {', '.join(ENTRY)}, which are texts"
        )
    kind = entry["type"].rpartition(".")[2]
    if not entry["type"].startswith(PACKAGE) or kind not in MODULES:
        raise ExportError(
            f"module {number} of {location} is {entry['type']}, which cannot be exported; "
            f"these can: {', '.join(MODULES)} of sentence-transformers"
        )
    return kind, entry["path"]


def check_config(location: str, config: Mapping[str, Any], wanted: str = "SentenceTransformer") -> None:
    """Refuse a model of another class than wanted, vectors that are cut, and prompts that are none."""
    kind = config.get("model_type", wanted)
    if kind != wanted:
        raise ExportError(f"{location} is a {kind}, and its modules are those of a {wanted}")
    if config.get("truncate_dim") is not None:
        raise ExportError(
            f"{location} cuts its vectors to truncate_dim = {config['truncate_dim']}: take it out of "
            "config_sentence_transformers.json, and let each request ask for the dimensions it wants"
        )
    prompts = config.get("prompts", {})
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise ExportError(
            f"prompts in config_sentence_transformers.json of {location} is {prompts!r}; an object of names "
            "and texts is needed"
        )


def _check_dense(location: str, folder: str, config: Mapping[str, Any]) -> None:
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if not activation.startswith("torch.nn.") or activation.rpartition(".")[2] not in get_args(Activation):
        raise ExportError(
            f"{folder} of {location} has the activation function {activation}; "
            f"these of torch.nn can be exported: {', '.join(get_args(Activation))}"
        )
    reads = config.get("module_input_name", "sentence_embedding")
    writes = config.get("module_output_name") or reads
    for verb, name in (("reads", reads), ("writes", writes)):
        if name != "sentence_embedding":
            raise ExportError(
                f"{folder} of {location} {verb} {name}; only a Dense layer that reads and writes "
                "sentence_embedding, after the pooling, can be exported"
            )


def similarity(config: Mapping[str, Any]) -> Similarity:
    """How vectors are compared: as declared, else by cosine, like sentence-transformers."""
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
