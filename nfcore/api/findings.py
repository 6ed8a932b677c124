# SPDX-License-Identifier: Apache-2.0
"""What `nfcore doctor` finds: a line that is fine, or says why not and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """A fault keeps something from working; a warning makes it slower or narrower."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """One line."""

    what: str
    """The thing, such as ``eth1: XDP``."""
    status: Status
    found: str
    """How it is; for a fault, why that is not enough."""
    advice: str = ""
    """What to do."""
