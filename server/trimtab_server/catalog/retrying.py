"""A version that failed while it was served is tried again after a while, later each time."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

from trimtab.errors import TrimtabError
from trimtab_server.catalog.served import Key

log = logging.getLogger(__name__)

# Seconds until it is tried again, at first and at most: doubled by each failure.
FIRST_TRY, LAST_TRY = 30.0, 3600.0


class Retries:
    """Loads again what was given up.

    `reload` brings an encoder in step with the disk. `reason` tells why a version is not served; None where
    it is, or is not known any more.
    """

    def __init__(self, reload: Callable[[str], Awaitable[None]], reason: Callable[[Key], str | None]) -> None:
        self._reload = reload
        self._reason = reason
        self._failed: Counter[Key] = Counter()  # how often each version was given up

    def failed(self, key: Key) -> None:
        """A version has failed while it was served."""
        self._failed[key] += 1

    async def try_again(self, key: Key, why: str) -> None:
        """Load a version that was given up for this reason, as often as it takes, unless it is unloaded or
        gone meanwhile."""
        while True:
            await asyncio.sleep(min(LAST_TRY, FIRST_TRY * 2 ** (self._failed[key] - 1)))
            if self._reason(key) != why:
                return
            try:
                await self._reload(key[0])
            except TrimtabError as error:
                log.warning("%s version %d is not loaded again: %s", *key, error)
            self._failed[key] += 1
            why = self._reason(key) or why
