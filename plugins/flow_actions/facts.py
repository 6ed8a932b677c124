# SPDX-License-Identifier: Apache-2.0
"""What is known of entries beside what their users wrote: counters, age, whether they are in hardware."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Facts:
    """What is known of entries, a row each."""

    packets: NDArray[np.uint64]
    """Counted by NICs and XDP."""
    bytes: NDArray[np.uint64]
    idle: NDArray[np.float64]
    """Seconds since the last packet; infinite when there was none."""
    in_hardware: NDArray[np.bool_]
    """Whether a NIC has a rule for it."""
    hardware_packets: NDArray[np.uint64]
    """Of `packets`, those that NICs have counted."""
    why: list[str]
    """Why it is not in hardware; empty where it is."""
