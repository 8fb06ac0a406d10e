"""Make requests of texts: check options and texts, and split what is too much for one message. No IO."""

from collections.abc import Iterable, Iterator, Sequence

from trimtab.core.answers import Limits
from trimtab.core.options import Item, Options
from trimtab.errors import InvalidArgument

# Upper bounds: a text's tag and length, and what EmbedStreamRequest adds to a request.
_TEXT_OVERHEAD = 6
_PAIR_OVERHEAD = 12
_MESSAGE_OVERHEAD = 24
# The most bytes that a request of one text takes besides it: names, options, a query's text.
_REQUEST_MOST = 4096


def text_room(
    options: Options, limits: Limits, spaces: Sequence[str] | None = None, outputs: Sequence[str] = ()
) -> int:
    """How many bytes the texts of one message may take, each counted by `text_size`."""
    taken = options.request(spaces=spaces, outputs=outputs).ByteSize() + _MESSAGE_OVERHEAD
    return (limits.max_message_bytes or 2**31 - 1) - taken


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list; InvalidArgument if one is not a str, or if `texts` itself is."""
    refuse_single(texts)
    checked = list(texts)
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            raise InvalidArgument(f"texts[{index}] is {type(text).__name__}, not str")
    return checked


def check_items(items: Iterable[Item]) -> list[Item]:
    """Texts or pairs of texts as a list, all of one form; InvalidArgument if one is neither."""
    refuse_single(items)
    given = list(items)
    if not given or isinstance(given[0], str):
        return list(check_texts(given))  # type: ignore[arg-type]  # which it finds out
    for index, pair in enumerate(given):
        if not isinstance(pair, tuple | list) or [type(each) for each in pair] != [str, str]:
            raise InvalidArgument(
                f"texts[{index}] is {type(pair).__name__}; pass texts, or pairs of two str, and one of both"
            )
    return [(pair[0], pair[1]) for pair in given]


def refuse_single(texts: object) -> None:
    """Raise InvalidArgument for a single str: its characters would otherwise be taken for texts."""
    if isinstance(texts, str | bytes):
        raise InvalidArgument(f"texts is one {type(texts).__name__}; pass a list of str: [text]")


def item_size(item: Item, index: int, room: int) -> int:
    """As `text_size`, of a text or a pair."""
    if isinstance(item, str):
        return text_size(item, index, room)
    return _PAIR_OVERHEAD + sum(text_size(text, index, room) for text in item)


def text_size(text: str, index: int, room: int) -> int:
    """The most bytes that `text` adds to a message; InvalidArgument if it is not a str or exceeds `room`.

    `index` is its position among the caller's texts, `room` how many bytes one message may hold.
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
    """Why a server with these limits would refuse a text, to follow "the text"; "" if it would not."""
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
    """The spaces as they are; InvalidArgument if there is none, a duplicate, or one that is not a name."""
    if space := options.values["space"]:
        raise InvalidArgument(f"space is {space!r} beside spaces; name all of them in spaces")
    checked = (spaces,) if isinstance(spaces, str) else tuple(spaces)
    for index, space in enumerate(checked):
        if not isinstance(space, str) or not space:
            raise InvalidArgument(f"spaces[{index}] is {space!r}; pass the name of a space, as in answers")
        if space in checked[:index]:
            raise InvalidArgument(f"spaces[{index}] is {space!r} again; name each space once")
    if not checked:
        raise InvalidArgument("spaces is empty; name at least one, or call embed for the encoder's own")
    return checked


def check_outputs(outputs: Iterable[str]) -> tuple[str, ...]:
    """The names of outputs as they are; InvalidArgument if there is none, a duplicate, or one that is no
    name."""
    checked = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    for index, name in enumerate(checked):
        if not isinstance(name, str) or not name:
            raise InvalidArgument(
                f"outputs[{index}] is {name!r}; pass the name of one of the encoder's outputs"
            )
        if name in checked[:index]:
            raise InvalidArgument(f"outputs[{index}] is {name!r} again; name each output once")
    if not checked:
        raise InvalidArgument("outputs is empty; name at least one, or call embed for dense vectors")
    return checked


def split(
    texts: Sequence[Item],
    options: Options,
    limits: Limits,
    spaces: Sequence[str] | None = None,
    outputs: Sequence[str] = (),
) -> list[list[Item]]:
    """The texts or pairs in order, cut into as few consecutive parts as the server's limits allow; [[]] for
    none."""
    return list(_parts(texts, text_room(options, limits, spaces, outputs), limits.max_texts or len(texts)))


def _parts(texts: Sequence[Item], room: int, most: int) -> Iterator[list[Item]]:
    part: list[Item] = []
    filled = 0
    for index, text in enumerate(texts):
        size = item_size(text, index, room)
        if part and (len(part) == most or filled + size > room):
            yield part
            part, filled = [], 0
        part.append(text)
        filled += size
    yield part
