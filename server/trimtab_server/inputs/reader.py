"""The interface of all kinds of input: items are bounded before work is spent on them, then made into
payloads."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

from trimtab.artifacts.manifest import Input, Prompts
from trimtab.inputs.graph import GraphInput, Tried
from trimtab.kinds import Role, Truncate
from trimtab_server.engine.batch import Payload

# What messages call an item of a request, by its position: texts[3].
Which: TypeAlias = Callable[[int], str]


class ItemReader(ABC):
    """Reads the items of one encoder's input. Threads call `read`; everything else is for the event loop.

    form: the field of `trimtab.v1.Input` that carries an item. What an item is follows from it: str for text,
    (str, str) for a pair, int64 ids for tokens, bytes for an image. processor: what messages call the thing
    that prepares them.
    """

    form: ClassVar[str]
    processor: ClassVar[str] = "processor"
    by_role: bool = False  # queries and passages are read differently, besides their prompts

    @classmethod
    @abstractmethod
    def open(cls, declared: Input, content: bytes, name: str) -> "ItemReader":
        """A reader with this content of its processor's file, whose `name` is for messages; b"" if the input
        has none. Raises BundleError if that cannot be used."""

    @abstractmethod
    def graph_input(self, names: Sequence[str], tried: Tried) -> GraphInput:
        """The input of a graph that reads `names`, filled with what `read` gives."""

    @abstractmethod
    def prompted(self, items: Sequence[Any], prompt: str) -> Sequence[Any]:
        """The items with a role's prompt, which is not empty, put before them."""

    def in_role(self, items: Sequence[Any], role: Role | None, prompts: Prompts) -> Sequence[Any]:
        """The items as `read` and what bounds it take them."""
        prompt = prompts.of(role)
        return self.prompted(items, prompt) if prompt else items

    @abstractmethod
    def size(self, item: Any) -> int:
        """Bytes of an item as it was sent."""

    @abstractmethod
    def characters(self, item: Any) -> int:
        """About the work of reading an item, as the length of a text that takes as much."""

    @abstractmethod
    def bound(self, items: Sequence[Any]) -> tuple[int, int]:
        """The most units that items can have in total, and the most bytes that they take in memory."""

    @abstractmethod
    def read(self, items: Sequence[Any], how: Truncate) -> Sequence[Any]:
        """What `payloads` needs of each item, in any form."""

    @abstractmethod
    def payloads(self, read: Sequence[Any], how: Truncate, which: Which) -> list[Payload]:
        """What was read, as payloads. Raises InvalidArgument, naming an item that is too long, if none may be
        cut."""
