"""Stores of every kind as an application has them: with the application's own files, columns and payload."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
import psycopg
import pyarrow
from pyarrow import parquet

from trimtab.stores import Document, Form, Matrix, Rows, Store, create_store, open_store

SOURCES = ("faiss", "taken", "qdrant", "postgresql", "npy", "parquet")
TARGETS = ("faiss", "taken", "qdrant", "postgresql")
# Names close to those of Trimtab's own files. Only some may exist in a folder where a store is to be made.
BESIDE = ("notes.txt", "store.json.bak", "store.json.new", ".trimtab-mine.partial", "docs.index")
ALIKE = ("index-2025.faiss", "index-1.faiss", "rows-1.jsonl", "log-1", "log-2025")

Vectors = Callable[[Sequence[str]], Matrix]
Contents = dict[int, tuple[str | None, Matrix]]


@dataclass(slots=True)
class ApplicationStore:
    """A store, and what belongs to the application in it and next to it."""

    kind: str
    url: str
    folder: Path
    vectors: Vectors
    documents: dict[int, str]  # as the application knows them
    texts: dict[int, str] | None = None  # next to a store that holds none
    files: dict[str, bytes] = field(default_factory=dict)
    kept: dict[int, str] = field(default_factory=dict)  # access lists, by document

    def contents(self) -> Contents:
        """All documents, with texts and vectors."""
        with open_store(self.url) as store:
            found: Contents = {}
            for rows in store.batches(64):
                for document, vector in zip(rows.documents, rows.vectors, strict=True):
                    text = document.text if self.texts is None else self.texts.get(int(document.id))
                    found[int(document.id)] = (text, vector)
            if store.count() != len(found):
                raise AssertionError(f"{self.kind} counts {store.count()}, and has {len(found)}")
        return found

    def strange(self, gone: Sequence[int] = ()) -> list[str]:
        """What changed in the application's own data; `gone` are documents that it deleted itself."""
        wrong = [
            f"{self.kind}: {name} changed"
            for name, content in self.files.items()
            if not (self.folder / name).is_file() or (self.folder / name).read_bytes() != content
        ]
        lists = {id: found for id, found in access_lists(self).items() if found}
        wanted = {id: text for id, text in self.kept.items() if id not in gone}
        if lists != wanted:
            odd = {id for id in lists.keys() | wanted.keys() if lists.get(id) != wanted.get(id)}
            wrong.append(f"{self.kind}: the access lists of {sorted(odd)[:5]} changed")
        return wrong

    def edit(self, changed: Mapping[int, str], deleted: Sequence[int], store: Store | None = None) -> None:
        """The application changes, adds and deletes documents."""
        if self.kind in {"npy", "parquet"}:
            self._replace_file({**self.documents, **changed})
            return
        rows = Rows(
            [Document(id, text) for id, text in changed.items()], self.vectors(list(changed.values()))
        )
        if store is not None:
            store.upsert(rows)
            store.delete(deleted)
            return
        with open_store(self.url) as opened:
            opened.upsert(rows)
            opened.delete(deleted)

    def _replace_file(self, texts: dict[int, str]) -> None:
        path = Path(self.url)
        fresh = path.with_name(f"fresh.{self.kind}")
        ordered = [texts[id] for id in sorted(texts)]
        if self.kind == "npy":
            np.save(fresh, self.vectors(ordered))
        else:
            table = pyarrow.table({
                "id": sorted(texts), "text": ordered, "vector": self.vectors(ordered).tolist(),
            })  # fmt: skip
            parquet.write_table(table.replace_schema_metadata({"trimtab_space": "the-old-space"}), fresh)
        fresh.replace(path)
        self.documents, self.texts = texts, texts if self.kind == "npy" else None
        self.files = _files(self.folder)


def make(
    kind: str, folder: Path, form: Form, vectors: Vectors, texts: Mapping[int, str], database: str, name: str
) -> ApplicationStore:
    """A store of these documents, made by the application or, of kind `faiss`, by Trimtab."""
    folder.mkdir()
    rows = Rows([Document(id, text) for id, text in texts.items()], vectors(list(texts.values())))
    if kind in {"npy", "parquet"}:
        theirs = ApplicationStore(kind, str(folder / f"docs.{kind}"), folder, vectors, {})
        if kind == "npy":
            (folder / "docs.npy.json").write_text(json.dumps({"vectors": {"space": form.space}}))
        theirs._replace_file(dict(texts))
        return theirs
    if kind == "postgresql":
        theirs = ApplicationStore(kind, f"{database}#{name}", folder, vectors, dict(texts))
        if len(rows):
            _table(database, name, form, rows)
        theirs.kept = {int(id): f"group {id}" for id in rows.ids}
        return theirs
    for each in (*BESIDE, *(ALIKE if kind == "taken" else ())):
        (folder / each).write_bytes(f"of the application: {each}".encode())
    if kind == "taken":
        _index(folder, form, rows)
        theirs = ApplicationStore(kind, f"faiss:{folder}", folder, vectors, dict(texts), files=_files(folder))
        del theirs.files["store.json"]
        return theirs
    url = f"faiss:{folder}" if kind == "faiss" else f"qdrant:{folder}#docs"
    theirs = ApplicationStore(kind, url, folder, vectors, dict(texts), files=_files(folder))
    if len(rows):
        with create_store(url, form, example=0) as store:
            store.upsert(rows)
    if kind == "qdrant" and len(rows):
        _payload(folder, [int(id) for id in rows.ids])
        theirs.kept = {int(id): f"group {id}" for id in rows.ids}
    return theirs


def access_lists(theirs: ApplicationStore) -> dict[int, str]:
    """What the application keeps of each document."""
    if theirs.kind == "postgresql" and theirs.kept:
        database, _, table = theirs.url.partition("#")
        with psycopg.connect(database) as connection:
            found = connection.execute(f"SELECT id, access FROM {table}").fetchall()
        return dict(found)
    if theirs.kind == "qdrant" and theirs.kept:
        from qdrant_client import QdrantClient

        client = QdrantClient(path=str(theirs.folder))
        try:
            points, _ = client.scroll("docs", limit=10_000, with_payload=["access"])
        finally:
            client.close()
        return {int(point.id): (point.payload or {}).get("access", "") for point in points}
    return {}


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _index(folder: Path, form: Form, rows: Rows) -> None:
    index = faiss.IndexFlatIP(form.dimensions)
    index.add(rows.vectors)
    faiss.write_index(index, str(folder / "index-2026.faiss"))
    lines = [json.dumps({"id": document.id, "text": document.text}) for document in rows.documents]
    (folder / "rows-2026.jsonl").write_text("\n".join(lines))
    catalogue = {"space": form.space, "dimensions": form.dimensions}
    catalogue |= {"index": "index-2026.faiss", "rows": "rows-2026.jsonl"}
    (folder / "store.json").write_text(json.dumps(catalogue))


def _payload(folder: Path, ids: Sequence[int]) -> None:
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(folder))
    try:
        for id in ids:
            client.set_payload("docs", {"access": f"group {id}"}, points=[id])
    finally:
        client.close()


def _table(database: str, name: str, form: Form, rows: Rows) -> None:
    comment = json.dumps({"trimtab_space": form.space, "similarity": form.similarity})
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        columns = (
            f"id bigint PRIMARY KEY, text text, embedding vector({form.dimensions}) NOT NULL, access text"
        )
        connection.execute(f"CREATE TABLE {name} ({columns})")
        connection.execute(f"COMMENT ON TABLE {name} IS '{comment}'")
        values = [
            (document.id, document.text, json.dumps(vector.tolist()), f"group {document.id}")
            for document, vector in zip(rows.documents, rows.vectors, strict=True)
        ]
        with connection.cursor() as cursor:
            cursor.executemany(f"INSERT INTO {name} VALUES (%s, %s, %s, %s)", values)
