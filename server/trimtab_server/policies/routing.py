"""Finds each requested output's way into each requested space, and refuses what is not available there."""

from collections.abc import Sequence

import msgspec

from trimtab.errors import InvalidArgument, NotFound
from trimtab_server.callers.access import Caller
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import LoadedEncoder, RequestedOutput, ServedOutput
from trimtab_server.spaces.adapters import Adapters
from trimtab_server.spaces.route import Route
from trimtab_server.tasks.plan import EmbedRequest, Plan, Policy

# Each requested space holds a matrix of its own until the answer is sent.
MAX_SPACES = 8


class Routing(Policy):
    """Finds the way of each output into each requested space."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    def plan(self, call: Call, plan: Plan) -> Plan:
        request = plan.request
        if request.outputs or request.spaces:
            found = requested_outputs(self._adapters, call.caller, plan.encoder, request)
            return msgspec.structs.replace(plan, outputs=found)
        for output, route in plan.outputs:  # the default
            output.kind.check(route, request.shape)
        return plan


def requested_outputs(
    adapters: Adapters, caller: Caller, encoder: LoadedEncoder, request: EmbedRequest
) -> list[RequestedOutput]:
    """Each requested output in each requested space, through adapters that the caller may use. Refuses what
    is not available there, naming the cure.

    Only the vectors that adapters map go into other spaces; other outputs stay in their own. If none of the
    outputs is mapped, each space must be the own space of one of them.
    """
    shape, named = request.shape, encoder.outputs_named(request.outputs)
    if request.spaces:
        _check_spaces(encoder, named, request.spaces)
    found = []
    for output in named:
        mapped = request.spaces and output.columns[0] == encoder.mapped
        for route in _routes(adapters, caller, encoder, request.spaces) if mapped else (output.own,):
            output.kind.check(route, shape)
            found.append(RequestedOutput(output, route))
    return found


def _check_spaces(encoder: LoadedEncoder, outputs: Sequence[ServedOutput], spaces: Sequence[str]) -> None:
    """Refuse too many spaces, one that is named twice, and one that no output can be in."""
    if len(spaces) > MAX_SPACES or len(set(spaces)) < len(spaces):
        raise InvalidArgument(
            f"spaces names {len(spaces)} spaces, of which {len(set(spaces))} differ: name each once, and "
            f"{MAX_SPACES} at most"
        )
    if any(output.columns[0] == encoder.mapped for output in outputs):
        return  # the adapters say where it leads
    own = [output.own.space for output in outputs]
    for space in spaces:
        if space not in own:
            there = ", ".join(f"{output.name} in {output.own.space}" for output in outputs)
            raise NotFound(
                f"space {space!r} is not in reach: encoder {encoder.name} gives {there}, and adapters "
                "map only the first output, if it is dense. Name its own space, or leave the space out"
            )


def _routes(adapters: Adapters, caller: Caller, encoder: LoadedEncoder, spaces: Sequence[str]) -> list[Route]:
    manifest = encoder.manifest
    return [
        encoder.own
        if space == manifest.space
        else adapters.route(caller, manifest, encoder.states_width, space)
        for space in spaces
    ]
