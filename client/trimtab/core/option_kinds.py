"""The kinds of request options, and how messages, parameters and commands represent each."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.errors import InvalidArgument

MOST = 2**32 - 1  # the largest number a field holds
_DIGITS = 18  # at most, of an integer given as a string


@dataclass(frozen=True, slots=True, kw_only=True)
class Option(ABC):
    """An option of a request.

    default: its value if omitted.
    field: the field of EmbedRequest; "": the same name.
    parameter: the parameter of KServe's requests; "": none.
    help: the help of `trimtab embed`'s argument; "": it has no argument.
    """

    default: Any
    field: str = ""
    parameter: str = ""
    help: str = ""

    @abstractmethod
    def check(self, name: str, value: Any) -> None:
        """Raise InvalidArgument if this cannot be its value."""

    @abstractmethod
    def to_field(self, value: Any) -> Any:
        """A value as the message's field represents it."""

    @abstractmethod
    def from_field(self, name: str, content: Any) -> Any:
        """The value of the message's field; InvalidArgument if it is unknown."""

    @abstractmethod
    def from_parameter(self, given: Any) -> Any:
        """The value of a parameter; InvalidArgument if it is invalid."""

    def argument(self) -> dict[str, Any]:
        """The keywords for argparse."""
        return {"default": self.default, "help": self.help}

    def _refuse(self, given: Any, wanted: str) -> InvalidArgument:
        return InvalidArgument(f"parameter {self.parameter} is {given!r}; {wanted}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOption(Option):
    """A string; "" if omitted. `repeated`: the field is a list that holds this string if it is not empty."""

    default: str = ""
    repeated: bool = False

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, str | None):  # None was taken for "" before there was a check
            raise InvalidArgument(f"{name} is {type(value).__name__}, not str")

    def to_field(self, value: str | None) -> str | list[str]:
        text = value or ""
        return [text] * bool(text) if self.repeated else text

    def from_field(self, name: str, content: Any) -> Any:
        return next(iter(content), "") if self.repeated else content

    def from_parameter(self, given: Any) -> str:
        if not isinstance(given, str):
            raise self._refuse(given, "it must be a string")
        return given


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceOption(Option):
    """One of a few names, each with a number in an enum of the protocol; 0 is the default.

    ranked: as a KServe parameter it is a number: 1 is the first name, anything larger the second.
    """

    numbers: Mapping[str, int]
    enum: str
    ranked: bool = False

    def check(self, name: str, value: Any) -> None:
        if value != self.default and value not in self.numbers:
            otherwise = ", or None" if self.default is None else ""
            raise InvalidArgument(f"{name} {value!r} is not known; choose one of {self._names}{otherwise}")

    def to_field(self, value: str | None) -> int:
        return 0 if value is None else self.numbers[value]

    def from_field(self, name: str, content: int) -> str | None:
        if content == 0:
            default: str | None = self.default
            return default
        for choice, number in self.numbers.items():
            if number == content:
                return choice
        raise InvalidArgument(f"{name} {content} is not known; see {self.enum} in trimtab.v1")

    def from_parameter(self, given: Any) -> str:
        if self.ranked:
            first, second = self.numbers
            return second if whole(self.parameter, given) > 1 else first
        if not isinstance(given, str) or given.lower() not in self.numbers:
            raise self._refuse(given, f"choose one of {self._names}")
        return given.lower()

    def argument(self) -> dict[str, Any]:
        return {"default": self.default, "help": self.help, "choices": list(self.numbers)}

    @property
    def _names(self) -> str:
        return ", ".join(self.numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class CountOption(Option):
    """An integer from 1, or None, which is 0 in the message. `none`: what None stands for."""

    none: str
    default: None = None

    def check(self, name: str, value: Any) -> None:
        if value is not None and not 0 < value <= MOST:
            raise InvalidArgument(f"{name} is {value}; give at least 1, or None for {self.none}")

    def to_field(self, value: int | None) -> int:
        return value or 0

    def from_field(self, name: str, content: int) -> int | None:
        return content or None

    def from_parameter(self, given: Any) -> int:
        return whole(self.parameter, given)

    def argument(self) -> dict[str, Any]:
        return {"default": None, "help": self.help, "type": int, "metavar": "N"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionOption(Option):
    """True if omitted. The message's field says the opposite, so that it may be omitted, too."""

    default: bool = True

    def check(self, name: str, value: Any) -> None:
        pass

    def to_field(self, value: bool) -> bool:
        return not value

    def from_field(self, name: str, content: bool) -> bool:
        return not content

    def from_parameter(self, given: Any) -> bool:
        if not isinstance(given, bool):
            raise self._refuse(given, "it must be true or false")
        return given


def whole(parameter: str, given: Any) -> int:
    """The value of a parameter that is an integer from 1; it may be given as a string."""
    if isinstance(given, str) and given.isdecimal() and len(given) <= _DIGITS:
        given = int(given)
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise InvalidArgument(f"parameter {parameter} is {given!r}; it must be a whole number from 1")
    return given
