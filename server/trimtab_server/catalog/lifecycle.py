"""What is asked, and told, while versions of encoders come and go."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeAlias

from trimtab.artifacts.manifest import Manifest
from trimtab_server.catalog.encoder import LoadedEncoder
from trimtab_server.spaces.route import Loaded, Vectors

# Whole vectors of texts, float32 (n, dimensions), with prompts before the texts already.
Embed: TypeAlias = Callable[[list[str]], Awaitable[Vectors]]


class Lifecycle:
    """Has a say in each version of the encoders that it concerns, and is told of it. This one agrees."""

    stage: str = ""  # what its part of a load is called in metrics; empty: it takes no time

    def concerns(self, encoder: str) -> bool:
        """Whether it is configured for the encoder of this name."""
        return False

    def check(self, manifest: Manifest, adapters: Iterable[Loaded]) -> None:
        """A version is about to be loaded. Raises ConfigError where it cannot be served as it is configured;
        `adapters` are its encoder's."""

    async def opened(self, encoder: LoadedEncoder, embed: Embed) -> None:
        """A version is loaded and warm, and will be served. Raises ConfigError as `check` does."""

    def closed(self, name: str, version: int) -> None:
        """A version is served no more, and nobody uses it."""

    def published(
        self, encoders: Sequence[LoadedEncoder], adapters: Callable[[str], Sequence[Loaded]]
    ) -> None:
        """These versions are served from now on; `adapters` gives the usable ones of an encoder."""
