"""The port for metrics: a few connections at a time, on the event loop, whoever comes and however many."""

import asyncio
import contextlib
import io
from collections.abc import Iterable
from http.client import HTTPException, parse_headers

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import choose_encoder

# Connections at a time. Where one more comes, the one goes that has been silent for longest.
MOST = 64
# Until a request has come, and until its answer was taken.
SECONDS = 5.0
HEAD_BYTES = 8192
# Writing all metrics takes some milliseconds, in which nobody else is served: not more often than this.
PAUSE_SECONDS = 0.02


class Scrapes:
    """Answers GET with what `registry` has, in the format and the encoding that are asked for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._app = make_wsgi_app(registry)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._silent: dict[asyncio.StreamWriter, None] = {}  # of those, who asked for nothing yet, in order
        self._turn = asyncio.Lock()

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; OSError where the address cannot be had."""
        self._server = await asyncio.start_server(self._connected, host, port, limit=HEAD_BYTES)
        taken: int = self._server.sockets[0].getsockname()[1]
        return taken

    def stop(self) -> None:
        """Listen no more, and close what is open."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            self._close(writer)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self._silent[writer] = None
        if len(self._open) > MOST:
            self._close(next(iter(self._silent)))  # this one, where all others wait for an answer
        # Who is silent, or gone, or sends no request, is told nothing.
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
        writer.transport.set_write_buffer_limits(high=0)  # what is drained, the system has taken
        async with self._turn:
            writer.write(self._response(head))
            await asyncio.sleep(PAUSE_SECONDS)
        async with asyncio.timeout(SECONDS):
            await writer.drain()

    def _response(self, head: bytes) -> bytes:
        line, _, rest = head.partition(b"\r\n")
        try:
            method, target, _ = line.decode("latin-1").split(" ")
            fields = parse_headers(io.BytesIO(rest))
            choose_encoder(fields.get("Accept", ""))  # it trips over versions that are no numbers
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
