"""Brownout: under overload, a cheaper variant of an encoder (the fallback) may answer queries. Sans-IO.

The fallback's vectors are in another space than the encoder's, and callers search an index of the encoder's.
So it answers only if held-out retrieval in just that case, its queries on the encoder's index, kept enough:
through an adapter judged *bridge*, or directly, if its report card's figure for queries alone is high enough.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec

from trimtab.artifacts import variants
from trimtab.artifacts.artifact import provisional
from trimtab.artifacts.cards import TRAINED_ON
from trimtab.artifacts.manifest import Manifest
from trimtab.errors import ConfigError
from trimtab_server import config
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import LoadedEncoder, RequestedOutput
from trimtab_server.catalog.lifecycle import Embed, Lifecycle
from trimtab_server.spaces import routes
from trimtab_server.spaces.route import LoadedAdapter, Route, own
from trimtab_server.tasks.plan import EmbedRequest, Plan, Policy

log = logging.getLogger(__name__)

# The queue is short again below this share of the threshold.
SHORT = 0.5
# A brownout is reported for at least so long, however short the calm time is.
LATELY = 1.0
# How many tenants are remembered: callers can make up any number. For others, a brownout lasts just as long
# as their queue is long.
MOST_TENANTS = 4096


class Brownout:
    """Which of an encoder's tenants are in a brownout, by the queue of each. Not thread-safe.

    A brownout begins when the queue is longer than `above_seconds`, and ends when it has been shorter than
    half of that for `calm_seconds`: the fallback shortens the queue, which would otherwise end the brownout
    at once and begin it again. One tenant's flood is no brownout for tenants that need not wait.
    """

    def __init__(self, settings: config.BrownoutSettings) -> None:
        self.settings = settings
        self._swept = float("-inf")
        self._long: dict[str, float] = {}  # tenants in a brownout: when their queue was last not short

    def look(self, queue_seconds: float, now: float, tenant: str = "") -> bool:
        """A tenant's queue is so long now, on any monotonic clock. Returns whether the tenant is in a
        brownout."""
        above, calm = self.settings.above_seconds, self.settings.calm_seconds
        if tenant in self._long:
            if queue_seconds > SHORT * above:
                self._long[tenant] = now
            elif now - self._long[tenant] >= calm:
                del self._long[tenant]
        elif queue_seconds > above:
            if now - self._swept >= LATELY:
                # Tenants that no longer ask would stay forever.
                self._swept = now
                self._long = {each: at for each, at in self._long.items() if now - at < calm}
            if len(self._long) >= MOST_TENANTS:
                return True
            self._long[tenant] = now
        return tenant in self._long

    def lasts(self, now: float) -> bool:
        """Whether any tenant is in a brownout. It changes nothing, so any thread may ask."""
        lately = max(self.settings.calm_seconds, LATELY)
        return any(now - at < lately for at in list(self._long.values()))


class Brownouts(Lifecycle, Policy):
    """The brownouts of all encoders, one for each version, and the routes of their fallbacks.

    `queue_seconds` predicts how long an interactive item of a flow waits for an encoder.
    """

    def __init__(
        self,
        settings: Mapping[str, config.BrownoutSettings],
        queue_seconds: Callable[[LoadedEncoder, str], float],
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._queue_seconds = queue_seconds
        self._clock = clock
        self._brownouts: dict[tuple[str, int], Brownout] = {}
        self._fallbacks: dict[tuple[str, int], tuple[LoadedEncoder, Route]] = {}

    def concerns(self, encoder: str) -> bool:
        return encoder in self._settings

    def check(self, manifest: Manifest, adapters: Iterable[LoadedAdapter]) -> None:
        fallback_route(self._settings[manifest.name], manifest, adapters)

    async def opened(self, encoder: LoadedEncoder, embed: Embed) -> None:
        self._brownouts[encoder.name, encoder.version] = Brownout(self._settings[encoder.name])

    def closed(self, name: str, version: int) -> None:
        self._brownouts.pop((name, version), None)

    def published(
        self, encoders: Sequence[LoadedEncoder], adapters: Callable[[str], Sequence[LoadedAdapter]]
    ) -> None:
        self._fallbacks = {}
        for encoder in encoders:
            if not self.concerns(encoder.name):
                continue
            settings = self._settings[encoder.name]
            try:
                route = fallback_route(settings, encoder.manifest, adapters(encoder.name))
            except ConfigError as error:  # it has lost its adapter
                log.warning("%s version %d has no brownout: %s", encoder.name, encoder.version, error)
                continue
            fallback = encoder.variants.get(settings.variant)
            if fallback is not None:  # it may have been retired
                self._fallbacks[encoder.name, encoder.version] = fallback, route

    def of(self, name: str, version: int) -> Brownout | None:
        """The brownout of a version, if it is configured."""
        return self._brownouts.get((name, version))

    def plan(self, call: Call, plan: Plan) -> Plan:
        """In a brownout, the fallback computes what it was measured on, in place of the encoder itself."""
        encoder = plan.version
        brownout = self.of(encoder.name, encoder.version) if plan.by_itself else None
        if brownout is None:
            return plan
        if not brownout.look(self._queue_seconds(encoder, call.flow), self._clock(), call.flow):
            return plan
        fallback = self._fallbacks.get((encoder.name, encoder.version))
        if fallback is None or not _measured(call, plan.request, encoder.manifest):
            return plan
        cheaper, route = fallback
        outputs = (RequestedOutput(cheaper.output, route),)
        return msgspec.structs.replace(plan, encoder=cheaper, outputs=outputs, browned_out=True)


def _measured(call: Call, request: EmbedRequest, whole: Manifest) -> bool:
    """Whether the request allows the fallback, and is like those it was measured on: whole vectors of
    queries, in the encoder's own space.

    A text without a role may be a passage, whose vector would stay in an index after the brownout.
    """
    return (
        request.allow_brownout
        and call.priority == "interactive"
        and request.role == "query"
        and not (request.variant or request.layers)
        and tuple(request.spaces) in ((), (whole.space,))
        and request.dimensions in (None, whole.dimensions)
        and request.dtype != "ubinary"
        and tuple(request.outputs) in ((), (whole.output.name,))
    )


def fallback_route(
    settings: config.BrownoutSettings, whole: Manifest, adapters: Iterable[LoadedAdapter]
) -> Route:
    """The route of the fallback's queries into the encoder's own space, which keeps `min_quality`.

    Raises ConfigError, with what was measured, if none keeps that much.
    """
    variant = variants.named(whole, settings.variant)
    if variant is None or not variant.moved:
        raise ConfigError(
            f"brownout names the variant {settings.variant!r}: give one of "
            f"{variants.names(whole.variants[1:])} of {variants.title(whole)}"
        )
    fallback = variants.alone(whole, variant)
    between = [
        each
        for each in adapters
        if (each.manifest.source.space, each.manifest.target.space) == (fallback.space, whole.space)
        and each.manifest.verdict == "bridge"
        and not each.manifest.provisional
        and not routes.refusal(each)
    ]
    best = max(between, key=_keeps, default=None)
    if best is not None and _keeps(best) >= settings.min_quality:
        return replace(own(whole), hops=(best,))
    found = [f"adapter {each.name} keeps {_keeps(each):.3f} of R@10" for each in between]
    card = variant.report.fidelity
    if card is not None and fallback.dimensions == whole.dimensions:
        alone = card.query_only_ndcg.value
        if alone >= settings.min_quality and not card.provisional:
            return own(whole)
        found.append(f"its queries alone keep {alone:.3f} of nDCG@10 by its report card")
        if card.provisional:
            found.append(f"which is {provisional(TRAINED_ON)}")
    folder = f"{whole.name}/{whole.version}"
    raise ConfigError(
        f"brownout asks for min_quality = {settings.min_quality:g} in the index of {variants.title(whole)}, "
        f"and of variant {variant.name} {'; '.join(found) or 'nothing was measured there'}: name another "
        f"variant, ask for less, or fit an adapter: `trimtab adapter fit --from {folder}:{variant.name} --to "
        f"{folder}`"
    )


def _keeps(adapter: LoadedAdapter) -> float:
    return adapter.manifest.report.against_old.value
