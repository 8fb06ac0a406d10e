"""Real architectures, very small and seeded, with tokenizers trained on the shipped sentences."""

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from trimtab_export import cli, sentences

# Two threads that wait for each other in turns are many times slower beside a busy neighbour.
torch.set_num_threads(1)

WORDPIECE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 130,
    # Random weights of the usual spread would make all texts nearly alike.
    "initializer_range": 0.3,
}
Export = Callable[..., Path]  # what the fixture `export` is
ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "mpnet", "distilbert")


@dataclass(frozen=True)
class Layers:
    """What comes after the pooling."""

    dense: bool = False
    normalize: bool = False


@cache  # training breaks ties at random
def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=WORDPIECE, show_progress=False)
    tokenizer.train_from_iterator(sentences.load(), trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


@cache
def byte_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=ROBERTA,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences.load(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


@cache
def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=900, special_tokens=ROBERTA, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(sentences.load(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def huggingface(architecture: str, folder: Path, *, seed: int = 7) -> Path:
    """A Hugging Face folder: config, safetensors, fast tokenizer."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config, model, tokenizer = _parts(architecture)
    model(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _parts(architecture: str) -> tuple[Any, Any, Any]:
    t = transformers
    roberta = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
    match architecture:
        case "bert":
            fast = t.BertTokenizerFast(tokenizer_object=wordpiece())
            return t.BertConfig(vocab_size=len(fast), **SIZES), t.BertModel, fast
        case "distilbert":
            fast = t.DistilBertTokenizerFast(tokenizer_object=wordpiece())
            config = t.DistilBertConfig(
                vocab_size=len(fast),
                dim=32,
                hidden_dim=48,
                n_layers=2,
                n_heads=2,
                max_position_embeddings=130,
                initializer_range=0.3,
            )
            return config, t.DistilBertModel, fast
        case "roberta":
            fast = t.RobertaTokenizerFast(tokenizer_object=byte_bpe())
            return t.RobertaConfig(vocab_size=len(fast), **SIZES, **roberta), t.RobertaModel, fast
        case "xlm-roberta":
            fast = t.XLMRobertaTokenizerFast(tokenizer_object=unigram())
            return t.XLMRobertaConfig(vocab_size=len(fast), **SIZES, **roberta), t.XLMRobertaModel, fast
        case "mpnet":
            special = {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
            fast = t.MPNetTokenizerFast(tokenizer_object=unigram(), **special)
            return t.MPNetConfig(vocab_size=len(fast), **SIZES), t.MPNetModel, fast
    raise ValueError(architecture)


def sentence_transformers(
    architecture: str,
    folder: Path,
    *,
    pooling: Any = "mean",
    layers: Layers = Layers(normalize=True),
    prompts: dict[str, str] | None = None,
    max_seq_length: int | None = None,
    include_prompt: bool = True,
    activation: Any = None,
) -> Path:
    """A sentence-transformers folder of such an encoder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformer = Transformer(
            str(huggingface(architecture, folder / "hf")), max_seq_length=max_seq_length
        )
        width = transformer.get_embedding_dimension()
        modules: list[Any] = [transformer, Pooling(width, pooling, include_prompt=include_prompt)]
        if layers.dense:
            width = modules[-1].get_embedding_dimension()
            modules.append(Dense(width, 24, activation_function=activation or torch.nn.Tanh()))
        if layers.normalize:
            modules.append(Normalize())
        model = SentenceTransformer(modules=modules, device="cpu", prompts=prompts)
        model.save(str(folder / "st"), create_model_card=False)
    return folder / "st"


def export(source: Path | str, *options: str, name: str, repository: Path) -> Path:
    """Run the command as `trimtab export SOURCE OPTIONS`; the folder of the encoder's version 1."""
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    words = [str(source), "--name", name, "--repository", str(repository), *options]
    assert cli.run(parser.parse_args(words)) == 0
    return repository / name / "1"


def encode(folder: Path, texts: list[str], prompt: str = "", max_tokens: int | None = None) -> Any:
    """What the library itself answers; without `max_tokens`, RoBERTa's family fails beyond its positions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SentenceTransformer(str(folder), device="cpu")
        if max_tokens is not None:
            model.max_seq_length = max_tokens
        return model.encode(texts, prompt=prompt, show_progress_bar=False)
