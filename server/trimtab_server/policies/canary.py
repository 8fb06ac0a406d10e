"""A version on trial answers a share of the requests that name no version."""

from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import Encoder
from trimtab_server.catalog.served import Served
from trimtab_server.policies.trials import Trials


class Canary:
    """Which requests fall to a version on trial, among those that are served."""

    def __init__(self, served: Served, trials: Trials) -> None:
        self._served = served
        self._trials = trials

    def __bool__(self) -> bool:
        return bool(self._trials)

    def of(self, call: Call, name: str, text: str) -> Encoder | None:
        """The version on trial to which a request of this first text is given; None: the others answer it.

        Ask only for callers who may use the encoder, and for texts within the limits.
        """
        name = name or self._served.only(call.caller)
        version = self._trials.canary(name, self._served.versions(name), call.tenant, text)
        return self._served.ready(name, version) if version else None

    def shares(self, encoder: Encoder) -> tuple[float, float]:
        """The shares that a version has as a canary, and as a shadow."""
        return self._trials.shares(encoder.name, encoder.version, self._served.versions(encoder.name))
