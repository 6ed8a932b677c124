# SPDX-License-Identifier: Apache-2.0
"""The states of a flow's rule. Imports no numpy, so that the command line can list them without delay."""

from __future__ import annotations

from enum import IntEnum


class FlowState(IntEnum):
    """State of a flow's rule."""

    FREE = 0
    """No flow is in the slot."""
    PENDING = 1
    """Admitted; the device's worker has the rule and installs it."""
    INSTALLED = 2
    DRAINING = 3
    """The rule is being removed, or it is gone and the grace period is running."""
    WAITING = 4
    """Admitted, and its mark is published; waits for room on the NIC, for the budget or for a retry."""
    REFUSED = 5
    """Gets no rule; remembered with the reason."""
    ENDED = 6
    """Its connection was closed, and its rule is gone; remembered in case it goes on after all."""

    @property
    def word(self) -> str:
        """The state as `nfcore flows` shows it."""
        return self.name.lower()


class Order(IntEnum):
    """Whether an application has ordered a flow."""

    NONE = 0
    """A datapath has reported it."""
    STANDS = 1
    """It keeps its rule until the order is withdrawn, and gets one as soon as there is room."""
    WITHDRAWN = 2
    """Its rule is being removed; then the flow is forgotten."""


WITHOUT_RULE = (FlowState.REFUSED, FlowState.ENDED)
"""States in which a flow is only remembered: its next report may bring a rule."""
SHOWN_STATES = (FlowState.INSTALLED, FlowState.PENDING, FlowState.WAITING, FlowState.DRAINING, FlowState.REFUSED)
"""States that `nfcore flows` lists when it is not told which."""
LISTED_STATES = (*SHOWN_STATES, FlowState.ENDED)
"""States that `nfcore flows` can list."""
SORT_KEYS = {
    "rate": (),
    "packets": ("packets", "past_packets"),
    "bytes": ("bytes", "past_bytes"),
    "age": ("since",),
    "mark": ("mark",),
}
"""How `nfcore flows` sorts: by the sum of these columns of the flow table; `rate` by the current rate."""
