"""The forms of input items: each is a field of `trimtab.v1.Input`, with its type in Python.

text      str
pair      (str, str)
tokens    int64 (n,)
image     bytes, the content of a file
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.errors import InvalidArgument
from trimtab.v1 import encoder_pb2 as pb

_READ: Mapping[str, Callable[[pb.Input], Any]] = {
    "text": lambda message: message.text,
    "pair": lambda message: (message.pair.first, message.pair.second),
    "tokens": lambda message: np.array(message.tokens.ids, np.int64),
    "image": lambda message: message.image,
}


def items(messages: Sequence[pb.Input], most_ids: int) -> tuple[str, list[Any]]:
    """The form of all messages, and the items.

    InvalidArgument if forms differ, one is empty, or one has more than `most_ids` token ids, which would take
    many times the memory of the message.
    """
    form = ""
    for place, message in enumerate(messages):
        one = message.WhichOneof("value")
        if one is None:
            raise InvalidArgument(
                f"inputs[{place}] is empty, or of a form that this server does not know: send one of "
                f"{', '.join(_READ)}"
            )
        if form not in ("", one):
            raise InvalidArgument(
                f"inputs[0] is {form}, and inputs[{place}] is {one}: send one form in a request"
            )
        if one == "tokens" and len(message.tokens.ids) > most_ids:
            raise InvalidArgument(
                f"inputs[{place}] has {len(message.tokens.ids)} tokens, this server takes {most_ids}: cut it"
            )
        form = one
    return form, list(map(_READ[form], messages))
