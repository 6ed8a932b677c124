# SPDX-License-Identifier: Apache-2.0
"""Findings of `nfcore doctor`: what was checked, how it is, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from ..errors import NfcoreError


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


def finding_of(what: str, check: Callable[[], object], found: str = "") -> Finding:
    """Make a finding of a check that raises NfcoreError: a fault with its text; else OK, with what was found."""
    try:
        check()
    except NfcoreError as error:
        return Finding(what, Status.FAULT, str(error))
    return Finding(what, Status.OK, found)
