# SPDX-License-Identifier: Apache-2.0
"""Tests selected on the host, run in the guest, reported on the host.

::

    host's pytest: collects inside/, selects ──wanted.json──► guest's pytest, one process
          ▲                                                        │ each report, as it comes
          └───────────────────────── reports.jsonl ◄───────────────┘

Both collect the same files, so a test has one name on both sides, and ``-k``, node ids, markers and
``--collect-only`` work as everywhere. reporter.py is the guest's end.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nfcore.errors import HostError
from tests.guest.inside.programs import prebuild

from .machine import Guest, GuestError
from .reporter import REPORTS, WANTED

INSIDE = Path(__file__).with_name("inside")
"""The tests that run in the guest."""
_PATIENCE = 600.0
"""Seconds without a word from the guest's pytest until the guest is given up."""
_POLL = 0.02
_OUTPUT_TAIL = 60


class GuestRun:
    """The host's end: one boot, and the reports of ``items`` as they come."""

    def __init__(self, config: pytest.Config, items: Sequence[pytest.Item]) -> None:
        self._config = config
        self._items = items
        self._guest: Guest | None = None
        self._trouble = ""
        self._position = 0
        """Bytes of the reports that were read."""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self._started = time.monotonic()

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """The reports of ``item``, which must be asked for in the order of ``items``.

        A guest that crashed, or has nothing to say about ``item``, is a failure of it.
        """
        if self._trouble:
            yield _failure(item, f"not run: {self._trouble}")
            return
        try:
            if self._guest is None:
                self._boot()
            for record in self._records():
                if record.get("finished") == item.nodeid:
                    return
                if "report" in record:
                    yield self._report(record["report"])
        except HostError as error:
            self._trouble = str(error).splitlines()[0].rstrip(":")
            yield _failure(item, str(error))

    def summary(self) -> str:
        """One line for the end of the run; empty when nothing was booted."""
        if self._guest is None:
            return ""
        return (
            f"Linux {self._guest.kernel.release} under {self._guest.accelerator.name.upper()}: up after "
            f"{self._guest.boot_seconds:.1f} s, {time.monotonic() - self._started:.1f} s in all"
        )

    def stop(self) -> None:
        """End the guest if it runs."""
        if self._guest is not None:
            self._guest.stop()
        self._output.close()

    def _boot(self) -> None:
        self._started = time.monotonic()
        # What the host cannot compile, the guest refuses in its own words.
        with suppress(HostError):
            prebuild()
        spoken = self._config.option.capture == "no"
        self._guest = Guest(
            self._command(),
            cwd=self._config.rootpath,
            # What other plugins bring is the host's; each costs a second under emulation.
            environment={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            output=None if spoken else self._output,
            files={WANTED: json.dumps([item.nodeid for item in self._items])},
        )

    def _command(self) -> list[str]:
        option = self._config.option
        return [
            *(sys.executable, "-m", "pytest", "-p", "tests.guest.reporter", "-p", "no:cacheprovider"),
            f"--rootdir={self._config.rootpath}",
            # The conftest files above are the host's.
            f"--confcutdir={INSIDE}",
            *(f"--tb={option.tbstyle}", f"--capture={option.capture}"),
            *(["--showlocals"] if option.showlocals else []),
            *sorted({str(item.path) for item in self._items}),
        ]

    def _records(self) -> Iterator[dict[str, Any]]:
        """What the guest's pytest writes, line by line. Raises GuestError when no more will come."""
        assert self._guest is not None
        quiet_since = time.monotonic()
        with (self._guest.share / REPORTS).open("ab+") as file:
            file.seek(self._position)
            while True:
                status = self._guest.poll()
                line = file.readline()
                if line.endswith(b"\n"):
                    self._position = file.tell()
                    quiet_since = time.monotonic()
                    yield json.loads(line)
                    continue
                file.seek(self._position)
                if status is not None:
                    raise GuestError(f"the guest's pytest ended with status {status}:\n{self._said()}")
                if time.monotonic() - quiet_since > _PATIENCE:
                    raise GuestError(f"no word from the guest's pytest for {_PATIENCE:.0f} s:\n{self._said()}")
                time.sleep(_POLL)

    def _report(self, data: dict[str, Any]) -> pytest.TestReport:
        report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
        assert isinstance(report, pytest.TestReport)
        if isinstance(report.longrepr, list):
            # The place and reason of a skip: JSON knows no tuples.
            report.longrepr = (report.longrepr[0], report.longrepr[1], report.longrepr[2])
        return report

    def _said(self) -> str:
        """The end of what the guest's pytest printed."""
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_OUTPUT_TAIL:])


def _failure(item: pytest.Item, text: str) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid, location=item.location, keywords={}, outcome="failed", longrepr=text, when="call"
    )
