"""An engine as the configuration describes it."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from trimtab_server.config import Config
from trimtab_server.engine.admission.admission import Admission
from trimtab_server.engine.admission.quotas import Quotas
from trimtab_server.engine.fleet import cores
from trimtab_server.engine.fleet.devices import Device
from trimtab_server.engine.fleet.homes import Opening
from trimtab_server.engine.fleet.measuring import CostCache
from trimtab_server.engine.fleet.places import Place
from trimtab_server.engine.local import LocalEngine
from trimtab_server.engine.queue.batcher import Batcher
from trimtab_server.engine.queue.sharing import Sharing
from trimtab_server.engine.runners.rehearsal_pool import RehearsalPool
from trimtab_server.engine.tickets import Ticket
from trimtab_server.observing.metrics import Metrics
from trimtab_server.turns import Turns

log = logging.getLogger(__name__)


class OwnEngine:
    """The engine of this process: its devices, with graphs opened as `opening` says, and its rehearsals.

    Called on the event loop: `serving` and `retired`, as LocalEngine calls them.
    """

    def __init__(
        self,
        config: Config,
        opening: Opening,
        places: Sequence[Place],
        metrics: Metrics,
        *,
        serving: Callable[[bool], None],
        retired: Callable[[int, str], None],
        turns: Turns | None = None,
    ) -> None:
        settings, batching, quotas = config.engine, config.batching, Quotas(config.quota, config.tenants)
        sharing: Sharing[Ticket] = Sharing(
            single_flight=config.sharing.single_flight,
            across_tenants=config.sharing.across_tenants,
            cache_bytes=config.sharing.cache_bytes,
        )
        folder = _folder(settings.costs) if opening.foreign and settings.costs else None
        cost_cache = CostCache(folder) if folder else None

        def device(place: Place) -> Device:
            home = opening.home(place, isolated=settings.isolation == "process")
            return Device(place, home, cost_cache, settings.max_resident_bytes, settings.hang_seconds)

        self.engine = LocalEngine(
            Batcher(batching.max_batch_tokens, batching.max_batch_texts, quotas.weight, config.tenants),
            sharing,
            list(map(device, places)),
            Admission(config.limits.max_tokens_in_flight, quotas, metrics.not_admitted),
            metrics,
            hang_seconds=settings.hang_seconds,
            load_seconds=settings.load_seconds,
            serving=serving,
            retired=retired,
            turns=turns,
            idle=cores.idle_clock(sum(place.workers for place in places if place.kind == "cpu")),
        )
        self.rehearsals: RehearsalPool | None = None
        if opening.foreign:
            first = places[0]
            self.rehearsals = RehearsalPool(first.kind, first.index, settings.load_seconds, cores.available())

    def start(self) -> None:
        """Start the devices' workers, and a process for rehearsals."""
        if self.rehearsals is not None:
            self.rehearsals.start()
        self.engine.start()

    def stop(self) -> None:
        """Stop them, each after what it is doing. Blocks."""
        if self.rehearsals is not None:
            self.rehearsals.stop()
        self.engine.stop()


def _folder(path: str) -> Path | None:
    """The folder meant by a path that may begin with ~; None for a user who has no home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        log.warning("engine.costs is %s, and this user has no home: costs are measured at each start", path)
        return None
