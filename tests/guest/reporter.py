# SPDX-License-Identifier: Apache-2.0
"""The guest's end of relay.py: a pytest plugin that keeps what the host selected and sends every report.

Imports nothing of this project, which would cost the guest seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

WANTED = "wanted.json"
"""In the share: node ids, in the order in which to run them."""
REPORTS = "reports.jsonl"
"""In the share: a line per report, ``{"report": ...}``, and per finished test, ``{"finished": node id}``."""
_SHARE = Path("/run/guest")


class Reporter:
    """Hooks that need the configuration."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send one phase of one test, as plain data."""
        _send({"report": self._config.hook.pytest_report_to_serializable(config=self._config, report=report)})

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Send that a test is done."""
        _send({"finished": nodeid})


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Reporter(config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanted = {nodeid: place for place, nodeid in enumerate(json.loads((_SHARE / WANTED).read_text(encoding="utf-8")))}
    unknown = wanted.keys() - {item.nodeid for item in items}
    if unknown:
        raise pytest.UsageError(f"the guest does not find {', '.join(sorted(unknown))}")
    items[:] = sorted((item for item in items if item.nodeid in wanted), key=lambda item: wanted[item.nodeid])


def _send(record: dict[str, Any]) -> None:
    with (_SHARE / REPORTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
