# SPDX-License-Identifier: Apache-2.0
"""What the engine tells as events. Without numpy, so that the command line can list the names at once."""

from __future__ import annotations

from enum import IntEnum


class EventKind(IntEnum):
    """What happened; those up to `VANISHED` happen to a flow, the others to the manager."""

    INSTALLED = 1
    PUT_BACK = 2
    """Installed again after it had vanished."""
    ADOPTED = 3
    """Taken over from an earlier run."""
    DEFERRED = 4
    """Waits for room, budget or a retry."""
    REFUSED = 5
    FAILED = 6
    """The backend could not install it, or not remove it."""
    AGED = 7
    """Removed because its counter stood still."""
    REPLACED = 8
    """Removed to make room for a hotter flow."""
    ENDED = 9
    """Removed for another reason: connection closed, target gone, switched off."""
    VANISHED = 10
    """Gone from the NIC without our doing."""
    DAEMON = 32
    """Started, or about to stop."""
    SWITCH = 33
    """Offloading was switched on or off."""
    RELOAD = 34
    LINK = 35
    BACKEND = 36
    """A backend was left out, or can do something else than before."""
    NIC = 37
    """It has become full, has room again, or held rules that belong to nobody."""

    @property
    def word(self) -> str:
        """The kind as `nfcore events` writes it."""
        return self.name.lower().replace("_", "-")
