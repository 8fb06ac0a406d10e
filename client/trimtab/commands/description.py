"""What all vectors of a file have in common. It is kept beside them, and the next run compares it."""

from pathlib import Path

import msgspec

from trimtab.core.answers import Encoder
from trimtab.core.options import Options
from trimtab.kinds import Dtype


class OutputDescription(msgspec.Struct, frozen=True, kw_only=True):
    """One output of an encoder: how its values are laid out, and what its vectors have in common."""

    form: str
    space: str
    dimensions: int
    similarity: str


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
    # By name, the outputs that were asked for; the space and columns above are the first one's. None: the
    # encoder's dense vectors, without a name.
    outputs: dict[str, OutputDescription] | None = None

    @property
    def said(self) -> str:
        """What there is of each text, to follow a number of texts."""
        if self.outputs is None:
            return f"vectors of space {self.space}"
        spaces = ", ".join(f"{name} (space {output.space})" for name, output in self.outputs.items())
        return f"texts with {spaces}"


def describe(
    encoder: Encoder,
    options: Options,
    *,
    space: str = "",
    columns: int = 0,
    adapters: tuple[str, ...] = (),
    variant: str = "",
    outputs: dict[str, OutputDescription] | None = None,
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
        outputs=outputs,
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
