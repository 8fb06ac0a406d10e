"""What is this machine, and what goes through a proxy: nothing that a proxy must not read."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import trimtab
from tests.client.fake_server import FakeServer, vectors
from trimtab.sdk.credentials import CallMetadata
from trimtab.sdk.target import is_local, target

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")
LOCAL = [
    *("127.0.0.1:8001", "127.9.9.9:1", "localhost:1", "LOCALHOST:1", "localhost.:1", "localhost", "[::1]:1"),
    *("dns:///127.0.0.1:1", "dns:localhost:1", "dns:///[::1]:1", "unix:/run/x", "unix:///run/x"),
    *("unix-abstract:x", "ipv4:127.0.0.1:1", "ipv4:127.0.0.1:1,127.0.0.2:2", "ipv6:[::1]:1"),
]
ELSEWHERE = [
    *("127.evil.example:1", "127.0.0.1.evil.example:1", "localhost.evil.example:1", "example.org:8001"),
    *("127.0.0.1@evil.example:1", "localhost:1@evil.example:1", "[::1].evil.example:1", "10.0.0.1:1"),
    *("dns:///127.evil.example:1", "dns://evil.example/localhost:1", "dns:///localhost.evil.example:1"),
    *("ipv4:127.0.0.1:1,10.0.0.1:1", "127.0.0.1:1,evil.example:1", "ipv6:[fe80::1]:1", "xds:///localhost:1"),
    *("localhost1:1", "unixy:1", "[::ffff:10.0.0.1]:1", "127.1:1", "vsock:2:1"),
]


@pytest.mark.parametrize("url", LOCAL)
def test_this_machine(url: str) -> None:
    assert is_local(url)
    assert CallMetadata(None, "secret", url=url, secure=False).secret
    assert target(url, encrypted=False, credentials=False).direct
    assert target(url, encrypted=True, credentials=True).direct


@pytest.mark.parametrize("url", ELSEWHERE)
def test_any_other_machine(url: str) -> None:
    assert not is_local(url)
    with pytest.raises(trimtab.ConfigError, match="plain text"):
        CallMetadata(None, "secret", url=url, secure=False)
    # Somebody said that something else encrypts; that is none of a proxy's business.
    sent = CallMetadata({"Authorization": "Bearer x"}, None, url=url, secure=False)
    assert target(url, encrypted=False, credentials=sent.secret).direct
    assert not target(url, encrypted=True, credentials=True).direct
    assert not target(url, encrypted=False, credentials=False).direct


def test_a_localhost_that_leads_elsewhere_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(*_: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", elsewhere)
    with pytest.raises(trimtab.ConfigError, match="plain text"):
        trimtab.Client("localhost:1", token="secret")


class Proxy:
    """Counts who connects, keeps what they say, and answers nothing."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.heard.append(connection.recv(4096))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    made = Proxy()
    yield made
    made.close()


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy", "GRPC_ADDRESS_HTTP_PROXY"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "dns:///localhost"])
async def test_a_token_in_plain_text_passes_no_proxy(
    variable: str, host: str, proxy: Proxy, server: FakeServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = proxy.url
    if variable == "GRPC_ADDRESS_HTTP_PROXY":
        monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES", "127.0.0.0/8,::1/128")
        address = address.removeprefix("http://")
    monkeypatch.setenv(variable, address)
    to = f"{host}:{url.rpartition(':')[2]}"
    for options in ({"token": "secret"}, {"metadata": {"authorization": "Bearer secret"}}, {}):
        with trimtab.Client(to, **options) as client:
            assert np.array_equal(client.embed(["a"]), vectors(["a"]))
            assert np.array_equal(list(client.embed_stream(["a"])), vectors(["a"]))
        async with trimtab.AsyncClient(to, **options) as other:
            assert np.array_equal(await other.embed(["a"]), vectors(["a"]))
            assert np.array_equal([row async for row in other.embed_stream(["a"])], vectors(["a"]))
    assert not proxy.heard
    assert [each.get("authorization") for each in server.metadata] == ["Bearer secret"] * 8 + [None] * 4


def test_what_is_not_secret_may_pass_one(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    with (
        trimtab.Client("encoder.test:1") as client,
        pytest.raises(trimtab.Unavailable, match="http_proxy is set"),
    ):
        client.encoder(timeout=20)
    assert any(b"CONNECT encoder.test:1" in each for each in proxy.heard)
    proxy.heard.clear()
    secret = {"authorization": "Bearer x"}
    with trimtab.Client("encoder.test:1", metadata=secret) as client:
        with pytest.raises(trimtab.Unavailable, match="http_proxy is set, and not used"):
            client.encoder(timeout=20)
    assert not proxy.heard
