"""Hooks for versions of encoders that come and go."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeAlias

from trimtab.artifacts.manifest import Manifest
from trimtab_server.catalog.encoder import LoadedEncoder
from trimtab_server.spaces.route import LoadedAdapter, Vectors

# Whole vectors, float32 (n, dimensions), of texts that include their prompts.
Embed: TypeAlias = Callable[[list[str]], Awaitable[Vectors]]


class Lifecycle:
    """May refuse versions of the encoders that it concerns, and is told of them. This one accepts all."""

    stage: str = ""  # what its part of a load is called in metrics; empty: it takes no time

    def concerns(self, encoder: str) -> bool:
        """Whether it is configured for the encoder of this name."""
        return False

    def check(self, manifest: Manifest, adapters: Iterable[LoadedAdapter]) -> None:
        """A version is about to be loaded. Raises ConfigError if it cannot be served as configured;
        `adapters` are its encoder's."""

    async def opened(self, encoder: LoadedEncoder, embed: Embed) -> None:
        """A version is loaded and warm, and will be served. Raises ConfigError as `check` does."""

    def closed(self, name: str, version: int) -> None:
        """A version is no longer served or used."""

    def published(
        self, encoders: Sequence[LoadedEncoder], adapters: Callable[[str], Sequence[LoadedAdapter]]
    ) -> None:
        """These versions are served from now on; `adapters` gives the usable ones of an encoder."""
