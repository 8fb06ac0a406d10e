"""The real encoder with a variant in bfloat16 for OpenVINO, which has the same files."""

import shutil
from pathlib import Path

import msgspec

from tests import manifests_made
from tests.server.server_process import NAME
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.bundle import Bundle
from trimtab.artifacts.manifest import BundleVariant, Passes

VARIANT = "bf16"


def bundle(minilm_repository: Path, repository: Path) -> Bundle:
    """`repository`/all-minilm-l6-v2/1 with the variants fp32 and bf16."""
    folder = repository / NAME / "1"
    shutil.copytree(minilm_repository / NAME / "1", folder)
    made = bundles.read(folder)
    first = made.manifest.variants[0]
    passes = Passes(name=VARIANT, precision="bf16", runner="openvino")
    variant = BundleVariant(
        name=VARIANT, precision="bf16", inputs=first.inputs, tensors=first.tensors, unpadded=first.unpadded,
        files=first.files, report=first.report, runner="openvino", passes=passes,
        moved=manifests_made.moved(made.manifest.output, first.files, "openvino"),
    )  # fmt: skip
    write(folder, [first, variant])
    return bundles.read(folder)


def write(folder: Path, variants: list[BundleVariant]) -> None:
    """Give the bundle in a folder these variants."""
    manifest = bundles.read(folder, verify=False).manifest
    whole = manifests_made.with_variants(manifest, variants)
    (folder / bundles.MANIFEST).write_bytes(msgspec.json.encode(whole))
