# SPDX-License-Identifier: Apache-2.0
"""A backend that takes every rule and keeps none: for tracing, and to measure the engine alone."""

from __future__ import annotations

from ..api.hookspecs import hookimpl
from ..api.rules import Device, Outcome, Outcomes, RuleBatch

NULL_BACKEND = "null"


class NullBackend:
    """Says INSTALLED and REMOVED."""

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        """Take all rules."""
        return Outcomes.all(Outcome.INSTALLED, len(rules))

    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        """Let all rules go."""
        return Outcomes.all(Outcome.REMOVED, len(rules))
