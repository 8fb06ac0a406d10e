"""Triton serving a bundle's graph: tokenise, pad, run, batched by Triton. Runs in nvidia-pytriton's venv."""

import argparse
from typing import Any

import numpy as np
import onnxruntime as ort
import tokenizers
from pytriton.decorators import batch  # type: ignore[import-not-found]
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor  # type: ignore[import-not-found]
from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found]


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("graph")
    parser.add_argument("tokenizer")
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--max-batch", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    options = parser.parse_args()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = ort.InferenceSession(options.graph, settings, providers=["CPUExecutionProvider"])
    inputs = [each.name for each in session.get_inputs()]
    tokenizer = tokenizers.Tokenizer.from_file(options.tokenizer)
    tokenizer.enable_truncation(options.max_tokens)
    tokenizer.enable_padding()

    @batch  # type: ignore[untyped-decorator]
    def infer(text: Any) -> dict[str, Any]:
        encodings = tokenizer.encode_batch([each.decode() for each in text[:, 0]])
        ids = np.array([encoding.ids for encoding in encodings], np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return {"embeddings": session.run(["embeddings"], {name: feeds[name] for name in inputs})[0]}

    config = TritonConfig(
        grpc_address="127.0.0.1",
        grpc_port=options.grpc_port,
        http_address="127.0.0.1",
        http_port=options.http_port,
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=options.name,
            infer_func=infer,
            inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="embeddings", dtype=np.float32, shape=(options.width,))],
            config=ModelConfig(max_batch_size=options.max_batch, batcher=DynamicBatcher()),
        )
        triton.serve()


if __name__ == "__main__":
    main()
