"""Qdrant's client, for a server or a local folder, and the translation of its errors."""

import os
import socket
import sqlite3
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trimtab.errors import ConfigError, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from trimtab.stores.address import KEY_VARIABLE, Address
from trimtab.stores.checks import files_identity

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_REFUSED = {400, 413, 422}  # errors caused by the request, not by the server
_PORT = 6333  # if an address names none


class QdrantConnection:
    """A Qdrant client. Threads take turns, since the embedded client is not thread-safe."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._guard = RLock()
        self.client: QdrantClient = _client(address)

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """The client, locked for this thread; its errors are raised as Trimtab's."""
        from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

        name, scrub = self._address.name, self._address.scrub
        with self._guard:
            try:
                yield
            except sqlite3.Error as error:  # the embedded client keeps its points in SQLite
                raise Unavailable(
                    f"{name} cannot be used: {scrub(error)[:400]}; check the disk and its free space, and "
                    "try again"
                ) from None
            except UnexpectedResponse as error:
                kind = InvalidArgument if error.status_code in _REFUSED else Unavailable
                raise kind(f"{name} does not answer as it should: {scrub(error)[:400]}") from None
            except (ApiException, OSError, ValueError, RuntimeError) as error:
                raise Unavailable(f"{name} does not answer as it should: {scrub(error)[:400]}") from None

    def place(self) -> frozenset[Hashable]:
        """The folder, or the server: its own id, or its addresses if it does not tell."""
        from qdrant_client.http.exceptions import ApiException

        if self._address.kind == "qdrant":
            return files_identity(Path(self._address.location))
        try:
            told: Any = self.client.http.service_api.telemetry(details_level=0).result
            peers = getattr(self.client.cluster_status(), "peers", {})
            return frozenset([("qdrant", told.id), *(("qdrant-peer", peer) for peer in peers)])
        except ApiException:  # a key for a single collection may not ask
            url = urlsplit(self._address.location)
            found = socket.getaddrinfo(url.hostname, url.port or _PORT, type=socket.SOCK_STREAM)
            return frozenset(("address", each[4][0], each[4][1]) for each in found)

    def close(self) -> None:
        """Close the client."""
        with self._guard:
            self.client.close()


def _client(address: Address) -> "QdrantClient":
    from qdrant_client import QdrantClient

    if address.kind == "qdrant-server":
        return QdrantClient(
            url=address.location,
            api_key=os.environ.get(KEY_VARIABLE),
            check_compatibility=False,
            timeout=60,
        )
    if not Path(address.location).parent.is_dir():
        raise NotFound(f"{address.name}: the folder above it does not exist")
    folder = Path(address.location)
    described = folder / "meta.json"
    if described.exists() and not described.stat().st_size and not (folder / "collection").exists():
        described.unlink()  # the client was stopped before it wrote anything
    try:
        return QdrantClient(path=address.location, force_disable_check_same_thread=True)
    except OSError as error:
        raise Unavailable(f"{address.name} cannot be used: {error.strerror}; check the disk") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{described} was not written by Qdrant; name another folder") from None
    except sqlite3.Error as error:
        raise Unavailable(
            f"{address.name} cannot be opened: {address.scrub(error)[:400]}; check the disk and its room, "
            "and go on"
        ) from None
    except RuntimeError:
        raise FailedPrecondition(
            f"{address.name} is open already, in this process or in another, and a folder of Qdrant's serves "
            "one at a time; close that one, or run a Qdrant server"
        ) from None
