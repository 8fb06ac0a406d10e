"""Queries of PostgreSQL's own catalogue, and the comment of a table."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, LiteralString

import msgspec

from trimtab.errors import ConfigError
from trimtab.kinds import Similarity

if TYPE_CHECKING:
    import psycopg

# How far an approximate index is searched: as the address says, or as the database does, but at least as far
# as FAISS. From pgvector 0.8 on, both kinds continue if that gives too few rows. Without such an index, this
# has no effect.
SETTINGS = """
    SELECT
        set_config('hnsw.ef_search', coalesce(%s::int, greatest(
            least(%s::int, 1000), 64, nullif(current_setting('hnsw.ef_search', true), '')::int
        ))::text, true),
        CASE WHEN iterative THEN set_config('hnsw.iterative_scan', 'strict_order', true) END,
        set_config('ivfflat.probes', coalesce(%s::int, greatest(
            16, nullif(current_setting('ivfflat.probes', true), '')::int, (
                SELECT ceil(sqrt(max(option_value::int)))::int
                FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid, pg_options_to_table(reloptions)
                WHERE indrelid = to_regclass(%s) AND option_name = 'lists'
            )
        ))::text, true),
        CASE WHEN iterative THEN set_config('ivfflat.iterative_scan', 'relaxed_order', true) END
    FROM (
        SELECT string_to_array(extversion, '.')::int[] >= '{0,8}' AS iterative
        FROM pg_extension WHERE extname = 'vector'
    ) AS known
"""
# The metrics of the indexes on a column, as the names of their operator classes say.
CLASSES = """
    SELECT DISTINCT opcname FROM pg_index
    JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey)
    JOIN pg_opclass ON pg_opclass.oid = ANY(indclass)
    WHERE indrelid = to_regclass(%s) AND attname = %s
"""
# The columns of a table: name, type, dimensions of a vector, kind of type, and the table's comment. A domain
# counts as its base type.
COLUMNS = """
    SELECT
        attname, format_type(coalesce(nullif(typbasetype, 0), atttypid), NULL),
        CASE WHEN typbasetype = 0 THEN atttypmod ELSE typtypmod END, typcategory::text,
        obj_description(attrelid)
    FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
    WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped
"""
TEXTS = {"S", "E"}  # the kinds of types whose values are text: strings and enumerations
# How each similarity orders rows.
OPERATORS: dict[Similarity, LiteralString] = {
    "cosine": "<=>",
    "dot": "<#>",
    "euclidean": "<->",
    "manhattan": "<+>",
}


# A relation with all its parts: the tables behind a view, the partitions and child tables of a table.
TABLES = """
    WITH RECURSIVE part(oid) AS (
        SELECT to_regclass(%s)::oid
        UNION
        SELECT edge.below FROM part JOIN (
            SELECT ev_class AS above, refobjid AS below FROM pg_rewrite JOIN pg_depend
            ON classid = 'pg_rewrite'::regclass AND objid = pg_rewrite.oid
            AND refclassid = 'pg_class'::regclass
            UNION ALL
            SELECT inhparent, inhrelid FROM pg_inherits
        ) AS edge ON edge.above = part.oid
    )
    SELECT (SELECT oid FROM pg_database WHERE datname = current_database()), oid FROM part
"""
CLASS_WORDS: dict[str, Similarity] = {
    "cosine": "cosine",
    "ip": "dot",
    "l2": "euclidean",
    "l1": "manhattan",
}


# Whether a column is unique over all rows of a table, including those of its child tables.
UNIQUE = """
    SELECT EXISTS (
        SELECT FROM pg_index JOIN pg_attribute AS key ON attrelid = indrelid AND attnum = indkey[0]
        JOIN pg_class ON pg_class.oid = indrelid
        WHERE indrelid = to_regclass(%s) AND attname = %s AND attnotnull AND indisunique
        AND indisvalid AND indnkeyatts = 1 AND indpred IS NULL AND indexprs IS NULL
        AND (relkind = 'p' OR NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = indrelid))
    )
"""


class Comment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The comment of a table that Trimtab made."""

    trimtab_space: str | None = None
    similarity: Similarity | None = None
    trimtab_outputs: list[dict[str, Any]] | None = None


def read_comment(text: str | None) -> Comment:
    """What the table's comment says about its vectors; nothing if it is not Trimtab's."""
    try:
        return msgspec.json.decode(text or "{}", type=Comment)
    except msgspec.MsgspecError:
        return Comment()


def refusals() -> "tuple[type[psycopg.Error], ...]":
    """The errors caused by a row, not by the server."""
    from psycopg import errors

    return (errors.DataError, errors.IntegrityError, errors.ProgramLimitExceeded)


def wrong_tables() -> "tuple[type[psycopg.Error], ...]":
    """The errors caused by the table, not by a row or the server."""
    from psycopg import errors

    return (
        errors.InvalidColumnReference,
        errors.GeneratedAlways,
        errors.InsufficientPrivilege,
        errors.ReadOnlySqlTransaction,
        errors.WrongObjectType,
    )


def check_columns(
    store: str,
    item: str,
    names: Mapping[str, str],
    columns: Mapping[str, tuple[LiteralString, int]],
    kinds: Mapping[str, str],
) -> int:
    """The dimensions of the vectors; ConfigError if the named columns cannot be used.

    names: the columns by role. columns, kinds: type, modifier and kind of every column of the table.
    """
    for role, name in names.items():
        if name not in columns:
            raise ConfigError(
                f"{store} has no column {name!r} for the {role}; it has {', '.join(columns)}. "
                f"Name it: #{item}?{role}=COLUMN"
            )
    if kinds[names["text"]] not in TEXTS:
        raise ConfigError(
            f"column {names['text']!r} of {store} is {columns[names['text']][0]}, not text. Name "
            f"another, #{item}?text=COLUMN, or a view that casts it"
        )
    type, dimensions = columns[names["vector"]]
    if type not in {"vector", "halfvec"}:
        raise ConfigError(f"column {names['vector']!r} of {store} is {type}, not vector or halfvec")
    if dimensions < 1:
        raise ConfigError(
            f"column {names['vector']!r} of {store} has no fixed dimensions; alter it to {type}(N)"
        )
    return dimensions
