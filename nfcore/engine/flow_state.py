# SPDX-License-Identifier: Apache-2.0
"""Where a flow's rule is in its life. Without numpy, so that the command line can list the names at once."""

from __future__ import annotations

from enum import IntEnum


class FlowState(IntEnum):
    """Where a flow's rule is in its life."""

    FREE = 0
    """No flow is in the slot."""
    PENDING = 1
    """Admitted; the rule is on its way to the NIC."""
    INSTALLED = 2
    DRAINING = 3
    """The rule is being removed, or gone with the grace period still running."""
    WAITING = 4
    """Admitted and its mark published; waits for room on the NIC, for budget or for a retry."""
    REFUSED = 5
    """Gets no rule; remembered with the reason."""

    @property
    def word(self) -> str:
        """The state as `nfcore flows` writes it."""
        return self.name.lower()


LISTED_STATES = (
    FlowState.INSTALLED,
    FlowState.PENDING,
    FlowState.WAITING,
    FlowState.DRAINING,
    FlowState.REFUSED,
)
"""Those of flows that `nfcore flows` lists."""
SORT_KEYS = {
    "rate": (),
    "packets": ("packets", "past_packets"),
    "bytes": ("bytes", "past_bytes"),
    "age": ("since",),
    "mark": ("mark",),
}
"""How `nfcore flows` sorts: by the sum of these columns of the flow table; `rate` by what flows do now."""
