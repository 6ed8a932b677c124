# SPDX-License-Identifier: Apache-2.0
"""The guest tier: inside/ is collected here and runs in the guest, every test reported as one of this run."""

from __future__ import annotations

import os

import pytest

from nfcore.testing.results import is_excused
from tests.guest.simnic.build import missing_for_simnic

from .machine import missing_for_guest
from .relay import INSIDE, GuestRun

STRICT = os.environ.get("CI", "").lower() == "true"
_RUN = pytest.StashKey[GuestRun]()


def is_inside(item: pytest.Item) -> bool:
    """Whether ``item`` is to run in the guest."""
    return INSIDE in item.path.parents


def needs_simnic(item: pytest.Item) -> bool:
    """Whether ``item`` uses the simulated NIC, whose kernel module is built here."""
    return "simnic" in getattr(item, "fixturenames", ())


def runs_there(item: pytest.Item) -> bool:
    """Whether ``item`` is to run in the guest and nothing that it needs is missing."""
    return is_inside(item) and not missing_for_guest() and not (needs_simnic(item) and missing_for_simnic())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tier = [item for item in items if is_inside(item)]
    missing = missing_for_guest() if tier else []
    if missing:
        _give_up(tier, f"tests/guest needs {' and '.join(missing)}")
        return
    tier = [item for item in tier if needs_simnic(item)]
    if tier and missing_for_simnic():
        _give_up(tier, f"simnic needs {missing_for_simnic()}")


def _give_up(items: list[pytest.Item], reason: str) -> None:
    if STRICT:
        raise pytest.UsageError(f"{reason}; with CI=true nothing may be missing")
    for item in items:
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Report what the guest says about ``item``, instead of running it here."""
    if not runs_there(item):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _run_of(item.session).reports(item):
        item.ihook.pytest_runtest_logreport(report=_strict(report))
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run_of(session: pytest.Session) -> GuestRun:
    if _RUN not in session.config.stash:
        session.config.stash[_RUN] = GuestRun(session.config, [item for item in session.items if runs_there(item)])
    return session.config.stash[_RUN]


def _strict(report: pytest.TestReport) -> pytest.TestReport:
    if STRICT and report.skipped and not hasattr(report, "wasxfail") and not is_excused(report):
        report.outcome = "failed"
        report.longrepr = f"skipped where CI=true allows none: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    run = config.stash.get(_RUN, None)
    if run is not None and run.summary():
        terminalreporter.section("guest")
        terminalreporter.line(run.summary())


def pytest_unconfigure(config: pytest.Config) -> None:
    if _RUN in config.stash:
        config.stash[_RUN].stop()
