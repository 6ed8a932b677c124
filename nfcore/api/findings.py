# SPDX-License-Identifier: Apache-2.0
"""Findings of `nfcore doctor`: what was checked, how it is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """FAULT: something does not work. WARNING: it works, but slower or with fewer features."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """One line of the output."""

    what: str
    """What was checked, such as ``eth1: XDP``."""
    status: Status
    found: str
    """What was found; for a fault, why it is not sufficient."""
    advice: str = ""
    """What to do."""
