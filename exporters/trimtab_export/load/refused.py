"""Refuses, by a source's files and before loading anything, what an export could not reproduce.

The libraries are lenient: they replace code that they may not run, read pickles, and ignore files that
nothing reads. Here all of these are refused, with the cure.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab.errors import ExportError
from trimtab_export.load import files
from trimtab_export.load.declared import Declared

# Each may name the source's own classes, under auto_map.
MAY_NAME_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
# Settings of the library's Transformer: the first of these that exists.
SETTINGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
# Read only if a modules.json says what they belong to.
OF_MODULES = ("config_sentence_transformers.json", "1_Pooling/config.json", *SETTINGS)
SAFE = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Read by transformers, which does not say which of them is broken.
OF_TOKENS = ("special_tokens_map.json", "added_tokens.json")
LENGTHS = ("model_max_length", "max_seq_length")
VOCABULARIES = ("tokenizer.json", "tokenizer.*.json", "vocab*", "merges*", "*.model", "*.tiktoken")
SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "spm.model")
# A checkpoint of these has a head that its token states do not include.
OTHER_TASKS = (
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
)


def check(location: str, declared: Declared | None) -> None:
    """Refuse a source of torch weights or of a graph because of what its files say."""
    check_files(location, declared.transformer_folder if declared else "")
    for dense in declared.folders("Dense") if declared else []:
        _check_pickles(location, dense, SAFE, f"SentenceTransformer({location!r}).save({location!r})")
    if declared is None:
        check_orphans(location)
        _check_task(location)


def check_files(location: str, folder: str) -> None:
    """Refuse code, adapters, broken numbers and tokenizers; `folder` is that of the transformer."""
    _check_code(location, folder)
    _check_adapter(location, folder)
    _check_numbers(location, folder)
    _check_tokenizer(location, folder)


def check_weights(location: str, declared: Declared | None) -> None:
    """Refuse a backbone whose torch weights are pickled or quantised."""
    cure = (
        f"SentenceTransformer({location!r}).save({location!r})"
        if declared
        else f"AutoModel.from_pretrained({location!r}).save_pretrained({location!r})"
    )
    check_torch(location, declared.transformer_folder if declared else "", cure)


def check_torch(location: str, folder: str, cure: str) -> None:
    """Refuse weights in this folder that are pickled or quantised. `cure` writes safetensors."""
    config = files.mapping(location, "config.json", folder)
    if not config:
        raise ExportError(f"{location} cannot be loaded: it has no config.json, or nothing in it")
    if config.get("quantization_config"):
        raise ExportError(
            f"the weights of {location} are quantised (quantization_config in config.json): give the "
            "checkpoint that they were made of, in float32, float16 or bfloat16"
        )
    _check_pickles(location, folder, (*SAFE, config.get("transformers_weights") or SAFE[0]), cure)


def _check_pickles(location: str, folder: str, safe: tuple[str, ...], cure: str) -> None:
    if not any(files.find(location, name, folder) for name in safe):
        pickled = next((name for name in PICKLES if Path(location, folder, name).is_file()), PICKLES[0])
        raise ExportError(
            f"{location} has no {Path(folder, SAFE[0])}. Pickles ({pickled}) can hold code and are never "
            f"read: where you trust one, write safetensors with {cure}"
        )


def _check_code(location: str, folder: str) -> None:
    """Refuse files that ask for the source's own code: the libraries may not run it, and use other code."""
    for name in (*MAY_NAME_CODE, *SETTINGS):
        content = files.mapping(location, name, folder)
        for key, value in _nested(content):
            if key == "auto_map" and value:
                named = ", ".join(map(str, value)) if isinstance(value, dict) else str(value)
                raise ExportError(
                    f"{name} of {location} names code of its own (auto_map: {named}). Code of a source is "
                    "never run, and other code would make other vectors: an ONNX made by its authors can be "
                    "the SOURCE, in a folder without auto_map"
                )
            if key == "trust_remote_code" and value:
                raise ExportError(
                    f"{name} of {location} asks for trust_remote_code: code of a source is never run. If it "
                    "has none, remove that setting"
                )
            if key == "tokenizer_name_or_path" and value and name in SETTINGS:
                raise ExportError(
                    f"{name} of {location} takes the tokenizer from elsewhere (tokenizer_name_or_path): put "
                    "its files into the folder, and remove that setting"
                )


def _nested(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each key with its value, at any depth."""
    for key, value in content.items():
        yield key, value
        if isinstance(value, dict):
            yield from _nested(value)


def _check_adapter(location: str, folder: str) -> None:
    if files.find(location, "adapter_config.json", folder) is not None:
        raise ExportError(
            f"{location} holds an adapter to another checkpoint (adapter_config.json): merge them first, "
            "with merge_and_unload() of peft, and save the result"
        )


def _check_numbers(location: str, folder: str) -> None:
    for name, keys in (
        ("config.json", ("max_position_embeddings", "pad_token_id", "vocab_size")),
        ("tokenizer_config.json", ("model_max_length",)),
        *((name, ("max_seq_length",)) for name in SETTINGS),
    ):
        content = files.mapping(location, name, folder)
        for key in keys:
            files.check_whole(location, f"{key} in {name}", content.get(key))
            if key in LENGTHS and content.get(key) is not None and content[key] < 1:
                raise ExportError(f"{key} in {name} of {location} is {content[key]}: no text can be read")


def _check_tokenizer(location: str, folder: str) -> None:
    for name in OF_TOKENS:
        files.mapping(location, name, folder)
    here = Path(location, folder)
    if not here.is_dir() or (here / "tokenizer.json").is_file():
        return
    if not any(next(here.glob(pattern), None) for pattern in VOCABULARIES):
        raise ExportError(f"{location} has no tokenizer.json: put the one of its source there")
    model = next((name for name in SENTENCEPIECE if (here / name).is_file()), None)
    if model and importlib.util.find_spec("sentencepiece") is None:
        raise ExportError(
            f"{location} has no tokenizer.json, only {model}: make one with pip install sentencepiece "
            f"protobuf, and AutoTokenizer.from_pretrained({location!r}).save_pretrained({location!r})"
        )


def check_orphans(location: str) -> None:
    """Refuse files of sentence-transformers that nothing reads."""
    for name in OF_MODULES:
        if files.find(location, name) is not None:
            raise ExportError(
                f"{location} has a {name} but no modules.json, without which nothing reads it: put the "
                "modules.json of the same encoder there, or take the file out and give --pooling, "
                "--query-prompt and the like"
            )


def _check_task(location: str) -> None:
    names: Any = files.mapping(location, "config.json").get("architectures") or []
    for name in names if isinstance(names, list) else [names]:
        if str(name).endswith(OTHER_TASKS):
            raise ExportError(
                f"{location} is a {name}, which gives scores of a text and no vector: give the checkpoint of "
                "an encoder"
            )
