"""Trimtab's client: it turns texts into vectors of a named space.

    import trimtab

    with trimtab.Client("127.0.0.1:8001") as client:
        vectors = client.embed(["a trim tab cancels drift", "so nobody has to hold the wheel"])
        for vector in client.embed_stream(open("texts.txt")):
            ...

`AsyncClient` is the same for asyncio. Every error is a TrimtabError; arrays are NumPy arrays.
"""

# ruff: noqa: F405 (the names come from trimtab.public)

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.public import *  # noqa: F403

__all__ = [
    "Adapter",
    "AdapterError",
    "AsyncClient",
    "AsyncEmbeddingStream",
    "AsyncHalfMigrated",
    "AsyncHybridSearch",
    "BundleError",
    "Calibrator",
    "Cancelled",
    "Client",
    "ConfigError",
    "DamagedError",
    "DeadlineExceeded",
    "Dtype",
    "EmbedOptions",
    "EmbeddingStream",
    "Embeddings",
    "Encoder",
    "EncoderOutput",
    "Endpoint",
    "ExportError",
    "FailedPrecondition",
    "Fidelity",
    "HalfMigrated",
    "HybridSearch",
    "InternalError",
    "InvalidArgument",
    "Limits",
    "MultiVectors",
    "NotFound",
    "Outputs",
    "PermissionDenied",
    "Priority",
    "Ranked",
    "Ranking",
    "ResourceExhausted",
    "Role",
    "SparseVectors",
    "StageTimes",
    "TrimtabError",
    "Truncate",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Variant",
    "read_vocabulary",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A public name, imported at first use: a device's own process imports our modules without gRPC."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module("trimtab.public"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
