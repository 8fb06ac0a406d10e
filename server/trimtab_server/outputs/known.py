"""The kinds of output that are served, by name. Packages add others by entry points of
`trimtab_server.outputs`."""

from typing import Any

from trimtab.registry import Registry
from trimtab_server.outputs.dense import DenseKind
from trimtab_server.outputs.kind import OutputKind
from trimtab_server.outputs.multi_vector import MultiVectorKind
from trimtab_server.outputs.scores import ScoresKind
from trimtab_server.outputs.sparse import SparseKind

KINDS: Registry[OutputKind[Any]] = Registry(
    "kind of output",
    "trimtab_server.outputs",
    {
        "dense": DenseKind(),
        "multi_vector": MultiVectorKind(),
        "scores": ScoresKind(),
        "sparse": SparseKind(),
    },
    lambda found: isinstance(found, OutputKind),
)
