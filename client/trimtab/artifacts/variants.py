"""One variant of a bundle, seen as an encoder of its own."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.bundle import Bundle
from trimtab.artifacts.manifest import BundleVariant, Manifest
from trimtab.errors import BundleError


def alone(manifest: Manifest, variant: BundleVariant) -> Manifest:
    """The manifest of a bundle with only this variant, and with the outputs as the variant gives them."""
    moved = {each.output: each for each in variant.moved}
    outputs = tuple(
        moved[each.name].applied(each) if each.name in moved else each for each in manifest.outputs
    )
    towers = tuple(
        msgspec.structs.replace(tower, variants=(variant,)) if variant in tower.variants else tower
        for tower in manifest.towers
    )
    return msgspec.structs.replace(manifest, outputs=outputs, towers=towers)


def named(manifest: Manifest, name: str) -> BundleVariant | None:
    """The variant with this name; None if the bundle has none."""
    return next((variant for variant in manifest.variants if variant.name == name), None)


def of_space(manifest: Manifest, space: str) -> Manifest | None:
    """The manifest of only the variant with this space; None if the bundle has none."""
    each = (alone(manifest, variant) for variant in manifest.variants)
    return next((one for one in each if one.space == space), None)


def depth(manifest: Manifest, variant: BundleVariant) -> int | None:
    """How many layers a variant of the bundle computes; None: unknown."""
    passes, states = variant.passes, manifest.variants[0].states
    if passes is not None and passes.exit is not None:
        return passes.exit
    if passes is not None and passes.layers is not None:
        return len(passes.layers)
    return states.layers - 1 if states is not None else None  # the embedding layer is among the states


def title(manifest: Manifest) -> str:
    """How messages name an encoder version, with the manifest's variant unless it is the first."""
    variant = manifest.variants[0]
    which = f", variant {variant.name}" if variant.moved else ""
    return f"{manifest.name} version {manifest.version}{which}"


def names(variants: Sequence[BundleVariant]) -> str:
    """How messages list variants."""
    return ", ".join(variant.name for variant in variants) or "none"


def read(reference: str) -> Bundle:
    """The bundle in FOLDER or, for FOLDER:VARIANT, only that variant of it.

    Raises BundleError, as `bundle.read` does, and if the bundle has no such variant.
    """
    folder, name = split(reference)
    bundle = bundles.read(folder)
    if not name:
        return bundle
    variant = named(bundle.manifest, name)
    if variant is None:
        raise BundleError(f"{folder} has no variant {name!r}; it has {names(bundle.manifest.variants)}")
    return msgspec.structs.replace(bundle, manifest=alone(bundle.manifest, variant))


def split(reference: str) -> tuple[Path, str]:
    """Split FOLDER or FOLDER:VARIANT into the folder and the variant's name, "" if there is none."""
    folder, colon, name = reference.rpartition(":")
    if not colon or Path(reference).exists():
        return Path(reference), ""
    return Path(folder), name
