"""The known kinds of output, by name. Packages add others by the entry points `trimtab.outputs`."""

from trimtab.outputs.dense import DenseForm
from trimtab.outputs.form import OutputForm
from trimtab.outputs.multi_vector import MultiVectorForm
from trimtab.outputs.scores import ScoresForm
from trimtab.outputs.sparse import SparseForm
from trimtab.registry import Registry

OUTPUTS: Registry[type[OutputForm]] = Registry(
    "kind of output",
    "trimtab.outputs",
    {
        "dense": DenseForm,
        "multi_vector": MultiVectorForm,
        "scores": ScoresForm,
        "sparse": SparseForm,
    },
    lambda found: isinstance(found, type) and issubclass(found, OutputForm),
)
