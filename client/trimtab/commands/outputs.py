"""`--outputs`: several outputs of an encoder for each text, instead of its dense vectors alone."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trimtab.commands.description import Description, OutputDescription
from trimtab.core.answers import Encoder, Outputs
from trimtab.core.options import Options
from trimtab.errors import ConfigError, FailedPrecondition
from trimtab.sdk.client import Client
from trimtab.values.multi_vector import MultiVectors
from trimtab.values.sparse import SparseVectors

# Texts of one call at most. Their multi-vectors are in memory together, so long texts are fewer.
GROUP_TEXTS = 64
GROUP_CHARACTERS = 1 << 16
_TAKEN = {"row", "id"}  # fields and columns with the rows' numbers


class Row(NamedTuple):
    """A text, its value, what one step of an int8 value is worth, and whether its passage is suspicious."""

    text: str
    value: Any
    scale: float
    suspicious: bool | None


def names(value: str) -> list[str]:
    """Names that are separated by commas, each once."""
    found = [name.strip() for name in value.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(
            f"{value!r} is no list of outputs; name them as in dense,sparse, each once"
        )
    return found


def check(asked: Sequence[str], wanted: Options, output: Path | None) -> None:
    """ConfigError if outputs cannot be written there, or not with these options."""
    if output is not None and output.suffix == ".npy":
        raise ConfigError(
            f"{output}: a .npy file is one array, and cannot hold named outputs; name a .jsonl file or a "
            "folder, as NAME/, or leave out --outputs"
        )
    if taken := _TAKEN & set(asked):
        raise ConfigError(
            f"the output {min(taken)!r} has the name of the rows' numbers, and cannot be written"
        )
    dtype, space = wanted.values["dtype"], wanted.values["space"]
    if dtype not in ("float32", "float16"):
        raise ConfigError(f"--dtype {dtype} does not go with --outputs; take float32 or float16")
    if space:
        raise ConfigError(f"--space {space} does not go with --outputs: each output has a space of its own")


def described(
    client: Client, encoder: Encoder, wanted: Options, asked: Sequence[str]
) -> dict[str, OutputDescription]:
    """What each of these outputs is, as a first text shows."""
    found = client.embed_outputs(["first"], asked, **wanted.values)
    similarities = {output.name: output.similarity for output in encoder.outputs}
    return {
        name: OutputDescription(
            form=found.forms[name],
            space=found.spaces[name],
            dimensions=_dimensions(found[name]),
            similarity=similarities.get(name, ""),
        )
        for name in asked
    }


def groups(client: Client, texts: Iterator[str], wanted: Options) -> Iterator[list[str]]:
    """The texts in groups, each for one call and, by the encoder's limits, one request."""
    most = min(client.encoder(*wanted.version).limits.max_texts or GROUP_TEXTS, GROUP_TEXTS)
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if len(group) == most or characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def embedded(client: Client, texts: Sequence[str], wanted: Options, vectors: Description) -> Outputs:
    """The outputs of a group; FailedPrecondition if they are not those that were described."""
    known = vectors.outputs or {}
    found = client.embed_outputs(texts, list(known), **wanted.values)
    for name, output in known.items():
        if (found.spaces[name], _dimensions(found[name])) != (output.space, output.dimensions):
            raise FailedPrecondition(
                f"the output {name!r} was of space {output.space}, and now is of {found.spaces[name]}: pass "
                "--restart to make all rows with this"
            )
    return found


def rows(client: Client, texts: Iterator[str], wanted: Options, vectors: Description) -> Iterator[Row]:
    """What each text has of each output, as JSON has it."""
    for group in groups(client, texts, wanted):
        found = embedded(client, group, wanted, vectors)
        for place, text in enumerate(group):
            yield Row(text, {name: _plain(value[place]) for name, value in found.items()}, 0.0, None)


def _plain(item: Any) -> Any:
    if isinstance(item, tuple):
        return {"indices": item[0].tolist(), "values": item[1].tolist()}
    return item.tolist()


def _dimensions(value: Any) -> int:
    if isinstance(value, SparseVectors):
        return value.dimensions
    rows = value.vectors if isinstance(value, MultiVectors) else value
    return int(np.shape(rows)[1])
