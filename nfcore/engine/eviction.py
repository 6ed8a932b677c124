# SPDX-License-Identifier: Apache-2.0
"""Decides by rate which flows get the places in the NIC's table. Rates are packets a second."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HYSTERESIS = 2.0
"""A waiting flow takes the place of an installed one only if its rate is this many times higher: otherwise two flows of
similar rates would replace each other again and again."""
TIGHT = 0.8
"""Fill of the table from which on the idle timeout becomes shorter."""
LEAST_PATIENCE = 0.1
"""Share of the idle timeout that is left when the table is full."""


def waiting_rates(
    rates: NDArray[np.float32], packets: NDArray[np.uint64], seen: NDArray[np.float64], min_packets: int, now: float
) -> NDArray[np.float64]:
    """The highest rates that waiting flows can still have.

    XDP reports a flow again after about as many packets as it has shown before. While no report comes, the flow is
    no faster than that many packets in this time.
    """
    silence = np.maximum(now - seen, 1e-3)
    bound: NDArray[np.float64] = np.minimum(rates, (packets.astype(np.float64) + min_packets) / silence)
    return bound


def hottest(rates: NDArray[np.float64], packets: NDArray[np.uint64], wanted: int) -> NDArray[np.int64]:
    """Positions of the `wanted` hottest, hottest first.

    At equal rates those with more packets come first, at equal packets the earlier ones.
    """
    order: NDArray[np.int64] = np.lexsort((-packets.astype(np.float64), -rates))[:wanted]
    return order


def replaceable(installed: NDArray[np.float64], waiting: NDArray[np.float64]) -> int:
    """How many of the coldest installed flows are to be replaced by as many of the hottest waiting ones.

    Both are rates, sorted: installed coldest first, waiting hottest first.
    """
    pairs = min(len(installed), len(waiting))
    hotter = (waiting[:pairs] > 0) & (waiting[:pairs] > HYSTERESIS * installed[:pairs])
    return pairs if hotter.all() else int(np.argmin(hotter))


def idle_timeout_at(idle_timeout: float, held: int, room: int) -> float:
    """How long a rule may be idle, in seconds, when `held` of `room` places are taken."""
    fill = held / room if room else 1.0
    if fill <= TIGHT:
        return idle_timeout
    left = max(0.0, (1 - fill) / (1 - TIGHT))
    return idle_timeout * (LEAST_PATIENCE + (1 - LEAST_PATIENCE) * left)
