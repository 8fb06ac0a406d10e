"""The names of spaces: digests of all that places a vector."""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from trimtab.artifacts.artifact import File
from trimtab.artifacts.manifest import Input, Manifest, Output
from trimtab.inputs.known import INPUTS


def named(output: Output, inputs: Sequence[Input]) -> Output:
    """An output whose space has the name that follows from what it says, and from the inputs that give it."""
    return msgspec.structs.replace(output, space=digest(output, inputs))


def digest(output: Output, inputs: Sequence[Input]) -> str:
    """The name of an output's space: 16 hexadecimal digits over all that places a vector.

    The graph's file is left out on purpose: another export of the same weights is the same space. So is how
    much of an item is read: what is read has the same place whatever the limit. What text and dense vectors
    have not is left out for them, so that their spaces have the names that they had before there were others.
    """
    first, *rest = (_input(each) for each in inputs)
    content = {
        "weights": output.space_parts.weights_sha256,
        "structure": output.space_parts.structure,
        **first,
        "pooling": output.pooling,
        "normalized": output.normalized,
        **({"kind": output.kind} if output.kind != "dense" else {}),
        **({"settings": output.settings} if output.settings else {}),
        **({"inputs": rest} if rest else {}),
    }
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:16]


def _input(given: Input) -> dict[str, Any]:
    idle = INPUTS[given.kind].idle
    settings = {name: value for name, value in given.settings.items() if name not in idle}
    return {
        "tokenizer": given.processor.sha256 if given.processor is not None else None,
        "prompts": msgspec.to_builtins(given.prompts),
        **({"input": given.kind} if given.kind != "text" else {}),
        **({"input_settings": settings} if settings else {}),
    }


def of(manifest: Manifest, output: Output) -> str:
    """The name that an output's space has by what its manifest says."""
    givers = {tower.input for tower in manifest.towers if output.name in tower.outputs}
    return digest(output, [each for each in manifest.inputs if each.name in givers])


def of_variant(space: str, files: Sequence[File]) -> str:
    """The name of the space of a variant's output: of the encoder's own, and of the files that move it."""
    parts = [space, *(file.sha256 for file in files)]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]
