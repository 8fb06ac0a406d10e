"""Encoders close to all-MiniLM-L6-v2: with fewer FFN neurons, weights changed by a fine-tune, or int8.

Each is made once, in bench/.data/encoders, from the encoder and from examples that no swap is judged with.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.data import Example
from bench.encoders import FOLDER, L6, source

PRUNED, TUNED, INT8 = "minilm-l6-ffn75", "minilm-l6-tuned", "minilm-l6-int8"
CALIBRATION = 256  # texts
STEPS, BATCH, RATE, TEMPERATURE = 150, 32, 2e-5, 0.05  # of the fine-tune
LONGEST = 64  # tokens of a document in it


def made(name: str, examples: Sequence[Example]) -> Path:
    """The folder of one of the three; made if missing."""
    folder = FOLDER / name
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        makers: dict[str, Callable[[Path, Sequence[Example]], None]] = {
            PRUNED: _prune,
            TUNED: _tune,
            INT8: _quantise,
        }
        makers[name](partial, examples)
        partial.rename(folder)
    return folder


def _model() -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(source(L6)), device="cpu")


def _prune(folder: Path, examples: Sequence[Example]) -> None:
    """Remove a quarter of each layer's FFN neurons, the least important by mean square times output norm."""
    import torch

    model = _model()
    bert = model[0].auto_model
    squares: dict[int, Any] = {}

    def watch(layer: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            squares[layer] = squares.get(layer, 0) + output.detach().flatten(0, -2).square().sum(dim=0)

        return hook

    hooks = [
        each.intermediate.register_forward_hook(watch(number))
        for number, each in enumerate(bert.encoder.layer)
    ]
    model.encode([each.document for each in examples[:CALIBRATION]], batch_size=16)
    for hook in hooks:
        hook.remove()
    kept = bert.config.intermediate_size * 3 // 4
    for number, layer in enumerate(bert.encoder.layer):
        inward, outward = layer.intermediate.dense, layer.output.dense
        worth = squares[number] * outward.weight.detach().square().sum(dim=0)
        rows = torch.sort(torch.topk(worth, kept).indices).values
        inward.weight = torch.nn.Parameter(inward.weight.detach()[rows].clone())
        inward.bias = torch.nn.Parameter(inward.bias.detach()[rows].clone())
        outward.weight = torch.nn.Parameter(outward.weight.detach()[:, rows].clone())
    bert.config.intermediate_size = kept
    model.save(str(folder), create_model_card=False)


def _tune(folder: Path, examples: Sequence[Example]) -> None:
    """A minute of contrastive training on queries and their documents (InfoNCE, in-batch negatives)."""
    import torch

    torch.manual_seed(0)
    model = _model()
    model.max_seq_length = LONGEST
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    order = np.random.default_rng(0).permutation(len(examples))
    model.train()
    for step in range(STEPS):
        rows = [examples[row] for row in order[step * BATCH : (step + 1) * BATCH]]
        queries, documents = (
            model(model.tokenize(texts))["sentence_embedding"]
            for texts in ([each.query for each in rows], [each.document for each in rows])
        )
        scores = queries @ documents.T / TEMPERATURE
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(len(rows)))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    model.max_seq_length = 256
    model.eval().save(str(folder), create_model_card=False)


def _quantise(folder: Path, examples: Sequence[Example]) -> None:
    """Static int8, weights per channel, outputs of products not quantised: model.onnx, to token states."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from optimum.exporters.onnx import main_export

    folder.mkdir(parents=True)
    plain = folder / "plain"
    main_export(str(source(L6)), plain, task="feature-extraction", library_name="transformers", device="cpu")
    tokenizer = _model().tokenizer
    texts = sorted((each.document for each in examples[:CALIBRATION]), key=len)

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            starts = range(0, len(texts), 8)
            self._batches = iter([texts[start : start + 8] for start in starts])

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            if batch is None:
                return None
            tokens = tokenizer(batch, padding=True, truncation=True, max_length=128, return_tensors="np")
            return {name: value.astype(np.int64) for name, value in tokens.items()}

    quantize_static(
        str(plain / "model.onnx"),
        str(folder / "model.onnx"),
        Batches(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"], "MatMulConstBOnly": True},
    )
    shutil.rmtree(plain)
