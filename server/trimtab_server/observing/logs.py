"""What the server writes to standard error: lines for people, or an object a line for machines.

Neither texts nor vectors nor metadata are ever written. Names that callers send may be part of a message, and
of an error's: nothing in them ends a line, or passes for another one.
"""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from trimtab_server.config import Logging

# What gRPC tells of single calls, with tracebacks, and for any stranger: that the connection ended while the
# answer was on its way, and that a header, which it shows whole, or the path is not UTF-8.
OF_CALLS = (
    "ExecuteBatchError raised in core",
    "Invalid encoding on ",
    "Unexpected [UnicodeDecodeError] raised by servicer method",
)
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# What belongs to the call that this task works for: request_id, trace_id. Unset where calls are not observed.
call: ContextVar[dict[str, str]] = ContextVar("call")

calls = logging.getLogger("trimtab_server.calls")


class Json(logging.Formatter):
    """A record as one line of JSON, with the ids of its call and whatever it has in `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        written = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **call.get({}),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            written["traceback"] = self.formatException(record.exc_info)
        return json.dumps(written, default=str)


class Text(logging.Formatter):
    """A record as a line, with the id of its call; behind it a traceback, indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        number = call.get({}).get("request_id")
        record.message = printable(record.message) + (f" [request {number}]" if number else "")
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"    {printable(line)}" for line in lines)


def printable(text: str) -> str:
    """`text` with what is no printable character written as Python would: line ends, escapes, surrogates."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text
    )


def _worth_telling(record: logging.LogRecord) -> bool:
    """A line for each such call would fill the disk, and may show credentials."""
    return not record.getMessage().startswith(OF_CALLS)


def configure(settings: Logging, *, verbose: bool) -> None:
    """Let the handlers of the root logger write so. `verbose` says at least as much as level "info"."""
    level = LEVELS[settings.level]
    logging.getLogger("trimtab_server").setLevel(min(level, logging.INFO) if verbose else level)
    calls.setLevel(logging.INFO if settings.calls else logging.CRITICAL)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_worth_telling)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Json() if settings.format == "json" else Text())
