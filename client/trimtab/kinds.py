"""Closed sets of names: what requests, manifests and options choose from, each defined once."""

from typing import Literal, get_args

from trimtab.errors import InvalidArgument

Role = Literal["query", "passage"]
Truncate = Literal["end", "start", "none"]
Priority = Literal["interactive", "bulk"]
Dtype = Literal["float32", "float16", "int8", "ubinary"]
ROLES: tuple[Role, ...] = get_args(Role)
TRUNCATIONS: tuple[Truncate, ...] = get_args(Truncate)
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
Pooling = Literal["mean", "cls", "last", "max"]
# int8: linear layers multiply bytes; int8-weights, int4-weights: weights in blocks; fp16: for GPUs;
# bf16: weights in bfloat16, computed in float32; in OpenVINO, weights in float32, products in bfloat16;
# int8-qdq: int8 as Q and DQ nodes around the products, for TensorRT
Precision = Literal["fp32", "int8", "int8-weights", "int4-weights", "fp16", "bf16", "int8-qdq"]

# What runs a graph; OpenVINO does on CPUs alone.
Runtime = Literal["onnx", "openvino"]
RUNTIMES: dict[Runtime, str] = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}  # as people call them

Verdict = Literal["bridge", "cascade", "re-index", "stay"]
Reads = Literal["embeddings", "states"]  # of an encoder's graph, by an adapter


def check_dtype(name: str) -> Dtype:
    """`name` as a Dtype; InvalidArgument names the choices."""
    if name not in DTYPES:
        raise InvalidArgument(f"dtype {name!r} is not known; choose one of {', '.join(DTYPES)}")
    return name


# How a set of queries and documents relates to a variant: a kind of text that it was neither made nor chosen
# on, the user's own (more of which trained the variant), or held-out pairs of a kind that trained it.
JudgedBy = Literal["left out", "yours", "trained on"]
