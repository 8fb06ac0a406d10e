"""pgvector: a PostgreSQL table with the extension `vector`.

A table made here has the columns `id` (bigint or text, as the first ids are), `text` and `embedding`, and its
comment names the space. Options name the columns of another table: `#docs?id=doc&text=body&vector=embedding`.
`vector` and `halfvec` columns are read. For more than some ten thousand rows, create an index (HNSW,
IVFFlat), best after all rows are written; `probes` and `ef_search` say how much of it is searched.
"""

import math
from collections.abc import Collection, Hashable, Sequence
from typing import TYPE_CHECKING, Any, LiteralString

import msgspec
import numpy as np

from trimtab.errors import ConfigError, FailedPrecondition, InvalidArgument, NotFound
from trimtab.kinds import Similarity
from trimtab.stores import postgres_catalogue as catalogue
from trimtab.stores.address import Address, whole
from trimtab.stores.base import SIMILARITIES, Document, Form, Hit, Matrix, Rows, Store
from trimtab.stores.checks import check_query, check_rows, space_of
from trimtab.stores.ids import Id
from trimtab.stores.postgres_connection import PostgresConnection
from trimtab.stores.postgres_ids import IdColumn, id_column

if TYPE_CHECKING:
    from pgvector import Vector
    from psycopg import sql

OPTIONS = ("id", "text", "vector", "space", "similarity", "probes", "ef_search")


class PostgresStore(Store):
    """A table with a pgvector column."""

    def __init__(self, address: Address, form: Form | None = None, example: Id | None = None) -> None:
        """The table at `address`. With `form`, it is created if missing, with ids of `example`'s type."""
        from psycopg import sql

        options = address.take(*OPTIONS)
        self.name, self._address = address.name, address
        self._connection = PostgresConnection(address)
        self._effort = {
            name: whole(options[name], f"{self.name}: {name}")
            for name in ("probes", "ef_search")
            if name in options
        }
        self._ids = IdColumn()
        self._operator: LiteralString = ""
        self._table = sql.Identifier(*address.item.split("."))
        names = {
            "id": options.get("id", "id"),
            "text": options.get("text", "text"),
            "vector": options.get("vector", "embedding"),
        }
        self._key = names["id"]
        self._names = {role: sql.Identifier(name) for role, name in names.items()}
        try:
            if form is not None:
                self._create(form, example)
            self.form = self._describe(names, options)
            self._operator = catalogue.OPERATORS[self.form.similarity]
        except BaseException:
            self.close()
            raise

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
        # As vector, also where the column is a halfvec.
        rows = self._by_ids("{id}, {text}, {vector}::vector", ids)
        found = {self._ids.read(row[0]): row for row in rows if row[2] is not None}
        rows = [found[id] for id in ids if id in found]
        vectors = np.empty((len(rows), self.form.dimensions), np.float32)
        for place, row in enumerate(rows):
            vectors[place] = row[2].to_numpy()
        return Rows([Document(self._ids.read(id), text) for id, text, _ in rows], vectors)

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
        from pgvector import Vector

        query = Vector(check_query(self, vector, k))
        with self._connection.reaching() as connection, connection.transaction():
            told = (self._effort.get("ef_search"), k, self._effort.get("probes"), self._table.as_string(None))
            connection.execute(catalogue.SETTINGS, told)
            hits = self._nearest(query, k)
            if len(hits) < k and len(hits) < self._available(k):
                # An approximate index left some out: there are more.
                connection.execute("SET LOCAL enable_indexscan = off")
                hits = self._nearest(query, k)
        return hits

    def _nearest(self, query: "Vector", k: int) -> list[Hit]:
        found = self._rows(
            "SELECT {id}, {text}, {vector} {operator} %s AS distance FROM {table} "
            "WHERE {vector} IS NOT NULL ORDER BY distance LIMIT %s",
            query,
            k,
        )
        cosine = self.form.similarity == "cosine"
        one = 1.0 if cosine else 0.0
        hits = [
            Hit(self._ids.read(id), text, one - distance)
            for id, text, distance in found
            if not math.isnan(distance)
        ]
        if cosine and (len(hits) < k or min(hit.score for hit in hits) < 0):
            # A vector of length 0 has cosine 0. PostgreSQL says NaN, sorts it last, and does not index it.
            zeros = self._rows(
                "SELECT {id}, {text} FROM {table} WHERE {vector} {operator} %s = 'NaN' LIMIT %s", query, k
            )
            hits += [Hit(self._ids.read(id), text, 0.0) for id, text in zeros]
        # Iterative scans of IVFFlat are only nearly in order.
        return sorted(hits, key=lambda hit: -hit.score)[:k]

    def _available(self, most: int) -> int:
        """How many documents with a vector there are, up to `most`."""
        found: int = self._rows(
            "SELECT count(*) FROM (SELECT FROM {table} WHERE {vector} IS NOT NULL LIMIT %s) AS few", most
        )[0][0]
        return found

    def upsert(self, rows: Rows) -> None:
        from pgvector import Vector

        vectors = check_rows(self, rows)
        values = [
            (document.id, document.text, Vector(vector))
            for document, vector in zip(rows.documents, vectors, strict=True)
        ]
        statement = self._statement(
            "INSERT INTO {table} ({id}, {text}, {vector}) VALUES (%s, %s, %s) ON CONFLICT ({id}) "
            "DO UPDATE SET {text} = EXCLUDED.{text}, {vector} = EXCLUDED.{vector}"
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

    def _statement(self, template: LiteralString) -> "sql.Composed":
        """SQL with the names of this table in place of {table}, {id}, ..."""
        from psycopg import sql

        parts = {"table": self._table, **self._names}
        names = {name: sql.SQL(part.as_string(None).replace("%", "%%")) for name, part in parts.items()}
        return sql.SQL(template).format(
            type=sql.SQL(self._ids.type), operator=sql.SQL(self._operator), **names
        )

    def _rows(self, template: LiteralString, *values: Any) -> list[Any]:
        with self._connection.reaching() as connection:
            return connection.execute(self._statement(template), values).fetchall()

    def _create(self, form: Form, example: Id | None) -> None:
        from psycopg import sql

        comment = catalogue.Comment(trimtab_space=form.space, similarity=form.similarity)
        type = "bigint" if isinstance(example, int) else "text"
        with self._connection.reaching() as connection, connection.transaction():
            there = connection.execute("SELECT to_regclass(%s)", (self._table.as_string(connection),))
            if there.fetchone() != (None,):
                return
            connection.execute(
                self._statement(
                    f"CREATE TABLE {{table}} ({{id}} {type} PRIMARY KEY, {{text}} text, "
                    f"{{vector}} vector({form.dimensions}) NOT NULL)"
                ),
                (),
            )
            written = sql.Literal(msgspec.json.encode(comment).decode())
            connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(self._table, written))

    def _describe(self, names: dict[str, str], options: dict[str, str]) -> Form:
        """What the table says about its vectors. Also sets the type of its ids."""
        table = self._table.as_string(None)
        with self._connection.reaching() as connection:
            found = connection.execute(catalogue.COLUMNS, (table,)).fetchall()
        if not found:
            raise NotFound(f"{self.name} does not exist")
        columns = {name: (type, modifier) for name, type, modifier, _, _ in found}
        kinds = {name: kind for name, _, _, kind, _ in found}
        dimensions = catalogue.check_columns(self.name, self._address.item, names, columns, kinds)
        comment = catalogue.read_comment(found[0][4])
        similarity = options.get("similarity", comment.similarity) or self._indexed(names["vector"])
        if similarity not in SIMILARITIES:
            raise ConfigError(f"similarity {similarity!r} is not known; it is {', '.join(SIMILARITIES)}")
        space = space_of(comment.trimtab_space, options.get("space"), self.name)
        self.beside = [name for name in columns if name not in names.values()]
        self._ids = id_column(columns[names["id"]][0], names["id"], self.name, self._address.item)
        return Form(space=space, dimensions=dimensions, similarity=similarity)

    def _indexed(self, column: str) -> Similarity:
        """The similarity for which the column has an index; cosine if there is none."""
        with self._connection.reaching() as connection:
            classes = connection.execute(catalogue.CLASSES, (self._table.as_string(None), column)).fetchall()
        words = {word for (name,) in classes for word in name.split("_")}
        found = [similarity for word, similarity in catalogue.CLASS_WORDS.items() if word in words]
        if len(found) > 1:
            raise ConfigError(
                f"{self.name} has indexes for {' and '.join(found)}; say by which vectors are compared: "
                f"#{self._address.item}?similarity={found[0]}"
            )
        return found[0] if found else "cosine"
