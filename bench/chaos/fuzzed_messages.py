"""What clients send to a server, and what a server answers."""

from pathlib import Path
from typing import Any

from bench.chaos.fuzzed import FuzzTarget, Refusing
from trimtab import errors


def wire(folder: Path) -> FuzzTarget:
    """Bytes to every method of a live server, and messages that are built from the same bytes."""
    import atheris
    import grpc

    from bench.chaos.live import Live

    live = Live(folder)
    status = grpc.StatusCode
    # A lone caller is never refused because of others, but could be because of what it left behind.
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
    return FuzzTarget(run, seeds)


def credentials(folder: Path) -> FuzzTarget:
    """A caller's credentials: keys, and unsigned tokens."""
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
    return FuzzTarget(run, [f"Bearer {each}".encode() for each in made])


def answers(folder: Path) -> FuzzTarget:
    """A server's answers, as the SDK reads them: a server need not be ours."""
    import numpy as np

    from trimtab.core import descriptions, responses
    from trimtab.v1 import encoder_pb2 as pb
    from trimtab.values import dense

    def run(data: bytes) -> None:
        with Refusing(errors.TrimtabError):
            match data[:1]:
                case b"e":
                    descriptions.describe(_parsed(pb.Encoder, data[1:]))
                case b"a":
                    descriptions.describe_adapter(_parsed(pb.Adapter, data[1:]))
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
    return FuzzTarget(run, [kind + each.SerializeToString() for kind, each in made.items()], right=len(made))


def _parsed(kind: Any, data: bytes) -> Any:
    """A message of this type; InvalidArgument if gRPC would not have delivered it to the SDK."""
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise errors.InvalidArgument(str(error)) from None
