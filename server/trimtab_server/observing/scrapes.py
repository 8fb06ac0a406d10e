"""The metrics port: serves a bounded number of connections on the event loop, however many arrive."""

import asyncio
import contextlib
import io
from collections.abc import Awaitable, Callable, Iterable
from http.client import HTTPException, parse_headers

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import choose_encoder

from trimtab.errors import ConfigError
from trimtab_server.config import split_address

# Open connections. For one more, the one that has been silent longest is closed.
MOST = 64
# Until a request has arrived, and until its answer was read.
SECONDS = 5.0
HEAD_BYTES = 8192
# Formatting all metrics takes some milliseconds and blocks the event loop: at most this often.
PAUSE_SECONDS = 0.05
# Connections that are accepted in one pass of the event loop, some .2 ms each, and that wait for that.
ACCEPTED, BACKLOG = 4, 128


class Scrapes:
    """Answers GET with the metrics in `registry`, in the requested format and encoding. `refresh` brings
    them up to date."""

    def __init__(
        self, registry: CollectorRegistry, refresh: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._app = make_wsgi_app(registry)
        self._refresh = refresh
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._silent: dict[asyncio.StreamWriter, None] = {}  # those without a request yet, oldest first
        self._turn = asyncio.Lock()

    async def start(self, address: str) -> int:
        """Listen at HOST:PORT, and return the port; ConfigError if the address cannot be used."""
        host, port = split_address(address)
        try:
            self._server = await asyncio.start_server(
                self._connected, host, port, limit=HEAD_BYTES, backlog=ACCEPTED
            )
        except OSError as error:
            raise ConfigError(f"metrics address {host}:{port} cannot be used: {error.strerror}") from None
        for each in self._server.sockets:  # asyncio knows one number for both
            with each.dup() as listening:
                listening.listen(BACKLOG)
        taken: int = self._server.sockets[0].getsockname()[1]
        return taken

    def stop(self) -> None:
        """Stop listening, and close all connections."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            self._close(writer)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self._silent[writer] = None
        if len(self._open) > MOST:
            self._close(next(iter(self._silent)))  # this one, if all others wait for an answer
        # A peer that is silent, gone, or sends no valid request gets no answer.
        with contextlib.suppress(TimeoutError, EOFError, asyncio.LimitOverrunError, OSError):
            try:
                await self._answer(reader, writer)
            finally:
                self._close(writer)

    def _close(self, writer: asyncio.StreamWriter) -> None:
        self._open.discard(writer)
        self._silent.pop(writer, None)
        writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        self._silent.pop(writer, None)
        writer.transport.set_write_buffer_limits(high=0)  # after drain, the system has the answer
        async with self._turn:
            if self._refresh is not None:
                await self._refresh()
            writer.write(self._response(head))
            await asyncio.sleep(PAUSE_SECONDS)
        async with asyncio.timeout(SECONDS):
            await writer.drain()

    def _response(self, head: bytes) -> bytes:
        line, _, rest = head.partition(b"\r\n")
        try:
            method, target, _ = line.decode("latin-1").split(" ")
            fields = parse_headers(io.BytesIO(rest))
            choose_encoder(fields.get("Accept", ""))  # it fails on versions that are not numbers
        except (ValueError, TypeError, HTTPException):
            return b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        path, _, query = target.partition("?")
        environment = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "HTTP_ACCEPT": fields.get("Accept", ""),
            "HTTP_ACCEPT_ENCODING": fields.get("Accept-Encoding", ""),
        }
        lines = []

        def begin(status: str, headers: Iterable[tuple[str, str]]) -> None:
            lines.append(f"HTTP/1.1 {status}")
            lines.extend(f"{name}: {value}" for name, value in headers)

        body = b"".join(self._app(environment, begin))
        lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
        return "\r\n".join(lines).encode("latin-1") + (b"" if method == "HEAD" else body)
