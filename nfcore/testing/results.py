# SPDX-License-Identifier: Apache-2.0
"""Properties by which a test of a suite passes its result to the summary; plain data that survives serialisation.

Imports almost nothing: pytest loads it in every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SUBJECT, PROMISE, THROUGHPUT = "nfcore-subject", "nfcore-promise", "nfcore-throughput"
"""Names of properties: plugin, id of the promise, rates by what was done."""
EXCUSE, BROKEN = "nfcore-excuse", "nfcore-broken"
"""Names of properties: why the test does not apply; id of the promise that is broken."""


@dataclass(frozen=True)
class SuiteResult:
    """The plugin and the promise that a test is about."""

    subject: str
    promise: str

    def note(self, node: Any) -> None:
        """Add both to the properties of a test."""
        node.user_properties += [(SUBJECT, self.subject), (PROMISE, self.promise)]

    def excuse(self, node: Any, reason: str) -> None:
        """Add to the properties of a test why it does not apply."""
        node.user_properties.append((EXCUSE, reason))


def properties_of(report: Any) -> dict[str, Any]:
    """A report's properties by name."""
    return {str(name): value for name, value in report.user_properties}


def is_excused(report: Any) -> bool:
    """Whether a skipped test does not apply, for a known reason."""
    return EXCUSE in properties_of(report)
