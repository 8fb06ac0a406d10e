"""The options of a request, each declared once, in EmbedOptions.

An option's line there defines the SDK's keyword, its check, its message field, the argument of
`trimtab embed`, and how the server reads it from either protocol. To add an option, add a line and its test.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from typing import Annotated, Any, TypeAlias, TypedDict, Unpack, cast, get_type_hints

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from trimtab.core.answers import Encoder
from trimtab.core.option_kinds import ChoiceOption, CountOption, Option, PermissionOption, TextOption
from trimtab.errors import NotFound
from trimtab.kinds import Dtype, Priority, Role, Truncate
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values.dense import TO_PROTO

_ROLES = {"query": pb.ROLE_QUERY, "passage": pb.ROLE_PASSAGE}
_TRUNCATIONS = {"end": pb.TRUNCATE_END, "start": pb.TRUNCATE_START, "none": pb.TRUNCATE_NONE}
_PRIORITIES = {"interactive": pb.PRIORITY_INTERACTIVE, "bulk": pb.PRIORITY_BULK}


class EmbedOptions(TypedDict, total=False):
    """How texts are embedded: the keywords of every `embed` call.

    encoder: the encoder's name; may be omitted if the server serves only one.
    version: the encoder's version; the newest by default.
    role: "query" or "passage"; required by encoders with prompts, omitted for those without.
    dimensions: how many leading components to keep; all by default.
    dtype: the type of a component: "float32" (the default), "float16", "int8" (multiply by
        `Embeddings.scale` for the value) or "ubinary" (one sign bit per component, eight to a byte, the first
        in the highest bit).
    truncate: where to cut a text that has more tokens than the encoder reads: at its "end" (the default) or
        at its "start". With "none", such a text is refused with InvalidArgument.
    priority: "interactive" (the default), or "bulk" for work that nobody waits for, which runs beside
        interactive work, but after it.
    space: the space of the vectors; the encoder's own by default. Other spaces are reached through adapters:
        NotFound if no adapter leads there, FailedPrecondition if those that do failed their checks.
    group: the texts' language, tenant or similar, for adapters that know groups.
    variant: the name of a variant of the encoder, which has its own space. NotFound if there is no such
        variant, FailedPrecondition if the server has not loaded it. See `Encoder.variants`.
    layers: if `variant` is omitted, the variant that computes this many layers; if there are several, the
        one with the fewest dimensions that suffice for `dimensions`.
    max_vectors: the most vectors of a passage, for outputs with several vectors an item (`embed_outputs`). Of
        a passage with more, similar ones are pooled: each group becomes its mean. All by default.
    allow_brownout: whether an overloaded server that is configured for it may answer from a cheaper variant;
        True by default. It does so only for interactive requests with the role "query", and reports it in
        `Embeddings.browned_out`.
    """

    encoder: Annotated[str, TextOption(help="may be left out where the server serves only one")]
    version: Annotated[str, TextOption(help="default: the newest")]
    role: Annotated[
        Role | None,
        ChoiceOption(
            default=None,
            numbers=_ROLES,
            enum="Role",
            parameter="input_type",
            help="what the texts are, for encoders with prompts",
        ),
    ]
    dimensions: Annotated[
        int | None, CountOption(none="all", parameter="dimensions", help="keep the first N components")
    ]
    dtype: Annotated[
        Dtype,
        ChoiceOption(
            default="float32",
            numbers=TO_PROTO,
            enum="DataType",
            parameter="embedding_type",
            help="what a component is; default: float32",
        ),
    ]
    truncate: Annotated[
        Truncate,
        ChoiceOption(
            default="end",
            numbers=_TRUNCATIONS,
            enum="Truncate",
            parameter="truncate",
            help="where too long a text is cut; default: end",
        ),
    ]
    priority: Annotated[
        Priority,
        ChoiceOption(
            default="interactive", numbers=_PRIORITIES, enum="Priority", parameter="priority", ranked=True
        ),
    ]
    space: Annotated[
        str,
        TextOption(
            field="spaces",
            repeated=True,
            parameter="space",
            help="the space wanted; default: the encoder's own. Others through adapters",
        ),
    ]
    group: Annotated[
        str, TextOption(parameter="group", help="language, tenant or the like, for adapters with groups")
    ]
    variant: Annotated[
        str,
        TextOption(
            parameter="variant",
            help="a variant of the encoder, which is a space of its own; see `trimtab info`",
        ),
    ]
    layers: Annotated[
        int | None,
        CountOption(none="the encoder itself", parameter="layers", help="the variant that computes N layers"),
    ]
    max_vectors: Annotated[int | None, CountOption(none="all", parameter="max_vectors")]
    allow_brownout: Annotated[bool, PermissionOption(field="refuse_brownout", parameter="allow_brownout")]


Item: TypeAlias = str | tuple[str, str]  # a text, or a pair of texts that are read together

OPTIONS: Mapping[str, Option] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(EmbedOptions, include_extras=True).items()
}
"""Every option, by its name."""

PARAMETERS: Mapping[str, str] = {
    option.parameter: name for name, option in OPTIONS.items() if option.parameter
}
"""For each KServe parameter, the name of the option it carries."""


_DEFAULTS = {name: option.default for name, option in OPTIONS.items()}


class Options:
    """The options of a call, checked; `values` holds all of them.

    Raises InvalidArgument, which names the choices, for an invalid value.
    """

    def __init__(self, **options: Unpack[EmbedOptions]) -> None:
        if unknown := options.keys() - OPTIONS.keys():
            raise TypeError(f"{min(unknown)!r} is not an option; there are {', '.join(OPTIONS)}")
        for name, value in options.items():
            OPTIONS[name].check(name, value)
        self.values = cast(EmbedOptions, {**_DEFAULTS, **options})

    @property
    def itself(self) -> bool:
        """Whether this asks for the encoder itself; vectors are then in its space, unless one is named."""
        return not self.values["variant"] and self.values["layers"] is None

    @property
    def version(self) -> tuple[str, str]:
        """The encoder and its version, each as given."""
        return self.values["encoder"], self.values["version"]

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces to name in a request."""
        space = self.values["space"]
        return (space,) if space else ()

    def request(
        self, texts: Sequence[Item] = (), spaces: Sequence[str] | None = None, outputs: Sequence[str] = ()
    ) -> pb.EmbedRequest:
        """The request for these texts, or pairs, and outputs, in `spaces` if given, otherwise in the option
        `space`."""
        fields = self._message_fields if spaces is None else {**self._message_fields, "spaces": spaces}
        if texts and not isinstance(texts[0], str):
            inputs = [pb.Input(pair=pb.Pair(first=pair[0], second=pair[1])) for pair in texts]
            return pb.EmbedRequest(inputs=inputs, outputs=outputs, **fields)
        return pb.EmbedRequest(texts=texts, outputs=outputs, **fields)  # type: ignore[arg-type]

    @cached_property
    def _message_fields(self) -> dict[str, Any]:
        """The options as the fields of a message."""
        return {
            option.field or name: option.to_field(self.values[name])  # type: ignore[literal-required]
            for name, option in OPTIONS.items()
        }

    def of(self, encoder: str, version: str) -> "Options":
        """The same options for exactly this version of an encoder."""
        values = self.values.copy()
        values["encoder"], values["version"] = encoder, version
        return Options(**values)

    def pinned(self, encoder: Encoder) -> "Options":
        """The same options for exactly this version of an encoder; NotFound if it has no such variant."""
        variant, layers, known = self.values["variant"], self.values["layers"], encoder.variants
        there = [each for each in known if variant in ("", each.name) and layers in (None, each.layers)]
        if known and not there:
            depth = f" of {layers} layers" if layers else ""
            raise NotFound(
                f"encoder {encoder.name} version {encoder.version} has no variant {variant!r}{depth}; "
                f"it has {', '.join(f'{each.name} ({each.layers} layers)' for each in known)}"
            )
        return self.of(encoder.name, encoder.version)


Read = Callable[[str, Any], Any]


@cache
def _fields(kind: Descriptor) -> tuple[dict[str, Any], dict[str, tuple[str, Read | None]]]:
    """The options that a kind of message has fields for: their values in an empty message; and, by field, the
    option and how to read it (None: as it is)."""
    empty, values, fields = GetMessageClass(kind)(), dict[str, Any](), dict[str, tuple[str, Read | None]]()
    for name, option in OPTIONS.items():
        field = option.field or name
        if field in kind.fields_by_name:
            as_it_is = isinstance(option, TextOption) and not option.repeated
            fields[field] = name, None if as_it_is else option.from_field
            values[name] = option.from_field(name, getattr(empty, field))
    return values, fields


def from_message(request: Message) -> dict[str, Any]:
    """The options that an EmbedRequest holds, or a message with some of its fields.

    If there are several spaces, it takes the first. Raises InvalidArgument for an unknown enum number.
    """
    empty, fields = _fields(request.DESCRIPTOR)
    found = empty.copy()
    for field, content in request.ListFields():  # only the fields that are set, which are few
        if (known := fields.get(field.name)) is not None:
            name, read = known
            found[name] = content if read is None else read(name, content)
    return found


def from_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The options that KServe's parameters name, and defaults for the others. Raises InvalidArgument."""
    found = dict(_DEFAULTS)
    for parameter, given in parameters.items():
        name = PARAMETERS[parameter]
        found[name] = OPTIONS[name].from_parameter(given)
    return found


def declare(parser: argparse._ActionsContainer, names: Iterable[str] = OPTIONS, **helps: str) -> None:
    """Declare the arguments of these options, if they have one. `helps` replaces the help of some."""
    for name in names:
        if OPTIONS[name].help:
            argument = OPTIONS[name].argument()
            argument["help"] = helps.get(name, argument["help"])
            parser.add_argument(f"--{name}", **argument)


def given(arguments: argparse.Namespace, **others: Unpack[EmbedOptions]) -> Options:
    """The options given on the command line, and `others`."""
    named = {name: getattr(arguments, name) for name, option in OPTIONS.items() if option.help}
    return Options(**cast(EmbedOptions, {**named, **others}))
