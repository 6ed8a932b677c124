# SPDX-License-Identifier: Apache-2.0
"""What pytest loads in every run: collects what the suite's tests noted, and shows it at the end.

Light on purpose. It sees reports alone, so that tests of another process or machine count, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .results import BROKEN, EXCUSE, PROMISE, SUBJECT, THROUGHPUT, properties_of

if TYPE_CHECKING:
    import pytest


@dataclass
class Tally:
    """What became of one plugin's promises, by where it was tested."""

    kept: list[str] = field(default_factory=list)
    broken: dict[str, list[str]] = field(default_factory=dict)
    """Promise → the tests that failed by it."""
    failed: list[str] = field(default_factory=list)
    """Tests that failed for another reason, such as their fixture."""
    excused: dict[str, str] = field(default_factory=dict)
    """Promise → why it cannot be asked for."""
    skipped: list[str] = field(default_factory=list)
    throughput: dict[str, int] = field(default_factory=dict)
    """What was done → how often a second."""

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
        """Say it."""
        said = [f"{len(self.kept)} promises kept"]
        said += [f"{len(self.broken)} broken"] if self.broken else []
        said += [f"{len(self.failed)} tests failed otherwise"] if self.failed else []
        said += [f"{len(self.excused)} not applicable"] if self.excused else []
        said += [f"{len(self.skipped)} skipped"] if self.skipped else []
        lines = [", ".join(said)]
        if self.throughput:
            rates = ", ".join(f"{rate:,}/s {what}" for what, rate in self.throughput.items())
            lines.append(f"throughput: {rates}")
        lines += [f"broken: {promise}: {', '.join(tests)}" for promise, tests in self.broken.items()]
        lines += [f"failed otherwise: {test}" for test in self.failed]
        lines += [f"skipped: {promise}" for promise in self.skipped]
        lines += [f"not applicable: {promise}: {why}" for promise, why in self.excused.items()]
        return lines


class Summary:
    """The section at the end of a run."""

    def __init__(self) -> None:
        self.tallies: dict[tuple[str, str], Tally] = {}
        """Class of the tests, plugin."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of the suite's tests."""
        found = properties_of(report)
        if SUBJECT in found:
            where = report.nodeid.rpartition("::")[0]
            self.tallies.setdefault((where, str(found[SUBJECT])), Tally()).count(report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show promises and throughput of each plugin; nothing without tests of the suite."""
        if not self.tallies:
            return
        terminalreporter.section("nfcore conformance")
        for (where, subject), tally in self.tallies.items():
            head, *rest = tally.lines()
            terminalreporter.line(f"{subject} ({where}): {head}")
            for line in rest:
                terminalreporter.line(f"    {line}")


def pytest_configure(config: pytest.Config) -> None:
    """Look on."""
    config.pluginmanager.register(Summary(), "nfcore-conformance-summary")
