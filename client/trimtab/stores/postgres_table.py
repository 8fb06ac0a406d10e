"""A table of PostgreSQL: how it is made, what it says of its vectors, how each kind of output looks there.

A dense vector is a `vector` or, in half the space, a `halfvec`; a sparse one is a `sparsevec`; multi-vectors
are arrays of `vector` or `halfvec`. The first output has the column that the address names. Each other output
has a column of its own name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString

import msgspec

from trimtab.errors import ConfigError, FailedPrecondition, NotFound
from trimtab.kinds import Similarity
from trimtab.stores import catalogue as outputs_recorded
from trimtab.stores import postgres_catalogue as catalogue
from trimtab.stores.base import DENSE, SIMILARITIES, Form
from trimtab.stores.checks import space_of
from trimtab.stores.ids import Id

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

HALF = "halfvec"
TYPES = ("vector", HALF)  # of the numbers of dense and multi-vectors


@dataclass(frozen=True, slots=True)
class Place:
    """The table, and what its address says of it.

    store, item: its name in messages, and in the address. names: the columns for id, text and vector.
    options: what else the address says.
    """

    store: str
    item: str
    table: "sql.Identifier"
    names: Mapping[str, str]
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Described:
    """What a table says.

    columns: the column of each output, the first output first. outputs: their forms. id_type: of the ids.
    beside: its other columns.
    """

    columns: Mapping[str, str]
    outputs: Mapping[str, Form]
    id_type: LiteralString
    beside: list[str]


def create(
    connection: "psycopg.Connection", at: Place, outputs: Mapping[str, Form], example: Id | None
) -> None:
    """Make the table, if there is none, with ids of `example`'s type."""
    from psycopg import errors, sql

    there = connection.execute("SELECT to_regclass(%s)", (at.table.as_string(connection),))
    if there.fetchone() != (None,):
        return
    columns = _columns(at, outputs)
    taken = [at.names["id"], at.names["text"], *columns.values()]
    if len(set(taken)) < len(taken):
        raise ConfigError(
            f"{at.store}: two of the columns {', '.join(taken)} have one name; name those of the id, text or "
            f"vector otherwise: #{at.item}?vector=COLUMN"
        )
    first = next(iter(outputs))
    comment = catalogue.Comment(
        trimtab_space=outputs[first].space,
        similarity=outputs[first].similarity,
        trimtab_outputs=outputs_recorded.record(outputs),
    )
    parts = [
        sql.SQL("{} {} PRIMARY KEY").format(
            sql.Identifier(at.names["id"]), sql.SQL("bigint" if isinstance(example, int) else "text")
        ),
        sql.SQL("{} text").format(sql.Identifier(at.names["text"])),
        *(
            sql.SQL("{} {} NOT NULL").format(
                sql.Identifier(columns[name]), sql.SQL(_type(form, at.options.get("type", "vector")))
            )
            for name, form in outputs.items()
        ),
    ]
    try:
        connection.execute(sql.SQL("CREATE TABLE {} ({})").format(at.table, sql.SQL(", ").join(parts)))
    except errors.UndefinedObject as error:
        raise FailedPrecondition(
            f"{at.store}: this pgvector lacks a type ({error.diag.message_primary}); update it to 0.7 or "
            "later"
        ) from None
    written = sql.Literal(msgspec.json.encode(comment).decode())
    connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(at.table, written))


def describe(connection: "psycopg.Connection", at: Place) -> Described:
    """What the table says."""
    found = connection.execute(catalogue.COLUMNS, (at.table.as_string(None),)).fetchall()
    if not found:
        raise NotFound(f"{at.store} does not exist")
    columns = {name: (type, modifier) for name, type, modifier, _, _ in found}
    kinds = {name: kind for name, _, _, kind, _ in found}
    dimensions = catalogue.check_columns(at.store, at.item, at.names, columns, kinds)
    type = at.options.get("type")
    if type is not None and columns[at.names["vector"]][0] != type:
        raise ConfigError(
            f"column {at.names['vector']!r} of {at.store} is {columns[at.names['vector']][0]}; leave out "
            f"type={type}"
        )
    comment = catalogue.read_comment(found[0][4])
    recorded = outputs_recorded.read(comment.trimtab_outputs, at.store)
    first, *others = recorded or [DENSE]
    taken = _columns(at, recorded or [DENSE])
    for name in others:
        form = recorded[name]
        if columns.get(name) not in {(type, form.dimensions) for type in _types(form)}:
            raise ConfigError(
                f"{at.store} records the output {name!r}, and has no such column of type "
                f"{' or '.join(_types(form))} and {form.dimensions} dimensions: was it changed?"
            )
    similarity = at.options.get("similarity", comment.similarity) or _indexed(connection, at)
    if similarity not in SIMILARITIES:
        raise ConfigError(f"similarity {similarity!r} is not known; it is {', '.join(SIMILARITIES)}")
    space = space_of(comment.trimtab_space, at.options.get("space"), at.store)
    return Described(
        columns=taken,
        outputs={
            first: Form(space=space, dimensions=dimensions, similarity=similarity),
            **{name: recorded[name] for name in others},
        },
        id_type=columns[at.names["id"]][0],
        beside=[name for name in columns if name not in {*at.names.values(), *taken.values()}],
    )


def check_type(store: str, type: str) -> None:
    """ConfigError if vectors cannot be of this type."""
    if type not in TYPES:
        raise ConfigError(f"{store}: type is {type!r}; give {' or '.join(TYPES)}")


def written(form: Form, item: Any) -> Any:
    """A value as PostgreSQL takes it; also that of a query."""
    from pgvector import SparseVector, Vector

    if form.kind == "sparse":
        indices, numbers = item
        return SparseVector(dict(zip(indices.tolist(), numbers.tolist(), strict=True)), form.dimensions)
    return Vector(item) if form.kind == DENSE else [Vector(row) for row in item]


def selected(place: int, form: Form) -> str:
    """How the value of output number `place` is selected: as vector, also where the column is a halfvec."""
    cast = {"dense": "::vector", "sparse": "", "multi_vector": "::vector[]"}[form.kind]
    return f"{{o{place}}}{cast}"


def read(form: Form, found: Any) -> Any:
    """A value as it was selected, for `Column.assembled`; None if there is none."""
    if found is None:
        return None
    if form.kind == "sparse":
        return found.indices(), found.values()
    if form.kind == DENSE:
        return found.to_numpy()
    return [row.to_numpy() for row in found] or None


def ranking(place: int, form: Form) -> str:
    """The query for the nearest by output number `place`: id, text, distance. It takes the query, and k."""
    if form.kind != "multi_vector":
        distance = f"{{o{place}}} {{operator}} %s"
        return (
            f"SELECT {{id}}, {{text}}, {distance} AS distance FROM {{table}} "  # noqa: S608 (a template)
            f"WHERE {{o{place}}} IS NOT NULL ORDER BY distance LIMIT %s"
        )
    # MaxSim: of each of the query's rows, the largest product with any of the document's; their sum.
    best = (
        "SELECT max(-(kept::vector <#> wanted)) AS near FROM unnest(%s::vector[]) WITH ORDINALITY "  # noqa: S608
        f"AS asked(wanted, number) CROSS JOIN unnest(searched.{{o{place}}}) AS kept GROUP BY number"
    )
    return (
        f"SELECT {{id}}, {{text}}, (SELECT -sum(near) FROM ({best}) AS each) AS distance "  # noqa: S608
        f"FROM {{table}} AS searched WHERE cardinality({{o{place}}}) > 0 ORDER BY distance LIMIT %s"
    )


def operator(form: Form) -> LiteralString:
    """What compares two values: a distance. That of sparse vectors is minus their product, since for cosine
    they are kept at length 1."""
    return catalogue.OPERATORS["dot" if form.kind == "sparse" else form.similarity]


def _columns(at: Place, outputs: Any) -> dict[str, str]:
    """The column of each output, by the output's name."""
    first, *others = outputs
    return {first: at.names["vector"], **{name: name for name in others}}


def _types(form: Form) -> tuple[str, ...]:
    """The types of column that can keep an output."""
    return {"dense": TYPES, "sparse": ("sparsevec",), "multi_vector": tuple(f"{each}[]" for each in TYPES)}[
        form.kind
    ]


def _type(form: Form, numbers: str) -> LiteralString:
    """The type of an output's column in a new table."""
    sized = f"({form.dimensions})"
    types = {
        "dense": f"{numbers}{sized}",
        "sparse": f"sparsevec{sized}",
        "multi_vector": f"{numbers}{sized}[]",
    }
    return types[form.kind]


def _indexed(connection: "psycopg.Connection", at: Place) -> Similarity:
    """The similarity for which the column has an index; cosine if there is none."""
    asked = (at.table.as_string(None), at.names["vector"])
    classes = connection.execute(catalogue.CLASSES, asked).fetchall()
    words = {word for (name,) in classes for word in name.split("_")}
    found = [similarity for word, similarity in catalogue.CLASS_WORDS.items() if word in words]
    if len(found) > 1:
        raise ConfigError(
            f"{at.store} has indexes for {' and '.join(found)}; say by which vectors are compared: "
            f"#{at.item}?similarity={found[0]}"
        )
    return found[0] if found else "cosine"
