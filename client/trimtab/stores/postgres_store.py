"""pgvector: a PostgreSQL table with the extension `vector`.

A table made here has the columns `id` (bigint or text, as the first ids are), `text` and `embedding`, and its
comment names the space. Options name the columns of another table: `#docs?id=doc&text=body&vector=embedding`.
`vector` and `halfvec` columns are read; `type=halfvec` makes new tables with the latter, of half the size.
For more than some ten thousand rows, create an index (HNSW, IVFFlat), best after all rows are written;
`probes` and `ef_search` say how much of it is searched. Further outputs have columns of their own (see
postgres_table).
"""

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, LiteralString

from trimtab.errors import FailedPrecondition, InvalidArgument
from trimtab.stores import postgres_catalogue as catalogue
from trimtab.stores import postgres_table as tables
from trimtab.stores.address import Address, whole
from trimtab.stores.base import DENSE, Document, Form, Hit, Matrix, Query, Rows, Store
from trimtab.stores.checks import check_query, check_rows
from trimtab.stores.columns import column
from trimtab.stores.ids import Id
from trimtab.stores.postgres_connection import PostgresConnection
from trimtab.stores.postgres_ids import IdColumn, id_column

if TYPE_CHECKING:
    from psycopg import sql

OPTIONS = ("id", "text", "vector", "type", "space", "similarity", "probes", "ef_search")


class PostgresStore(Store):
    """A table with a pgvector column."""

    def __init__(
        self, address: Address, outputs: Mapping[str, Form] | None = None, example: Id | None = None
    ) -> None:
        """The table at `address`. With `outputs`, it is created if missing, with ids of `example`'s type."""
        from psycopg import sql

        options = address.take(*OPTIONS)
        self.name, self._address = address.name, address
        tables.check_type(self.name, options.get("type", "vector"))
        self._connection = PostgresConnection(address)
        self._effort = {
            name: whole(options[name], f"{self.name}: {name}")
            for name in ("probes", "ef_search")
            if name in options
        }
        self._ids = IdColumn()
        self._table = sql.Identifier(*address.item.split("."))
        names = {
            "id": options.get("id", "id"),
            "text": options.get("text", "text"),
            "vector": options.get("vector", "embedding"),
        }
        self._key = names["id"]
        at = tables.Place(self.name, address.item, self._table, names, options)
        try:
            with self._connection.reaching() as connection:
                if outputs is not None:
                    with connection.transaction():
                        tables.create(connection, at, outputs, example)
                found = tables.describe(connection, at)
            self._ids = id_column(found.id_type, self._key, self.name, address.item)
        except BaseException:
            self.close()
            raise
        (self.output, self.form), *others = found.outputs.items()
        self.others, self.beside = dict(others), found.beside
        columns = {**names, **{f"o{place}": name for place, name in enumerate(found.columns.values())}}
        self._names = {role: sql.Identifier(name) for role, name in columns.items()}

    def identity(self) -> frozenset[Hashable]:
        import psycopg

        table = self._table.as_string(None)
        with self._connection.reaching() as connection:
            try:
                found = connection.execute("SELECT system_identifier FROM pg_control_system()").fetchone()
            except psycopg.Error:  # some services do not allow it
                found = connection.execute("SELECT pg_postmaster_start_time()").fetchone()
            tables = connection.execute(catalogue.TABLES, (table,)).fetchall()
        return frozenset(("postgresql", found, *each) for each in tables)

    def count(self) -> int:
        found: int = self._rows("SELECT count(*) FROM {table}")[0][0]
        return found

    def page(self, after: Id | None, size: int) -> list[Document]:
        if after is None:
            rows = self._rows("SELECT {id}, {text} FROM {table} ORDER BY {id} LIMIT %s", size)
        else:
            where = "WHERE {id} > %s::{type} ORDER BY {id} LIMIT %s"
            rows = self._rows("SELECT {id}, {text} FROM {table} " + where, after, size)  # noqa: S608 (two templates)
        return [Document(self._ids.read(id), text) for id, text in rows]

    def sample(self, count: int) -> list[Id]:
        rows = self._rows("SELECT {id} FROM {table} ORDER BY random() LIMIT %s", count)
        return [self._ids.read(id) for (id,) in rows]

    def get(self, ids: Sequence[Id]) -> Rows:
        forms = list(self.outputs.values())
        values = [tables.selected(place, form) for place, form in enumerate(forms)]
        found: dict[Id, tuple[str | None, list[Any]]] = {}
        for id, text, *kept in self._by_ids(", ".join(["{id}", "{text}", *values]), ids):
            items = [tables.read(form, each) for form, each in zip(forms, kept, strict=True)]
            if all(item is not None or form.kind != DENSE for form, item in zip(forms, items, strict=True)):
                found[self._ids.read(id)] = text, items
        there = [id for id in ids if id in found]
        columns = {
            name: column(form).assembled([found[id][1][place] for id in there])
            for place, (name, form) in enumerate(self.outputs.items())
        }
        return Rows([Document(id, found[id][0]) for id in there], columns.pop(self.output), columns)

    def texts(self, ids: Sequence[Id]) -> dict[Id, str | None]:
        rows = self._by_ids("{id}, {text}, {vector} IS NULL", ids)
        return {self._ids.read(id): text for id, text, bare in rows if not bare}

    def present(self, ids: Sequence[Id]) -> set[Id]:
        return {self._ids.read(id) for (id,) in self._by_ids("{id}", ids)}

    def check_ids(self) -> None:
        with self._connection.reaching() as connection:
            found = connection.execute(catalogue.UNIQUE, (self._table.as_string(None), self._key))
            if found.fetchone() == (True,):
                return
        rows, named, distinct = self._rows("SELECT count(*), count({id}), count(DISTINCT {id}) FROM {table}")[
            0
        ]
        if named < rows:
            raise FailedPrecondition(
                f"{self.name}: {rows - named:,} of {rows:,} rows have no id (NULL); give each row one, or "
                "name a view without those rows"
            )
        if distinct < named:
            twice = self._rows("SELECT {id} FROM {table} GROUP BY {id} HAVING count(*) > 1 LIMIT 1")
            example = f", such as {self._ids.read(twice[0][0])!r}" if twice else ""
            raise FailedPrecondition(
                f"{self.name}: {rows:,} rows have {distinct:,} ids, and some share one{example}; name a "
                f"column whose values differ: #{self._address.item}?id=COLUMN"
            )

    def refusal(self, document: Document) -> str:
        if fault := super().refusal(document) or self._ids.fault(document.id):
            return fault
        nul = "\0" in (document.text or "")
        return "its text holds a NUL character, which PostgreSQL keeps in no text" if nul else ""

    def search(self, vector: Matrix, k: int) -> list[Hit]:
        return self.search_output(self.output, vector, k)

    def search_output(self, output: str, query: Query, k: int) -> list[Hit]:
        asked = check_query(self, query, k, output)
        form, place = self.outputs[output], list(self.outputs).index(output)
        if form.kind == "sparse" and not len(asked[0]):
            return []
        given = tables.written(form, asked)
        with self._connection.reaching() as connection, connection.transaction():
            told = (self._effort.get("ef_search"), k, self._effort.get("probes"), self._table.as_string(None))
            connection.execute(catalogue.SETTINGS, told)
            hits = self._nearest(form, place, given, k)
            if len(hits) < k and len(hits) < self._available(place, k):
                # An approximate index left some out: there are more.
                connection.execute("SET LOCAL enable_indexscan = off")
                hits = self._nearest(form, place, given, k)
        return [hit for hit in hits if form.kind != "sparse" or hit.score > 0]

    def _nearest(self, form: Form, place: int, given: Any, k: int) -> list[Hit]:
        operator = tables.operator(form)
        found = self._rows(tables.ranking(place, form), given, k, operator=operator)
        cosine = form.kind == DENSE and form.similarity == "cosine"
        one = 1.0 if cosine else 0.0
        hits = [
            Hit(self._ids.read(id), text, one - distance)
            for id, text, distance in found
            if not math.isnan(distance)
        ]
        if cosine and (len(hits) < k or min(hit.score for hit in hits) < 0):
            # A vector of length 0 has cosine 0. PostgreSQL says NaN, sorts it last, and does not index it.
            where = f"WHERE {{o{place}}} {{operator}} %s = 'NaN' LIMIT %s"
            zeros = self._rows("SELECT {id}, {text} FROM {table} " + where, given, k, operator=operator)  # noqa: S608 (two templates)
            hits += [Hit(self._ids.read(id), text, 0.0) for id, text in zeros]
        # Iterative scans of IVFFlat are only nearly in order.
        return sorted(hits, key=lambda hit: -hit.score)[:k]

    def _available(self, place: int, most: int) -> int:
        """How many documents have a value of output number `place`, up to `most`."""
        where = f"WHERE {{o{place}}} IS NOT NULL LIMIT %s"
        found: int = self._rows("SELECT count(*) FROM (SELECT FROM {table} " + where + ") AS few", most)[0][0]  # noqa: S608 (two templates)
        return found

    def upsert(self, rows: Rows) -> None:
        checked = check_rows(self, rows)
        items = [
            [tables.written(form, each) for each in column(form).items(checked[name])]
            for name, form in self.outputs.items()
        ]
        values = [
            (document.id, document.text, *of_one)
            for document, *of_one in zip(rows.documents, *items, strict=True)
        ]
        kept = ["{text}", *(f"{{o{place}}}" for place in range(len(items)))]
        # In binary (%b): as text, multi-vectors would take ten times as long.
        statement = self._statement(
            f"INSERT INTO {{table}} ({{id}}, {', '.join(kept)}) "  # noqa: S608 (a template)
            f"VALUES (%s, %s{', %b' * len(items)}) ON CONFLICT ({{id}}) DO UPDATE SET "
            + ", ".join(f"{each} = EXCLUDED.{each}" for each in kept)
        )
        with (
            self._connection.reaching() as connection,
            connection.transaction(),
            connection.cursor() as cursor,
        ):
            cursor.executemany(statement, values)
            self._check_kept(rows.documents)

    def _check_kept(self, documents: Sequence[Document]) -> None:
        """InvalidArgument if the table changed an id or a text that was just written.

        Types truncate and pad ('01' as numeric is 1, and may be another document's id), and so do triggers.
        """
        found = self.texts([document.id for document in documents])
        for document in documents:
            if document.id not in found or found[document.id] != document.text:
                what = "its text" if document.id in found else "it under its id"
                raise InvalidArgument(
                    f"{self.name} does not keep {what}: document {document.id!r}. Check the types of its "
                    "columns, to triggers and to row security. It was not changed"
                )

    def delete(self, ids: Collection[Id]) -> None:
        wanted = [id for id in ids if self._ids.fits(id)]
        if wanted:
            with self._connection.reaching() as connection:
                connection.execute(
                    self._statement("DELETE FROM {table} WHERE {id} = ANY(%s::{type}[])"), (wanted,)
                )

    def close(self) -> None:
        self._connection.close()

    def _by_ids(self, columns: LiteralString, ids: Sequence[Id]) -> list[Any]:
        wanted = [id for id in ids if self._ids.fits(id)]
        if not wanted:
            return []
        where = " FROM {table} WHERE {id} = ANY(%s::{type}[])"
        return self._rows("SELECT " + columns + where, wanted)

    def _statement(self, template: LiteralString, operator: LiteralString = "") -> "sql.Composed":
        """SQL with the names of this table in place of {table}, {id}, ..., {o0} for its first output's."""
        from psycopg import sql

        parts = {"table": self._table, **self._names}
        names = {name: sql.SQL(part.as_string(None).replace("%", "%%")) for name, part in parts.items()}
        return sql.SQL(template).format(type=sql.SQL(self._ids.type), operator=sql.SQL(operator), **names)

    def _rows(self, template: LiteralString, *values: Any, operator: LiteralString = "") -> list[Any]:
        with self._connection.reaching() as connection:
            return connection.execute(self._statement(template, operator), values).fetchall()
