"""Versions on trial: which they are, and which requests they are given. Sans-IO.

A *canary* answers a share of the requests that name no version; a *shadow* is shown a share of the texts, and
answers nobody. Both are chosen by a hash of the tenant and the text, so that every replica decides alike, and
a repeated request gets the same version.
"""

import hashlib
from collections.abc import Mapping, Sequence

from trimtab_server.config import TrialSettings


class Trials:
    """The configuration's trials, by encoder."""

    def __init__(self, canaries: Mapping[str, TrialSettings], shadows: Mapping[str, TrialSettings]) -> None:
        self._canaries = canaries
        self._shadows = shadows

    def __bool__(self) -> bool:
        return bool(self._canaries or self._shadows)

    @property
    def configured(self) -> dict[str, set[str]]:
        """The encoders of each table of the configuration."""
        return {"canary": set(self._canaries), "shadow": set(self._shadows)}

    def versions(self, name: str, served: Sequence[int]) -> set[int]:
        """Which of the served versions are on trial: they answer only requests that are given to them.

        None is, if there is no other version.
        """
        trials = [trial for trial in (self._canaries.get(name), self._shadows.get(name)) if trial]
        found = {version for trial in trials if (version := _version(trial, served))}
        return found if found < set(served) else set()

    def canary(self, name: str, served: Sequence[int], tenant: str, text: str) -> int | None:
        """The version on trial that gets a request with this first text; None: none does."""
        return self._chosen(self._canaries, name, served, tenant, text)

    def shadow(self, name: str, served: Sequence[int], answered: int, tenant: str, text: str) -> int | None:
        """The version that is shown a text that another one answered; None: none is.

        It is compared only with the version that answers requests that name none.
        """
        version = self._chosen(self._shadows, name, served, tenant, text)
        if version is None or answered != max(set(served) - self.versions(name, served)):
            return None
        return version

    def shares(self, name: str, version: int, served: Sequence[int]) -> tuple[float, float]:
        """The shares that a version has as a canary, and as a shadow."""
        on_trial = version in self.versions(name, served)
        canary, shadow = (
            trials[name].share if on_trial and name in trials and _version(trials[name], served) == version
            else 0.0
            for trials in (self._canaries, self._shadows)
        )  # fmt: skip
        return canary, shadow

    def _chosen(
        self, trials: Mapping[str, TrialSettings], name: str, served: Sequence[int], tenant: str, text: str
    ) -> int | None:
        trial = trials.get(name)
        if trial is None or not falls_to(trial.share, tenant, text):
            return None
        version = _version(trial, served)
        return version if version in self.versions(name, served) else None


def falls_to(share: float, tenant: str, text: str) -> bool:
    """Whether this text of this tenant is in the share, 0 to 1."""
    digest = hashlib.blake2b(f"{tenant}\0{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64


def _version(trial: TrialSettings, served: Sequence[int]) -> int | None:
    wanted = max(served, default=0) if trial.version == "newest" else trial.version
    return wanted if wanted in served else None
