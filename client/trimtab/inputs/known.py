"""The known kinds of input, by name. Packages add others by the entry points `trimtab.inputs`."""

from trimtab.inputs.graph import GraphInput
from trimtab.inputs.pair import PairInput
from trimtab.inputs.text import TextInput
from trimtab.registry import Registry

INPUTS: Registry[type[GraphInput]] = Registry(
    "kind of input",
    "trimtab.inputs",
    {"text": TextInput, "pair": PairInput},
    lambda found: isinstance(found, type) and issubclass(found, GraphInput),
)
