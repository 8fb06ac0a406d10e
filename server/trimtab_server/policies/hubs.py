"""Flags or refuses passages that would be found by far too many queries, if configured.

The check itself is in `trimtab.hubness`; docs/security.md says which known attacks it finds. The sentinel
queries and the ordinary passages are embedded when a version is loaded, since each version has a space of its
own.
"""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts import variants
from trimtab.artifacts.manifest import Manifest
from trimtab.errors import ConfigError, InvalidArgument
from trimtab.hubness import HubnessGuard
from trimtab_server import config
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import LoadedEncoder
from trimtab_server.catalog.lifecycle import Embed, Lifecycle
from trimtab_server.tasks.plan import Hubness, Plan, Policy

Vectors = NDArray[np.float32]

# Checks of more multiplications run on a thread, since they would block the event loop.
INLINE = 10_000_000
NAMED = 10  # rows in the message of a refusal


class PassageGuard:
    """Checks the passages of an encoder version; `queries` and `passages` are (m, d), of its space."""

    def __init__(self, settings: config.GuardSettings, queries: Vectors, passages: Vectors) -> None:
        self._refuses = settings.action == "refuse"
        self._hubness = HubnessGuard(queries, passages, false_alarms=settings.false_alarms)
        self._size = queries.size

    async def look(self, vectors: Vectors) -> Hubness:
        """The hubness of each passage; whole vectors, (n, d), of the encoder's own space."""
        if len(vectors) * self._size <= INLINE:
            reach = self._hubness.reach(vectors)
        else:
            reach = await asyncio.to_thread(self._hubness.reach, vectors)
        return Hubness(reach, self._hubness.threshold)

    def refuse(self, found: Hubness) -> None:
        """InvalidArgument, naming the suspicious rows, if such passages are to be refused."""
        rows = found.suspicious
        if not rows or not self._refuses:
            return
        listed = ", ".join(f"texts[{row}] ({found.reach[row]:.1%})" for row in rows[:NAMED])
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        raise InvalidArgument(
            f"{listed}{more} would be shown for more of the sentinel queries than the {found.threshold:.1%} "
            "that ordinary passages reach, like passages that are made to be found everywhere: inspect "
            "them, and send the others without them"
        )


class PassageGuards(Lifecycle, Policy):
    """The guards of all encoders, one for each version.

    `counted` is called after each check: encoder, version, and how many passages are suspicious.
    """

    stage = "guard"

    def __init__(
        self, settings: Mapping[str, config.GuardSettings], counted: Callable[[str, int, int], None]
    ) -> None:
        self._settings = settings
        self._counted = counted
        self._guards: dict[tuple[str, int], PassageGuard] = {}

    def concerns(self, encoder: str) -> bool:
        return encoder in self._settings

    async def opened(self, encoder: LoadedEncoder, embed: Embed) -> None:
        made = await guard(self._settings[encoder.name], encoder.manifest, embed)
        self._guards[encoder.name, encoder.version] = made

    def closed(self, name: str, version: int) -> None:
        self._guards.pop((name, version), None)

    def plan(self, call: Call, plan: Plan) -> Plan:
        """Have the vectors that are checked computed, whatever outputs are named."""
        return plan if self._guard(plan) is None else msgspec.structs.replace(plan, watched=True)

    def _guard(self, plan: Plan) -> PassageGuard | None:
        """What checks the texts of a request, if anything does."""
        if plan.request.role != "passage" or not plan.by_itself:
            return None
        return self._guards.get((plan.version.name, plan.version.version))

    async def look(self, call: Call, plan: Plan, vectors: Vectors) -> Plan:
        """Check passages; InvalidArgument if suspicious ones are to be refused."""
        version, guard = plan.version, self._guard(plan)
        if guard is None:
            return plan
        found = await guard.look(vectors)
        self._counted(version.name, version.version, len(found.suspicious))
        guard.refuse(found)
        return msgspec.structs.replace(plan, hubness=found)


async def guard(settings: config.GuardSettings, manifest: Manifest, embed: Embed) -> PassageGuard:
    """Make an encoder's guard. `embed` gives whole vectors of texts that include their prompts.

    Raises ConfigError if a file cannot be read or holds too few texts, or if the vectors are not compared by
    dot product.
    """
    if manifest.output.kind != "dense":
        raise ConfigError(
            f"the guard compares dense vectors, and {variants.title(manifest)} gives {manifest.output.kind}: "
            f"leave encoders.{manifest.name}.guard out"
        )
    if manifest.similarity != "dot" and not (manifest.similarity == "cosine" and manifest.normalized):
        length = "" if manifest.normalized else " of vectors of any length"
        raise ConfigError(
            f"the guard compares by dot product, and {variants.title(manifest)} by {manifest.similarity}"
            f"{length}: leave encoders.{manifest.name}.guard out"
        )
    prompts = manifest.prompts
    queries = await asyncio.to_thread(_texts, settings.queries, prompts.query)
    passages = await asyncio.to_thread(_texts, settings.passages, prompts.passage)
    vectors = await embed(queries + passages)
    try:
        return PassageGuard(settings, vectors[: len(queries)], vectors[len(queries) :])
    except InvalidArgument as error:
        raise ConfigError(
            f"encoders.{manifest.name}.guard with {settings.queries} and {settings.passages}: {error}"
        ) from None


def _texts(path: Path, prompt: str) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"the guard's file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"the guard's file {path} is not UTF-8: {error.reason}") from None
    return [prompt + line for line in lines if line.strip()]
