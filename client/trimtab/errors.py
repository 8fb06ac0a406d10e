"""The one tree of errors: the server raises them, the wire carries their code, the client raises them again.

TrimtabError
|-- InvalidArgument      a bad input; the message names the element, the limit and the cure
|-- NotFound             no such encoder, version or space
|-- FailedPrecondition   what is asked for cannot be done as things stand
|   `-- DamagedError     a file of a vector store is not what was written into it
|-- ResourceExhausted    the server is full; `retry_after` seconds later it may not be
|-- DeadlineExceeded     the deadline passed, or cannot be met
|-- Cancelled            nobody waits for the answer any more
|-- Unavailable          not reachable, not warm yet, or draining: try another server
|-- Unauthenticated      no credentials, or wrong ones
|-- PermissionDenied     the credentials do not reach that far
|-- Unimplemented        the protocol has it, this server does not
|-- InternalError        a fault of the server; the id in the message stands in its log
|-- BundleError          a folder that is not a whole and untouched bundle
|-- AdapterError         an adapter that cannot be fitted, or a folder that is not a whole and untouched one
|-- ConfigError          a configuration that cannot be used
`-- ExportError          an encoder that cannot be exported, or was not exported faithfully
"""

# ruff: noqa: N818 (the names are those of gRPC's statuses)

import grpc


class TrimtabError(Exception):
    """The base of all errors that Trimtab raises on purpose.

    `code` is the gRPC status that stands for the error; `retryable` says whether the same request may
    succeed later, here or elsewhere.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    retryable: bool = False


class InvalidArgument(TrimtabError):
    """The request is wrong, and would be wrong on every server."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(TrimtabError):
    """No such encoder, version or space is served here."""

    code = grpc.StatusCode.NOT_FOUND


class FailedPrecondition(TrimtabError):
    """The request is well-formed, but the server's state does not allow it."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class DamagedError(FailedPrecondition):
    """A file of a vector store is not what was written into it."""


class ResourceExhausted(TrimtabError):
    """The server is full. `retry_after` (seconds) says when it is worth trying again."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retryable = True

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(TrimtabError):
    """The deadline passed before the answer was there."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(TrimtabError):
    """The call was cancelled."""

    code = grpc.StatusCode.CANCELLED


class Unavailable(TrimtabError):
    """The server cannot be reached, is not warm yet, or is draining."""

    code = grpc.StatusCode.UNAVAILABLE
    retryable = True


class Unauthenticated(TrimtabError):
    """The request carries no credentials, or wrong ones."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(TrimtabError):
    """The credentials do not allow this request."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unimplemented(TrimtabError):
    """The protocol knows this call, this server does not."""

    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(TrimtabError):
    """A fault of the server. The message holds an id that its log has, too."""

    code = grpc.StatusCode.INTERNAL


class BundleError(TrimtabError):
    """A folder that is not a bundle, or one that was changed since it was exported."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class AdapterError(TrimtabError):
    """An adapter that cannot be fitted from what was given, or a folder that is not one, or was changed."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ConfigError(TrimtabError):
    """A configuration file or option that cannot be used."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class ExportError(TrimtabError):
    """An encoder that cannot be exported faithfully; nothing was written."""

    code = grpc.StatusCode.FAILED_PRECONDITION


_BY_CODE: dict[grpc.StatusCode, type[TrimtabError]] = {
    cls.code: cls
    for cls in (
        InvalidArgument,
        NotFound,
        FailedPrecondition,
        ResourceExhausted,
        DeadlineExceeded,
        Cancelled,
        Unavailable,
        Unauthenticated,
        PermissionDenied,
        Unimplemented,
        InternalError,
    )
}


_STATUS_BY_NUMBER: dict[int, grpc.StatusCode] = {status.value[0]: status for status in grpc.StatusCode}


def status(number: int) -> grpc.StatusCode:
    """The gRPC status of a number on the wire; UNKNOWN for a number that stands for none."""
    return _STATUS_BY_NUMBER.get(number, grpc.StatusCode.UNKNOWN)


def from_status(code: grpc.StatusCode, message: str, retry_after: float = 0.0) -> TrimtabError:
    """The error that stands for a gRPC status.

    Codes that Trimtab does not send itself (UNKNOWN, ABORTED, ...) come back as a bare TrimtabError.
    """
    cls = _BY_CODE.get(code)
    if cls is ResourceExhausted:
        return ResourceExhausted(message, retry_after)
    if cls is None:
        return TrimtabError(f"{code.name}: {message}")
    return cls(message)
