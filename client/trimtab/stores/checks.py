"""Checks that every store makes before it writes or searches, and that two stores are not the same place."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError, FailedPrecondition, InvalidArgument
from trimtab.stores.base import Form, Query, Rows, Store, Values, unknown_output
from trimtab.stores.columns import column


def check_rows(store: Store, rows: Rows) -> dict[str, Any]:
    """The values of each output as they will be written, in float32: the vectors first.

    InvalidArgument names a document that cannot be written, or an output that is missing: were it left out, a
    document would keep what was made of its former text.
    """
    given: dict[str, Values] = {store.output: rows.vectors, **rows.others}
    if given.keys() != store.outputs.keys():
        raise InvalidArgument(
            f"{store.name} keeps the outputs {', '.join(store.outputs)}, and these documents come with "
            f"{', '.join(given)}; give each document all of them"
        )
    found = {name: _checked(store, name, form, given[name], rows) for name, form in store.outputs.items()}
    for document in rows.documents:
        if refusal := store.refusal(document):
            raise InvalidArgument(
                f"{store.name} cannot hold document {document.id!r}: {refusal}. It was not changed"
            )
    if len(set(rows.ids)) != len(rows):
        raise InvalidArgument(f"two documents for {store.name} have the same id; give each id once")
    return found


def _checked(store: Store, name: str, form: Form, values: Values, rows: Rows) -> Any:
    kept, where = column(form), store.name if len(store.outputs) == 1 else f"{store.name}, output {name!r},"
    if fault := kept.fault(values, len(rows)):
        raise InvalidArgument(f"{where} {fault}, for {len(rows)} documents")
    plain = kept.plain(values)
    bad = ~kept.sound(plain)
    if bad.any():
        first = int(bad.argmax())
        what = {"dense": "vector", "sparse": "sparse vector", "multi_vector": "multi-vector"}[form.kind]
        raise InvalidArgument(
            f"the {what} of document {rows.documents[first].id!r} {kept.unsound}, and "
            f"{int(bad.sum())} of {len(rows)} do; {store.name} was not changed. Embed the text again"
        )
    return plain


def check_query(store: Store, query: Query, k: int, output: str | None = None) -> Any:
    """The query in float32, normalised for cosine; InvalidArgument if it does not fit the store's output, by
    default the first."""
    output = store.output if output is None else output
    form = store.outputs.get(output)
    if form is None:
        raise unknown_output(store, output)
    asked, fault = column(form).asked(query)
    if fault:
        raise InvalidArgument(f"{store.name} cannot be searched by {output!r}: it {fault}")
    if k < 1:
        raise InvalidArgument(f"k is {k}; ask for at least 1")
    return asked


def check_form(found: Form, wanted: Form, name: str) -> None:
    """FailedPrecondition if an existing store does not have the form that its writer wants."""
    if found.space != wanted.space:
        raise FailedPrecondition(
            f"{name} holds vectors of space {found.space or 'unknown'}, and those of space {wanted.space} "
            "must not be mixed with them; name another store"
        )
    if found != wanted:
        raise FailedPrecondition(
            f"{name} holds {found.dimensions} dimensions compared by {found.similarity}, the vectors have "
            f"{wanted.dimensions} and are compared by {wanted.similarity}; name another store"
        )


def check_outputs(store: Store, wanted: Mapping[str, Form]) -> None:
    """FailedPrecondition if an existing store does not keep the outputs that its writer wants."""
    first, *others = wanted
    if store.others.keys() != set(others) or (others and store.output != first):
        raise FailedPrecondition(
            f"{store.name} keeps {' and '.join(store.outputs)}, and what is to be written is "
            f"{' and '.join(wanted)}; write just what it keeps, or name another store"
        )
    check_form(store.form, wanted[first], store.name)
    for name in others:
        check_form(store.others[name], wanted[name], f"{store.name}, output {name!r},")


def check_apart(source: Store, target: Store) -> None:
    """ConfigError if writing into the target would change the source, whatever their addresses."""
    if source.identity() & target.identity():
        raise ConfigError(
            f"{target.name} and {source.name} are one place, or share a part: what is written into the one "
            "would change the other. Nothing was written; name another store for the new vectors"
        )


def space_of(recorded: object, claimed: str | None, name: str) -> str | None:
    """The space that a store records, or else the one that its address claims."""
    if recorded is None:
        return claimed or None
    if claimed and claimed != recorded:
        raise FailedPrecondition(
            f"{name} is recorded as of space {recorded}, and its address says {claimed}; leave out space="
        )
    return str(recorded)


def files_identity(*paths: Path) -> frozenset[Hashable]:
    """Device and inode of each of these files and folders that exists, following links."""
    found = [path.stat() for path in paths if path.exists()]
    return frozenset(("file", each.st_dev, each.st_ino) for each in found)
