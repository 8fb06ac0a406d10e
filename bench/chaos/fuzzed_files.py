"""Files that the server and the exporter read: configuration, manifests, signatures, measured costs."""

import hashlib
import json
import shutil
from pathlib import Path

from bench.chaos.fuzzed import FuzzTarget, Refusing
from trimtab import errors


def config(folder: Path) -> FuzzTarget:
    """The server's TOML, the keys file and the recipe of variants."""
    from trimtab_export.variants import recipe
    from trimtab_server import config as configs
    from trimtab_server.callers import auth

    path = folder / "input.toml"

    def run(data: bytes) -> None:
        path.write_bytes(data[1:])
        with Refusing(errors.TrimtabError):
            match data[:1]:
                case b"k":
                    auth.Authenticator(configs.Auth(keys=path))
                case b"r":
                    recipe.load(path)
                case _:
                    configs.read(path)

    keys = f'[[key]]\nname = "a"\nsha256 = "{"0" * 64}"\nencoders = ["*"]\nexpires = 2030-01-01T00:00:00Z\n'
    wanted = '[[variants]]\nname = "a"\nprecision = "int8"\nheads = 0.5\nlayers = [0, 1]\n'
    from bench.processes import ROOT

    documented = (ROOT / "docs" / "configuration.md").read_text().split("```toml\n")
    seeds = [b"c" + part.partition("```")[0].encode() for part in documented[1:]]
    seeds += [b"k" + keys.encode(), b"r" + wanted.encode()]
    return FuzzTarget(run, seeds, right=len(seeds))


def manifest(folder: Path) -> FuzzTarget:
    """The manifest of a bundle, and what a server reads from it."""
    from bench.chaos import known
    from trimtab.artifacts import bundle

    source, copy = known.bundle(), folder / "bundle"
    shutil.copytree(source, copy)

    def run(data: bytes) -> None:
        (copy / "manifest.json").write_bytes(data)
        with Refusing(errors.TrimtabError):
            read = bundle.read(copy, verify=False)
            for file in read.manifest.files():
                assert read.file(file).resolve().is_relative_to(copy.resolve()), "out of the bundle"

    return FuzzTarget(run, [(source / "manifest.json").read_bytes()], right=1)


def adapter(folder: Path) -> FuzzTarget:
    """The manifest of an adapter, its calibrator, and the baseline beside it."""
    import numpy as np

    from trimtab.artifacts import adapter as adapters

    copy = folder / "adapter"
    copy.mkdir()
    (copy / "adapter.onnx").write_bytes(b"graph")
    np.save(copy / "queries.npy", np.zeros((3, 4), np.float16))
    given = (copy / "queries.npy").read_bytes()

    def of(queries: bytes) -> bytes:
        entry = {"path": "queries.npy", "sha256": hashlib.sha256(queries).hexdigest(), "size": len(queries)}
        return json.dumps(written | {"queries": entry}).encode()

    def run(data: bytes) -> None:
        queries = data if data[:1] == b"\x93" else given
        (copy / "queries.npy").write_bytes(queries)
        if queries is data:
            data = of(queries)
        (copy / "adapter.json").write_bytes(data)
        with Refusing(errors.TrimtabError):
            read = adapters.read(copy, verify=False)
            for file in adapters.files(read.manifest):
                assert read.file(file).resolve().is_relative_to(copy.resolve()), "out of the adapter"
            if read.manifest.calibrator is not None:
                read.manifest.calibrator(np.array([0.5, 2.0], np.float32))
            read.baseline()

    file = {"path": "adapter.onnx", "sha256": "0" * 64, "size": 5}
    interval = {"value": 1.0, "low": 1.0, "high": 1.0}
    quality = dict.fromkeys(("recall_1", "recall_10", "recall_100", "ndcg_10"), 1.0)
    point = {"encoder": "a", "version": 1, "space": "0" * 16, "dimensions": 4}
    written = {
        "name": "a", "created": "", "source": point, "target": point | {"space": "1" * 16},
        "rung": "identity", "reads": "embeddings", "graph": file,
        "calibrator": {"adapted": [0.0, 1.0], "target": [0.0, 2.0]}, "verdict": "bridge",
        "provisional": False, "reasons": [], "groups": ["en"], "format": adapters.FORMAT,
        "report": {
            "truth": "pairs", "counts": dict.fromkeys(
                ("fit_texts", "fit_queries", "select_queries", "test_queries", "documents"), 1
            ),
            "arms": dict.fromkeys(("old_on_old", "naive", "adapted", "cascade", "reindexed"), quality),
            "against_old": interval, "against_reindexed": interval,
            "cascade_against_reindexed": interval, "cascade_depth": 1, "rungs": [], "checks": [],
            "microseconds_alone": 1.0, "microseconds_batched": 1.0, "machine": "",
        },
        "provenance": {
            "command": "", "texts_sha256": "", "queries_sha256": None, "pairs_sha256": None,
            "old_vectors": None, "libraries": {},
        },
    }  # fmt: skip
    return FuzzTarget(run, [of(given), given], right=2)


def signatures(folder: Path) -> FuzzTarget:
    """Signatures beside a manifest, and files of public keys."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from bench.chaos import known
    from trimtab.artifacts import bundle
    from trimtab.artifacts.signatures import Signers

    private = Ed25519PrivateKey.generate()
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    pem = private.public_key().public_bytes(encoding, form)
    keys, other = folder / "keys.pem", folder / "other.pem"
    keys.write_bytes(pem)
    signers, signed = Signers(keys), folder / "bundle"
    signed.mkdir()
    (signed / "manifest.json").write_bytes((known.bundle() / "manifest.json").read_bytes())
    content = (signed / "manifest.json").read_bytes()

    def run(data: bytes) -> None:
        if data[:1] == b"p":
            other.write_bytes(data[1:])
            with Refusing(errors.ConfigError):
                Signers(other)
            return
        (signed / "manifest.json.sig").write_bytes(data[1:])
        with Refusing(errors.BundleError):
            signers.check(bundle.BUNDLE, signed, content)
            raise AssertionError("a signature was believed that nobody made")

    return FuzzTarget(run, [b"p" + pem, b"s" + b"A" * 86 + b"==\n"], right=1)


def costs(folder: Path) -> FuzzTarget:
    """Measured costs kept by an earlier start."""
    import numpy as np

    from trimtab_server.engine.batch import Payload
    from trimtab_server.engine.fleet.measuring import CostCache

    def sample(units: int) -> Payload:
        return Payload({}, min(units, 16), b"")

    measured = CostCache(folder / "costs")
    measured.measure(lambda payloads: None, sample, "of")
    (path,) = (folder / "costs").iterdir()
    seed = path.read_bytes()

    def run(data: bytes) -> None:
        path.write_bytes(data)
        cost = measured.measure(lambda payloads: None, sample, "of")
        assert np.isfinite(cost.seconds(2, 20, 10)), cost
        assert cost.seconds(2, 20, 10) > 0, cost

    return FuzzTarget(run, [seed])
