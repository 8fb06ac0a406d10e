"""Which ids a column of PostgreSQL can hold and return unchanged."""

import uuid
from dataclasses import dataclass
from typing import Any, LiteralString

from trimtab.errors import ConfigError
from trimtab.stores.ids import Id, id_fault

_WHOLE = {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}
# Types that cannot be ids because their values do not come back unchanged.
_NO_IDS = {"boolean", "bytea", "real", "double precision", "json", "jsonb", "oid"}


@dataclass(frozen=True, slots=True)
class IdColumn:
    """A column of ids. Values are cast to `type`."""

    type: LiteralString = "text"

    def fits(self, id: Id) -> bool:
        """Whether it could hold this id."""
        return not self.fault(id)

    def fault(self, id: Id) -> str:
        """Why it cannot hold this id and return it unchanged; "" if it can."""
        if fault := id_fault(id):
            return fault
        most = _WHOLE.get(self.type)
        fits = isinstance(id, int) == (most is not None)
        if isinstance(id, str):
            if "\0" in id:
                return f"{id!r} holds a NUL character, which PostgreSQL keeps in no text"
            if self.type == "bpchar" and id.endswith(" "):
                return f"{id!r} ends in a blank, which type character does not keep"
            if self.type == "uuid":
                fits = fits and _is_uuid(id)
        elif most is not None:
            fits = -most <= id < most
        if fits:
            return ""
        return f"the table has ids of type {self.type}, and {id!r} is none; name one whose ids are such"

    def read(self, value: Any) -> Id:
        """The id in a row."""
        if isinstance(value, int):
            return value
        return str(value).rstrip(" ") if self.type == "bpchar" else str(value)


def id_column(type: LiteralString, column: str, name: str, item: str) -> IdColumn:
    """The column of this type; ConfigError if its values cannot be ids."""
    if type in _NO_IDS or type.endswith("[]"):
        raise ConfigError(
            f"column {column!r} of {name} is {type}; ids are whole numbers, text or "
            f"UUIDs. Name another, #{item}?id=COLUMN, or a view that casts it to text"
        )
    # The type without a length; character would be character(1).
    return IdColumn("bpchar" if type == "character" else type)


def _is_uuid(id: str) -> bool:
    """Whether this is a UUID as PostgreSQL writes it."""
    try:
        return str(uuid.UUID(id)) == id
    except ValueError:
        return False
