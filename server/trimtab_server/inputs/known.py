"""The readers of each kind of input, by name. Packages add others by entry points of
`trimtab_server.inputs`."""

from trimtab.registry import Registry
from trimtab_server.inputs.pair import PairReader
from trimtab_server.inputs.reader import ItemReader
from trimtab_server.inputs.text import TextReader

READERS: Registry[type[ItemReader]] = Registry(
    "kind of input",
    "trimtab_server.inputs",
    {"text": TextReader, "pair": PairReader},
    lambda found: isinstance(found, type) and issubclass(found, ItemReader),
)
