# SPDX-License-Identifier: Apache-2.0
"""Runs a conformance suite within a test, and checks which promises it reports as broken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nfcore.testing import BrokenPromise
from nfcore.testing.promises import promises_of
from nfcore.testing.results import PROMISE, properties_of


def reports_of(pytester: pytest.Pytester, text: str) -> Iterator[pytest.TestReport]:
    """Run a test file and yield the reports of its tests."""
    path = pytester.makepyfile(text)
    recorder = pytester.inline_run("-p", "no:cacheprovider", "-q", str(path))
    for report in recorder.getreports("pytest_runtest_logreport"):
        assert isinstance(report, pytest.TestReport)
        yield report


def assert_reports_broken(
    pytester: pytest.Pytester, text: str, suite: type, name: str, promise: str, also: set[str]
) -> None:
    """Run a test file about a wrong plugin `name`: exactly `promise` and those in `also` must be reported."""
    reported: set[str] = set()
    failed = [report for report in reports_of(pytester, text) if report.failed]
    for report in failed:
        message = report.longrepr.reprcrash.message  # type: ignore[union-attr]
        assert BrokenPromise.__name__ in message, report.longreprtext
        id_, found, _ = message.partition(": ")[2].partition(f" is broken by {name}")
        assert found, message
        assert f"promised: {promises_of(suite)[id_].statement}" in message
        if properties_of(report)[PROMISE] == promise:
            assert id_ == promise, message
        reported.add(id_)
    assert promise in {properties_of(report)[PROMISE] for report in failed}, reported
    # Other tests that fail must report one of these, not a consequence.
    assert reported == {promise} | also
