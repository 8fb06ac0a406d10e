"""Which devices are in service, and how those that are not come back: sans-IO.

A device out of service is probed, at growing intervals, and comes back when it is well. One that should be
back in a moment is waited for.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

# A device raised, did not come back from a run, lost its process, held too much memory, or is not well yet.
Reason = Literal["raised", "hung", "lost", "memory", "probe"]

# A run or a probe hangs if it takes so many times as long as it should; busy neighbours alone may make it
# several times as long.
HANG_FACTOR = 20.0
# Seconds from when a device is taken out until it is probed: doubled by each failure, halved by each success.
FIRST_PROBE, LAST_PROBE = 0.1, 30.0
# A device that should be back in half this time is waited for, but no longer than this.
RESTORE_SECONDS = 20.0
# The least time after which a probe, which may load models, counts as hung.
PROBE_SECONDS = 60.0

Changed: TypeAlias = Callable[[str, bool, Reason | None], None]


@dataclass(slots=True)
class _DeviceState:
    probing: bool = False
    probe_at: float = 0.0
    probe_due: float = math.inf  # when a probe counts as hung
    delay: float = FIRST_PROBE
    draining: bool = False  # its runs must end before it is probed


def never(device: str) -> float:
    """How long a restart takes if a device cannot be restarted."""
    return math.inf


class Standing:
    """The devices, by name. Not thread-safe: the engine's lock guards it.

    `changed` is called with a device, whether it is in service now, and what was wrong with it;
    `restore_seconds` estimates how long a device takes to restart: infinity if it cannot.
    """

    def __init__(
        self, devices: Iterable[str], changed: Changed, restore_seconds: Callable[[str], float] = never
    ) -> None:
        self._changed = changed
        self._restore_seconds = restore_seconds
        self._states = {device: _DeviceState() for device in devices}
        self._up = set(self._states)
        self._restoring: dict[str, float] = {}  # until when each of them is waited for

    @property
    def serving(self) -> bool:
        """Whether any device is in service, or will be in a moment."""
        return bool(self._up or self._restoring)

    @property
    def working(self) -> set[str]:
        """The devices in service or, if there are none, those that will be in a moment."""
        return self._up or set(self._restoring)

    @property
    def any_up(self) -> bool:
        """Whether any device is in service now."""
        return bool(self._up)

    def up(self, device: str) -> bool:
        """Whether this device is in service."""
        return device in self._up

    def other_than(self, device: str) -> bool:
        """Whether another device is in service."""
        return bool(self._up - {device})

    def restoring(self, device: str) -> bool:
        """Whether this device is waited for."""
        return device in self._restoring

    def begins_anew(self, device: str) -> bool:
        """Whether this device can be restarted, whatever runs on it."""
        return not math.isinf(self._restore_seconds(device))

    def back_in(self, now: float) -> float:
        """About how long it takes until a device is in service; 0 if one is, or none is waited for."""
        if self._up:
            return 0.0
        return min(
            (
                max(0.0, self._states[device].probe_at - now) + self._restore_seconds(device)
                for device in self._restoring
            ),
            default=0.0,
        )

    def well(self, device: str) -> None:
        """The device has computed something."""
        state = self._states[device]
        state.delay = max(FIRST_PROBE, state.delay / 2)

    def take_out(self, device: str, reason: Reason, now: float) -> None:
        """Take a device out of service."""
        if device not in self._up:
            return
        self._up.remove(device)
        # A device that raises is not waited for: it may do so for ever.
        back = self._states[device].delay + self._restore_seconds(device)
        if reason != "raised" and 2 * back <= RESTORE_SECONDS:
            self._restoring[device] = now + RESTORE_SECONDS
        self._put_off(device, reason, now)

    def retire(self, device: str, now: float) -> None:
        """Restart the device as soon as its runs have ended."""
        if device in self._up:
            self._states[device].draining = True
            self.take_out(device, "memory", now)

    def due(self) -> float | None:
        """When the next probe counts as hung, or a device is no longer waited for."""
        probes = [state.probe_due for state in self._states.values() if state.probe_due < math.inf]
        return min([*probes, *self._restoring.values()], default=None)

    def give_up_waiting(self, now: float) -> None:
        """Stop waiting for devices that should be back by now."""
        for device in [device for device, until in self._restoring.items() if until <= now]:
            del self._restoring[device]

    def probe_in(self, device: str, now: float, *, busy: bool) -> float | None:
        """Seconds until the device should be probed; None while it is in service, or being probed. `busy`:
        something still runs there."""
        state = self._states[device]
        if device in self._up or state.probing or (state.draining and busy):
            return None
        return max(0.0, state.probe_at - now)

    def probing(self, device: str, now: float) -> None:
        """A worker of the device probes it from now on."""
        state = self._states[device]
        state.probing = True
        state.probe_due = now + max(PROBE_SECONDS, HANG_FACTOR * self._restore_seconds(device))

    def stuck(self, now: float) -> list[str]:
        """The devices whose probes hang; each is named once."""
        stuck = [device for device, state in self._states.items() if state.probe_due <= now]
        for device in stuck:
            self._states[device].probe_due = math.inf
        return stuck

    def probed(self, device: str, *, well: bool, now: float) -> None:
        """A probe has returned: the device comes back, or is probed again later."""
        state = self._states[device]
        state.probing = state.draining = False
        state.probe_due = math.inf
        if well:
            self._up.add(device)
            self._restoring.pop(device, None)
            self._changed(device, True, None)
        else:
            self._put_off(device, "probe", now)

    def _put_off(self, device: str, reason: Reason, now: float) -> None:
        state = self._states[device]
        state.probe_at = now + state.delay
        state.delay = min(LAST_PROBE, state.delay * 2)
        self._changed(device, False, reason)
