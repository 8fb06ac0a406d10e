"""Logs on standard error: lines for people, or one JSON object per line for machines.

Texts, vectors and metadata are never written. Messages and errors may contain names sent by callers, escaped
so that they cannot end a line or forge another one.
"""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from trimtab_server.config import LoggingSettings

# Messages of gRPC about single calls, with tracebacks, which any stranger can trigger: the connection ended
# before the answer was sent; a header (shown in full) or the path is not UTF-8.
OF_CALLS = (
    "ExecuteBatchError raised in core",
    "Invalid encoding on ",
    "Unexpected [UnicodeDecodeError] raised by servicer method",
)
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# The ids of this task's call: request_id, trace_id. Unset if calls are not observed.
call: ContextVar[dict[str, str]] = ContextVar("call")

calls = logging.getLogger("trimtab_server.calls")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON, with the ids of its call and its `fields`, and with its process if the
    server has several."""

    def __init__(self, process: str = "") -> None:
        super().__init__()
        self._process = {"process": process} if process else {}

    def format(self, record: logging.LogRecord) -> str:
        written = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._process,
            **call.get({}),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            written["traceback"] = self.formatException(record.exc_info)
        return json.dumps(written, default=str)


class TextFormatter(logging.Formatter):
    """The same for people: one line, followed by an indented traceback, if any."""

    def __init__(self, process: str = "") -> None:
        whose = f"[{process}] " if process else ""
        super().__init__(f"%(asctime)s %(levelname)s {whose}%(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        number = call.get({}).get("request_id")
        record.message = printable(record.message) + (f" [request {number}]" if number else "")
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"    {printable(line)}" for line in lines)


def printable(text: str) -> str:
    """`text` with unprintable characters (line ends, escapes, surrogates) escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text
    )


def _worth_telling(record: logging.LogRecord) -> bool:
    """Drops these messages: one for each call would fill the disk, and might show credentials."""
    return not record.getMessage().startswith(OF_CALLS)


def configure(settings: LoggingSettings, *, verbose: bool, process: str = "") -> None:
    """Use this format for the root logger. `verbose` means at least level "info"; `process` is this one's
    name, if the server has several."""
    level = LEVELS[settings.level]
    logging.getLogger("trimtab_server").setLevel(min(level, logging.INFO) if verbose else level)
    calls.setLevel(logging.INFO if settings.calls else logging.CRITICAL)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_worth_telling)
    for handler in logging.getLogger().handlers:
        handler.setFormatter((JsonFormatter if settings.format == "json" else TextFormatter)(process))
