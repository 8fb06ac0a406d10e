"""How both clients connect to a server: address, credentials, retries, limits."""

import json
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import grpc
import grpc.aio

from trimtab.core.session import may_be_limits
from trimtab.errors import (
    Cancelled,
    Code,
    ConfigError,
    DeadlineExceeded,
    FailedPrecondition,
    ResourceExhausted,
    TrimtabError,
    Unavailable,
    from_code,
)
from trimtab.sdk.target import Target

DEFAULT_URL = "127.0.0.1:8001"
DEFAULT_TIMEOUT = 30.0

Balancing = Literal["round_robin", "least_loaded"]
Tls = bool | str | Path | grpc.ChannelCredentials
ChannelOptions = tuple[tuple[str, int | str], ...]

_SERVICE = "trimtab.v1.EncoderService"
# gRPC itself retries what may succeed later: after the server's pushback if there is one, otherwise after a
# backoff with jitter. Five attempts are the most gRPC allows; with these delays they bridge three or four
# seconds without a server. Streams are not listed: they keep the answers they have.
_METHODS = {
    "name": [
        {"service": _SERVICE, "method": method}
        for method in ("Embed", "Rescore", "ListEncoders", "GetEncoder", "ListAdapters")
    ],
    "retryPolicy": {
        "maxAttempts": 5,
        "initialBackoff": "0.2s",
        "maxBackoff": "5s",
        "backoffMultiplier": 2.5,
        # CANCELLED: the server stopped during the call; a caller's own cancellation is not retried.
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
    },
}
_ROUND_ROBIN: dict[str, Any] = {"round_robin": {}}
# gRPC's own policy (gRFC A58): servers are weighted by the load reports in their answers, after one second of
# reports. A server that has not reported for half a minute gets the average weight again.
_BY_LOAD = {
    "weighted_round_robin": {
        "blackoutPeriod": "1s",
        "weightUpdatePeriod": "0.5s",
        "weightExpirationPeriod": "30s",
    }
}
_POLICIES: dict[Balancing, list[dict[str, Any]]] = {
    "round_robin": [_ROUND_ROBIN],
    "least_loaded": [_BY_LOAD, _ROUND_ROBIN],
}
_OPTIONS: ChannelOptions = (
    # gRPC does not retry a larger request. Its default, 256 KiB, is less than one batch of documents.
    ("grpc.per_rpc_retry_buffer_size", 64 * 2**20),
    # Reconnect early enough for the retries above to succeed when a server comes back.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # The SDK keeps to the limits that the server announces; an answer may have any size.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Detects a peer that vanished while a call waits for it.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


def call_options(target: Target, balancing: Balancing) -> ChannelOptions:
    """gRPC's options for the connections of calls."""
    if balancing not in _POLICIES:
        raise ConfigError(f"balancing {balancing!r} is not known; choose one of {', '.join(_POLICIES)}")
    return (*_OPTIONS, *target.options, _service_config(balancing))


def stream_options(target: Target) -> ChannelOptions:
    """gRPC's options for the connections of streams, which have their own, without gRPC's retries.

    The Exchange knows what to resend. gRPC's own retries (1.81) sometimes leave a stream's read pending
    forever when a server goes away, although its status has arrived. New streams go to the servers in turn: a
    load report comes at the end of a call, too late to place the next stream.
    """
    return (*_OPTIONS, *target.options, _service_config("round_robin"), ("grpc.enable_retries", 0))


def _service_config(balancing: Balancing) -> tuple[str, str]:
    config = {"loadBalancingConfig": _POLICIES[balancing], "methodConfig": [_METHODS]}
    return "grpc.service_config", json.dumps(config)


class Deadline:
    """A deadline `seconds` from now; math.inf for no limit."""

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            raise ConfigError(f"timeout is {seconds}; give seconds above 0, or math.inf for no limit")
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds left, as gRPC takes them: None for no limit."""
        return None if math.isinf(self.seconds) else max(self._end - time.monotonic(), 0.0)


def check_credentials(tls: Tls) -> grpc.ChannelCredentials | None:
    """The channel's credentials; None for plain text."""
    if isinstance(tls, grpc.ChannelCredentials):
        return tls
    if isinstance(tls, bool):
        return grpc.ssl_channel_credentials() if tls else None
    try:
        roots = Path(tls).read_bytes()
    except OSError as error:
        raise ConfigError(f"tls: the root certificates in {tls} cannot be read: {error.strerror}") from error
    return grpc.ssl_channel_credentials(roots)


def from_rpc(error: grpc.RpcError, target: Target, timeout: float = math.inf) -> TrimtabError:
    """Trimtab's error for a failed gRPC call, with the server's pushback if it sent one."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and details == "Deadline Exceeded":
        # gRPC's own message for a deadline that passed on the client names neither the limit nor the cure.
        return DeadlineExceeded(
            f"no answer from {target.url} within {timeout:g} s; pass a longer timeout, or fewer texts at once"
        )
    if code is grpc.StatusCode.UNAVAILABLE:
        details = f"{target.url}: {details}{target.proxied}"
    return from_code(Code[code.name], details, _pushback(error))


def from_break(error: grpc.RpcError, target: Target) -> TrimtabError:
    """Trimtab's error for a broken stream; Unavailable if another connection may help."""
    # A server that stops cancels its calls. So does a client that is closed, but then the next connection
    # fails.
    cut = error.code() is grpc.StatusCode.CANCELLED
    # grpc.aio loses the status of a stream that ends during a write, and reports this instead
    # (grpc/grpc#36066). The next connection shows the real cause.
    forgotten = error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"
    if cut or forgotten:
        return Unavailable(f"{target.url}: the connection broke ({error.details()})")
    translated = from_rpc(error, target)
    if isinstance(translated, ResourceExhausted) and may_be_limits(translated):
        return FailedPrecondition(
            f"{target.url} takes smaller messages than it did when this stream began: open the stream again "
            f"({translated})"
        )
    return translated


def _pushback(error: grpc.RpcError) -> float:
    """The seconds the server asks to wait; 0 if it names none, or says not to try again."""
    trailers = cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ())
    pushback = str(dict(trailers).get("grpc-retry-pushback-ms", ""))
    # Our servers do not send longer numbers, which would mean months.
    return int(pushback) / 1000 if pushback.isdecimal() and len(pushback) < 10 else 0.0


@contextmanager
def translated(target: Target, deadline: Deadline) -> Iterator[None]:
    """Raise gRPC's errors as Trimtab's."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc(error, target, deadline.seconds) from error
    except (ValueError, grpc.aio.UsageError) as error:  # gRPC's words for a channel that was closed
        raise FailedPrecondition(f"the client of {target.url} is closed; make a new one") from error


@contextmanager
def translated_break(target: Target) -> Iterator[None]:
    """Raise gRPC's errors in a stream as Trimtab's."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_break(error, target) from error
    except grpc.aio.UsageError:
        raise closed_meanwhile() from None
    except ValueError as error:
        if not str(error).startswith("Cannot invoke RPC"):  # gRPC's words for a channel that was closed
            raise
        raise closed_meanwhile() from None


def closed_meanwhile() -> Cancelled:
    """The error of a stream whose client was closed."""
    return Cancelled("the client was closed while the stream was open")
