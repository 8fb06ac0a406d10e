"""Retries versions that failed while they were served, after growing intervals."""

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
    """Reloads versions that were given up.

    `reload` brings an encoder in step with the disk. `reason` tells why a version is not served; None if it
    is, or is no longer known.
    """

    def __init__(self, reload: Callable[[str], Awaitable[None]], reason: Callable[[Key], str | None]) -> None:
        self._reload = reload
        self._reason = reason
        self._failed: Counter[Key] = Counter()  # how often each version was given up

    def failed(self, key: Key) -> None:
        """A version has failed while it was served."""
        self._failed[key] += 1

    async def try_again(self, key: Key, why: str) -> None:
        """Reload a version that was given up for this reason until it succeeds, or the version is unloaded or
        gone."""
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
