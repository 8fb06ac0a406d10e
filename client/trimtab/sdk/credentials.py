"""What every call sends: the caller's metadata, and a token that may change while the client is open."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from trimtab.errors import ConfigError
from trimtab.sdk.target import is_local

Metadata = tuple[tuple[str, str | bytes], ...]

# Seconds between two checks of a token's file.
INTERVAL = 1.0
# Metadata keys that hold the caller's credentials.
_SECRET = {"authorization", "proxy-authorization", "cookie", "x-api-key"}


class CallMetadata:
    """The metadata of each call. `secure`: whether the connection is encrypted.

    A token given as text is sent as it is. A Path is read, and read again when the file has changed, since
    platforms renew tokens. Raises ConfigError if the token cannot be read, or would be sent to another
    machine in plain text.
    """

    def __init__(
        self, metadata: Mapping[str, str] | None, token: str | Path | None, *, url: str, secure: bool
    ) -> None:
        self._fixed: Metadata = tuple((key.lower(), value) for key, value in (metadata or {}).items())
        self._file = token if isinstance(token, Path) else None
        self._stamp: tuple[int, int] | None = None
        self._next = 0.0
        if token is None:
            self._all = self._fixed
            return
        if not secure and not is_local(url):
            raise ConfigError(
                f"token: it would be sent to {url} in plain text, for anyone in between to read. Pass "
                "tls=True or a CA; if something else encrypts the connection, pass it in metadata as "
                "'authorization'"
            )
        if isinstance(token, str):
            self._all = self._with(token)
        else:
            self._read(token)

    @property
    def secret(self) -> bool:
        """Whether it includes credentials."""
        return any(key in _SECRET for key, _ in self._all)

    def get(self) -> Metadata:
        """The metadata of the next call."""
        if self._file is not None and time.monotonic() >= self._next:
            self._read(self._file)
        return (*self._all, *_traceparent())

    def _read(self, file: Path) -> None:
        self._next = time.monotonic() + INTERVAL
        try:
            stat = file.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp != self._stamp:
                self._all, self._stamp = self._with(file.read_text().strip()), stamp
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"token: the file {file} cannot be read: {error}") from None

    def _with(self, token: str) -> Metadata:
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError("token: it is empty, or more than one word of ASCII")
        return (*self._fixed, ("authorization", f"Bearer {token}"))


def _traceparent() -> Metadata:
    """The application's current OpenTelemetry span, as the parent of the server's.

    Source: W3C Trace Context. We never import the package; it is used if the application has.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ()
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return ()
    return (("traceparent", f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"),)
