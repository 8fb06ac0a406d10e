"""A connection to PostgreSQL with pgvector, and the translation of its errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING

from trimtab.errors import FailedPrecondition, InvalidArgument, Unavailable
from trimtab.stores import postgres_catalogue as catalogue
from trimtab.stores.address import Address

if TYPE_CHECKING:
    import psycopg

_CONNECT_SECONDS = 10


class PostgresConnection:
    """One connection, reopened if it was lost. Threads take turns."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._guard = RLock()
        self._connection: psycopg.Connection | None = None
        self._closed = False

    @contextmanager
    def reaching(self) -> "Iterator[psycopg.Connection]":
        """The connection, locked for this thread; PostgreSQL's errors are raised as Trimtab's."""
        import psycopg

        name, scrub = self._address.name, self._address.scrub
        with self._guard:
            try:
                yield self._connect()
            except catalogue.refusals() as error:
                raise InvalidArgument(f"{name} refuses a value: {scrub(error)}") from None
            except catalogue.wrong_tables() as error:
                raise FailedPrecondition(
                    f"{name} cannot be used like this: {scrub(error)[:400]}. A table to write "
                    "into has a unique index on its ids, and lets its text and vectors be written"
                ) from None
            except (psycopg.Error, OSError) as error:
                raise Unavailable(f"{name} does not answer as it should: {scrub(error)[:400]}") from None

    def close(self) -> None:
        """Close the connection for good. Closing again does nothing."""
        with self._guard:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _connect(self) -> "psycopg.Connection":
        import psycopg
        from pgvector.psycopg import register_vector

        name = self._address.name
        if self._closed:
            raise FailedPrecondition(f"{name} is closed; open it again")
        if self._connection is not None and not self._connection.closed:
            return self._connection
        connection = psycopg.connect(
            self._address.location, autocommit=True, connect_timeout=_CONNECT_SECONDS
        )
        try:
            connection.execute("SET client_min_messages TO warning")
            try:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            except (psycopg.errors.FeatureNotSupported, psycopg.errors.InsufficientPrivilege) as error:
                raise FailedPrecondition(
                    f"{name}: the database has no extension pgvector ({self._address.scrub(error)}); "
                    "install it, and run CREATE EXTENSION vector"
                ) from None
            register_vector(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection
