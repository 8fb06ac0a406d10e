"""Vector stores, each addressed by one string: FAISS, Qdrant, pgvector, and read-only files of vectors.

    from trimtab import stores

    with stores.open_store("postgresql://localhost/search#docs") as store:
        for rows in store.batches():
            rows.documents, rows.vectors

A store is one class that implements `Store`; trimtab.stores.address defines how addresses are written.
"""

from collections.abc import Mapping
from pathlib import Path

from trimtab.errors import ConfigError, NotFound
from trimtab.stores import address as addresses
from trimtab.stores.address import Address
from trimtab.stores.base import DENSE, KINDS, Document, Form, Hit, Kind, Matrix, Rows, Store
from trimtab.stores.catalogue import check_new
from trimtab.stores.checks import check_apart, check_outputs
from trimtab.stores.ids import Id

__all__ = ["Document", "Form", "Hit", "Id", "Matrix", "Rows", "Store", "create_store", "kinds", "open_store"]

_KEEP_ALL = {
    "qdrant",
    "qdrant-server",
    "postgresql",
}  # kinds of address whose stores keep every kind of output
_EXTRAS = {
    "faiss": "faiss",
    "qdrant_client": "qdrant",
    "psycopg": "pgvector",
    "pgvector": "pgvector",
    "pyarrow": "parquet",
}


def open_store(url: str) -> Store:
    """The store at `url`, which must exist.

    Raises NotFound if it does not, ConfigError if the address is invalid or a package is missing, Unavailable
    if it cannot be reached. No message repeats a password.
    """
    address = addresses.parse(url)
    try:
        return _open(address)
    except ModuleNotFoundError as error:
        raise _missing(error, address) from None


def kinds(url: str) -> tuple[Kind, ...]:
    """The kinds of output that a store at this address could keep."""
    return KINDS if addresses.parse(url).kind in _KEEP_ALL else (DENSE,)


def create_store(
    url: str,
    form: Form | Mapping[str, Form],
    *,
    example: Id | None = None,
    source: Store | None = None,
) -> Store:
    """The store at `url`, created if there is none.

    form: the space, dimensions and similarity of its vectors. For several outputs, the form of each by name;
        the first is dense. FailedPrecondition if the store exists with a different form, or with other
        outputs: vectors of two spaces are never mixed.
    example: an id like those to come, for stores whose ids have a type.
    source: a store that this must not be, under any name; ConfigError if it is.
    """
    address = addresses.parse(url)
    outputs: dict[str, Form] = {DENSE: form} if isinstance(form, Form) else dict(form)
    check_new(outputs, kinds(url), address.name)
    try:
        store = _create(address, outputs, example)
    except ModuleNotFoundError as error:
        raise _missing(error, address) from None
    try:
        if source is not None:
            check_apart(source, store)
        check_outputs(store, outputs)
    except BaseException:
        store.close()
        raise
    return store


def _open(address: Address) -> Store:
    if address.kind == "faiss":
        from trimtab.stores.faiss_store import FaissStore, effort_of

        return FaissStore(Path(address.location), address.name, effort_of(address))
    if address.kind in {"qdrant", "qdrant-server"}:
        from trimtab.stores.qdrant_store import QdrantStore

        # Qdrant would initialise its storage in any folder.
        if address.kind == "qdrant" and not (Path(address.location) / "meta.json").is_file():
            raise NotFound(f"{address.name}: no folder of Qdrant's is there; it has a file meta.json")
        return QdrantStore(address)
    if address.kind == "postgresql":
        from trimtab.stores.postgres_store import PostgresStore

        return PostgresStore(address)
    from trimtab.stores import files

    return files.open_npy(address) if address.kind == "npy" else files.open_parquet(address)


def _create(address: Address, outputs: Mapping[str, Form], example: Id | None) -> Store:
    if address.kind == "faiss":
        from trimtab.stores.faiss_store import FaissStore, effort_of

        (form,) = outputs.values()
        return FaissStore.create(Path(address.location), address.name, form, effort_of(address))
    if address.kind in {"qdrant", "qdrant-server"}:
        from trimtab.stores.qdrant_store import QdrantStore

        return QdrantStore(address, outputs)
    if address.kind == "postgresql":
        from trimtab.stores.postgres_store import PostgresStore

        return PostgresStore(address, outputs, example)
    raise ConfigError(f"{address.name} can only be read; write into FAISS, Qdrant or pgvector")


def _missing(error: ModuleNotFoundError, address: Address) -> ConfigError:
    package = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(package)
    if extra is None:
        raise error
    return ConfigError(f"{address.name} needs the package {package!r}: pip install 'trimtab[{extra}]'")
