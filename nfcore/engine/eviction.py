# SPDX-License-Identifier: Apache-2.0
"""How hot flows are, and which of them deserve the NIC's places. Rates are packets a second."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HYSTERESIS = 2.0
"""How many times hotter a waiting flow must be than the one whose place it takes: two that are alike must not chase
each other out."""
TIGHT = 0.8
"""Share of the table from which on idle flows get less time."""
LEAST_PATIENCE = 0.1
"""Share of the idle time that is left to them when the table is full."""


def waiting_rates(
    rates: NDArray[np.float32], packets: NDArray[np.uint64], seen: NDArray[np.float64], min_packets: int, now: float
) -> NDArray[np.float64]:
    """What waiting flows can still be good for.

    XDP reports a flow again when it has shown about as many packets as before. No report for some time means that
    it is not faster than that many packets in that time.
    """
    silence = np.maximum(now - seen, 1e-3)
    bound: NDArray[np.float64] = np.minimum(rates, (packets.astype(np.float64) + min_packets) / silence)
    return bound


def hottest(rates: NDArray[np.float64], packets: NDArray[np.uint64], wanted: int) -> NDArray[np.int64]:
    """Positions of the `wanted` hottest, hottest first.

    Where rates are alike those that showed more packets come first, and the earlier ones among their equals.
    """
    order: NDArray[np.int64] = np.lexsort((-packets.astype(np.float64), -rates))[:wanted]
    return order


def replaceable(installed: NDArray[np.float64], waiting: NDArray[np.float64]) -> int:
    """How many of the coldest installed flows are to give their place to as many of the hottest waiting ones.

    Both sorted: installed coldest first, waiting hottest first.
    """
    pairs = min(len(installed), len(waiting))
    worth = (waiting[:pairs] > 0) & (waiting[:pairs] > HYSTERESIS * installed[:pairs])
    return pairs if worth.all() else int(np.argmin(worth))


def idle_timeout_at(idle_timeout: float, held: int, room: int) -> float:
    """How long a flow may be idle, in seconds, when `held` of `room` places are taken."""
    fill = held / room if room else 1.0
    if fill <= TIGHT:
        return idle_timeout
    left = max(0.0, (1 - fill) / (1 - TIGHT))
    return idle_timeout * (LEAST_PATIENCE + (1 - LEAST_PATIENCE) * left)
