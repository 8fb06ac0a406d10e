"""The declarations of a ColBERT encoder: a folder of PyLate, or a checkpoint of Stanford's ColBERT.

Both keep the backbone as transformers does. PyLate (1.6) names its Dense layers in modules.json, and how
queries and documents are read in config_sentence_transformers.json; what is missing there has PyLate's
defaults. Stanford's checkpoint keeps `linear.weight` beside the backbone's weights, and says the rest in
artifact.metadata.
"""

import string
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta

from trimtab.errors import ExportError
from trimtab_export.load import files
from trimtab_export.load.declared import ENTRY, Declared
from trimtab_export.source import Activation

STANFORD = "HF_ColBERT"  # as config.json calls the architecture
METADATA = "artifact.metadata"
LINEAR = "linear.weight"
MAXSIM = "MaxSim"
MODULES = {"Transformer": "sentence_transformers.", "Dense": ("pylate.", "sentence_transformers.")}

Length = Annotated[int, Meta(ge=1, le=1 << 20)]


class Reads(msgspec.Struct, frozen=True, kw_only=True):
    """How queries and documents are read, in PyLate's words and with its defaults."""

    query_prefix: str = "[Q] "
    document_prefix: str = "[D] "
    query_length: Length = 32
    document_length: Length = 180
    do_query_expansion: bool = True
    attend_to_expansion_tokens: bool = False
    skiplist_words: tuple[str, ...] = tuple(string.punctuation)
    prompts: dict[str, str | None] = {}
    default_prompt_name: str | None = None
    similarity_fn_name: str = MAXSIM


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of Stanford's artifact.metadata."""

    query_token_id: str  # the token itself
    doc_token_id: str
    query_maxlen: Length
    doc_maxlen: Length
    attend_to_mask_tokens: bool
    mask_punctuation: bool
    similarity: str


@dataclass(frozen=True)
class Colbert:
    """What a folder declares: its modules (of Stanford's, the transformer alone), and how texts are read."""

    modules: tuple[tuple[str, str], ...]  # class and subfolder
    reads: Reads
    stanford: bool

    @property
    def declared(self) -> Declared:
        """The modules, as other sources declare them."""
        return Declared(self.modules, {})


def read(location: str) -> Colbert | None:
    """The declarations of the folder or hub repository; None if it is no ColBERT encoder."""
    entries = files.read(location, "modules.json", list)
    if entries is None:
        architectures = files.mapping(location, "config.json").get("architectures") or []
        return _stanford(location) if architectures[:1] == [STANFORD] else None
    config = files.mapping(location, "config_sentence_transformers.json")
    types = [str(entry.get("type")) for entry in entries if isinstance(entry, dict)]
    named = config.get("similarity_fn_name") == MAXSIM or config.get("model_type") == "ColBERT"
    if not named and not any(each.startswith("pylate.") for each in types):
        return None
    modules = tuple(_module(location, number, entry) for number, entry in enumerate(entries))
    order = [kind for kind, _ in modules]
    if order[:1] != ["Transformer"] or set(order[1:]) != {"Dense"}:
        raise ExportError(
            f"the modules of {location} are {', '.join(order)}; a ColBERT encoder that can be exported has "
            "Transformer, and then one Dense or several"
        )
    for kind, folder in modules:
        if kind == "Dense":
            _check_dense(location, folder)
    reads = _reads(location, {key: value for key, value in config.items() if value is not None})
    if reads.similarity_fn_name != MAXSIM:
        raise ExportError(
            f"{location} compares texts by {reads.similarity_fn_name}; only {MAXSIM} can be exported"
        )
    if config.get("truncate_dim") is not None:
        raise ExportError(
            f"{location} cuts its vectors to truncate_dim = {config['truncate_dim']}: take it out of "
            "config_sentence_transformers.json, and let each request ask for the dimensions it wants"
        )
    return Colbert(modules, reads, stanford=False)


def _module(location: str, number: int, entry: Any) -> tuple[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ENTRY):
        raise ExportError(
            f"module {number} in modules.json of {location} lacks one of {', '.join(ENTRY)}, which are texts"
        )
    kind = entry["type"].rpartition(".")[2]
    if kind not in MODULES or not entry["type"].startswith(MODULES[kind]):
        raise ExportError(
            f"module {number} of {location} is {entry['type']}, which cannot be exported; these can: "
            "Transformer of sentence-transformers, Dense of PyLate"
        )
    return kind, entry["path"]


def _check_dense(location: str, folder: str) -> None:
    config = files.mapping(location, "config.json", folder)
    if not config:
        raise ExportError(
            f"{location} has no {folder}/config.json, or nothing in it, and its modules.json names it"
        )
    activation = str(config.get("activation_function"))
    if not activation.startswith("torch.nn.") or activation.rpartition(".")[2] not in get_args(Activation):
        raise ExportError(
            f"{folder} of {location} has the activation function {activation}; "
            f"these of torch.nn can be exported: {', '.join(get_args(Activation))}"
        )
    if config.get("use_residual"):
        raise ExportError(
            f"{folder} of {location} adds its input to its output (use_residual), which cannot be exported"
        )


def _reads(location: str, content: dict[str, Any]) -> Reads:
    try:
        return msgspec.convert(content, Reads)
    except msgspec.ValidationError as error:
        raise ExportError(
            f"config_sentence_transformers.json of {location} says how texts are read in a way that cannot "
            f"be: {error}"
        ) from None


def _stanford(location: str) -> Colbert:
    content = files.read(location, METADATA, dict)
    if content is None:
        raise ExportError(
            f"{location} is a checkpoint of Stanford's ColBERT without {METADATA}, which says how long "
            "queries and documents are, and how they are marked: put it beside config.json"
        )
    try:
        said = msgspec.convert(content, Metadata)
    except msgspec.ValidationError as error:
        raise ExportError(f"{METADATA} of {location} cannot be used: {error}") from None
    if said.similarity != "cosine":
        raise ExportError(
            f"{METADATA} of {location} compares vectors by {said.similarity}; only cosine can be exported"
        )
    if not said.mask_punctuation:
        raise ExportError(
            f"{METADATA} of {location} keeps the vectors of punctuation (mask_punctuation = false), and "
            "PyLate, by which the export is checked, leaves them out: export it as a folder of PyLate that "
            "says skiplist_words = []"
        )
    return Colbert(
        (("Transformer", ""),),
        Reads(
            query_prefix=said.query_token_id,
            document_prefix=said.doc_token_id,
            query_length=said.query_maxlen,
            document_length=said.doc_maxlen,
            attend_to_expansion_tokens=said.attend_to_mask_tokens,
        ),
        stanford=True,
    )
