"""The one shape of all kinds of texts: pairs of a query and the document that answers it."""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

# What a domain is for where no texts were given: see `roles`.
Role = Literal["train", "choose", "judge"]


class Pair(NamedTuple):
    """A query and the document that answers it; the language is the query's, as ISO 639-1 has it."""

    query: str
    document: str
    language: str = "en"


@dataclass(frozen=True)
class Domain:
    """A kind of text.

    `find` reads what the machine has of it, in any order, with repetitions, and yields nothing where there is
    nothing; it runs no code that it finds.
    """

    name: str
    what: str  # asks for what, for people
    role: Role
    find: Callable[[], Iterable[Pair]]


def hash_of(text: str) -> int:
    """A number that scatters texts, the same on every machine."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))
