"""The JSON files of a source, from a folder or the hub. A broken file is refused by name."""

import json
from pathlib import Path
from typing import Any

from trimtab.errors import ExportError
from trimtab_export.runtime import first_line

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def find(location: str, name: str, subfolder: str = "") -> Path | None:
    """The file's path on this disk; None if the source has no such file."""
    from sentence_transformers.util import load_file_path

    try:
        path = load_file_path(location, name, subfolder=subfolder)
    except Exception as error:  # network errors, or the hub's own
        raise ExportError(f"{location} cannot be loaded: {name}: {first_line(error)}") from error
    if path is not None and not Path(path).is_file():
        raise ExportError(f"{name} of {location} is no file")
    return None if path is None else Path(path)


def read(location: str, name: str, kind: type, subfolder: str = "") -> Any:
    """The content of a JSON file, a `kind` (dict or list); None if there is no such file."""
    path = find(location, name, subfolder)
    if path is None:
        return None
    named = f"{subfolder}/{name}" if subfolder else name
    try:
        content = path.read_bytes()
        if content.startswith(BYTE_ORDER_MARK):
            raise ExportError(
                f"{named} of {location} begins with a byte order mark, which JSON does not allow: save it "
                "as UTF-8 without one"
            )
        value = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{named} of {location} cannot be read as JSON: {error}") from None
    if not isinstance(value, kind):
        what = "an object" if kind is dict else "a list"
        raise ExportError(f"{named} of {location} holds {_brief(value)}; {what} is needed")
    return value


def mapping(location: str, name: str, subfolder: str = "") -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    return read(location, name, dict, subfolder) or {}


def check_whole(location: str, key: str, value: object) -> None:
    """Refuse a value that is neither a whole number nor null."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    # Tokenizers without a limit say 1e30, sometimes as a float.
    if value is not None and not whole and not (isinstance(value, float) and value >= UNLIMITED):
        raise ExportError(f"{key} of {location} is {_brief(value)}; a whole number is needed")


UNLIMITED = 1_000_000  # tokens


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
