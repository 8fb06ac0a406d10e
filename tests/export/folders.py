"""The table of sources: each a tiny seeded checkpoint with one quirk, and what is to become of it.

A row changes a base folder (`tiny_encoders`: hidden 32, two layers, sharp weights) by merging JSON into its
files, or by a function. Of a row with a graph, the folder keeps its weights until the truth has been taken from
them; then the graph takes their place.
"""

# ruff: noqa: E501 (a table)

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from safetensors.torch import load_file, save_file

Change = Callable[[Path], object]
ST, BERT_CONFIG, TOKENIZER = "config_sentence_transformers.json", "config.json", "tokenizer_config.json"
TRANSFORMER, POOLING, DENSE = "sentence_bert_config.json", "1_Pooling/config.json", "2_Dense/config.json"
GONE = object()  # in place of a file: it is removed


@dataclass(frozen=True)
class Folder:
    """One source.

    base: a key of BASES.
    files: JSON to merge into a file (None takes a key out), a list or text to write as it is, or GONE.
    after: what changes once the library has been asked: what it does not read at all.
    graph: what takes the place of the weights: a graph of token states, of vectors, or of both.
    refused: what the refusal says; None: the vectors are right.
    says: what the export tells about what it leaves out.
    """

    name: str
    base: str = "bert"
    files: Mapping[str, Any] = field(default_factory=dict)
    change: Change | None = None
    after: Change | None = None
    graph: Literal["states", "vectors", "both", "scores", None] = None
    options: tuple[str, ...] = ()
    refused: str | None = None
    says: str = ""


def make(row: Folder, base: Path, folder: Path) -> Path:
    """The row's folder, with weights."""
    shutil.copytree(base, folder)
    for name, content in row.files.items():
        put(folder / name, content)
    if row.change is not None:
        row.change(folder)
    return folder


def put(path: Path, content: Any) -> None:
    """Merge an object into a JSON file, write another value, or remove the file."""
    if content is GONE:
        path.unlink()
        return
    if isinstance(content, dict):
        before = json.loads(path.read_text()) if path.is_file() else {}
        content = {key: value for key, value in {**before, **content}.items() if value is not None}
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def nulls(name: str, *keys: str) -> Change:
    """Set these keys of a file to null, which is not the same as taking them out."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **dict.fromkeys(keys)}))

    return change


def tokenizer_json(edit: Callable[[Any], object]) -> Change:
    """Edit tokenizer.json itself."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        edit(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return change


def template(*, cls: int, body: int) -> Change:
    """A template with other token types than zeros."""
    single = [
        {"SpecialToken": {"id": "[CLS]", "type_id": cls}},
        {"Sequence": {"id": "A", "type_id": body}},
        {"SpecialToken": {"id": "[SEP]", "type_id": body}},
    ]
    tokens = {
        name: {"id": name, "ids": [number], "tokens": [name]} for name, number in (("[CLS]", 2), ("[SEP]", 3))
    }
    pair = [*single, {"Sequence": {"id": "B", "type_id": body}}]
    made = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}
    return tokenizer_json(lambda content: content.update(post_processor=made))


def several(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def cast(dtype: torch.dtype) -> Change:
    """Write the weights in another precision, as config.json says."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file({name: each.to(dtype) for name, each in load_file(path).items()}, path, {"format": "pt"})
        put(folder / BERT_CONFIG, {"dtype": str(dtype).removeprefix("torch.")})

    return change


def pickled(module: str = "") -> Change:
    def change(folder: Path) -> None:
        path = folder / module / "model.safetensors"
        torch.save(load_file(path), path.with_name("pytorch_model.bin"))
        path.unlink()

    return change


def transformer_in_a_folder(folder: Path) -> None:
    """As sentence-transformers wrote folders before version 2."""
    (folder / "0_Transformer").mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name not in (ST, "modules.json"):
            path.rename(folder / "0_Transformer" / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    put(folder / "modules.json", [{**modules[0], "path": "0_Transformer"}, *modules[1:]])


def modules(*entries: tuple[str, str, str]) -> list[dict[str, Any]]:
    """A modules.json of (name, folder, class)."""
    package = {"Transformer": "base", "Dense": "base"}
    return [
        {"idx": number, "name": name, "path": path,
         "type": f"sentence_transformers.{package.get(kind, 'sentence_transformer')}.modules.{kind}"}
        for number, (name, path, kind) in enumerate(entries)
    ]  # fmt: skip


def bare(folder: Path) -> None:
    """A Hugging Face folder: nothing of sentence-transformers' own."""
    for name in (ST, TRANSFORMER, "modules.json"):
        (folder / name).unlink(missing_ok=True)
    for name in ("1_Pooling", "2_Normalize", "2_Dense", "3_Normalize"):
        shutil.rmtree(folder / name, ignore_errors=True)


def versioned_tokenizer(folder: Path) -> None:
    """tokenizer.json for older libraries, and another for this one, which splits at hyphens only."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = None
    (folder / "tokenizer.4.0.json").write_text(json.dumps(content))
    put(folder / TOKENIZER, {"fast_tokenizer_files": ["tokenizer.4.0.json", "tokenizer.json"],
                             "tokenizer_class": "PreTrainedTokenizerFast"})  # fmt: skip


def vocabulary_only(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert (folder / "vocab.txt").is_file()


def written(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def word_as_a_token(folder: Path) -> None:
    """A word that takes the white space around it along, wherever it stands."""

    def edit(content: Any) -> None:
        options = {"single_word": True, "lstrip": True, "rstrip": True, "normalized": True, "special": False}
        content["added_tokens"].append({"id": content["model"]["vocab"]["a"], "content": "a", **options})

    tokenizer_json(edit)(folder)


def pads(content: Any) -> None:
    """Limits of the tokenizer's own, of which the library takes the pad alone."""
    truncation = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    pad = {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]", "pad_to_multiple_of": 8}
    content.update(truncation=truncation, padding={"strategy": {"Fixed": 20}, "direction": "Right", **pad})


def graph_and_tokenizer(folder: Path) -> None:
    """Nothing but these two."""
    for path in folder.iterdir():
        if path.name not in ("model.onnx", "tokenizer.json"):
            path.unlink()


def graph_below(folder: Path) -> None:
    """As sentence-transformers keeps graphs."""
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")


def output(name: str) -> Change:
    """Another name for a graph's output."""

    def change(folder: Path) -> None:
        model = onnx.load(str(folder / "model.onnx"))
        (given,) = model.graph.output
        model.graph.node.append(onnx.helper.make_node("Identity", [given.name], [name]))
        given.name = name
        onnx.save(model, str(folder / "model.onnx"))

    return change


def special_tokens(*names: str) -> Change:
    """A template of these, A standing for the text."""
    ids = {"[CLS]": 2, "[SEP]": 3}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [text if name == "A" else {"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    tokens = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in names if name != "A"}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    made = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}
    return several(
        tokenizer_json(lambda content: content.update(post_processor=made)),
        lambda folder: put(folder / TOKENIZER, PLAIN[TOKENIZER]),
    )


def no_latin(folder: Path) -> None:
    """A tokenizer that has no letter a: it is skipped, as by a BPE of another script."""

    def edit(content: Any) -> None:
        content["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": ""}

    tokenizer_json(edit)(folder)
    put(folder / TOKENIZER, {"tokenizer_class": "PreTrainedTokenizerFast"})


ROLES = {"query": "query: ", "document": "passage: "}
PLAIN = {TOKENIZER: {"tokenizer_class": "PreTrainedTokenizerFast"}}
RUN = "is never run"

TORCH = (
    Folder("bert"),
    Folder("roberta", base="roberta"),
    Folder("xlm-roberta", base="xlm-roberta"),
    Folder("mpnet", base="mpnet"),
    Folder("distilbert", base="distilbert"),
    # The tokenizer, and how it is used.
    Folder("cased", files={TOKENIZER: {"do_lower_case": False}}),
    Folder("accents-kept", files={TOKENIZER: {"strip_accents": False}}),
    Folder("chinese-together", files={TOKENIZER: {"tokenize_chinese_chars": False}}),
    Folder("normalizer-as-in-the-file", files={TOKENIZER: {**PLAIN[TOKENIZER], "do_lower_case": False}}),
    Folder("lowered-before-the-tokenizer", files={TRANSFORMER: {"do_lower_case": True}, TOKENIZER: {"do_lower_case": False}}),
    Folder("another-tokenizer-for-this-version", change=versioned_tokenizer),
    Folder("vocab-txt", change=vocabulary_only),
    Folder("prefix-space", base="roberta", files={TOKENIZER: {"add_prefix_space": True}}),
    Folder("limits-in-the-tokenizer-file", change=tokenizer_json(pads)),
    Folder("word-as-a-token", change=word_as_a_token),
    Folder("types-cls-1", change=template(cls=1, body=0)),
    Folder("types-body-1", change=template(cls=0, body=1)),
    Folder("no-token-before", change=special_tokens("A", "[SEP]"), files={POOLING: {"pooling_mode": "lasttoken"}}),
    Folder("no-token-behind", change=special_tokens("[CLS]", "A"), files={POOLING: {"pooling_mode": "cls"}}),
    Folder("no-latin-a", change=no_latin),
    Folder("types-not-asked-for", files={TOKENIZER: {"model_input_names": ["input_ids", "attention_mask"]}},
           change=template(cls=1, body=1)),
    Folder("chat-template", files={TOKENIZER: {"chat_template": "{{ messages }}"}}),
    Folder("no-mask", files={TOKENIZER: {"model_input_names": ["input_ids", "token_type_ids"]}},
           refused="makes no attention mask"),
    Folder("special-tokens-split", files={TOKENIZER: {"split_special_tokens": True}}, refused="split_special_tokens"),
    Folder("dropout", base="roberta", change=tokenizer_json(lambda content: content["model"].update(dropout=0.1)),
           refused="drops merges at random .* set it to null"),
    Folder("more-tokens-than-rows", files={TOKENIZER: {"additional_special_tokens": ["bird"]}},
           refused="the token 'bird' with the id .* too few rows"),
    Folder("pads-left", files={TOKENIZER: {"padding_side": "left"}}, refused="pads on the left"),
    Folder("cuts-left", files={TOKENIZER: {"truncation_side": "left"}}, refused="cuts on the left"),
    Folder("no-pad", files={TOKENIZER: {**PLAIN[TOKENIZER], "pad_token": None}, "special_tokens_map.json": GONE},
           refused="no padding token: give `pad_token`"),
    Folder("no-vocabulary", files={"tokenizer.json": GONE, "vocab.txt": GONE}, refused="has no tokenizer.json: put the one of its source there"),
    Folder("sentencepiece-only", base="xlm-roberta", files={"tokenizer.json": GONE, "sentencepiece.bpe.model": "x"},
           refused="no tokenizer.json, only sentencepiece.bpe.model: .*pip install sentencepiece"),
    Folder("processing", files={TRANSFORMER: {"processing_kwargs": {"text": {"max_length": 5}}}}, refused="processing_kwargs"),
    Folder("tokenizer-of-its-own", files={TOKENIZER: {"auto_map": {"AutoTokenizer": [None, "mine.Tokenizer"]}}},
           refused=f"tokenizer_config.json of .*auto_map: AutoTokenizer.*{RUN}"),
    # Prompts.
    Folder("prompts", files={ST: {"prompts": ROLES}}),
    Folder("query-prompt-alone", base="roberta", files={ST: {"prompts": {"query": "q: "}}}),
    Folder("document-beside-passage", files={ST: {"prompts": {"document": "d: ", "passage": "p: "}}},
           says=r"the prompt passage \('p: '\) is declared, but it is of no role"),
    Folder("passage-alone", files={ST: {"prompts": {"query": "q: ", "document": "", "passage": "p: "}}},
           refused=r"the prompt passage \('p: '\), which encode_document does not use .* --passage-prompt 'p: '"),
    Folder("passage-given", files={ST: {"prompts": {"query": "q: ", "document": "", "passage": "p: "}}},
           options=("--passage-prompt", "p: ")),
    Folder("other-prompts", files={ST: {"prompts": {"sts": "same: ", "clustering": "topic: "}}},
           says=r"the prompt sts \('same: '\) is declared, but it is of no role: it can be put before it"),
    Folder("default-is-the-query", files={ST: {"prompts": ROLES, "default_prompt_name": "query"}}),
    Folder("default-of-no-role", files={ST: {"prompts": {"sts": "same: "}, "default_prompt_name": "sts"}},
           refused=r"'same: ' before every text \(default_prompt_name sts\).* give --query-prompt and --passage-prompt"),
    Folder("default-given", files={ST: {"prompts": {"sts": "same: "}, "default_prompt_name": "sts"}},
           options=("--query-prompt", "same: ", "--passage-prompt", "same: ")),
    Folder("prompts-that-join-the-text", base="xlm-roberta", files={ST: {"prompts": {"query": "re", "document": "  un"}}}),
    Folder("prompts-null", change=lambda folder: put(folder / ST, json.dumps({"prompts": {"query": None}}))),
    Folder("prompts-a-list", files={ST: {"prompts": ["query: "]}}, refused="prompts in .* an object of names and texts"),
    Folder("prompt-left-out", files={POOLING: {"include_prompt": False}}, refused="include_prompt = false"),
    Folder("config-of-nothing", files={"modules.json": GONE}, options=("--pooling", "mean"),
           refused="has a config_sentence_transformers.json but no modules.json"),
    # Lengths.
    Folder("length-24", files={TRANSFORMER: {"max_seq_length": 24}, TOKENIZER: {"model_max_length": 48}}),
    Folder("length-100", files={TRANSFORMER: {"max_seq_length": 100}, TOKENIZER: {"model_max_length": 40}}),
    Folder("length-33", files={TOKENIZER: {"model_max_length": 33}}),
    Folder("length-of-positions", files={TOKENIZER: {"model_max_length": 10**30}}),
    Folder("length-a-text", files={TRANSFORMER: {"max_seq_length": "24"}}, refused="max_seq_length .* '24'; a whole number"),
    Folder("length-half", files={TOKENIZER: {"model_max_length": 24.5}}, refused="model_max_length .* 24.5; a whole number"),
    Folder("length-2", files={TRANSFORMER: {"max_seq_length": 2}}, refused="cut to 2 tokens, of which 2 are special"),
    Folder("length-0", files={TRANSFORMER: {"max_seq_length": 0}}, refused="is 0: no text can be read"),
    # What comes after the token states.
    Folder("cls", files={POOLING: {"pooling_mode": "cls"}}),
    Folder("last", base="roberta", files={POOLING: {"pooling_mode": "lasttoken"}}),
    Folder("max", files={POOLING: {"pooling_mode": "max"}}),
    Folder("mode-of-older-files", files={POOLING: {"pooling_mode": None, "pooling_mode_cls_token": True}}),
    Folder("both-kinds-of-modes", files={POOLING: {"pooling_mode": "max", "pooling_mode_cls_token": True}}),
    Folder("width-of-another", base="raw", files={POOLING: {"embedding_dimension": 64}}),
    Folder("not-normalised", base="raw"),
    Folder("dense", base="dense"),
    Folder("names-twice", base="dense", files={"modules.json": modules(
        ("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Dense", "Dense"), ("2", "3_Normalize", "Normalize"))}),
    Folder("normalised-before-dense", base="dense", files={"modules.json": modules(
        ("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "3_Normalize", "Normalize"), ("3", "2_Dense", "Dense"))}),
    Folder("weighted", files={POOLING: {"pooling_mode": "weightedmean"}}, refused="mode weightedmean cannot"),
    Folder("joined", files={POOLING: {"pooling_mode": ["cls", "mean"]}}, refused="joins several modes"),
    Folder("no-pooling", files={POOLING: GONE}, refused="no 1_Pooling/config.json"),
    Folder("dense-to-elsewhere", base="dense", files={DENSE: {"module_output_name": "projected"}}, refused="2_Dense .* writes projected"),
    Folder("dense-of-its-own", base="dense", files={DENSE: {"activation_function": "mine.Squash"}}, refused="mine.Squash"),
    Folder("dense-null", base="dense", change=nulls(DENSE, "activation_function"), refused="activation function None"),
    Folder("dense-pickled", base="dense", change=pickled("2_Dense"), refused=r"no 2_Dense/model.safetensors\. Pickles .* write safetensors with SentenceTransformer"),
    Folder("module-of-its-own", files={"modules.json": [{"idx": 0, "name": "0", "path": "", "type": "mine.Transformer"}]},
           refused="module 0 of .* is mine.Transformer"),
    Folder("modules-with-a-mark", change=written("modules.json", b"\xef\xbb\xbf[]"), refused="byte order mark"),
    Folder("modules-broken", files={"modules.json": '[{"idx": 0,'}, refused="modules.json of .* cannot be read as JSON"),
    Folder("modules-without-names", files={"modules.json": [{"idx": 0, "type": "sentence_transformers.models.Transformer"}]},
           refused="module 0 in modules.json of .* lacks one of name, type, path"),
    Folder("special-tokens-broken", files={"special_tokens_map.json": "{"}, refused="special_tokens_map.json of .* cannot be read as JSON"),
    Folder("modules-an-object", files={"modules.json": '{"0": 1}'}, refused="modules.json of .* a list is needed"),
    Folder("cut-vectors", files={ST: {"truncate_dim": 8}}, refused="truncate_dim = 8"),
    Folder("cross-encoder", files={ST: {"model_type": "CrossEncoder"}}, refused="Transformer, Pooling, Normalize; a cross-encoder that can"),
    Folder("inner-states", files={TRANSFORMER: {"modality_config": {"text": {"method": "forward", "method_output_name": ["hidden_states", 1]}}}},
           refused=r"takes \['hidden_states', 1\] of forward"),
    Folder("masked-words", files={TRANSFORMER: {"transformer_task": "fill-mask", "modality_config": None, "module_output_name": None}},
           refused=r"takes logits of forward"),
    # The weights and what they are of.
    Folder("float16", change=cast(torch.float16)),
    Folder("bfloat16", change=cast(torch.bfloat16)),
    Folder("relu", files={BERT_CONFIG: {"hidden_act": "relu"}}),
    Folder("one-layer", files={TRANSFORMER: {"config_args": {"num_hidden_layers": 1}}}),
    Folder("causal", files={BERT_CONFIG: {"is_decoder": True}}),
    Folder("tells-all-states", files={BERT_CONFIG: {"output_hidden_states": True, "output_attentions": True}}),
    Folder("graph-beside-weights", change=written("model.onnx", b"of another encoder")),
    Folder("in-a-folder", change=transformer_in_a_folder),
    Folder("bare", change=bare, options=("--pooling", "cls", "--normalize")),
    Folder("computes-in-float16", files={TRANSFORMER: {"model_args": {"torch_dtype": "float16"}}}, refused="asks to be computed in float16"),
    Folder("code-of-its-own", files={BERT_CONFIG: {"auto_map": {"AutoModel": "mine.Model"}}}, refused=f"config.json of .*auto_map: AutoModel.*{RUN}"),
    Folder("trusts-code", files={TRANSFORMER: {"model_args": {"trust_remote_code": True}}}, refused=f"asks for trust_remote_code: .*{RUN}"),
    Folder("pickled", change=pickled(), refused=r"no model.safetensors\. Pickles \(pytorch_model.bin\) .* write safetensors"),
    Folder("pickled-and-bare", change=several(bare, pickled()), options=("--pooling", "mean"),
           refused="write safetensors with AutoModel.from_pretrained"),
    Folder("code-in-older-settings", files={TRANSFORMER: GONE, "sentence_roberta_config.json": {"config_args": {"auto_map": {"AutoModel": "mine.Model"}}}},
           refused=f"sentence_roberta_config.json of .*auto_map: AutoModel.*{RUN}"),
    Folder("length-in-older-settings", files={TRANSFORMER: GONE, "sentence_roberta_config.json": {"max_seq_length": 21}}),
    Folder("tokenizer-from-elsewhere", files={TRANSFORMER: {"tokenizer_name_or_path": "acme/other"}}, refused="tokenizer_name_or_path.* put its files"),
    Folder("adapter", files={"adapter_config.json": {"peft_type": "LORA"}}, refused="adapter_config.json.* merge"),
    Folder("quantised", files={BERT_CONFIG: {"quantization_config": {"quant_method": "gptq", "bits": 4}}}, refused="quantization_config"),
    Folder("classifier", change=several(bare, lambda folder: put(folder / BERT_CONFIG, {"architectures": ["BertForSequenceClassification"]})),
           options=("--pooling", "cls"), refused="a cross-encoder, which reads pairs and gives scores: leave --pooling out"),
)  # fmt: skip

GRAPHS = (
    Folder("onnx", graph="states"),
    Folder("onnx-roberta", base="roberta", graph="states", files={POOLING: {"pooling_mode": "lasttoken"}}),
    Folder("onnx-distilbert", base="distilbert", graph="states"),
    Folder("onnx-cased", graph="states", files={TOKENIZER: {"do_lower_case": False}}),
    Folder("onnx-accents-kept", graph="states", files={TOKENIZER: {"strip_accents": False}}),
    Folder("onnx-lowered", graph="states", files={TRANSFORMER: {"do_lower_case": True}, TOKENIZER: {"do_lower_case": False}}),
    Folder("onnx-another-tokenizer", graph="states", change=versioned_tokenizer),
    Folder("onnx-vocab-txt", graph="states", change=vocabulary_only),
    Folder("onnx-length-100", graph="states", files={TRANSFORMER: {"max_seq_length": 100}, TOKENIZER: {"model_max_length": 40}}),
    Folder("onnx-prompts", graph="states", files={ST: {"prompts": ROLES}}),
    Folder("onnx-types-body-1", graph="states", change=template(cls=0, body=1)),
    Folder("onnx-types-not-asked-for", graph="states", change=template(cls=1, body=1),
           files={TOKENIZER: {"model_input_names": ["input_ids", "attention_mask"]}}),
    Folder("onnx-pad-null", graph="states", change=nulls(BERT_CONFIG, "pad_token_id")),
    Folder("onnx-dense", base="dense", graph="states"),
    Folder("onnx-more-tokens-than-rows", graph="states", files={TOKENIZER: {"additional_special_tokens": ["bird"]}},
           refused="the token 'bird' with the id .* too few rows"),
    Folder("onnx-in-a-folder", graph="states", change=transformer_in_a_folder),
    Folder("onnx-below", graph="states", after=graph_below),
    Folder("onnx-token-embeddings", graph="states", after=output("token_embeddings")),
    Folder("onnx-output-given", graph="states", after=output("output_0"), options=("--output", "output_0")),
    Folder("onnx-output-unknown", graph="states", after=output("output_0"), refused="has the outputs output_0, .* name it with --output"),
    Folder("onnx-vectors-of-three-dimensions", graph="states", change=bare, after=output("sentence_embedding"),
           refused="sentence_embedding of model.onnx is float32 with 3 dimensions"),
    Folder("onnx-bare", graph="states", change=bare, options=("--pooling", "cls", "--normalize")),
    Folder("onnx-and-a-tokenizer-alone", graph="states", change=several(bare, tokenizer_json(pads)),
           files=PLAIN, after=graph_and_tokenizer,
           options=("--pooling", "mean", "--normalize", "--max-tokens", "128")),
    Folder("onnx-of-an-unknown-kind", graph="states", after=lambda folder: put(folder / BERT_CONFIG, {"model_type": "mine"})),
    Folder("onnx-vectors-of-who-knows-which-modules", graph="vectors", refused="gives finished vectors .* a graph with token states"),
    Folder("onnx-vectors-bare", graph="vectors", change=bare, options=("--normalize",)),
    Folder("onnx-vectors-and-states", graph="both", files={POOLING: {"pooling_mode": "cls"}}),
    Folder("onnx-dense-pickled", base="dense", graph="states", after=pickled("2_Dense"), refused=r"no 2_Dense/model.safetensors\. Pickles"),
    Folder("onnx-default-of-no-role", graph="states", files={ST: {"prompts": {"sts": "same: "}, "default_prompt_name": "sts"}},
           refused="default_prompt_name sts"),
    Folder("onnx-scores", graph="scores", refused="has the outputs logits, .* a reranker or a classifier .* --output"),
    Folder("onnx-scores-bare", graph="scores", change=bare, refused="has the outputs logits, .* a reranker or a classifier"),
    Folder("onnx-code-of-its-own", graph="states", files={BERT_CONFIG: {"auto_map": {"AutoModel": "mine.Model"}}}, refused=RUN),
    Folder("onnx-no-pooling", graph="states", files={POOLING: GONE}, refused="no 1_Pooling/config.json"),
    Folder("onnx-modules-with-a-mark", graph="states", change=written("modules.json", b"\xef\xbb\xbf[]"), refused="byte order mark"),
    Folder("onnx-prompts-a-list", graph="states", files={ST: {"prompts": ["query: "]}}, refused="an object of names and texts"),
    Folder("onnx-length-a-text", graph="states", files={TOKENIZER: {"model_max_length": "24"}}, refused="a whole number"),
    Folder("onnx-config-of-nothing", graph="states", files={"modules.json": GONE}, options=("--pooling", "mean"),
           refused="but no modules.json"),
    Folder("onnx-no-mask", graph="states", files={TOKENIZER: {"model_input_names": ["input_ids"]}}, refused="no attention mask"),
)  # fmt: skip
FOLDERS = (*TORCH, *GRAPHS)
