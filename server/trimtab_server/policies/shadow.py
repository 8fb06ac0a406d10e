"""Shows live texts to a version on trial, without delaying answers, and compares its vectors with those
answered.

Texts are shown as bulk work of a separate tenant, which is bounded, and the first to be dropped: nothing is
shown while the devices are busy.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Histogram

from trimtab.errors import TrimtabError
from trimtab.kinds import Role, Truncate
from trimtab_server.callers.access import SERVER
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import LoadedEncoder
from trimtab_server.catalog.served import Served
from trimtab_server.engine.port import ComputeRequest, EnginePort, Turn
from trimtab_server.inputs.preparation import Preparation
from trimtab_server.observing.families import SECONDS
from trimtab_server.policies.comparing import Comparison
from trimtab_server.policies.trials import Trials
from trimtab_server.tasks.plan import EmbedRequest, Plan, Policy

log = logging.getLogger(__name__)

# How many texts may wait to be shown, and their characters in total.
MOST_TEXTS = 256
MOST_CHARACTERS = 1 << 22
# Nothing is shown while more work than this waits for the devices.
BUSY_SECONDS = 0.05
# Texts not computed within this time are given up.
PATIENCE_SECONDS = 2.0
# No caller's name: those are printable.
TENANT = "\0shadow"
PARTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

_LABELS = ("encoder", "version", "shadow")


@dataclass(frozen=True, slots=True)
class _Text:
    """A text to show: what was answered, by which version, and which version is shown it."""

    answered: LoadedEncoder
    vector: NDArray[np.float32]
    text: str
    query: bool | None
    truncate: Truncate
    version: int


class ShadowMetrics:
    """Prometheus metrics of what shadows show."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, what: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"trimtab_shadow_{name}", what, _LABELS, buckets=buckets, registry=registry)

        self.texts = Counter(
            "trimtab_shadow_texts",
            "Texts that a shadow was to be shown: compared, repeated (one of the last ones again), dropped "
            "(the server was busy) or failed",
            (*_LABELS, "outcome"), registry=registry,
        )  # fmt: skip
        self.seconds = histogram("seconds", "Tokenising, waiting and computing of a text shown", SECONDS)
        self.cosine = histogram(
            "cosine", "Cosine of a text's vectors in both versions, where they are as wide", PARTS
        )
        self.overlap = histogram(
            "neighbour_overlap",
            "Share of a text's ten nearest neighbours, among the last texts, that both versions agree on",
            PARTS,
        )

    def forget(self, encoder: str, version: int) -> None:
        """End the series of a version, whichever of the two it was."""
        for metric in (self.texts, self.seconds, self.cosine, self.overlap):
            for label in ("version", "shadow"):
                metric.remove_by_labels({"encoder": encoder, label: str(version)})


class Shadow(Policy):
    """The texts on their way, the task that shows them, and what they showed."""

    def __init__(
        self,
        served: Served,
        trials: Trials,
        preparation: Preparation,
        engine: EnginePort,
        metrics: ShadowMetrics,
    ) -> None:
        self._served = served
        self._trials = trials
        self._preparation = preparation
        self._engine = engine
        self._texts: asyncio.Queue[_Text] = asyncio.Queue(MOST_TEXTS)
        self._characters = 0
        self._task: asyncio.Task[None] | None = None
        self._comparisons: dict[tuple[LoadedEncoder, LoadedEncoder], Comparison] = {}
        self._metrics = metrics

    def start(self) -> None:
        """Begin to show texts."""
        self._task = asyncio.create_task(self._show_all())

    async def look(self, call: Call, plan: Plan, vectors: NDArray[np.float32]) -> Plan:
        """Queue the texts of the share, if the encoder itself answered: its variants are not compared."""
        if plan.by_itself:
            self._see(plan.version, call.tenant, plan.request, vectors)
        return plan

    def _see(
        self, answered: LoadedEncoder, tenant: str, request: EmbedRequest, rows: NDArray[np.float32]
    ) -> None:
        name = answered.name
        query = None if request.role is None else request.role == "query"
        # A text that fits one version may be too long for the other.
        truncate: Truncate = "start" if request.truncate == "start" else "end"
        for text, row in zip(request.texts, rows, strict=True):
            version = self._trials.shadow(name, self._served.versions(name), answered.version, tenant, text)
            if version is None:
                continue
            if (
                self._texts.full()
                or self._characters + len(text) > MOST_CHARACTERS
                or self._engine.pressure().drain_seconds(answered.number) > BUSY_SECONDS
            ):
                self._count(answered, version, "dropped")
                continue
            self._characters += len(text)
            vector = row[: answered.manifest.dimensions].copy()  # a view would keep all the rows
            self._texts.put_nowait(_Text(answered, vector, text, query, truncate, version))

    def forget(self, encoder: str, version: int) -> None:
        """A version is no longer served: drop what was compared with it, and its series."""
        self._metrics.forget(encoder, version)
        self._comparisons = {
            pair: kept
            for pair, kept in self._comparisons.items()
            if (encoder, version) not in {(each.name, each.version) for each in pair}
        }

    async def stop(self) -> None:
        """Show nothing more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _show_all(self) -> None:
        while True:
            shown = await self._texts.get()
            self._characters -= len(shown.text)
            answered = shown.answered
            with (
                contextlib.suppress(TrimtabError),  # it was unloaded: the comparison is no longer wanted
                self._served.use(SERVER, answered.name, str(answered.version)),
            ):
                self._count(answered, shown.version, await self._outcome(shown))

    async def _outcome(self, shown: _Text) -> str:
        try:
            return await self._show(shown)
        except (TrimtabError, TimeoutError):
            return "failed"
        except Exception:  # of one text, and never the task's end
            log.exception("shadow %s version %s failed", shown.answered.name, shown.version)
            return "failed"

    async def _show(self, shown: _Text) -> str:
        answered, begun = shown.answered, time.monotonic()
        deadline = begun + PATIENCE_SECONDS
        with self._served.use(SERVER, answered.name, str(shown.version)) as shadow:
            role: Role | None = None
            if shown.query is not None:
                role = "query" if shown.query else "passage"
            async with asyncio.timeout_at(deadline):
                items = shadow.reader.in_role([shown.text], role, shadow.manifest.prompts)
                payloads = await self._preparation.read(
                    shadow.reader, items, shown.truncate, (TENANT, "bulk")
                )
                turn = Turn(TENANT, TENANT, "bulk", deadline)
                work = ComputeRequest(0, shadow.number, turn, payloads, (shadow.vectors,))
                computed = await self._engine.compute(work)
            labels = _labels(answered, shown.version)
            self._metrics.seconds.labels(*labels).observe(time.monotonic() - begun)
            vector = computed.result[shadow.vectors].values[0]
            if not (np.isfinite(vector).all() and np.isfinite(shown.vector).all()):
                return "failed"
            agreement = self._comparison(answered, shadow).add(shown.vector, vector)
        if agreement is None:
            return "repeated"
        if agreement.cosine is not None:
            self._metrics.cosine.labels(*labels).observe(agreement.cosine)
        if agreement.overlap is not None:
            self._metrics.overlap.labels(*labels).observe(agreement.overlap)
        return "compared"

    def _comparison(self, answered: LoadedEncoder, shadow: LoadedEncoder) -> Comparison:
        pair = (answered, shadow)
        if pair not in self._comparisons:
            # Versions that were replaced are no longer compared.
            self._comparisons = {
                each: kept for each, kept in self._comparisons.items() if each[0].name != answered.name
            }
            self._comparisons[pair] = Comparison(answered.manifest.dimensions, shadow.manifest.dimensions)
        return self._comparisons[pair]

    def _count(self, answered: LoadedEncoder, version: int, outcome: str) -> None:
        self._metrics.texts.labels(*_labels(answered, version), outcome).inc()


def _labels(answered: LoadedEncoder, version: int) -> tuple[str, str, str]:
    return answered.name, str(answered.version), str(version)
