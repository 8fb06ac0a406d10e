"""A fake server for each test, and either client."""

from tests.client.either import either, server, url

__all__ = ["either", "server", "url"]
