"""Trimtab's client: text in, vectors of a named space out.

    import trimtab

    with trimtab.Client("127.0.0.1:8001") as client:
        vectors = client.embed(["a trim tab cancels drift", "so nobody has to hold the wheel"])
        for vector in client.embed_stream(open("texts.txt")):
            ...

`AsyncClient` is the same for asyncio. Every error is a TrimtabError; arrays are NumPy's.
"""

from trimtab.adapter import Calibrator, Endpoint
from trimtab.aio import AsyncClient
from trimtab.aio_stream import AsyncEmbeddingStream
from trimtab.bundle import Fidelity
from trimtab.client import Client
from trimtab.errors import (
    AdapterError,
    BundleError,
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    ExportError,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TrimtabError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from trimtab.half_migrated import AsyncHalfMigrated, HalfMigrated
from trimtab.stream import EmbeddingStream
from trimtab.types import (
    Adapter,
    Embeddings,
    EmbedOptions,
    Encoder,
    Limits,
    Priority,
    Role,
    StageTimes,
    Truncate,
    Variant,
)
from trimtab.vectors import Dtype

__all__ = [
    "Adapter",
    "AdapterError",
    "AsyncClient",
    "AsyncEmbeddingStream",
    "AsyncHalfMigrated",
    "BundleError",
    "Calibrator",
    "Cancelled",
    "Client",
    "ConfigError",
    "DeadlineExceeded",
    "Dtype",
    "EmbedOptions",
    "EmbeddingStream",
    "Embeddings",
    "Encoder",
    "Endpoint",
    "ExportError",
    "FailedPrecondition",
    "Fidelity",
    "HalfMigrated",
    "InternalError",
    "InvalidArgument",
    "Limits",
    "NotFound",
    "PermissionDenied",
    "Priority",
    "ResourceExhausted",
    "Role",
    "StageTimes",
    "TrimtabError",
    "Truncate",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Variant",
]
