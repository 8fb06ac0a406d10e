"""What a SparseEncoder folder of sentence-transformers declares, checked before anything is loaded."""

from dataclasses import dataclass
from typing import Any

from trimtab.errors import ExportError
from trimtab_export.load import declared, files
from trimtab_export.load.declared import ENTRY, PACKAGE, Declared

MODEL_TYPE = "SparseEncoder"
ROOM = "sparse_encoder."  # where the library keeps modules of sparse encoders
TRANSFORMERS = ("Transformer", "MLMTransformer")
CAN = (
    "these can: a Transformer for fill-mask with SpladePooling, and a Router of these for documents and of "
    "SparseStaticEmbedding for queries"
)
DOCUMENT, QUERY = "document", "query"  # the routes of a Router


def is_one(location: str) -> bool:
    """Whether this is a folder of a SparseEncoder."""
    entries = files.read(location, "modules.json", list)
    if entries is None:
        return False
    config = files.mapping(location, "config_sentence_transformers.json")
    return config.get("model_type") == MODEL_TYPE or any(ROOM in _type(entry) for entry in entries)


@dataclass(frozen=True)
class Splade(Declared):
    """`table`: the subfolder of the table that queries are read by; the modules are those for documents. "":
    there is none."""

    table: str = ""


def read(location: str) -> Splade | None:
    """The declarations of such a folder; None if it has no modules.json. Raises ExportError, naming the
    module, if one cannot be exported."""
    entries = files.read(location, "modules.json", list)
    if entries is None:
        return None
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ENTRY):
            raise ExportError(
                f"module {number} in modules.json of {location} lacks one of {', '.join(ENTRY)}, which are "
                "texts"
            )
        if not entry["type"].startswith(PACKAGE):
            raise ExportError(f"module {number} of {location} is {entry['type']}, which cannot be exported")
    modules = tuple((_type(entry).rpartition(".")[2], str(entry["path"])) for entry in entries)
    table = ""
    if [kind for kind, _ in modules] == ["Router"]:
        table, modules = _routes(location)
    order = [kind for kind, _ in modules]
    if len(order) != 2 or order[0] not in TRANSFORMERS or order[1] != "SpladePooling":
        raise ExportError(
            f"{location} is a SparseEncoder of the modules {', '.join(order)}, which cannot be exported; "
            f"{CAN}"
        )
    config = files.mapping(location, "config_sentence_transformers.json")
    declared.check_config(location, config, MODEL_TYPE)
    return Splade((("Transformer", modules[0][1]), modules[1]), config, table)


def _routes(location: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The subfolder of the table for queries, and the modules for documents, as (class, subfolder)."""
    content = files.mapping(location, "router_config.json")
    types, structure = content.get("types"), content.get("structure")
    if not isinstance(types, dict) or not isinstance(structure, dict) or set(structure) != {QUERY, DOCUMENT}:
        raise ExportError(
            f"router_config.json of {location} has not the routes {QUERY} and {DOCUMENT}; {CAN}"
        )
    kinds = {
        route: [(str(types.get(name)).rpartition(".")[2], str(name)) for name in structure[route]]
        for route in (QUERY, DOCUMENT)
    }
    foreign = [each for each in types.values() if not str(each).startswith(PACKAGE)]
    if foreign:
        raise ExportError(f"the Router of {location} has {foreign[0]}, which cannot be exported; {CAN}")
    if [kind for kind, _ in kinds[QUERY]] != ["SparseStaticEmbedding"]:
        listed = ", ".join(kind for kind, _ in kinds[QUERY])
        raise ExportError(f"the Router of {location} reads queries by {listed}; {CAN}")
    return kinds[QUERY][0][1], tuple(kinds[DOCUMENT])


def _type(entry: Any) -> str:
    return str(entry.get("type")) if isinstance(entry, dict) else ""
