"""Ids of documents: 64-bit integers, or text."""

from typing import TypeAlias

from trimtab.errors import InvalidArgument

Id: TypeAlias = int | str
# The range of 64-bit integers, signed or unsigned.
_LEAST, _MOST = -(2**63), 2**64


def check_id(id: object, where: str) -> Id:
    """`id` if it is a valid id."""
    if fault := id_fault(id):
        raise InvalidArgument(f"{where}: {fault}")
    if not isinstance(id, int | str):
        raise TypeError("id_fault lets only whole numbers and text pass")
    return id


def id_fault(id: object) -> str:
    """Why this is not an id; "" if it is one: a 64-bit integer, or text that UTF-8 can encode."""
    if isinstance(id, bool) or not isinstance(id, int | str):
        return f"{id!r} is {type(id).__name__}; an id is a whole number or text"
    if isinstance(id, int):
        fits = _LEAST <= id < _MOST
        return "" if fits else f"{id} is no whole number from -2^63 to 2^64 - 1; use text for such an id"
    fault = text_fault(id)
    return f"{id!r} {fault}" if fault else ""


def text_fault(text: str) -> str:
    """What prevents text from being written anywhere; "" if nothing does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds half of a surrogate pair at character {error.start}, which UTF-8 cannot carry"
    return ""


def order(id: Id) -> tuple[bool, int, str]:
    """The sort key of ids in stores without an order of their own: numbers first, then text."""
    return (True, 0, id) if isinstance(id, str) else (False, id, "")
