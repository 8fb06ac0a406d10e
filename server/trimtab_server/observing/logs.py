"""What the server writes to standard error: lines for people, or an object a line for machines.

Neither texts nor vectors nor metadata are ever written.
"""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime

from trimtab_server.config import Logging

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
        return json.dumps(written, ensure_ascii=False, default=str)


class Text(logging.Formatter):
    """A record as a line, with the id of its call."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        number = call.get({}).get("request_id")
        return super().format(record) + (f" [request {number}]" if number else "")


def configure(settings: Logging, *, verbose: bool) -> None:
    """Let the handlers of the root logger write so. `verbose` says at least as much as level "info"."""
    level = LEVELS[settings.level]
    logging.getLogger("trimtab_server").setLevel(min(level, logging.INFO) if verbose else level)
    calls.setLevel(logging.INFO if settings.calls else logging.CRITICAL)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Json() if settings.format == "json" else Text())
