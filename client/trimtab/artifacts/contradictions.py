"""Finds contradictions in a manifest, and things that this version of Trimtab does not know."""

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import TypeAlias

from trimtab.artifacts import space
from trimtab.artifacts.manifest import BundleVariant, Input, Manifest, Moved, Output, Tower
from trimtab.errors import ConfigError, NotFound
from trimtab.inputs.known import INPUTS
from trimtab.outputs.known import OUTPUTS

# Whether something is wrong, and the words for it, to follow "the manifest".
Doubts: TypeAlias = Iterator[tuple[bool, str]]


def contradiction(manifest: Manifest) -> str:
    """What is wrong with a manifest; "" if it is consistent."""
    return next((what for wrong, what in _doubts(manifest) if wrong), "")


def _doubts(manifest: Manifest) -> Doubts:
    """All checks, in an order in which each may rely on the ones before it."""
    yield from _kinds(manifest)
    yield from _names(manifest)
    for output in manifest.outputs:
        said = "and what it says of prompts, pooling, tokenizer and weights makes"
        follows = space.of(manifest, output)
        yield follows != output.space, f"names the space {output.space}, {said} {follows}: it was edited"
        for wrong, what in OUTPUTS[output.kind].doubts(output):
            yield wrong, f"says that the output {output.name} {what}"
    for tower in manifest.towers:
        yield from _tower(manifest, tower)
    entries = {file.path: file for file in manifest.files()}
    differ = any(entries[file.path] != file for file in manifest.files())
    yield differ or "manifest.json" in entries, "gives one file two contents"


def _kinds(manifest: Manifest) -> Doubts:
    try:
        for given in manifest.inputs:
            INPUTS[given.kind]
        for output in manifest.outputs:
            OUTPUTS[output.kind]
    except (NotFound, ConfigError) as error:
        yield True, f"needs a newer Trimtab, or a package that brings what it lacks: {error}"


def _names(manifest: Manifest) -> Doubts:
    inputs, outputs = ([each.name for each in some] for some in (manifest.inputs, manifest.outputs))
    yield _twice(inputs), "names two inputs alike"
    yield _twice(outputs), "names two outputs alike"
    given = {name for tower in manifest.towers for name in tower.outputs}
    unknown = ", ".join(sorted(given - set(outputs)))
    yield bool(unknown), f"has a tower for the outputs {unknown}, which it does not describe"
    missing = ", ".join(sorted(set(outputs) - given))
    yield bool(missing), f"has no tower for the outputs {missing}"
    read = [tower.input for tower in manifest.towers]
    yield sorted(read) != sorted(inputs), "has not exactly one tower for each input"
    yield any(map(_twice, (tower.outputs for tower in manifest.towers))), "has a tower with two outputs alike"
    names = [variant.name for tower in manifest.towers for variant in tower.variants]
    yield _twice(names), "names two variants alike"


def _twice(names: Iterable[str]) -> bool:
    listed = list(names)
    return len(set(listed)) < len(listed)


def _tower(manifest: Manifest, tower: Tower) -> Doubts:
    outputs = manifest.outputs_of(tower)
    given = next(each for each in manifest.inputs if each.name == tower.input)
    first, *rest = tower.variants
    yield bool(first.moved), f"gives the first variant, {first.name}, a space or dimensions of its own"
    for variant in rest:
        moved = {each.output: each for each in variant.moved}
        for output in outputs:
            yield from _moved(variant, output, moved.pop(output.name, None))
        yield (
            bool(moved),
            f"says that variant {variant.name} moves {', '.join(moved)}, which it does not give",
        )
    for variant in tower.variants:
        for wrong, what in _variant(variant, given, outputs):
            yield wrong, f"says that variant {variant.name} {what}"


def _moved(variant: BundleVariant, output: Output, moved: Moved | None) -> Doubts:
    follows = space.of_variant(output.space, variant.files, variant.runner)
    said = moved.space if moved is not None else output.space
    yield (
        said != follows,
        (f"names the space {said} of variant {variant.name}, and its files make {follows}: it was edited"),
    )
    if moved is None:
        return
    more, there = moved.dimensions or 0, output.dimensions
    yield more > there, f"says that variant {variant.name} has {more} dimensions, and the encoder {there}"
    for wrong, what in OUTPUTS[output.kind].doubts(moved.applied(output)):
        yield wrong, f"says that variant {variant.name} {what}"
    width = variant.passes.width if variant.passes is not None else None
    other = width not in (None, more or there)
    yield other, f"says that variant {variant.name} has {more or there} dimensions, and was made {width} wide"


def _variant(variant: BundleVariant, given: Input, outputs: tuple[Output, ...]) -> Doubts:
    yield from INPUTS[given.kind].doubts(given, variant.inputs)
    columns = {column.name: column for each in outputs for column in OUTPUTS[each.kind].columns(each)}
    yield (
        variant.tensors.keys() != columns.keys(),
        (f"gives {', '.join(variant.tensors)}, and not {', '.join(columns)}"),
    )
    for name, tensor in variant.tensors.items():
        several = columns[name].several
        yield (
            several is not (tensor.offsets is not None),
            (f"gives {name} {'without' if several else 'with'} offsets"),
        )
    home = PurePosixPath(variant.files[0].path).parent
    for file in (*variant.files, *variant.engines):
        away = not PurePosixPath(file.path).is_relative_to(home)
        yield away, f"has {file.path}, which does not lie beside its graph"
    other = variant.runner != "onnx" and bool(variant.engines)
    yield other, f"has TensorRT engines, and runs in {variant.runner}"
    if (states := variant.states) is not None:
        few = states.width < states.layers
        yield few, f"has {states.width} components of states in {states.layers} layers"
        away = PurePosixPath(states.file.path).parent != home
        yield away, f"has {states.file.path}, which does not lie beside its graph"
        yield outputs[0].kind != "dense", "has inner states, and its first output is not dense"
