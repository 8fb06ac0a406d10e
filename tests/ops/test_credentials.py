"""Keys, tokens and certificates: how they are made, read, sent and renewed."""

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trimtab
from tests.ops.certificates import Certificates
from tests.ops.credentials import AUDIENCE, ISSUER, Credentials
from tests.server.server_process import serve
from trimtab.errors import ConfigError, Unauthenticated
from trimtab.sdk.credentials import CallMetadata
from trimtab_server.callers.auth import Authenticator
from trimtab_server.callers.refreshed import INTERVAL, WatchedFiles
from trimtab_server.config import Auth, Jwt

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["ES256", "none", "now"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "trimtab.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, **environment}, input="a\n"
    )


def bearer(secret: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {secret}")]


def test_a_key_is_made_and_known_by_its_hash_alone(tmp_path: Path) -> None:
    made = run("key", "--name", "search", "--encoders", "news-*", "law", "--days", "2")
    key = made.stderr.strip()
    assert made.returncode == 0 and key.startswith("trimtab_") and key not in made.stdout
    file = tmp_path / "keys.toml"
    file.write_text(made.stdout + run("key", "--name", "ops", "--admin").stdout)
    now = time.time()
    authenticator = Authenticator(Auth(keys=file), lambda: now)
    caller = authenticator.identify(bearer(key))
    assert (caller.name, caller.encoders, caller.admin) == ("search", ("news-*", "law"), False)
    assert caller.may_use("news-1") and not caller.may_use("lawful")
    now += 3 * 24 * 3600
    with pytest.raises(Unauthenticated):
        authenticator.identify(bearer(key))
    for name in ('a"b', "", "jwt:a", "a\nb", "a" * 256):
        assert run("key", "--name", name).returncode == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[key]]\nname = "a"\nsha256 = "the key itself"\nencoders = ["*"]', "not 64 lower-case hexadecimal"),
        ("[[key]]\nname = 'a'", "sha256"),
        ("[[keys]]", "keys"),
        ("[[key]", "keys.toml"),
        (f"[[key]]\nname=''\nsha256='{'0' * 64}'\nencoders=['*']", "1 to 255 printable"),
        (f"[[key]]\nname='{'a' * 256}'\nsha256='{'0' * 64}'\nencoders=['*']", "1 to 255 printable"),
        (f'[[key]]\nname="a\\nb"\nsha256="{"0" * 64}"\nencoders=["*"]', "1 to 255 printable"),
        (f"[[key]]\nname='jwt:a'\nsha256='{'0' * 64}'\nencoders=['*']", "not begin with 'jwt:'"),
        (f"[[key]]\nname='a'\nsha256='{'0' * 64}'\nencoders=['*']\nexpires=2027-01-01T00:00:00", "time zone"),
    ],
)
def test_a_keys_file_that_cannot_be_used_is_a_refusal_to_start(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        Authenticator(Auth(keys=file))
    file.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        Authenticator(Auth(keys=file))


def test_tokens_by_a_key_in_pem_and_by_a_set_that_changes(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path)
    pem = tmp_path / "public.pem"
    pem.write_bytes(credentials.pem())
    for path in (pem, credentials.jwks_file):
        settings = Jwt(keys=path, issuer=ISSUER, audience=AUDIENCE)
        authenticator = Authenticator(Auth(jwt=settings))
        caller = authenticator.identify(bearer(credentials.token(trimtab_encoders=["a"], trimtab_admin=True)))
        assert (caller.name, caller.encoders, caller.admin) == ("jwt:a-service", ("a",), True)
        # Without a claim to encoders, a token opens none.
        assert not authenticator.identify(bearer(credentials.token(trimtab_encoders=None))).may_use("a")
    pem.write_text("neither")
    with pytest.raises(ConfigError, match="neither a JWK set nor a public key"):
        Authenticator(Auth(jwt=Jwt(keys=pem, issuer=ISSUER, audience=AUDIENCE)))
    only = Jwt(keys=credentials.jwks_file, issuer=ISSUER, audience=AUDIENCE, algorithms=("RS256",))
    with pytest.raises(Unauthenticated):
        Authenticator(Auth(jwt=only)).identify(bearer(credentials.token()))


def test_who_comes_with_a_token_is_never_who_comes_with_a_key(tmp_path: Path) -> None:
    """A `sub` is its provider's, or its user's, to choose; a tenant, with its quota and cache, is not."""
    credentials = Credentials(tmp_path)
    key = credentials.key("search")
    jwt = Jwt(keys=credentials.jwks_file, issuer=ISSUER, audience=AUDIENCE)
    authenticator = Authenticator(Auth(keys=credentials.keys_file, jwt=jwt))
    names = {authenticator.identify(bearer(each)).name for each in (key, credentials.token(sub="search"))}
    assert names == {"search", "jwt:search"}
    for sub in ("", "a\nb", "\u2028", "a" * 256):
        with pytest.raises(Unauthenticated):
            authenticator.identify(bearer(credentials.token(sub=sub)))


SEGMENT = st.one_of(
    st.binary(max_size=40).map(lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()),
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "sub", "exp", "crit"]), JSON).map(
        lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
    ),
    st.text(max_size=20),
)


@given(
    st.one_of(st.text(), st.tuples(SEGMENT, SEGMENT, SEGMENT).map(lambda parts: "Bearer " + ".".join(parts)))
)
def test_whatever_is_sent_is_refused_and_breaks_nothing(authenticator: Authenticator, sent: str) -> None:
    with pytest.raises(Unauthenticated):
        authenticator.identify([("authorization", sent)])


@pytest.fixture(scope="module")
def authenticator(tmp_path_factory: pytest.TempPathFactory) -> Authenticator:
    """One that knows a key and a signer."""
    credentials = Credentials(tmp_path_factory.mktemp("known"))
    credentials.key("a")
    jwt = Jwt(keys=credentials.jwks_file, issuer=ISSUER, audience=AUDIENCE)
    return Authenticator(Auth(keys=credentials.keys_file, jwt=jwt))


def test_a_token_that_was_remembered_ends_with_its_time_and_with_its_signer(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path)
    settings = Jwt(keys=credentials.jwks_file, issuer=ISSUER, audience=AUDIENCE)
    now = time.time()
    authenticator = Authenticator(Auth(jwt=settings), lambda: now)
    token = credentials.token(exp=now - 10)  # over, but within the leeway
    assert authenticator.identify(bearer(token)).name == "jwt:a-service"
    lasting = credentials.token()
    authenticator.identify(bearer(lasting))
    credentials.write_jwks([])
    tokens: Any = authenticator._tokens
    tokens._keys._next = 0.0
    with pytest.raises(Unauthenticated):
        authenticator.identify(bearer(lasting))


def test_files_are_read_again_when_they_change_and_kept_when_they_cannot_be(tmp_path: Path) -> None:
    now = 0.0
    file = tmp_path / "number"
    file.write_text("1")
    watched = WatchedFiles("number", (file,), lambda: int(file.read_text()), lambda: now)
    file.write_text("22")
    assert watched.get() == 1
    now += INTERVAL
    assert watched.get() == 22
    for step in (lambda: file.write_text("x"), file.unlink):
        step()
        now += INTERVAL
        assert watched.get() == 22
    file.write_text("333")
    now += INTERVAL
    assert watched.get() == 333


def test_a_token_is_sent_only_where_nobody_reads_along(tmp_path: Path) -> None:
    for url in ("127.0.0.1:8001", "localhost:1", "[::1]:1", "unix:/run/x", "dns:///localhost:1"):
        sent = CallMetadata({"X-A": "b"}, "secret", url=url, secure=False).get()
        assert sent == (("x-a", "b"), ("authorization", "Bearer secret"))
    for url in ("example.org:8001", "dns:///example.org:1", "localhost.example.org:1"):
        with pytest.raises(ConfigError, match="plain text"):
            CallMetadata(None, "secret", url=url, secure=False)
        assert CallMetadata(None, "secret", url=url, secure=True).get()
    for wrong in ("", "two words", "größe", "line\nbreak"):
        with pytest.raises(ConfigError):
            CallMetadata(None, wrong, url="localhost:1", secure=False)
    with pytest.raises(ConfigError, match="cannot be read"):
        CallMetadata(None, tmp_path / "nothing", url="localhost:1", secure=False)


def test_certificates_are_renewed_and_commands_carry_credentials(
    minilm_repository: Path, tmp_path: Path
) -> None:
    """A new pair and a new authority on disk serve the next handshake; the CLI's options reach the server."""
    certificates, credentials = Certificates(tmp_path), Credentials(tmp_path)
    token = tmp_path / "token"
    token.write_text(credentials.key("search") + "\n")
    text = certificates.config(mutual=True) + credentials.config()
    with serve(minilm_repository, tmp_path, text) as server:
        old = certificates.client_with_certificate()
        with trimtab.Client(server.url, tls=old, token=token) as client:
            assert client.embed(["a"]).shape == (1, 384)
            certificates.renew()
            while True:
                try:
                    with trimtab.Client(
                        server.url, tls=certificates.client_with_certificate(), token=token
                    ) as new:
                        assert new.encoders(timeout=3)
                    break
                except trimtab.TrimtabError:
                    continue
            assert client.embed(["b"]).shape == (1, 384)  # a connection that is open stays
        with trimtab.Client(server.url, tls=old, token=token, timeout=2) as client:
            with pytest.raises(trimtab.TrimtabError):
                client.encoders()
        own = certificates.authority.issue_cert("cli@example.org")
        own.private_key_pem.write_to_path(str(tmp_path / "own.key"))
        own.cert_chain_pems[0].write_to_path(str(tmp_path / "own.pem"))
        options = ["embed", "--url", server.url, "--ca", str(certificates.client_ca)]
        options += ["--client-cert", str(tmp_path / "own.pem"), "--client-key", str(tmp_path / "own.key")]
        by_file = run(*options, "--token-file", str(token))
        assert by_file.returncode == 0 and '"row":0' in by_file.stdout, by_file.stderr
        by_variable = run(*options, TRIMTAB_TOKEN=token.read_text().strip())
        assert by_variable.returncode == 0, by_variable.stderr
        without = run(*options)
        assert without.returncode == 1 and "credentials are missing" in without.stderr
        half = run(*options[:-2], "--token-file", str(token))
        assert half.returncode == 1 and "go together" in half.stderr


def test_what_tls_cannot_use_is_a_refusal_to_start(minilm_repository: Path, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    config = tmp_path / "trimtab.toml"
    config.write_text(certificates.config())
    start = ["serve", "--repository", str(minilm_repository), "--config", str(config)]
    start += ["--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    other = Certificates(tmp_path / "other")
    for content in ("no certificate", other.certificate.read_text()):
        certificates.certificate.write_text(content)
        done = run(*start)
        assert done.returncode == 1 and "not a pair in PEM" in done.stderr and "Traceback" not in done.stderr
    certificates.key.unlink()
    done = run(*start)
    assert done.returncode == 1 and "server.key cannot be read" in done.stderr
