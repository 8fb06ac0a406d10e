"""All of Trimtab's errors: the server raises them, the wire carries their code, the client raises them again.

TrimtabError
|-- InvalidArgument      a bad input; the message names the element, the limit and the cure
|-- NotFound             no such encoder, version or space
|-- FailedPrecondition   the request cannot be met in the current state
|   `-- DamagedError     a file of a vector store is not what was written into it
|-- ResourceExhausted    the server is full; `retry_after` seconds later it may not be
|-- DeadlineExceeded     the deadline passed, or cannot be met
|-- Cancelled            nobody waits for the answer any more
|-- Unavailable          not reachable, not warm yet, or draining: try another server
|-- Unauthenticated      no credentials, or wrong ones
|-- PermissionDenied     the credentials do not allow this
|-- Unimplemented        the protocol has it, this server does not
|-- InternalError        a fault of the server; its log has the id in the message
|-- BundleError          a folder that is not a complete, unchanged bundle
|-- AdapterError         an adapter that cannot be fitted, or a folder that is not a complete, unchanged one
|-- ConfigError          a configuration that cannot be used
`-- ExportError          an encoder that cannot be exported, or was not exported faithfully
"""

# ruff: noqa: N818 (the names are those of gRPC's statuses)

import enum


class Code(enum.IntEnum):
    """The kind of an error. Names and numbers are gRPC's; the wire carries the numbers."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class TrimtabError(Exception):
    """The base of all errors that Trimtab raises on purpose.

    `code` is the kind of error, in gRPC's terms; `retryable` says whether the same request may succeed later,
    here or elsewhere, and `retry_after` after how many seconds it is worth trying again (0: nobody knows).
    """

    code: Code = Code.UNKNOWN
    retryable: bool = False

    def __init__(self, message: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InvalidArgument(TrimtabError):
    """The request is invalid, and would be on every server."""

    code = Code.INVALID_ARGUMENT


class NotFound(TrimtabError):
    """No such encoder, version or space is served here."""

    code = Code.NOT_FOUND


class FailedPrecondition(TrimtabError):
    """The request is well-formed, but the server's state does not allow it."""

    code = Code.FAILED_PRECONDITION


class DamagedError(FailedPrecondition):
    """A file of a vector store is not what was written into it."""


class ResourceExhausted(TrimtabError):
    """The server is full. `retry_after` seconds later it may not be."""

    code = Code.RESOURCE_EXHAUSTED
    retryable = True


class DeadlineExceeded(TrimtabError):
    """The deadline passed before the answer arrived."""

    code = Code.DEADLINE_EXCEEDED


class Cancelled(TrimtabError):
    """The call was cancelled."""

    code = Code.CANCELLED


class Unavailable(TrimtabError):
    """The server cannot be reached, is not warm yet, or is draining."""

    code = Code.UNAVAILABLE
    retryable = True


class Unauthenticated(TrimtabError):
    """The request carries no credentials, or wrong ones."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(TrimtabError):
    """The credentials do not allow this request."""

    code = Code.PERMISSION_DENIED


class Unimplemented(TrimtabError):
    """The protocol knows this call, this server does not."""

    code = Code.UNIMPLEMENTED


class InternalError(TrimtabError):
    """A fault of the server. The message holds an id that is also in the server's log."""

    code = Code.INTERNAL


class BundleError(TrimtabError):
    """A folder that is not a bundle, or one that was changed since it was exported."""

    code = Code.FAILED_PRECONDITION


class AdapterError(TrimtabError):
    """An adapter that cannot be fitted from its data, or a folder that is not an adapter or was changed."""

    code = Code.FAILED_PRECONDITION


class ConfigError(TrimtabError):
    """A configuration file or option that cannot be used."""

    code = Code.INVALID_ARGUMENT


class ExportError(TrimtabError):
    """An encoder that cannot be exported faithfully; nothing was written."""

    code = Code.FAILED_PRECONDITION


_BY_CODE: dict[Code, type[TrimtabError]] = {
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


def code_of(number: int) -> Code:
    """The code for a number on the wire; UNKNOWN if the number has none."""
    try:
        return Code(number)
    except ValueError:
        return Code.UNKNOWN


def from_code(code: Code, message: str, retry_after: float = 0.0) -> TrimtabError:
    """The error that a code stands for.

    Codes that Trimtab does not send itself (UNKNOWN, ABORTED, ...) come back as a bare TrimtabError.
    """
    cls = _BY_CODE.get(code)
    if cls is None:
        return TrimtabError(f"{code.name}: {message}", retry_after)
    return cls(message, retry_after)
