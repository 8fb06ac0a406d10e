"""Encoders and adapters made in a moment, whose vectors are known beforehand.

`turned` makes of a bundle another encoder: its vectors are the bundle's own, turned by an orthogonal matrix,
cut, and brought back to length 1. The same map as an adapter leads from the one space exactly into the other,
so that an adapted vector has to be the other encoder's own.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests import manifests_made
from tests.adapters import samples
from trimtab.artifacts import adapter as adapters
from trimtab.artifacts import artifact
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.adapter import Endpoint
from trimtab.artifacts.bundle import Bundle
from trimtab.artifacts.manifest import Manifest


def rotation(rows: int, columns: int, seed: int) -> np.ndarray:
    """Float32 (rows, columns) with orthonormal columns."""
    square = np.linalg.qr(np.random.default_rng(seed).normal(size=(rows, rows)))[0]
    return square[:, :columns].astype(np.float32)


def copied(bundle: Path, repository: Path) -> Bundle:
    """The same bundle in another repository."""
    manifest = bundles.read(bundle, verify=False).manifest
    folder = repository / manifest.name / str(manifest.version)
    shutil.copytree(bundle, folder, copy_function=shutil.copy2)
    return bundles.read(folder, verify=False)


def turned(bundle: Bundle, repository: Path, name: str, matrix: np.ndarray, version: int = 1) -> Bundle:
    """An encoder whose vectors are those of `bundle` times `matrix`, float32 (d, d'), of length 1."""
    folder = repository / name / str(version)
    shutil.copytree(bundle.path, folder, copy_function=shutil.copy2)
    manifest = bundle.manifest
    variant = manifest.variants[0]
    graph = folder / variant.files[0].path
    model = onnx.load(graph, load_external_data=False)
    (output,) = model.graph.output
    before, turn = f"before {name}", f"turn to {name}"
    for node in model.graph.node:
        node.output[:] = [before if each == output.name else each for each in node.output]
        node.input[:] = [before if each == output.name else each for each in node.input]
    model.graph.initializer.append(numpy_helper.from_array(matrix, turn))
    model.graph.node.extend(_unit_length(before, turn, output.name, f"mapped to {name}"))
    output.type.tensor_type.shape.dim[1].dim_value = matrix.shape[1]
    graph.unlink()
    onnx.save(model, graph)
    files = (_entry(folder, variant.files[0].path), *variant.files[1:])
    changed = msgspec.structs.replace(
        manifest,
        name=name,
        version=version,
    )
    changed = manifests_made.changed(
        manifests_made.with_variants(changed, [msgspec.structs.replace(variant, files=files, states=None)]),
        space_parts=msgspec.structs.replace(
            manifest.output.space_parts,
            weights_sha256=hashlib.sha256(f"{manifest.space} {name} {version}".encode()).hexdigest(),
        ),
        dimensions=matrix.shape[1],
        int8_limit=0.5,
    )
    (folder / bundles.MANIFEST).unlink()
    (folder / bundles.MANIFEST).write_bytes(msgspec.json.encode(changed))
    return bundles.read(folder)


def linear(matrix: np.ndarray, shifts: np.ndarray | None = None) -> onnx.ModelProto:
    """The graph of vectors @ matrix, and + shifts[group] where groups are known, brought to length 1."""
    inputs = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", matrix.shape[0]])]
    constants = [numpy_helper.from_array(matrix.astype(np.float32), "matrix")]
    nodes = []
    if shifts is None:
        nodes = _unit_length("vectors", "matrix", "adapted", "mapped")
    else:
        inputs.append(helper.make_tensor_value_info("group", TensorProto.INT64, ["n"]))
        constants.append(numpy_helper.from_array(shifts.astype(np.float32), "shifts"))
        nodes = [
            helper.make_node("MatMul", ["vectors", "matrix"], ["mapped"]),
            helper.make_node("Gather", ["shifts", "group"], ["shift"]),
            helper.make_node("Add", ["mapped", "shift"], ["shifted"]),
            helper.make_node("LpNormalization", ["shifted"], ["adapted"], axis=1, p=2),
        ]
    output = helper.make_tensor_value_info("adapted", TensorProto.FLOAT, ["n", matrix.shape[1]])
    graph = helper.make_graph(nodes, "adapter", inputs, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def end(manifest: Manifest, **changes: Any) -> Endpoint:
    """An encoder as an end of an adapter."""
    whole = Endpoint(
        encoder=manifest.name,
        version=manifest.version,
        space=manifest.space,
        dimensions=manifest.dimensions,
    )
    return msgspec.structs.replace(whole, **changes)


def adapter(
    repository: Path,
    name: str,
    source: Endpoint,
    target: Endpoint,
    graph: onnx.ModelProto | bytes,
    *,
    queries: np.ndarray | None = None,
    folder: str = "",
    **changes: Any,
) -> Path:
    """An adapter on disk, in its encoder's folder or another one; it appears, or is replaced, by renames."""
    path = repository / (folder or source.encoder) / adapters.FOLDER / name
    fresh = path.parent / f".{name}.new"
    fresh.mkdir(parents=True)
    content = graph if isinstance(graph, bytes) else graph.SerializeToString()
    (fresh / "adapter.onnx").write_bytes(content)
    np.save(fresh / "queries.npy", (np.eye(4) if queries is None else queries).astype(np.float16))
    manifest = samples.manifest(fresh, name)
    settings: Mapping[str, Any] = {
        "source": source,
        "target": target,
        "queries": manifest.queries if queries is not None else None,
        **changes,
    }
    manifest = msgspec.structs.replace(manifest, **settings)
    (fresh / adapters.MANIFEST).write_bytes(msgspec.json.encode(manifest))
    if path.exists():
        shutil.rmtree(path)
    return fresh.rename(path)


def _unit_length(source: str, matrix: str, result: str, between: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("MatMul", [source, matrix], [between]),
        helper.make_node("LpNormalization", [between], [result], axis=1, p=2),
    ]


def _entry(folder: Path, path: str) -> artifact.File:
    return msgspec.structs.replace(artifact.digest(folder / path), path=path)
