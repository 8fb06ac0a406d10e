"""How texts are to be embedded: what was asked for, what is planned for it, and who may change that."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.kinds import Dtype, Role, Truncate
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import LoadedEncoder, Way
from trimtab_server.spaces.route import Vectors


class EmbedRequest(msgspec.Struct, frozen=True):
    """What a caller asks for, whatever the protocol it came by. The options are those of `EmbedOptions`."""

    encoder: str
    version: str
    texts: Sequence[Any]  # or other items, of the form
    role: Role | None = None
    truncate: Truncate = "end"
    dimensions: int | None = None
    dtype: Dtype = "float32"
    spaces: Sequence[str] = ()  # none: the encoder's own
    outputs: Sequence[str] = ()  # none: the first one
    group: str = ""
    variant: str = ""  # of the encoder's bundle
    layers: int | None = None
    allow_brownout: bool = True
    form: str = "text"  # the field of trimtab.v1.Input that its items come in
    field: str = "texts"  # where the request has them

    def which(self, row: int) -> str:
        """How messages call an item."""
        return f"{self.field}[{row}]"


@dataclass(frozen=True, slots=True)
class Hubness:
    """Of each passage of a request the share of the sentinel queries that it would be shown for among the
    first ten, float64 (n,); and the share that ordinary ones hardly ever exceed."""

    reach: NDArray[np.float64]
    threshold: float

    @property
    def suspicious(self) -> list[int]:
        """The rows above the threshold."""
        rows: list[int] = np.flatnonzero(self.reach > self.threshold).tolist()
        return rows


class Plan(msgspec.Struct, frozen=True):
    """How a request is answered, and what was found of its vectors.

    `version` is the encoder that answers, and `encoder` the graph of it that computes: the same, or another
    variant's. Each way is that of an output asked for into one of the spaces asked for.
    """

    request: EmbedRequest
    version: LoadedEncoder
    encoder: LoadedEncoder
    ways: Sequence[Way]
    browned_out: bool = False  # a cheaper variant computes instead of the encoder itself
    hubness: Hubness | None = None

    @property
    def by_itself(self) -> bool:
        """Whether the encoder itself computes, and none of its other variants."""
        return self.encoder is self.version

    @property
    def items(self) -> Sequence[Any]:
        """The items as the encoder reads them: behind the prompt for their role."""
        texts, role = self.request.texts, self.request.role
        prompt = self.encoder.manifest.prompts.of(role)
        return self.encoder.reader.prompted(texts, prompt) if prompt else texts


class Policy:
    """Changes how requests are answered, before they are computed or after. This one changes nothing.

    The order in which policies are asked is their order in the server's one list of them (app.py). Plans are
    made in one go, without waiting for anything: what is served stays the same meanwhile.
    """

    def plan(self, call: Call, plan: Plan) -> Plan:
        """The plan as it goes on to the next policy. Raises what the request is refused with."""
        return plan

    async def look(self, call: Call, plan: Plan, vectors: Vectors) -> Plan:
        """The request was computed, with whole dense vectors of `plan.encoder`, float32 (n, dimensions), not
        yet answered; what gives no such vectors is not looked at. What was found of it is in the plan
        returned. Raises what the answer is withheld for."""
        return plan
