# SPDX-License-Identifier: Apache-2.0
"""How the endpoint has fared: kept for as long as the daemon lives, wherever it listens meanwhile."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """The endpoint's thread counts, the event loop reads."""

    responses: Counter[int] = field(default_factory=Counter)
    """By HTTP status."""
    dropped: Counter[str] = field(default_factory=lambda: Counter({"busy": 0, "slow": 0}))
    """Connections that got no answer: there were too many, or they took too long."""
    listen_errors: int = 0
