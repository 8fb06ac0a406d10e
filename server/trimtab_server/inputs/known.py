"""What reads each kind of input, by its name. Packages add others by the entry points
`trimtab_server.inputs`."""

from trimtab.registry import Registry
from trimtab_server.inputs.reader import Reader
from trimtab_server.inputs.text import TextReader

READERS: Registry[type[Reader]] = Registry(
    "kind of input",
    "trimtab_server.inputs",
    {"text": TextReader},
    lambda found: isinstance(found, type) and issubclass(found, Reader),
)
