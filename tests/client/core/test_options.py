"""The declaration of a request's options, and everybody who reads it."""

import argparse
import inspect
import pickle
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from tests.client.fake_server import DIMENSIONS
from trimtab import kinds
from trimtab.core.option_kinds import MOST, ChoiceOption
from trimtab.core.options import (
    OPTIONS,
    PARAMETERS,
    EmbedOptions,
    Options,
    declare,
    from_message,
    from_parameters,
    given,
)
from trimtab.errors import InvalidArgument
from trimtab.v1 import encoder_pb2 as pb

# An example of each option that is not its default.
SET: EmbedOptions = {
    "encoder": "some-encoder",
    "version": "7",
    "role": "query",
    "dimensions": DIMENSIONS,
    "dtype": "int8",
    "truncate": "none",
    "priority": "bulk",
    "space": "0123456789abcdef",
    "group": "de",
    "variant": "int8",
    "layers": 3,
    "max_vectors": 16,
    "allow_brownout": False,
}


def test_every_option_is_declared_and_documented() -> None:
    assert OPTIONS.keys() == EmbedOptions.__annotations__.keys() == SET.keys()
    for name, hint in get_type_hints(EmbedOptions, include_extras=True).items():
        assert get_origin(hint) is Annotated, name
        assert f"\n{name}: " in (inspect.getdoc(EmbedOptions) or ""), name


def test_every_field_of_a_request_is_an_options_or_says_what_is_embedded_and_given() -> None:
    fields = {option.field or name for name, option in OPTIONS.items()}
    assert fields | {"texts", "inputs", "outputs"} == set(pb.EmbedRequest.DESCRIPTOR.fields_by_name)


def test_choices_are_those_of_the_kinds_and_of_the_protocol() -> None:
    sets = {
        "role": kinds.ROLES,
        "dtype": kinds.DTYPES,
        "truncate": kinds.TRUNCATIONS,
        "priority": kinds.PRIORITIES,
    }
    for name, names in sets.items():
        option = OPTIONS[name]
        assert isinstance(option, ChoiceOption) and tuple(option.numbers) == names
        enum = pb.EmbedRequest.DESCRIPTOR.fields_by_name[option.field or name].enum_type
        assert enum.name == option.enum
        assert {0, *option.numbers.values()} == set(enum.values_by_number)


def test_defaults_are_of_the_declared_types() -> None:
    values = Options().values
    for name, hint in get_type_hints(EmbedOptions).items():
        allowed = get_args(hint) or (hint,)
        assert any(
            values[name] == each or (isinstance(each, type) and isinstance(values[name], each))
            for each in allowed
        ), name  # type: ignore[literal-required]


def test_a_message_of_defaults_is_read_as_defaults() -> None:
    assert from_message(pb.EmbedRequest()) == Options().values
    assert from_message(Options().request()) == Options().values


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_survives_the_message_alone(name: str) -> None:
    options = Options(**{name: SET[name]})  # type: ignore[misc, literal-required]
    assert options.values == Options().values | {name: SET[name]}  # type: ignore[literal-required]
    assert (
        from_message(pb.EmbedRequest.FromString(options.request(["a"]).SerializeToString())) == options.values
    )


def test_a_message_with_some_of_the_fields_has_some_of_the_options() -> None:
    request = pb.RescoreRequest(encoder="e", truncate=pb.TRUNCATE_START)
    assert from_message(request) == {
        "encoder": "e", "version": "", "truncate": "start", "priority": "interactive",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "enum"), [("role", "Role"), ("dtype", "DataType"), ("priority", "Priority")]
)
def test_a_number_that_stands_for_nothing_is_refused(field: str, enum: str) -> None:
    request = pb.EmbedRequest.FromString(pb.EmbedRequest(**{field: 77}).SerializeToString())  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=f"{field} 77 is not known; see {enum} in trimtab.v1"):
        from_message(request)


@pytest.mark.parametrize(
    ("parameter", "given", "value"),
    [
        ("input_type", "QUERY", "query"),
        ("truncate", "start", "start"),
        ("dimensions", 128, 128),
        ("dimensions", "128", 128),
        ("embedding_type", "int8", "int8"),
        ("priority", 1, "interactive"),
        ("priority", "2", "bulk"),
        ("space", "0123456789abcdef", "0123456789abcdef"),
        ("group", "de", "de"),
        ("variant", "int8", "int8"),
        ("layers", 3, 3),
        ("allow_brownout", False, False),
    ],
)
def test_a_parameter_of_kserve_is_its_option(parameter: str, given: Any, value: Any) -> None:
    assert from_parameters({parameter: given}) == Options().values | {PARAMETERS[parameter]: value}


@pytest.mark.parametrize(
    ("parameter", "given", "words"),
    [
        ("input_type", "question", "parameter input_type is 'question'; choose one of query, passage"),
        ("embedding_type", 5, "choose one of float32, float16"),
        ("dimensions", 0, "it must be a whole number from 1"),
        ("dimensions", True, "it must be a whole number from 1"),
        ("dimensions", "1" * 19, "it must be a whole number from 1"),
        ("priority", "high", "it must be a whole number from 1"),
        ("space", 3, "it must be a string"),
        ("allow_brownout", "no", "it must be true or false"),
    ],
)
def test_a_parameter_that_is_no_value_is_refused_by_its_own_name(
    parameter: str, given: Any, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        from_parameters({parameter: given})


def test_a_command_line_names_every_option_that_has_an_argument() -> None:
    parser = argparse.ArgumentParser()
    declare(parser)
    words = [
        word for name, option in OPTIONS.items() if option.help for word in (f"--{name}", str(SET[name]))
    ]  # type: ignore[literal-required]
    options = given(parser.parse_args(words), priority="bulk", max_vectors=16, allow_brownout=False)
    assert options.values == SET
    assert given(parser.parse_args([])).values == Options().values


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"role": "document"}, "role 'document' is not known; choose one of query, passage, or None"),
        ({"truncate": "middle"}, "truncate 'middle' is not known; choose one of end, start, none$"),
        ({"priority": "low"}, "priority 'low' is not known; choose one of interactive, bulk$"),
        (
            {"dtype": "float64"},
            "dtype 'float64' is not known; choose one of float32, float16, int8, ubinary$",
        ),
        ({"dimensions": 0}, "dimensions is 0; give at least 1, or None for all"),
        ({"dimensions": MOST + 1}, "dimensions is 4294967296"),
        ({"layers": -3}, "layers is -3; give at least 1, or None for the encoder itself"),
        ({"space": 5}, "space is int, not str"),
    ],
)
def test_an_option_that_cannot_be_is_named_with_the_choices(options: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Options(**options)


def test_an_option_that_there_is_not_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="'dimension' is not an option; there are encoder, version"):
        Options(dimension=3)  # type: ignore[call-arg]


def test_options_travel_to_other_processes() -> None:
    assert pickle.loads(pickle.dumps(Options(**SET))).values == SET
