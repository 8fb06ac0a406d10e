"""How a request is answered: what was asked for, the plan, and the policies that may change it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.kinds import Dtype, Role, Truncate
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import LoadedEncoder, RequestedOutput
from trimtab_server.outputs.kind import Shape
from trimtab_server.spaces.route import Vectors


class EmbedRequest(msgspec.Struct, frozen=True):
    """What a caller asks for, in any protocol. The options are those of `EmbedOptions`."""

    encoder: str
    version: str
    texts: Sequence[Any]  # or items of another form
    role: Role | None = None
    truncate: Truncate = "end"
    dimensions: int | None = None
    dtype: Dtype = "float32"
    spaces: Sequence[str] = ()  # none: the encoder's own
    outputs: Sequence[str] = ()  # none: the first one
    group: str = ""
    variant: str = ""  # of the encoder's bundle
    layers: int | None = None
    max_vectors: int | None = None  # of a passage
    allow_brownout: bool = True
    form: str = "text"  # the field of trimtab.v1.Input that its items come in
    field: str = "texts"  # the request's field with the items

    @property
    def shape(self) -> Shape:
        """How its outputs are wanted."""
        return Shape(self.dimensions, self.dtype, self.max_vectors)

    def which(self, row: int) -> str:
        """What messages call an item."""
        return f"{self.field}[{row}]"


@dataclass(frozen=True, slots=True)
class Hubness:
    """For each passage of a request, the share of the sentinel queries that would find it among the first
    ten, float64 (n,); and the share that ordinary passages hardly ever exceed."""

    reach: NDArray[np.float64]
    threshold: float

    @property
    def suspicious(self) -> list[int]:
        """The rows above the threshold."""
        rows: list[int] = np.flatnonzero(self.reach > self.threshold).tolist()
        return rows


class Plan(msgspec.Struct, frozen=True):
    """How a request is answered, and what was found about its vectors.

    `version` is the encoder that answers, and `encoder` is its graph that computes: itself, or another
    variant. `outputs` pair each requested output with its route into each requested space. `watched` has the
    dense vectors that adapters map computed for policies to look at, even if no output needs them.
    """

    request: EmbedRequest
    version: LoadedEncoder
    encoder: LoadedEncoder
    outputs: Sequence[RequestedOutput]
    browned_out: bool = False  # a cheaper variant computes instead of the encoder itself
    hubness: Hubness | None = None
    watched: bool = False

    @property
    def by_itself(self) -> bool:
        """Whether the encoder itself computes, and none of its other variants."""
        return self.encoder is self.version

    @property
    def items(self) -> Sequence[Any]:
        """The items as the encoder reads them in their role."""
        encoder, request = self.encoder, self.request
        return encoder.reader.in_role(request.texts, request.role, encoder.prompts)


class Policy:
    """Changes how requests are answered, before or after they are computed. This one changes nothing.

    Policies are asked in the order of the list in app.py. A plan is made without awaiting anything, so what
    is served stays the same meanwhile.
    """

    def plan(self, call: Call, plan: Plan) -> Plan:
        """The plan for the next policy. Raises an error to refuse the request."""
        return plan

    async def look(self, call: Call, plan: Plan, vectors: Vectors) -> Plan:
        """Look at a request that was computed and is not answered yet.

        `vectors` are the whole dense vectors of `plan.encoder`, float32 (n, dimensions); requests without
        such vectors are skipped, unless the plan is `watched`. What was found is in the returned plan. Raises
        an error to withhold the answer.
        """
        return plan
