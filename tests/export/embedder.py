"""A bundle run as a server would: manifest, tokenizer.json, graph; nothing of the exporter."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tokenizers

from trimtab.artifacts import bundle as bundles
from trimtab.inputs.text import feeds
from trimtab.tokens import Tokenizer


class Embedder:
    def __init__(self, folder: Path) -> None:
        self.bundle = bundles.read(folder)
        manifest = self.bundle.manifest
        path = self.bundle.file(manifest.tokenizer)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self.tokenizer.enable_truncation(manifest.max_tokens)
        self._reader = Tokenizer(path, manifest.max_tokens)
        graph = self.bundle.file(manifest.variants[0].files[0])
        self.session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    def __call__(self, texts: list[str], prompt: str = "", extra_pads: int = 0) -> Any:
        """float32 (n, dimensions); `extra_pads` more pads than the longest text needs."""
        read = self._reader.read([prompt + text for text in texts], "end")
        pad = self.bundle.manifest.pad_id
        inputs = feeds([each.ids for each in read], pad, self._reader.types)
        fills = {"input_ids": pad, "attention_mask": 0, "token_type_ids": 0}
        inputs = {
            name: np.pad(array, ((0, 0), (0, extra_pads)), constant_values=fills[name])
            for name, array in inputs.items()
        }
        wanted = self.bundle.manifest.variants[0].inputs
        return self.session.run(["embeddings"], {name: inputs[name] for name in wanted})[0]
