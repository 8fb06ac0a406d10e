"""What cannot be exported faithfully is refused by name, with a cure, and nothing is written."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tiny_encoders
import torch
from embedder import Embedder
from safetensors.torch import load_file, save_file
from tiny_encoders import Export, Layers

from trimtab.errors import ExportError, InvalidArgument

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers


@pytest.fixture
def copy(st_bert: Path, tmp_path: Path) -> Path:
    """A sentence-transformers folder to change."""
    return shutil.copytree(st_bert, tmp_path / "copy")


@pytest.fixture
def refused(export: Export, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Asserts that an export raises `match` and leaves no trace."""

    def check(match: str, source: Path | str, *options: str) -> None:
        with pytest.raises(ExportError, match=match):
            export(source, *options)
        assert not (tmp_path / "repository").exists()

    return check


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def test_no_declared_pooling(bert: Path, refused) -> None:
    refused("does not declare how to pool token states .* give --pooling mean, cls, last or max", bert)


@pytest.mark.parametrize("mode", ["mean_sqrt_len_tokens", "weightedmean"])
def test_pooling_modes(mode: str, tmp_path: Path, refused) -> None:
    source = tiny_encoders.sentence_transformers("bert", tmp_path, pooling=mode)
    refused(f"the pooling mode {mode} cannot be exported; these can: mean, cls, lasttoken, max", source)


def test_joined_poolings(tmp_path: Path, refused) -> None:
    source = tiny_encoders.sentence_transformers("bert", tmp_path, pooling=("cls", "mean"))
    refused("joins several modes, cls and mean", source)


def test_pooling_without_the_prompt(tmp_path: Path, refused) -> None:
    source = tiny_encoders.sentence_transformers("bert", tmp_path, include_prompt=False)
    refused("include_prompt = false", source)


def test_pooling_that_contradicts_the_source(st_bert: Path, refused) -> None:
    refused(
        "declares the pooling mean: --pooling cls would make another encoder", st_bert, "--pooling", "cls"
    )


def test_normalize_that_contradicts_the_source(tmp_path: Path, refused) -> None:
    source = tiny_encoders.sentence_transformers("bert", tmp_path, layers=Layers())
    refused("no Normalize at the end: leave --normalize out", source, "--normalize")


def test_options_that_agree_with_the_source(st_bert: Path, export: Export) -> None:
    assert Embedder(export(st_bert, "--pooling", "mean", "--normalize")).bundle.manifest.pooling == "mean"


@pytest.mark.parametrize(
    "kind",
    ["sentence_transformers.models.WordWeights", "custom_code.Pooling", "sentence_transformers.models.LSTM"],
)
def test_unknown_modules(kind: str, copy: Path, refused) -> None:
    modules = json.loads((copy / "modules.json").read_text())
    modules[1]["type"] = kind
    (copy / "modules.json").write_text(json.dumps(modules))
    refused(f"module 1 of .* is {kind}, which cannot be exported", copy)


def test_modules_in_another_order(copy: Path, refused) -> None:
    modules = json.loads((copy / "modules.json").read_text())
    (copy / "modules.json").write_text(json.dumps(modules[:1]))
    refused("the modules of .* are Transformer; an encoder that can be exported has Transformer", copy)


@pytest.mark.parametrize("activation", [torch.nn.GELU, torch.nn.ELU])
def test_unknown_activations(activation: type[torch.nn.Module], tmp_path: Path, refused) -> None:
    source = tiny_encoders.sentence_transformers(
        "bert", tmp_path, layers=Layers(dense=True), activation=activation()
    )
    refused(f"has the activation function .*{activation.__name__}; these of torch.nn", source)


def test_activation_of_the_source_own_code(tmp_path: Path, refused) -> None:
    """sentence-transformers would quietly put Tanh in its place."""
    source = tiny_encoders.sentence_transformers("bert", tmp_path, layers=Layers(dense=True))
    edit(source / "2_Dense" / "config.json", activation_function="my_code.Squash")
    refused("activation function my_code.Squash", source)


def test_dense_on_token_states(tmp_path: Path, refused) -> None:
    source = tiny_encoders.sentence_transformers("bert", tmp_path, layers=Layers(dense=True))
    edit(source / "2_Dense" / "config.json", module_input_name="token_embeddings")
    refused("reads token_embeddings", source)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("SparseEncoder", "is a SparseEncoder"),
        ("CrossEncoder", "a cross-encoder that can be exported is one Transformer"),
    ],
)
def test_other_kinds_of_models(kind: str, message: str, copy: Path, refused) -> None:
    """sentence-transformers would quietly make a mean of token states of them."""
    edit(copy / "config_sentence_transformers.json", model_type=kind)
    refused(message, copy)


def test_cut_vectors(copy: Path, refused) -> None:
    edit(copy / "config_sentence_transformers.json", truncate_dim=16)
    refused("truncate_dim = 16", copy)


def test_unknown_similarity(copy: Path, export: Export) -> None:
    edit(copy / "config_sentence_transformers.json", similarity_fn_name="dot")
    assert Embedder(export(copy)).bundle.manifest.similarity == "dot"
    edit(copy / "config_sentence_transformers.json", similarity_fn_name="hamming")
    with pytest.raises(ExportError, match=r"hamming"):
        export(copy)


@pytest.mark.parametrize(("key", "word"), [("padding_side", "pads"), ("truncation_side", "cuts")])
def test_left_sided_tokenizers(key: str, word: str, copy: Path, refused) -> None:
    edit(copy / "tokenizer_config.json", **{key: "left"})
    refused(f"the tokenizer BertTokenizerFast {word} on the left", copy)


def test_slow_tokenizer(copy: Path, refused) -> None:
    vocabulary = json.loads((copy / "tokenizer.json").read_text())["model"]["vocab"]
    (copy / "tokenizer.json").unlink()
    (copy / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)))
    edit(copy / "tokenizer_config.json", tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="basic")
    refused("the tokenizer BertJapaneseTokenizer is a slow one", copy)


def test_tokenizer_without_special_tokens(bert: Path, tmp_path: Path, refused) -> None:
    shutil.copytree(bert, tmp_path / "copy")
    edit(tmp_path / "copy" / "tokenizer.json", post_processor=None)
    edit(tmp_path / "copy" / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    refused("no token at all for the empty text", tmp_path / "copy", "--pooling", "mean")


def test_decoder_that_needs_positions(tmp_path: Path, refused) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tiny_encoders.wordpiece(), pad_token="[PAD]", model_max_length=64
        )
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64
        )
        transformers.GPT2Model(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    refused("needs the inputs position_ids", tmp_path / "gpt2", "--pooling", "last")


def test_architecture_that_optimum_does_not_know(tmp_path: Path, refused) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tiny_encoders.wordpiece(), pad_token="[PAD]"
        )
        config = transformers.ErnieConfig(vocab_size=len(fast), **tiny_encoders.SIZES)
        transformers.ErnieModel(config).save_pretrained(tmp_path / "ernie")
    fast.save_pretrained(tmp_path / "ernie")
    refused("optimum cannot convert ErnieModel to ONNX", tmp_path / "ernie", "--pooling", "cls")


def test_weights_that_are_missing(bert: Path, tmp_path: Path, refused) -> None:
    """transformers would fill them with random numbers, and the export would be faithful to those."""
    source = shutil.copytree(bert, tmp_path / "copy")
    tensors = load_file(source / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    refused("lacks 1 weights of BertModel, first encoder.layer.1.output", source, "--pooling", "cls")


def test_pooler_that_is_missing(bert: Path, tmp_path: Path, export: Export) -> None:
    """No token state passes through it, so that its random weights must not name the space either."""
    source = shutil.copytree(bert, tmp_path / "copy")
    tensors = load_file(source / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    assert len(kept) < len(tensors)
    save_file(kept, source / "model.safetensors", metadata={"format": "pt"})
    without = Embedder(export(source, "--pooling", "cls")).bundle.manifest
    whole = Embedder(export(bert, "--pooling", "cls", name="whole")).bundle.manifest
    assert without.space == whole.space


def test_code_of_the_source_is_not_run(bert: Path, tmp_path: Path, refused) -> None:
    source = shutil.copytree(bert, tmp_path / "copy")
    edit(
        source / "config.json",
        model_type="mine",
        auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Model"},
    )
    (source / "mine.py").write_text("raise SystemExit('it ran')")
    refused("names code of its own .*AutoModel.* is never run", source, "--pooling", "cls")


def test_too_many_tokens(st_bert: Path, refused) -> None:
    refused("--max-tokens 131 is more than the encoder's 130 positions", st_bert, "--max-tokens", "131")


def test_no_such_source(refused) -> None:
    refused("does not exist, and is not a Hugging Face hub id", "./nowhere")


def test_a_file_that_is_no_graph(st_bert: Path, refused) -> None:
    refused("is not an .onnx file", st_bert / "config.json")


def test_names(st_bert: Path, export: Export) -> None:
    with pytest.raises(InvalidArgument, match=r"encoder name 'Über/mut' cannot be used"):
        export(st_bert, name="Über/mut")


def test_unfaithful_graph(bert: Path, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean that is wrong for short texts alone is caught by the comparison."""
    from trimtab_export.graph import head

    monkeypatch.setattr(head, "LEAST_COUNT", 4.0)
    refused("BertModel: the graph's dense output differs from the source's: by ", bert, "--pooling", "mean")


def test_source_that_fails_itself(bert: Path, tmp_path: Path, refused) -> None:
    source = shutil.copytree(bert, tmp_path / "copy")
    beyond = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 10**6]}
    edit(source / "tokenizer.json", post_processor=beyond)
    edit(source / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    refused("itself fails on the texts of the comparison", source, "--pooling", "cls")


def test_more_tokens_than_rows(bert: Path, tmp_path: Path, refused) -> None:
    """A text with such a token would fail later, and with it the whole request."""
    source = shutil.copytree(bert, tmp_path / "copy")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    rows = len(tokenizer)
    tokenizer.add_tokens(["[NEW]"])
    tokenizer.save_pretrained(source)
    refused(rf"the token '\[NEW\]' with the id {rows}, .* resize it", source, "--pooling", "cls")


def test_without_onnxruntime(st_bert: Path, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(r"pip install 'trimtab\[server\]' \(or 'trimtab\[gpu\]'", st_bert)


def test_id_of_the_hub(bert: Path, tmp_path: Path) -> None:
    """Read from the hub's cache, which is all there is without a network."""
    cache = tmp_path / "hub" / "models--acme--tiny"
    revision = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(bert, cache / "snapshots" / revision)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(revision)
    code = (
        "import pathlib, sys\n"
        "from trimtab.errors import ExportError\n"
        "from trimtab_export.export import export\n"
        "from trimtab_export.source import Settings\n"
        "here = pathlib.Path(sys.argv[1])\n"
        "bundle = export(Settings('acme/tiny', pooling='cls'), 'tiny', here / 'repository')\n"
        "print(bundle.manifest.provenance.source, bundle.manifest.provenance.recipe)\n"
        "try:\n"
        "    export(Settings('acme/absent', pooling='cls'), 'absent', here / 'repository')\n"
        "except ExportError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made, absent = done.stdout.splitlines()
    assert made.startswith("acme/tiny trimtab export acme/tiny --name tiny")
    assert "acme/absent cannot be loaded" in absent
