"""The public names `trimtab.NAME`. This module is imported when the first of them is used."""

# ruff: noqa: PLC0414 (an alias marks a name as re-exported)

from trimtab.artifacts.adapter import Calibrator as Calibrator
from trimtab.artifacts.adapter import Endpoint as Endpoint
from trimtab.artifacts.cards import Fidelity as Fidelity
from trimtab.core.answers import Adapter as Adapter
from trimtab.core.answers import Embeddings as Embeddings
from trimtab.core.answers import Encoder as Encoder
from trimtab.core.answers import EncoderOutput as EncoderOutput
from trimtab.core.answers import Limits as Limits
from trimtab.core.answers import Outputs as Outputs
from trimtab.core.answers import StageTimes as StageTimes
from trimtab.core.answers import Variant as Variant
from trimtab.core.options import EmbedOptions as EmbedOptions
from trimtab.errors import AdapterError as AdapterError
from trimtab.errors import BundleError as BundleError
from trimtab.errors import Cancelled as Cancelled
from trimtab.errors import ConfigError as ConfigError
from trimtab.errors import DamagedError as DamagedError
from trimtab.errors import DeadlineExceeded as DeadlineExceeded
from trimtab.errors import ExportError as ExportError
from trimtab.errors import FailedPrecondition as FailedPrecondition
from trimtab.errors import InternalError as InternalError
from trimtab.errors import InvalidArgument as InvalidArgument
from trimtab.errors import NotFound as NotFound
from trimtab.errors import PermissionDenied as PermissionDenied
from trimtab.errors import ResourceExhausted as ResourceExhausted
from trimtab.errors import TrimtabError as TrimtabError
from trimtab.errors import Unauthenticated as Unauthenticated
from trimtab.errors import Unavailable as Unavailable
from trimtab.errors import Unimplemented as Unimplemented
from trimtab.kinds import Dtype as Dtype
from trimtab.kinds import Priority as Priority
from trimtab.kinds import Role as Role
from trimtab.kinds import Truncate as Truncate
from trimtab.migration.half_migrated import AsyncHalfMigrated as AsyncHalfMigrated
from trimtab.migration.half_migrated import HalfMigrated as HalfMigrated
from trimtab.sdk.aio import AsyncClient as AsyncClient
from trimtab.sdk.aio_stream import AsyncEmbeddingStream as AsyncEmbeddingStream
from trimtab.sdk.client import Client as Client
from trimtab.sdk.stream import EmbeddingStream as EmbeddingStream
from trimtab.search.hybrid import AsyncHybridSearch as AsyncHybridSearch
from trimtab.search.hybrid import HybridSearch as HybridSearch
from trimtab.values.multi_vector import MultiVectors as MultiVectors
from trimtab.values.sparse import SparseVectors as SparseVectors
