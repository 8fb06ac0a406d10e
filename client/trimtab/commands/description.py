"""What all vectors of a file have in common. It is kept beside them, and the next run compares it."""

from pathlib import Path

import msgspec

from trimtab.core.answers import Encoder
from trimtab.core.options import Options
from trimtab.kinds import Dtype


class Description(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What all vectors of a file have in common."""

    encoder: str
    version: str
    space: str
    role: str | None
    truncate: str
    dtype: Dtype
    columns: int
    group: str = ""
    adapters: tuple[str, ...] = ()  # ENCODER/NAME of each adapter applied to the vectors
    variant: str = ""  # the variant that computed them; empty: the encoder itself


def describe(
    encoder: Encoder,
    options: Options,
    *,
    space: str = "",
    columns: int = 0,
    adapters: tuple[str, ...] = (),
    variant: str = "",
) -> Description:
    """The description of vectors of `encoder` with these options, in its own space or another."""
    components = options.values["dimensions"] or encoder.dimensions
    return Description(
        encoder=encoder.name,
        version=encoder.version,
        space=space or encoder.space,
        role=options.values["role"],
        truncate=options.values["truncate"],
        dtype=options.values["dtype"],
        columns=columns or (-(-components // 8) if options.values["dtype"] == "ubinary" else components),
        group=options.values["group"],
        adapters=adapters,
        variant=variant,
    )


def difference(path: Path, before: Description, now: Description) -> str:
    """The error message for a file that was begun with other options."""
    changes = [
        f"{name} was {getattr(before, name)}, now it is {getattr(now, name)}"
        for name in Description.__struct_fields__
        if getattr(before, name) != getattr(now, name)
    ]
    return (
        f"{path} was begun with other vectors: {'; '.join(changes)}. "
        "Repeat the command as it was, or pass --restart to begin again"
    )
