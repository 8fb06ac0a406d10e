"""How a store's catalogue records its outputs: a list of them, the first output first.

Stores of a single output, with the usual name, need no such list: they record its space alone.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from trimtab.errors import ConfigError
from trimtab.kinds import Similarity
from trimtab.stores.base import DENSE, KINDS, Form, Kind
from trimtab.stores.columns import column

_LONGEST = 63  # bytes of a name in PostgreSQL; it cuts off the rest


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """One output."""

    name: str
    kind: Kind
    space: str
    dimensions: int
    similarity: Similarity

    @property
    def form(self) -> Form:
        """Its form."""
        return Form(space=self.space, dimensions=self.dimensions, similarity=self.similarity, kind=self.kind)


def check_new(outputs: Mapping[str, Form], kinds: tuple[Kind, ...], store: str) -> None:
    """ConfigError if a store that keeps these kinds cannot be made for these outputs."""
    first, *others = outputs or [""]
    if not outputs or outputs[first].kind != DENSE:
        raise ConfigError(f"{store} needs a dense output first, got {', '.join(outputs) or 'none'}")
    if others and kinds == (DENSE,):
        raise ConfigError(
            f"{store} keeps dense vectors alone, and not {' and '.join(others)}; leave them out, or use "
            "Qdrant or pgvector"
        )
    for name, form in outputs.items():
        if form.space is None:
            raise ConfigError(f"{store} is to be made without naming the space of its vectors")
        if form.kind not in KINDS:
            raise ConfigError(f"{store} keeps {', '.join(KINDS)}, and the output {name!r} is {form.kind}")
        if form.similarity not in (known := column(form).similarities):
            raise ConfigError(
                f"{store}: the output {name!r}, which is {form.kind}, is compared by {' or '.join(known)}, "
                f"not by {form.similarity}"
            )
        if not name.isprintable() or not 1 <= len(name.encode()) <= _LONGEST:
            raise ConfigError(f"{store}: {name!r} is no name of an output; it has 1 to {_LONGEST} bytes")


def record(outputs: Mapping[str, Form]) -> list[dict[str, Any]] | None:
    """The list for the catalogue; None if there is nothing to say besides the first output's space."""
    if list(outputs) == [DENSE]:
        return None
    recorded = [
        Recorded(
            name=name,
            kind=form.kind,
            space=form.space or "",
            dimensions=form.dimensions,
            similarity=form.similarity,
        )
        for name, form in outputs.items()
    ]
    found: list[dict[str, Any]] = msgspec.to_builtins(recorded)
    return found


def read(recorded: object, store: str) -> dict[str, Form]:
    """The outputs by name, of such a list; {} if there is none. ConfigError if it is not ours."""
    if recorded is None:
        return {}
    try:
        outputs = {each.name: each.form for each in msgspec.convert(recorded, list[Recorded])}
        first = next(iter(outputs.values()), None)
        if first is None or first.kind != DENSE:
            raise ValueError("the first is not dense")
    except ValueError as error:
        raise ConfigError(f"{store} records outputs that this Trimtab cannot read: {error}") from None
    return outputs
