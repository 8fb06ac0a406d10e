"""The common form of all kinds of texts: pairs of a query and the document that answers it."""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

# What a domain is used for if no texts were given: see `roles`.
Role = Literal["train", "choose", "judge"]


class Pair(NamedTuple):
    """A query and the document that answers it; the language is the query's, as an ISO 639-1 code."""

    query: str
    document: str
    language: str = "en"


@dataclass(frozen=True)
class Domain:
    """A kind of text.

    `find` reads what the machine has of this kind, in any order and with repetitions. It yields nothing if
    there is nothing, and never runs code that it finds.
    """

    name: str
    what: str  # what asks for what, for people
    role: Role
    find: Callable[[], Iterable[Pair]]


def hash_of(text: str) -> int:
    """A hash of a text that is the same on every machine."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))
