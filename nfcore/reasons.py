# SPDX-License-Identifier: Apache-2.0
"""Why a flow is not in hardware: the numbers that `on_new_flow` answers with, and the words for them."""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """0 admits; 1 to 63 belong to the core, 64 to 255 to plugins."""

    ADMIT = 0
    TABLE_FULL = 1
    """`[offload] max_rules` flows have a rule."""
    NO_MARK = 2
    """The strategy had none, or XDP's pool was empty."""
    NOT_PUBLISHED = 3
    """The NF refused to write what the mark means: VIP or real have changed."""
    QUEUE_FULL = 4
    """The device's worker is behind."""
    NO_BACKEND = 5
    """The device has no backend that takes rules."""
    NIC_FULL = 6
    UNSUPPORTED = 7
    FAILED = 8
    HOOK_FAILED = 9
    """A policy or the NF raised, or gave no answer for each flow; the flow stays on the slow path."""

    @property
    def word(self) -> str:
        """The reason as metrics and messages write it."""
        return self.name.lower()


def reason_word(number: int) -> str:
    """Name a reason, a plugin's own by its number."""
    try:
        return Reason(number).word
    except ValueError:
        return f"plugin_{number}"
