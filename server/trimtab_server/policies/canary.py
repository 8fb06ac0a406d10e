"""A version on trial answers a share of the requests that name no version."""

from collections.abc import Callable

import msgspec

from trimtab.errors import TrimtabError
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import LoadedEncoder
from trimtab_server.catalog.served import Served
from trimtab_server.policies.routing import requested_outputs
from trimtab_server.policies.trials import Trials
from trimtab_server.spaces.adapters import Adapters
from trimtab_server.tasks.plan import Plan, Policy


class Canary(Policy):
    """Gives a share of the requests to a version on trial, if it can answer them in the same space.

    A caller that names no version is never answered in another space. If the canary has a space of its own,
    it gets only queries, through an adapter into the space of the version that would have answered. The
    adapter must be a bridge: these callers do not rescore candidates, as a cascade needs.

    `counted` is called for each request of the share: encoder, version, and whether the canary got it.
    """

    def __init__(
        self, served: Served, trials: Trials, adapters: Adapters, counted: Callable[[str, int, bool], None]
    ) -> None:
        self._served = served
        self._trials = trials
        self._adapters = adapters
        self._counted = counted

    def plan(self, call: Call, plan: Plan) -> Plan:
        request = plan.request
        named = request.version or request.spaces or request.outputs or request.variant or request.layers
        if named:
            return plan
        canary = self._chosen(plan.version.name, call.tenant, request.texts[0])
        if canary is None:
            return plan
        given = self._given(call, plan, canary)
        self._counted(canary.name, canary.version, given is not None)
        return given or plan

    def _chosen(self, name: str, tenant: str, text: str) -> LoadedEncoder | None:
        version = self._trials.canary(name, self._served.versions(name), tenant, text)
        return self._served.ready(name, version) if version else None

    def _given(self, call: Call, plan: Plan, canary: LoadedEncoder) -> Plan | None:
        request, space = plan.request, plan.version.manifest.space
        if space == canary.manifest.space:
            return Plan(request, canary, canary, (canary.default,))
        # A text that is too long for the canary may fit the other version.
        if request.role != "query" or request.truncate == "none":
            return None
        asked = msgspec.structs.replace(request, spaces=(space,))
        try:
            (output,) = requested_outputs(self._adapters, call.caller, canary, asked)
        except TrimtabError:  # no route into that space, or none for such vectors
            return None
        if output.route.space != space or any(hop.manifest.verdict != "bridge" for hop in output.route.hops):
            return None
        return Plan(asked, canary, canary, (output,))
