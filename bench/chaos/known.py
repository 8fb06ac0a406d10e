"""Texts whose vectors are known without a server: a small encoder whose formula NumPy can repeat.

Row p of a text's words w_1 ... w_n is E[w_p] * P[p], and the vector is their sum, scaled to length 1; E and P
are random and seeded. Every word and its position change the vector, so no two texts share one. The encoder
costs next to nothing, so the load falls on the server.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.encoders import exported
from bench.processes import PYTHON, ROOT

FOLDER = ROOT / "bench" / ".data" / "chaos"
NAME = "known"
WIDTH = 64
WORDS = 64
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MAX_TOKENS = 64
# A text spells its number in this many words, followed by a number of further words that depends on it.
DIGITS, MORE = 4, 24
# Vectors of two texts differ by far more than rounding.
TOLERANCE = 1e-4

_random = np.random.default_rng(20)
_E = _random.standard_normal((len(SPECIAL) + WORDS, WIDTH), np.float32)
_P = _random.standard_normal((MAX_TOKENS, WIDTH), np.float32)
_E[0] = 0.0  # of padding


def _ids(number: int) -> list[int]:
    """The token ids of a text's words."""
    digits = [number // WORDS**place % WORDS for place in range(DIGITS)]
    more = [(number * 31 + place * place * 7) % WORDS for place in range(number % MORE)]
    return [2, *(len(SPECIAL) + word for word in (*digits, *more)), 3]


def text(number: int) -> str:
    """The text of this number, below 64**4; no other number has the same text."""
    return " ".join(f"w{each - len(SPECIAL)}" for each in _ids(number)[1:-1])


def vectors(numbers: Sequence[int]) -> NDArray[np.float32]:
    """The vectors an encoder must return for the texts of these numbers: (n, WIDTH)."""
    longest = DIGITS + MORE + 2
    ids = np.zeros((len(numbers), longest), np.int64)
    for row, number in enumerate(numbers):
        words = _ids(number)
        ids[row, : len(words)] = words
    rows: NDArray[np.float32] = (_E[ids] * _P[:longest]).sum(axis=1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def bundle() -> Path:
    """The encoder's bundle; exported if missing."""
    folder = FOLDER / "models" / NAME / "1"
    if not exported(folder):
        source = FOLDER / "source"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir(parents=True)
        _graph(source / "model.onnx")
        _tokenizer(source / "tokenizer.json")
        (source / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
        command = [PYTHON, "-m", "trimtab.cli", "export", str(source / "model.onnx"), "--name", NAME]
        command += ["--repository", str(FOLDER / "models"), "--max-tokens", str(MAX_TOKENS)]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return folder


def _graph(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    int64 = {name: np.array(value, np.int64) for name, value in (("one", [1]), ("last", [-1]), ("axis", 1))}
    constants = {"E": _E, "P": _P, **int64}
    nodes = [
        helper.make_node("CumSum", ["attention_mask", "axis"], ["places"]),
        helper.make_node("Sub", ["places", "attention_mask"], ["before"]),
        helper.make_node("Gather", ["E", "input_ids"], ["words"]),
        helper.make_node("Gather", ["P", "before"], ["weights"]),
        helper.make_node("Mul", ["words", "weights"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], ["sentence_embedding"], axis=1, p=2),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", WIDTH])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, NAME, inputs, [output], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def _tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [*SPECIAL, *(f"w{number}" for number in range(WORDS))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(path))
