"""The names of spaces: digests of everything that affects vectors."""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from trimtab.artifacts.artifact import File
from trimtab.artifacts.manifest import Input, Manifest, Output
from trimtab.inputs.known import INPUTS
from trimtab.kinds import Runtime


def named(output: Output, inputs: Sequence[Input]) -> Output:
    """The output, with its space named by its own content and that of the inputs that give it."""
    return msgspec.structs.replace(output, space=digest(output, inputs))


def digest(output: Output, inputs: Sequence[Input]) -> str:
    """The name of an output's space: 16 hexadecimal digits over everything that affects vectors.

    The graph's file is left out on purpose: another export of the same weights has the same space. How much
    of an item is read is left out, too: what is read has the same vector whatever the limit. Fields that text
    and dense vectors do not have are left out for them, so that their spaces keep the names that they had
    before other kinds existed.
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
    """The name of an output's space, computed from its manifest."""
    givers = {tower.input for tower in manifest.towers if output.name in tower.outputs}
    return digest(output, [each for each in manifest.inputs if each.name in givers])


def of_variant(space: str, files: Sequence[File], runner: Runtime = "onnx") -> str:
    """The name of the space of a variant's output, from the encoder's space and what changes it: the files,
    and a runtime that is not the encoder's own."""
    parts = [space, *(file.sha256 for file in files), *([runner] if runner != "onnx" else [])]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]
