"""The options of a TensorRT engine, for the exporter, which builds it, and the server, which runs it.

The server finds an engine only if both use the same options, so both import them from here. They are for ONNX
Runtime's TensorrtExecutionProvider; the keys are those of its documentation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import InvalidArgument
from trimtab.kinds import Precision

LENGTHS = (16, 64, 128, 256)  # where buckets end; the last one ends at the encoder's longest text
# The largest batch: the server's `batching.max_batch_tokens` and `max_batch_texts`, by default.
MOST_TOKENS = 16384
MOST_TEXTS = 256
TYPICAL = 8  # kernels are chosen for the most texts divided by this
FOLDER = "tensorrt"  # beside a graph
# The other precisions use operators of ONNX Runtime's own.
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8-qdq")


@dataclass(frozen=True, slots=True)
class Profile:
    """The shapes (texts, tokens) that an engine is made for: the smallest, the typical and the largest."""

    least: tuple[int, int]
    typical: tuple[int, int]
    most: tuple[int, int]


def profiles(max_tokens: int) -> tuple[Profile, ...]:
    """The profiles of a graph of `max_tokens`, one per bucket: they cover all that the server sends to it."""
    if max_tokens < 1:
        raise InvalidArgument(f"max_tokens {max_tokens}: at least 1")
    found = []
    shortest = 1
    for longest in (*(length for length in LENGTHS if length < max_tokens), max_tokens):
        texts = min(MOST_TEXTS, max(1, MOST_TOKENS // longest))
        found.append(Profile((1, shortest), (max(1, texts // TYPICAL), longest), (texts, longest)))
        shortest = longest + 1
    return tuple(found)


def options(
    inputs: Sequence[str], max_tokens: int, precision: Precision, caches: Path | None, index: int = 0
) -> dict[str, str]:
    """The provider's options.

    Args:
        inputs: the graph's, each (n, length).
        precision: the graph's. The engine may compute in float16 or int8 only if the graph itself uses them:
            whatever changes vectors makes another space.
        caches: the folder of engines and timing caches, which have the GPU architecture in their names;
            None: nothing is kept.
        index: the number of the GPU.
    """
    shapes = {"min": "least", "opt": "typical", "max": "most"}
    buckets = profiles(max_tokens)
    return {
        "device_id": str(index),
        "trt_fp16_enable": str(int(precision == "fp16")),
        "trt_int8_enable": str(int(precision == "int8-qdq")),
        "trt_layer_norm_fp32_fallback": "1",
        **{
            f"trt_profile_{key}_shapes": ",".join(
                f"{name}:{'x'.join(map(str, getattr(bucket, field)))}"
                for bucket in buckets
                for name in inputs
            )
            for key, field in shapes.items()
        },
        **({} if caches is None else _kept(caches)),
    }


def _kept(caches: Path) -> dict[str, str]:
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(caches),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(caches),
    }
