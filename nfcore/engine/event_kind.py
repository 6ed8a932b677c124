# SPDX-License-Identifier: Apache-2.0
"""The kinds of events. Imports no numpy, so that the command line can list them without delay."""

from __future__ import annotations

from enum import IntEnum


class EventKind(IntEnum):
    """What happened: up to `VANISHED` to a flow, from `DAEMON` on to the daemon or a device."""

    INSTALLED = 1
    PUT_BACK = 2
    """Installed again after it had vanished."""
    ADOPTED = 3
    """Taken over from an earlier run."""
    DEFERRED = 4
    """Waits for room, the budget or a retry."""
    REFUSED = 5
    FAILED = 6
    """The backend could not install or could not remove its rule."""
    AGED = 7
    """Rule removed: its counter stood still."""
    REPLACED = 8
    """Rule removed to make room for a hotter flow."""
    ENDED = 9
    """Rule removed for another reason: connection closed, target gone, offloading switched off."""
    VANISHED = 10
    """The rule is gone from the NIC, and nfcore did not remove it."""
    DAEMON = 32
    """The daemon is ready."""
    SWITCH = 33
    """Offloading was switched on or off."""
    RELOAD = 34
    LINK = 35
    BACKEND = 36
    """A backend was left out, or its capabilities have changed."""
    NIC = 37
    """It is full, has room again, or held rules of nfcore that belonged to no flow."""

    @property
    def word(self) -> str:
        """The kind as `nfcore events` shows it."""
        return self.name.lower().replace("_", "-")
