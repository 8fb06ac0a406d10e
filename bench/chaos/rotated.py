"""A server whose certificates are replaced while it is called."""

import ssl
from pathlib import Path

import trustme

from bench.chaos.replicas import Replica


class Rotated:
    """A replica with TLS, whose certificates are replaced during calls."""

    def __init__(self, folder: Path, repository: Path, config: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self.authority.cert_pem.bytes())
        self.renew()
        tls = f'[server.tls]\ncertificate = "{folder}/server.pem"\nkey = "{folder}/server.key"\n'
        self.replica = Replica("tls", folder / "replica", repository, config + tls)

    def renew(self) -> None:
        """A new pair, replaced file by file, as certificate tools do it."""
        pair = self.authority.issue_cert("localhost", "127.0.0.1")
        for name, content in (
            ("server.key", pair.private_key_pem.bytes()),
            ("server.pem", b"".join(each.bytes() for each in pair.cert_chain_pems)),
        ):
            new = self.folder / f"{name}.new"
            new.write_bytes(content)
            new.rename(self.folder / name)

    def check(self) -> None:
        """A new connection must meet the new certificate."""
        served = ssl.get_server_certificate(("127.0.0.1", self.replica.port), timeout=10)
        if served.strip() not in (self.folder / "server.pem").read_text():
            raise RuntimeError("a new connection was served an old certificate")
