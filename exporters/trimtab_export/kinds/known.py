"""The maker of each kind, by name. Packages add others by the entry points `trimtab_export.inputs` and
`trimtab_export.outputs`."""

from trimtab.registry import Registry
from trimtab_export.kinds.dense import DenseMaker
from trimtab_export.kinds.making import InputMaker, OutputMaker
from trimtab_export.kinds.multi_vector import MultiVectorMaker
from trimtab_export.kinds.pair import PairMaker
from trimtab_export.kinds.scores import ScoresMaker
from trimtab_export.kinds.sparse import SparseMaker
from trimtab_export.kinds.text import TextMaker

INPUTS: Registry[InputMaker] = Registry(
    "kind of input",
    "trimtab_export.inputs",
    {"text": TextMaker(), "pair": PairMaker()},
    lambda found: isinstance(found, InputMaker),
)
OUTPUTS: Registry[OutputMaker] = Registry(
    "kind of output",
    "trimtab_export.outputs",
    {
        "dense": DenseMaker(),
        "multi_vector": MultiVectorMaker(),
        "scores": ScoresMaker(),
        "sparse": SparseMaker(),
    },
    lambda found: isinstance(found, OutputMaker),
)
