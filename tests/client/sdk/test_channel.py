"""Addresses, credentials, and servers that are not there."""

import math
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import trustme

import trimtab
from tests.client.either import Async, Sync
from tests.client.fake_server import FakeServer, vectors
from trimtab.sdk import channel
from trimtab.sdk.target import Target, check_target

Either = Sync | Async


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def roots(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "roots.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def secure_url(server: FakeServer, authority: trustme.CA) -> Iterator[str]:
    certificate = authority.issue_cert("localhost")
    credentials = grpc.ssl_server_credentials(
        [(certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())]
    )
    yield server.start("localhost:0", credentials)


def test_tls_with_ones_own_authority(either: Either, secure_url: str, roots: Path) -> None:
    assert np.array_equal(either.call(secure_url, "embed", ["a"], tls=roots), vectors(["a"]))
    assert np.array_equal(either.call(secure_url, "embed", ["a"], tls=str(roots)), vectors(["a"]))


def test_tls_with_credentials_of_grpc(either: Either, secure_url: str, roots: Path) -> None:
    credentials = grpc.ssl_channel_credentials(roots.read_bytes())
    assert np.array_equal(either.call(secure_url, "embed", ["a"], tls=credentials), vectors(["a"]))


def test_tls_refuses_an_authority_it_does_not_know(secure_url: str) -> None:
    with trimtab.Client(secure_url, tls=True) as client, pytest.raises(trimtab.Unavailable):
        client.encoder(timeout=100)


def test_roots_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(trimtab.ConfigError, match=r"nowhere\.pem cannot be read"):
        trimtab.Client(tls=tmp_path / "nowhere.pem")


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("http://localhost:8001", "pass 'localhost:8001' without a scheme"),
        ("https://localhost:8001/", "pass 'localhost:8001' with tls=True"),
        ("", "pass HOST:PORT"),
    ],
)
def test_an_address_that_is_none_is_corrected(url: str, cure: str) -> None:
    with pytest.raises(trimtab.ConfigError, match=cure):
        trimtab.Client(url)


@pytest.mark.parametrize("url", ["localhost:8001", "dns:///localhost:8001", "unix:/run/s", "unix:///run/s"])
def test_targets_of_grpc_are_taken_as_they_are(url: str) -> None:
    assert check_target(url) == url


def test_a_unix_socket_will_do(either: Either, server: FakeServer, tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/socket"
    server.start(path)
    assert np.array_equal(either.call(path, "embed", ["a"]), vectors(["a"]))


def test_requests_go_round_all_addresses(server: FakeServer, url: str) -> None:
    other = FakeServer()
    try:
        with trimtab.Client(f"ipv4:{url},{other.start()}") as client:
            # Both connections take a moment to stand; then every other request goes to each.
            end = time.monotonic() + 10
            while not (server.requests and other.requests):
                client.embed(["a"])
                assert time.monotonic() < end
    finally:
        other.stop()


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_a_timeout_is_above_zero(timeout: float) -> None:
    with pytest.raises(trimtab.ConfigError, match=r"timeout is .*math\.inf"):
        trimtab.Client(timeout=timeout)


def test_without_a_limit_the_server_sees_none(either: Either, server: FakeServer, url: str) -> None:
    either.call(url, "embed", ["a"], timeout=math.inf)
    assert server.deadlines[0] > 1e6


def test_a_server_that_is_not_there_is_named_after_a_few_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(trimtab.Unavailable, match=r"127\.0\.0\.1:1: ") as caught:
        Sync().call("127.0.0.1:1", "embed", ["a"])
    assert caught.value.retryable
    assert time.monotonic() - started < 15


async def test_an_async_client_belongs_to_a_loop() -> None:
    client = trimtab.AsyncClient()
    await client.close()


def test_outside_a_loop_there_is_no_async_client() -> None:
    with pytest.raises(trimtab.FailedPrecondition, match="make it in a coroutine"):
        trimtab.AsyncClient()


def test_the_certificates_of_these_tests_are_real(roots: Path) -> None:
    assert ssl.create_default_context(cafile=roots).get_ca_certs()


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"http_proxy": "PROXY"}, "http_proxy"),
        ({"https_proxy": "PROXY", "http_proxy": "http://other.test"}, "https_proxy"),
        ({"http_proxy": "PROXY", "no_proxy": "localhost,.test"}, None),
        ({}, None),
    ],
)
def test_an_unreachable_server_behind_a_proxy_names_the_variable(
    variables: dict[str, str], named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC says which address refused, which is the proxy's, and not that it is one."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        proxy = f"http://user:secret@127.0.0.1:{nobody.getsockname()[1]}"
        for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value.replace("PROXY", proxy))
        url = "encoder.test:8001"
        with (
            grpc.insecure_channel(url) as made,
            pytest.raises(trimtab.Unavailable) as caught,
            channel.translated(Target(url, direct=False), channel.Deadline(30)),
        ):
            made.unary_unary("/a.Service/Method")(b"", timeout=30)
    message = str(caught.value)
    assert (f"({named} is set, so gRPC connects through that proxy" in message) == (named is not None), (
        message
    )
    assert "no_proxy" in message or named is None
    assert "secret" not in message
