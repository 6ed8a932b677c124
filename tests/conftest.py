# SPDX-License-Identifier: Apache-2.0
"""The tiers: tests/unit runs anywhere, tests/kernel needs root and bcc.

What is missing is named and skips the tier. Where CI is set to "true" nothing may be missing: there a skip is a
failure, but for what this kernel or NIC does not support (`UnsupportedError`), and for promises that a conformance
suite cannot ask for, for a reason that was given (`nfcore.testing.NotApplicable`).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import settings

from nfcore.api.config import Config, MarkingTable, NfTable, OffloadTable
from nfcore.errors import UnsupportedError
from nfcore.testing.results import is_excused

KERNEL_TIER = Path(__file__).parent / "kernel"
NOBODY = 65_534
STRICT = os.environ.get("CI", "").lower() == "true"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what runs in the background, and commands that are to be interrupted would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("nfcore", deadline=None, max_examples=60)
settings.load_profile("nfcore")


@functools.cache
def missing_for_kernel_tier() -> list[str]:
    """What this process lacks to run tests/kernel, in words."""
    missing = [] if os.geteuid() == 0 else ["root"]
    # Looked for, not imported: bcc belongs into the compiling child alone, which a test makes sure of.
    if importlib.util.find_spec("bcc") is None:
        missing.append("bcc (the distribution's python3-bpfcc)")
    return missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that parallel processes end at about the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Let kernel tests have the machine for themselves."""
    if os.geteuid() == 0 and any(KERNEL_TIER in item.path.parents for item in session.items):
        from .isolation import isolate_tests  # what only these tests need

        folder = Path(tempfile.mkdtemp(prefix="nfcore-tests-"))
        session.config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        folder.chmod(0o755)  # other users must reach the sockets of tests with them
        isolate_tests(folder)


def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = missing_for_kernel_tier() if KERNEL_TIER in item.path.parents else []
    if missing:
        reason = f"tests/kernel needs {' and '.join(missing)}"
        if STRICT:
            pytest.fail(f"{reason}; with CI=true nothing may be missing", pytrace=False)
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """With CI=true, turn the skip of a whole module into a failure."""
    report = yield
    if STRICT and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped where CI=true allows none: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn UnsupportedError into a skip that says so, and with CI=true every other skip into a failure."""
    report = yield
    error = call.excinfo.value if call.excinfo is not None else None
    if isinstance(error, UnsupportedError):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {error}")
    elif STRICT and report.skipped and not hasattr(report, "wasxfail") and not is_excused(report):
        report.outcome = "failed"
        report.longrepr = f"skipped where CI=true allows none: {report.longrepr}"
    return report


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A configuration with the core's defaults and no interface."""
    return Config(
        source="test.toml",
        nf=NfTable(plugins=["marking"], socket=str(tmp_path / "nfcore.sock")),
        interfaces=[],
        marking=MarkingTable(),
        offload=OffloadTable(),
    )


@pytest.fixture
def unprivileged(tmp_path: Path) -> Callable[..., str]:
    """Call a function as user nobody, in a child process: what it raised, or the repr of what it gave."""

    def call(function: Callable[..., object], *arguments: object) -> str:
        note = tmp_path / "note"
        note.touch()
        note.chmod(0o666)
        tmp_path.chmod(0o777)
        with note.open("w", encoding="utf-8") as file:
            child = os.fork()
            if child == 0:
                try:
                    if os.geteuid() == 0:
                        os.setgroups([])
                        os.setresgid(NOBODY, NOBODY, NOBODY)
                        os.setresuid(NOBODY, NOBODY, NOBODY)
                    file.write(repr(function(*arguments)))
                except BaseException as error:  # noqa: BLE001 - it is the result
                    file.write(str(error))
                finally:
                    file.flush()
                    os._exit(0)
            os.waitpid(child, 0)
        return note.read_text(encoding="utf-8")

    return call
