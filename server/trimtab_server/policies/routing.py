"""The way into each space that a request asks for, and what cannot be had there."""

import msgspec

from trimtab.errors import FailedPrecondition, InvalidArgument
from trimtab_server.callers.access import Caller
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import Encoder
from trimtab_server.spaces.adapters import Adapters, Route
from trimtab_server.tasks.plan import EmbedRequest, Plan, Policy

# Each space asked for holds a matrix of its own until the answer is sent.
MAX_SPACES = 8


class Routing(Policy):
    """Finds the way into each space asked for."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    def plan(self, call: Call, plan: Plan) -> Plan:
        found = routes(self._adapters, call.caller, plan.encoder, plan.request)
        return msgspec.structs.replace(plan, routes=found) if plan.request.spaces else plan


def routes(adapters: Adapters, caller: Caller, encoder: Encoder, request: EmbedRequest) -> list[Route]:
    """The way into each space asked for, by adapters that the caller may use; refuses what cannot be had
    there, naming the cure."""
    manifest, spaces = encoder.manifest, request.spaces
    if not spaces:
        _check_output(encoder.own, encoder, request)
        return [encoder.own]
    if len(spaces) > MAX_SPACES or len(set(spaces)) < len(spaces):
        raise InvalidArgument(
            f"spaces names {len(spaces)} spaces, of which {len(set(spaces))} differ: name each once, and "
            f"{MAX_SPACES} at most"
        )
    found = [
        encoder.own
        if space == manifest.space
        else adapters.route(caller, manifest, encoder.states_width, space)
        for space in spaces
    ]
    for route in found:
        _check_output(route, encoder, request)
    return found


def _check_output(route: Route, encoder: Encoder, request: EmbedRequest) -> None:
    wanted = request.dimensions or route.dimensions
    if wanted > route.dimensions:
        whose = f"space {route.space}" if route.hops else f"encoder {encoder.name}"
        raise InvalidArgument(
            f"dimensions is {request.dimensions}, {whose} has {route.dimensions}: ask for that many or fewer"
        )
    if request.dtype == "ubinary" and wanted % 8:
        raise InvalidArgument(
            f"ubinary packs 8 dimensions into a byte: dimensions must be a multiple of 8, not {wanted}"
        )
    if not route.hops:
        if request.dtype == "int8" and route.int8_limit is None:
            raise FailedPrecondition(
                f"the range of int8 was calibrated for {encoder.name} itself, not for its narrower variant "
                f"{encoder.variant.name}: ask for float32 or float16, or export the encoder again"
            )
        return
    end = route.hops[-1].manifest.target
    cure = f"or put the bundle of {end.encoder} version {end.version} into the repository"
    if request.dtype == "int8" and route.int8_limit is None:
        raise FailedPrecondition(
            f"the range of int8 in space {route.space} was calibrated with an encoder that this server does "
            f"not have: ask for float32 or float16, {cure}"
        )
    if wanted < route.dimensions and route.normalized is None:
        raise FailedPrecondition(
            f"vectors of space {route.space} cannot be cut: whether they are of length 1 only its encoder "
            f"tells, which this server does not have. Ask for all dimensions, {cure}"
        )
