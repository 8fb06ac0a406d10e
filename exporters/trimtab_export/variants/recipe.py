"""Recipes: TOML files that say which variants a bundle has, and how each is made.

    [[variants]]
    name = "int8"
    precision = "int8"

    [[variants]]
    name = "small-int8"
    precision = "int8"
    layers = [0, 1, 4, 5]
    ffn = 0.5
    heal = 2

See `trimtab.artifacts.manifest.Passes` for the keys.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from trimtab.artifacts.manifest import Passes
from trimtab.errors import ExportError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The variants besides the encoder as it is, which is always the first."""

    variants: tuple[Passes, ...]


def load(path: Path) -> tuple[Passes, ...]:
    """The passes that a file asks for; ExportError, naming the key, if it is not valid."""
    try:
        recipe = msgspec.toml.decode(path.read_bytes(), type=Recipe)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ExportError(f"--recipe {path} cannot be read: {error}") from None
    names = [passes.name for passes in recipe.variants]
    for name in names:
        if not NAME.fullmatch(name) or name == "fp32":
            raise ExportError(
                f"--recipe {path}: {name!r} cannot name a variant: lower-case letters, digits and '-', and "
                "not fp32, which is the encoder as it is"
            )
        if names.count(name) > 1:
            raise ExportError(f"--recipe {path}: two variants are called {name!r}")
    return recipe.variants


def check(passes: Passes) -> None:
    """Refuse a recipe that contradicts itself, or asks for nothing: ExportError, naming the keys."""
    if passes.precision == "fp32" and not cuts(passes) and not leaves(passes) and not passes.heal:
        raise ExportError(f"the variant {passes.name} would be the encoder as it is: give it a pass")
    if passes.runner == "openvino" and passes.precision != "bf16":
        raise ExportError(
            f"OpenVINO runs variants in bf16, and {passes.name} is in {passes.precision}: give precision = "
            '"bf16", or leave runner out'
        )
    if cuts(passes) and leaves(passes):
        raise ExportError(
            "exit and width shorten or narrow the encoder: they go with a precision, not with "
            "layers, heads, ffn, shrp or low_rank"
        )
    if passes.shrp == 1:
        return
    if others := [name for name in ("heads", "ffn", "low_rank") if getattr(passes, name) != 1]:
        raise ExportError(
            f"shrp = {passes.shrp:g} chooses the heads itself and writes new feed-forward blocks: leave "
            f"{' and '.join(others)} out, or shrp"
        )
    if not passes.heal:
        raise ExportError(
            f"shrp = {passes.shrp:g} puts new blocks after the heads, which are useless before "
            "they are trained: give heal = 1 or so"
        )


def cuts(passes: Passes) -> bool:
    """Whether something is removed from the encoder."""
    whole = passes.heads == passes.ffn == passes.shrp == passes.low_rank == 1
    return passes.layers is not None or not whole


def leaves(passes: Passes) -> bool:
    """Whether the encoder is left at an early exit, or is narrower."""
    return passes.exit is not None or passes.width is not None


def dump(variants: Iterable[Passes]) -> str:
    """The recipe file that asks for these variants."""
    parts = []
    for passes in variants:
        lines = ["[[variants]]"]
        for key, value in msgspec.structs.asdict(passes).items():
            if value is not None and value != getattr(DEFAULT, key):
                text = f'"{value}"' if isinstance(value, str) else value
                lines.append(f"{key} = {list(text) if isinstance(text, tuple) else text}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


DEFAULT = Passes(name="")
