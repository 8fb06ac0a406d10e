"""Texts into requests: check the options and the texts, and split what is too much for one message. No IO."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from trimtab.errors import InvalidArgument, NotFound
from trimtab.types import (
    PRIORITIES,
    ROLES,
    TRUNCATIONS,
    EmbedOptions,
    Encoder,
    Limits,
    Priority,
    Role,
    Truncate,
)
from trimtab.v1 import encoder_pb2 as pb
from trimtab.vectors import TO_PROTO, Dtype, check_dtype

_ROLES = {None: pb.ROLE_UNSPECIFIED, "query": pb.ROLE_QUERY, "passage": pb.ROLE_PASSAGE}
_TRUNCATIONS = {"end": pb.TRUNCATE_END, "start": pb.TRUNCATE_START, "none": pb.TRUNCATE_NONE}
_PRIORITIES = {"interactive": pb.PRIORITY_INTERACTIVE, "bulk": pb.PRIORITY_BULK}
_UINT32 = 2**32
# A text's tag and length, and what EmbedStreamRequest puts around a request: the most they can take.
_TEXT_OVERHEAD = 6
_MESSAGE_OVERHEAD = 24
# What a request of one text takes beside it, at the most: names, options, a query's text.
_REQUEST_MOST = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The checked options of an `embed` call: see types.EmbedOptions."""

    encoder: str = ""
    version: str = ""
    role: Role | None = None
    dimensions: int | None = None
    dtype: Dtype = "float32"
    truncate: Truncate = "end"
    priority: Priority = "interactive"
    space: str = ""
    group: str = ""
    variant: str = ""
    layers: int | None = None
    allow_brownout: bool = True

    def __post_init__(self) -> None:
        if self.role is not None and self.role not in ROLES:
            raise InvalidArgument(
                f"role {self.role!r} is not known; choose one of {', '.join(ROLES)}, or None"
            )
        if self.truncate not in TRUNCATIONS:
            raise InvalidArgument(
                f"truncate {self.truncate!r} is not known; choose one of {', '.join(TRUNCATIONS)}"
            )
        if self.priority not in PRIORITIES:
            raise InvalidArgument(
                f"priority {self.priority!r} is not known; choose one of {', '.join(PRIORITIES)}"
            )
        if self.dimensions is not None and not 0 < self.dimensions < _UINT32:
            raise InvalidArgument(f"dimensions is {self.dimensions}; give at least 1, or None for all")
        if self.layers is not None and not 0 < self.layers < _UINT32:
            raise InvalidArgument(f"layers is {self.layers}; give at least 1, or None for the encoder itself")
        check_dtype(self.dtype)

    @property
    def itself(self) -> bool:
        """Whether this asks for the encoder itself, in whose space the vectors then are if none is named."""
        return not self.variant and self.layers is None

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces to name in a request."""
        return (self.space,) if self.space else ()

    def request(self, texts: Iterable[str] = (), spaces: Sequence[str] | None = None) -> pb.EmbedRequest:
        """The message that asks for these texts, in these spaces instead of `space` where they are given."""
        return pb.EmbedRequest(
            encoder=self.encoder,
            version=self.version,
            role=_ROLES[self.role],
            truncate=_TRUNCATIONS[self.truncate],
            dimensions=self.dimensions or 0,
            dtype=TO_PROTO[self.dtype],
            texts=texts,
            priority=_PRIORITIES[self.priority],
            spaces=self.spaces if spaces is None else spaces,
            group=self.group,
            variant=self.variant,
            layers=self.layers or 0,
            refuse_brownout=not self.allow_brownout,
        )

    def pinned(self, encoder: Encoder) -> "Options":
        """The same options for exactly this version of an encoder; NotFound where it has no such variant."""
        known = encoder.variants
        there = [
            each for each in known if self.variant in ("", each.name) and self.layers in (None, each.layers)
        ]
        if known and not there:
            depth = f" of {self.layers} layers" if self.layers else ""
            raise NotFound(
                f"encoder {encoder.name} version {encoder.version} has no variant {self.variant!r}{depth}; "
                f"it has {', '.join(f'{each.name} ({each.layers} layers)' for each in known)}"
            )
        return replace(self, encoder=encoder.name, version=encoder.version)

    def keywords(self) -> EmbedOptions:
        """The options as the keywords of an `embed` call."""
        return {
            "encoder": self.encoder,
            "version": self.version,
            "role": self.role,
            "dimensions": self.dimensions,
            "dtype": self.dtype,
            "truncate": self.truncate,
            "priority": self.priority,
            "space": self.space,
            "group": self.group,
            "variant": self.variant,
            "layers": self.layers,
            "allow_brownout": self.allow_brownout,
        }

    def text_room(self, limits: Limits, spaces: Sequence[str] | None = None) -> int:
        """How many bytes the texts of one message may take, each counted by `text_size`."""
        taken = self.request(spaces=spaces).ByteSize() + _MESSAGE_OVERHEAD
        return (limits.max_message_bytes or 2**31 - 1) - taken


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list; InvalidArgument where one is no text, or where `texts` is itself one."""
    refuse_single(texts)
    checked = list(texts)
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            raise InvalidArgument(f"texts[{index}] is {type(text).__name__}, not str")
    return checked


def refuse_single(texts: object) -> None:
    """InvalidArgument for a single text, whose characters would otherwise be taken for texts."""
    if isinstance(texts, str | bytes):
        raise InvalidArgument(f"texts is one {type(texts).__name__}; pass a list of str: [text]")


def text_size(text: str, index: int, room: int) -> int:
    """The most bytes that `text` adds to a message; InvalidArgument where it is no text or more than `room`.

    `index` is its place among the caller's texts, and `room` what one message holds.
    """
    if not isinstance(text, str):
        raise InvalidArgument(f"texts[{index}] is {type(text).__name__}, not str")
    try:
        size = _TEXT_OVERHEAD + (len(text) if text.isascii() else len(text.encode()))
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"texts[{index}] holds half of a surrogate pair at character {error.start}, "
            "which UTF-8 cannot carry; decode the text with errors='replace'"
        ) from None
    if size > room:
        raise InvalidArgument(
            f"texts[{index}] has {size - _TEXT_OVERHEAD:,} bytes, "
            f"and a message to this server holds {max(room - _TEXT_OVERHEAD, 0):,}; shorten the text"
        )
    return size


def unfit(text: str | None, limits: Limits) -> str:
    """What keeps a text from a server of these limits, as what follows "the text"; "" where nothing does."""
    if text is None:
        return "is missing"
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        return f"holds half of a surrogate pair at character {error.start}, which UTF-8 cannot carry"
    room = (limits.max_message_bytes or 2**31 - 1) - _REQUEST_MOST
    most = min(limits.max_text_bytes or room, room)
    return f"has {size:,} bytes, and the server takes {most:,}" if size > most else ""


def check_spaces(spaces: Iterable[str], options: Options) -> tuple[str, ...]:
    """The spaces as they are; InvalidArgument where there is none, one twice, or one that is no name."""
    if options.space:
        raise InvalidArgument(f"space is {options.space!r} beside spaces; name all of them in spaces")
    checked = (spaces,) if isinstance(spaces, str) else tuple(spaces)
    for index, space in enumerate(checked):
        if not isinstance(space, str) or not space:
            raise InvalidArgument(f"spaces[{index}] is {space!r}; pass a space's name, as answers bear it")
        if space in checked[:index]:
            raise InvalidArgument(f"spaces[{index}] is {space!r} again; name each space once")
    if not checked:
        raise InvalidArgument("spaces is empty; name at least one, or call embed for the encoder's own")
    return checked


def split(
    texts: list[str], options: Options, limits: Limits, spaces: Sequence[str] | None = None
) -> list[list[str]]:
    """The texts in order, cut into as few consecutive parts as the server's limits allow; [[]] for none."""
    return list(_parts(texts, options.text_room(limits, spaces), limits.max_texts or len(texts)))


def _parts(texts: list[str], room: int, most: int) -> Iterator[list[str]]:
    part: list[str] = []
    filled = 0
    for index, text in enumerate(texts):
        size = text_size(text, index, room)
        if part and (len(part) == most or filled + size > room):
            yield part
            part, filled = [], 0
        part.append(text)
        filled += size
    yield part
