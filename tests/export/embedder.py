"""A bundle run as a server would: manifest, tokenizer.json, graph; nothing of the exporter."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tokenizers

from trimtab import bundle as bundles


class Embedder:
    def __init__(self, folder: Path) -> None:
        self.bundle = bundles.read(folder)
        manifest = self.bundle.manifest
        self.tokenizer = tokenizers.Tokenizer.from_file(str(self.bundle.file(manifest.tokenizer)))
        self.tokenizer.enable_truncation(manifest.max_tokens)
        graph = self.bundle.file(manifest.variants[0].files[0])
        self.session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    def __call__(self, texts: list[str], prompt: str = "", extra_pads: int = 0) -> Any:
        """float32 (n, dimensions); `extra_pads` more pads than the longest text needs."""
        rows = [row.ids for row in self.tokenizer.encode_batch([prompt + text for text in texts])]
        length = max(len(row) for row in rows) + extra_pads
        pads = [length - len(row) for row in rows]
        pad = self.bundle.manifest.pad_id
        inputs = {
            "input_ids": np.array(
                [row + [pad] * n for row, n in zip(rows, pads, strict=True)], dtype=np.int64
            ),
            "attention_mask": np.array([[1] * (length - n) + [0] * n for n in pads], dtype=np.int64),
            "token_type_ids": np.zeros((len(texts), length), dtype=np.int64),
        }
        wanted = self.bundle.manifest.variants[0].inputs
        return self.session.run(["embeddings"], {name: inputs[name] for name in wanted})[0]
