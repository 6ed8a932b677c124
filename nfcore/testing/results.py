# SPDX-License-Identifier: Apache-2.0
"""What a test of the suite notes for the summary: properties of its reports, plain data that any relay carries.

Imports nothing: pytest loads this in every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SUBJECT, PROMISE, THROUGHPUT = "nfcore-subject", "nfcore-promise", "nfcore-throughput"
"""Names of the properties of a test: plugin, id of the promise, rates by what was done."""
EXCUSE, BROKEN = "nfcore-excuse", "nfcore-broken"
"""Names of properties: why the promise cannot be asked for; id of the promise that turned out to be broken."""


@dataclass(frozen=True)
class SuiteResult:
    """Whose test of which promise a report is about."""

    subject: str
    promise: str

    def note(self, node: Any) -> None:
        """Write it on a test."""
        node.user_properties += [(SUBJECT, self.subject), (PROMISE, self.promise)]

    def excuse(self, node: Any, reason: str) -> None:
        """Write on a test why it cannot be asked."""
        node.user_properties.append((EXCUSE, reason))


def properties_of(report: Any) -> dict[str, Any]:
    """Give a report's properties by name."""
    return {str(name): value for name, value in report.user_properties}


def is_excused(report: Any) -> bool:
    """Whether a skip is one that the plugin or NIC under test gave a reason for."""
    return EXCUSE in properties_of(report)
