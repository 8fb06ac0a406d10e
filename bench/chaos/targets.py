"""What is fuzzed: functions of bytes, which raise only where the code has a defect.

Each gives seeds, from which the fuzzer begins, and says which errors are right answers to wrong input.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab import errors


@dataclass(frozen=True, slots=True)
class Target:
    """A function to fuzz, and inputs to begin with, of which the first `right` ones must not be refused."""

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    right: int = 0


class Refusing(contextlib.suppress):
    """Errors that are right answers to wrong input. They are counted: to right input they are wrong ones."""

    count = 0

    def __exit__(self, *raised: Any) -> bool:
        refused = bool(super().__exit__(*raised))
        Refusing.count += refused
        return refused


def config(folder: Path) -> Target:
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
    return Target(run, seeds, right=len(seeds))


def manifest(folder: Path) -> Target:
    """The manifest of a bundle, and what a server would take from it."""
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

    return Target(run, [(source / "manifest.json").read_bytes()], right=1)


def adapter(folder: Path) -> Target:
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
    return Target(run, [of(given), given], right=2)


def tokens(folder: Path) -> Target:
    """Any text through tokenizers of every kind, cut in every way: as the library itself cuts it."""
    import tokenizers

    from bench.chaos import known, vocabularies
    from bench.encoders import FOLDER
    from trimtab.kinds import Truncate
    from trimtab.tokens import Tokenizer

    limit = 32
    paths = [known.bundle() / "tokenizer.json", *sorted(FOLDER.glob("*/tokenizer.json"))]
    kinds = [tokenizers.Tokenizer.from_file(str(path)).to_str() for path in paths]
    kinds += [make().to_str() for make in vocabularies.MADE.values()]

    def library(json: str, direction: str | None) -> Any:
        tokenizer = tokenizers.Tokenizer.from_str(json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if direction is not None:
            tokenizer.enable_truncation(limit, direction=direction)
        return tokenizer

    sides: dict[Truncate, str | None] = {"end": "right", "start": "left", "none": None}
    made = [
        (
            Tokenizer(tokenizers.Tokenizer.from_str(json), limit),
            {how: library(json, side) for how, side in sides.items()},
        )
        for json in kinds
    ]

    def run(data: bytes) -> None:
        text = data[2:].decode("utf-8", "replace")
        if len(data) > 1 and data[1] % 5 == 0:
            text *= data[1]
        tokenizer, libraries = made[(data[0] if data else 0) % len(made)]
        whole = libraries["none"].encode(text).ids
        for how, library in libraries.items():
            (read,) = tokenizer.read([text], how)
            least = limit + 1 if not read.whole else len(whole)
            assert least <= read.count <= len(whole), (how, read.count, len(whole))
            assert len(read.ids) <= limit, (how, len(read.ids))
            if how != "none" or read.count <= limit:
                assert list(read.ids) == library.encode(text).ids, "other tokens than the library's own"

    texts = ["", "w1 w2", "Grüße, 世界! \u200d👩‍👩‍👧 e\u0301", "\x00\u2028 \ufeff" * 9, "a" * 300]
    return Target(run, [bytes((row, 1)) + text.encode() for row in range(len(made)) for text in texts])


def addresses(folder: Path) -> Target:
    """Addresses of stores and of servers; a password in them is never shown."""
    from trimtab.sdk import target
    from trimtab.stores import address
    from trimtab_server import config as configs

    def run(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        for parse in (address.parse, target.check_target, configs.split_address):
            with Refusing(errors.TrimtabError):
                parse(text)
        url = f"postgresql://u:hunter2secret@{text}"
        try:
            assert "hunter2secret" not in repr(address.parse(url)), "the password is shown"
        except errors.TrimtabError as error:
            assert "hunter2secret" not in str(error), "the password is shown"

    seeds = ["faiss:a/b", "qdrant:f#c?text=body", "qdrant+http://h:1#c", "postgresql://u@h/d#t?space=0"]
    return Target(run, [each.encode() for each in (*seeds, "v.npy", "127.0.0.1:1", "[::1]:2", "dns:///a")])


def signatures(folder: Path) -> Target:
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

    return Target(run, [b"p" + pem, b"s" + b"A" * 86 + b"==\n"], right=1)


def credentials(folder: Path) -> Target:
    """What a caller sends as its credentials: keys, and tokens that nobody signed."""
    import jwt
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from trimtab_server.callers.auth import Authenticator
    from trimtab_server.config import Auth, Jwt

    ours, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public, keys = folder / "public.pem", folder / "keys.toml"
    public.write_bytes(ours.public_key().public_bytes(encoding, form))
    keys.write_text(f'[[key]]\nname = "a"\nsha256 = "{"0" * 64}"\nencoders = ["*"]\n')
    tokens = Jwt(keys=public, issuer="i", audience="a")
    authenticator = Authenticator(Auth(keys=keys, jwt=tokens))

    def run(data: bytes) -> None:
        with Refusing(errors.Unauthenticated):
            authenticator.identify([("authorization", data.decode("latin-1"))])
            raise AssertionError("somebody was let in")

    claims = {"sub": "x", "iss": "i", "aud": "a", "exp": 4e9}
    made = [jwt.encode(claims, theirs, "ES256"), jwt.encode(claims, "", "none"), "key"]
    return Target(run, [f"Bearer {each}".encode() for each in made])


def answers(folder: Path) -> Target:
    """What a server answers, as the SDK takes it: a server need not be ours."""
    import numpy as np

    from trimtab.core import responses
    from trimtab.v1 import encoder_pb2 as pb
    from trimtab.values import dense

    def run(data: bytes) -> None:
        with Refusing(errors.TrimtabError):
            match data[:1]:
                case b"e":
                    responses.describe(_parsed(pb.Encoder, data[1:]))
                case b"a":
                    responses.describe_adapter(_parsed(pb.Adapter, data[1:]))
                case _:
                    responses.parse(_parsed(pb.EmbedResponse, data[1:]), 2, 1)

    matrix = dense.pack(np.eye(2, 8, dtype=np.float32), "float32", 0.0)
    embedded = pb.EmbedResponse(
        embeddings=[pb.Embeddings(vectors=matrix, space="s")], token_counts=[1, 2], encoder="a", version="1"
    )
    point = pb.Endpoint(encoder="a", version="1", space="s", dimensions=8)
    mapped = pb.Adapter(encoder="a", name="b", source=point, target=point, verdict="bridge", rung="identity")
    encoder = pb.Encoder(
        name="a", version="1", space="s", dimensions=8, dtypes=[pb.DATA_TYPE_FLOAT32, pb.DATA_TYPE_INT8]
    )
    made = {b"r": embedded, b"a": mapped, b"e": encoder}
    return Target(run, [kind + each.SerializeToString() for kind, each in made.items()], right=len(made))


def costs(folder: Path) -> Target:
    """Measured costs that an earlier start has kept."""
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

    return Target(run, [seed])


def wire(folder: Path) -> Target:
    """Bytes to every method of a live server, and messages that are built of the same bytes."""
    import atheris
    import grpc

    from bench.chaos.live import Live

    live = Live(folder)
    status = grpc.StatusCode
    # A caller who is alone is never refused for what others do; what it left behind would do that.
    wrong = {each.value[0] for each in (status.INTERNAL, status.UNKNOWN, status.RESOURCE_EXHAUSTED)}
    wrong |= {each.value[0] for each in (status.UNAVAILABLE, status.UNAUTHENTICATED, status.DATA_LOSS)}

    def run(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data[1:])
        name = live.methods[(data[0] if data else 0) % len(live.methods)]
        raw = provider.ConsumeBool()
        content = provider.ConsumeBytes(1 << 14) if raw else live.built(name, provider)
        for code, message in live.call(name, content):
            if code in wrong:
                raise AssertionError(f"{name}: {code} {message}")
            if code == status.DEADLINE_EXCEEDED.value[0] and "queue" not in message:
                raise AssertionError(f"{name} hangs: {message}")

    seeds = []
    for row, name in enumerate(live.methods):
        for content in live.examples(name):
            for code, message in live.call(name, content):
                assert not code, f"{name} refuses what is as it should be: {code} {message}"
            # The provider takes its bools and integers from the end, bytes from the beginning.
            seeds.append(bytes((row,)) + content + b"\x01")
        seeds += [bytes((row,)) + bytes(range(40)) * 3 + b"\x00", bytes((row,)) + b"\x00"]
    return Target(run, seeds)


def _parsed(kind: Any, data: bytes) -> Any:
    """A message of this type; InvalidArgument where gRPC would not have brought it to the SDK."""
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise errors.InvalidArgument(str(error)) from None


TARGETS: dict[str, Callable[[Path], Target]] = {
    "wire": wire,
    "config": config,
    "manifest": manifest,
    "adapter": adapter,
    "tokens": tokens,
    "addresses": addresses,
    "signatures": signatures,
    "credentials": credentials,
    "answers": answers,
    "costs": costs,
}
# Of the time that there is, so many parts; the server and the protocols are what strangers reach.
SHARES = {"wire": 6}
