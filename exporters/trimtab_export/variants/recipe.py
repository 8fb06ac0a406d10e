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

See `trimtab.bundle.Passes` for the keys.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from trimtab.bundle import Passes
from trimtab.errors import ExportError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The variants beside the encoder as it is, which is always the first."""

    variants: tuple[Passes, ...]


def load(path: Path) -> tuple[Passes, ...]:
    """The passes that a file asks for; ExportError, which names the key, where it cannot be understood."""
    try:
        recipe = msgspec.toml.decode(path.read_bytes(), type=Recipe)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
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
