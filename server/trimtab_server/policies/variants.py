"""A request may ask for a variant of its encoder: by name, or by its number of layers."""

import msgspec

from trimtab_server.callers.call import Call
from trimtab_server.tasks.plan import Plan, Policy


class Variants(Policy):
    """Chooses the graph that the request names."""

    def plan(self, call: Call, plan: Plan) -> Plan:
        request = plan.request
        if not request.variant and not request.layers:
            return plan
        encoder = plan.version.choose(request.variant, request.layers or 0, request.dimensions or 0)
        if encoder is plan.encoder:
            return plan
        return msgspec.structs.replace(plan, encoder=encoder, outputs=(encoder.default,))
