# SPDX-License-Identifier: Apache-2.0
"""A backend without a NIC, that takes every rule and keeps none: for `nfcore trace`, the benchmark and tests."""

from __future__ import annotations

from ..api.hookspecs import hookimpl
from ..api.rules import Capabilities, Device, Outcome, Outcomes, RuleBatch

NULL_BACKEND = "null"


class NullBackend:
    """Reports every rule as INSTALLED, and as REMOVED."""

    @hookimpl
    def probe_offload(self, device: Device) -> Capabilities:
        """Say that any rule is taken."""
        return Capabilities(mark_width=32, masks=True)

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        """Report all rules as installed."""
        return Outcomes.all(Outcome.INSTALLED, len(rules))

    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        """Report all rules as removed."""
        return Outcomes.all(Outcome.REMOVED, len(rules))
