# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin: collects the results of the suites' tests and shows a summary at the end.

pytest loads it in every run, so it imports almost nothing. It reads only reports, so that tests which ran in another
process or on another machine count, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .results import BROKEN, EXCUSE, PROMISE, SUBJECT, THROUGHPUT, properties_of

if TYPE_CHECKING:
    import pytest


@dataclass
class PromiseCounts:
    """Results of one plugin's promises in one test class."""

    kept: list[str] = field(default_factory=list)
    broken: dict[str, list[str]] = field(default_factory=dict)
    """Promise → the tests that failed because of it."""
    failed: list[str] = field(default_factory=list)
    """Tests that failed for another reason, such as their fixture."""
    excused: dict[str, str] = field(default_factory=dict)
    """Promise → why it does not apply."""
    skipped: list[str] = field(default_factory=list)
    throughput: dict[str, int] = field(default_factory=dict)
    """What was done → times per second."""

    def count(self, report: pytest.TestReport) -> None:
        """Count one report of a test of the suite."""
        found = properties_of(report)
        promise = str(found[PROMISE])
        if report.failed and BROKEN in found:
            self.broken.setdefault(str(found[BROKEN]), []).append(report.nodeid.rpartition("::")[2])
        elif report.failed:
            self.failed.append(report.nodeid.rpartition("::")[2])
        elif report.skipped:
            if EXCUSE in found:
                self.excused[promise] = str(found[EXCUSE])
            else:
                self.skipped.append(promise)
        elif report.when == "call":
            self.kept.append(promise)
            self.throughput |= found.get(THROUGHPUT, {})

    def lines(self) -> list[str]:
        """The lines of the summary; the first has the counts."""
        counts = [f"{len(self.kept)} promises kept"]
        counts += [f"{len(self.broken)} broken"] if self.broken else []
        counts += [f"{len(self.failed)} tests failed otherwise"] if self.failed else []
        counts += [f"{len(self.excused)} not applicable"] if self.excused else []
        counts += [f"{len(self.skipped)} skipped"] if self.skipped else []
        lines = [", ".join(counts)]
        if self.throughput:
            rates = ", ".join(f"{rate:,}/s {what}" for what, rate in self.throughput.items())
            lines.append(f"throughput: {rates}")
        lines += [f"broken: {promise}: {', '.join(tests)}" for promise, tests in self.broken.items()]
        lines += [f"failed otherwise: {test}" for test in self.failed]
        lines += [f"skipped: {promise}" for promise in self.skipped]
        lines += [f"not applicable: {promise}: {reason}" for promise, reason in self.excused.items()]
        return lines


class Summary:
    """Shows the section at the end of a run."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], PromiseCounts] = {}
        """(test class, plugin) → its results."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the report if its test is of a suite."""
        found = properties_of(report)
        if SUBJECT in found:
            where = report.nodeid.rpartition("::")[0]
            self.counts.setdefault((where, str(found[SUBJECT])), PromiseCounts()).count(report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show promises and throughput of each plugin; nothing without tests of a suite."""
        if not self.counts:
            return
        terminalreporter.section("nfcore conformance")
        for (where, subject), counts in self.counts.items():
            head, *rest = counts.lines()
            terminalreporter.line(f"{subject} ({where}): {head}")
            for line in rest:
                terminalreporter.line(f"    {line}")


def pytest_configure(config: pytest.Config) -> None:
    """Register the summary."""
    config.pluginmanager.register(Summary(), "nfcore-conformance-summary")
