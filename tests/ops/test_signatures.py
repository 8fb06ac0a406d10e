"""Only what was signed is served, where signatures are asked for; and no graph reads beyond its bundle."""

import base64
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import trimtab
from tests.server import spaces_made as spaces
from tests.server.server_process import NAME, serve
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.signatures import (
    Signers,
    sign,
)
from trimtab.errors import BundleError, ConfigError


def make_key(folder: Path, name: str) -> tuple[Path, Path]:
    """A private key, and the file of the public one, by the command that the docs name."""
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return private, public


def test_a_server_that_asks_for_signatures(minilm_repository: Path, tmp_path: Path) -> None:
    """One encoder and one adapter are signed; another encoder, another adapter by others or by nobody."""
    repository = tmp_path / "models"
    repository.mkdir()
    made = spaces.make(minilm_repository, repository)
    private, public = make_key(tmp_path, "signer")
    stranger, _ = make_key(tmp_path, "stranger")
    adapters = repository / NAME / "adapters"
    command = [sys.executable, "-m", "trimtab.cli", "sign", "--key", str(private)]
    command += [str(made.v3.path), str(adapters / "to-turned")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stdout.count(".sig") == 2, done.stderr
    sign(made.v2.path, stranger)
    with serve(repository, tmp_path, f'[signatures]\nkeys = "{public}"\n') as server:
        with trimtab.Client(server.url, timeout=100) as client:
            assert [encoder.name for encoder in client.encoders()] == [NAME]
            for name, words in (("turned", "no signature of a trusted signer"), ("older", "is not signed")):
                with pytest.raises(trimtab.FailedPrecondition, match=words):
                    client.embed(["a"], encoder=name)
            assert client.embed(["a"], encoder=NAME, space=made.v2.manifest.space).shape == (1, 256)
            with pytest.raises(trimtab.FailedPrecondition, match="is not signed"):
                client.embed(["a"], encoder=NAME, space=spaces.GONE)


def test_what_was_changed_is_no_longer_signed_for(minilm_repository: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "1"
    shutil.copytree(minilm_repository / NAME / "1", folder)
    private, public = make_key(tmp_path, "signer")
    _, other = make_key(tmp_path, "other")
    both = tmp_path / "both.pem"
    both.write_bytes(other.read_bytes() + public.read_bytes())
    signature = sign(folder, private)
    manifest, path = bundles.read(folder).manifest, folder / bundles.MANIFEST

    def check(keys: Path) -> None:
        Signers(keys).check(bundles.BUNDLE, folder, path.read_bytes())

    for file in (public, both):
        check(file)
    for damage in (b"", b"!", signature.read_bytes()[4:], b"A" * 88, b"A" * 5000):
        signature.write_bytes(damage)
        with pytest.raises(BundleError):
            check(public)
    sign(folder, private)
    edited = path.read_text().replace(f'"{NAME}"', '"another"')
    path.write_text(edited)
    with pytest.raises(BundleError, match="changed since"):
        bundles.read(folder, trusted=Signers(public).check)
    sign(folder, private)
    assert bundles.read(folder, trusted=Signers(public).check).manifest.name == "another"
    tokenizer = folder / manifest.tokenizer.path
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    with pytest.raises(BundleError):
        sign(folder, private)


def test_keys_that_cannot_be_used(minilm_repository: Path, tmp_path: Path) -> None:
    folder = minilm_repository / NAME / "1"
    rsa = tmp_path / "rsa.key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "RSA", "-out", rsa], check=True, capture_output=True)
    for key, words in (
        (rsa, "not of Ed25519"),
        (tmp_path / "none", "cannot be read"),
        (folder / "manifest.json", "PEM"),
    ):
        with pytest.raises(ConfigError, match=words):
            sign(folder, key)
    public = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "pkey", "-in", rsa, "-pubout", "-out", public], check=True)
    # Ed25519's key, but for one bit of the algorithm's name.
    other = tmp_path / "other.pem"
    unknown = base64.b64encode(bytes.fromhex("302a300506032b4570032100") + bytes(32)).decode()
    other.write_text(f"-----BEGIN PUBLIC KEY-----\n{unknown}\n-----END PUBLIC KEY-----\n")
    for file, words in (
        (public, "Ed25519"),
        (rsa, "Ed25519"),
        (other, "Unknown key type"),
        (tmp_path / "none", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=words):
            Signers(file)


@pytest.mark.parametrize("location", ["../outside.bin", "absolute", "link.bin"])
def test_a_graph_reads_nothing_outside_its_folder(location: str, tmp_path: Path) -> None:
    """ONNX Runtime sees to it; a version of it that does not must not be served with."""
    import onnxruntime as ort

    outside, folder = tmp_path / "outside.bin", tmp_path / "bundle"
    np.arange(4, dtype=np.float32).tofile(outside)
    folder.mkdir()
    (folder / "link.bin").symlink_to(outside)
    weights = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    where = str(outside) if location == "absolute" else location
    for key, value in (("location", where), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, 1, [4]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Exception, match=r"[Ee]xternal data path"):
        ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
