"""Certificates for servers and clients of one authority, written where a configuration finds them."""

from pathlib import Path

import grpc
import trustme


class Certificates:
    """An authority, and a server's certificate in `folder`; `renew` replaces it by one of a new authority."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        self.client_ca = folder / "ca.pem"
        self.renew()

    def renew(self) -> None:
        """A new authority, and a new pair that it signed, each file in place by one rename."""
        self.authority = trustme.CA()
        pair = self.authority.issue_cert("localhost", "127.0.0.1")
        for path, content in (
            (self.key, pair.private_key_pem.bytes()),
            (self.certificate, b"".join(blob.bytes() for blob in pair.cert_chain_pems)),
            (self.client_ca, self.authority.cert_pem.bytes()),
        ):
            new = path.with_suffix(".new")
            new.write_bytes(content)
            new.rename(path)

    def config(self, *, mutual: bool = False) -> str:
        """The section of the server's configuration."""
        lines = [f'[server.tls]\nkey = "{self.key}"\ncertificate = "{self.certificate}"']
        return "\n".join([*lines, f'client_ca = "{self.client_ca}"'] if mutual else lines) + "\n"

    def client(self) -> grpc.ChannelCredentials:
        """What a client needs that has no certificate of its own."""
        return grpc.ssl_channel_credentials(self.authority.cert_pem.bytes())

    def client_with_certificate(self) -> grpc.ChannelCredentials:
        """What a client needs that shows one of this authority."""
        own = self.authority.issue_cert("client@example.org")
        return grpc.ssl_channel_credentials(
            self.authority.cert_pem.bytes(), own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes()
        )
