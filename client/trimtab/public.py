"""What `trimtab.NAME` is for each public name: it is imported when the first of them is asked for."""

# ruff: noqa: PLC0414 (an alias says that a name is passed on)

from trimtab.adapter import Calibrator as Calibrator
from trimtab.adapter import Endpoint as Endpoint
from trimtab.aio import AsyncClient as AsyncClient
from trimtab.aio_stream import AsyncEmbeddingStream as AsyncEmbeddingStream
from trimtab.bundle import Fidelity as Fidelity
from trimtab.client import Client as Client
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
from trimtab.half_migrated import AsyncHalfMigrated as AsyncHalfMigrated
from trimtab.half_migrated import HalfMigrated as HalfMigrated
from trimtab.stream import EmbeddingStream as EmbeddingStream
from trimtab.types import Adapter as Adapter
from trimtab.types import Embeddings as Embeddings
from trimtab.types import EmbedOptions as EmbedOptions
from trimtab.types import Encoder as Encoder
from trimtab.types import Limits as Limits
from trimtab.types import Priority as Priority
from trimtab.types import Role as Role
from trimtab.types import StageTimes as StageTimes
from trimtab.types import Truncate as Truncate
from trimtab.types import Variant as Variant
from trimtab.vectors import Dtype as Dtype
