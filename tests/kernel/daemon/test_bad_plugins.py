# SPDX-License-Identifier: Apache-2.0
"""A plugin of another distribution that does everything wrong: the daemon names it, counts it, and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nfcore.control.client import request
from tests.kernel.katran_accel.world import tcp
from tests.kernel.site import PATIENCE, Site, command_line, eventually

NAME = "bad"
SOURCE = """
import time
from nfcore.api.hookspecs import hookimpl
from nfcore.api.metrics import MetricFamily, MetricKind
from nfcore.api.rules import Outcome, Outcomes

class Plugin:
    nfcore_api = 1
{hooks}
"""
HOOKS = {
    "raises": """
    @hookimpl
    def on_new_flow(self, batch):
        raise LookupError("no policy")
""",
    "raises without words": """
    @hookimpl
    def on_new_flow(self, batch):
        raise type("Mute", (Exception,), {"__str__": lambda self: 1 / 0})
""",
    "answers the wrong shape": """
    @hookimpl
    def on_new_flow(self, batch):
        return [0]
""",
    "blocks for good": """
    @hookimpl
    def on_new_flow(self, batch):
        while True:
            time.sleep(3600)
""",
    "figures of one number": """
    @hookimpl
    def collect_stats(self):
        return 5
""",
    "figures without an end": """
    @hookimpl
    def collect_stats(self):
        while True:
            yield MetricFamily("nfcore_bad", MetricKind.GAUGE, "Bad.")
""",
    "figures that leave": """
    @hookimpl
    def collect_stats(self):
        yield MetricFamily("nfcore_bad", MetricKind.GAUGE, "Bad.")
        raise SystemExit(3)
""",
    "figures that nobody can read": """
    @hookimpl
    def collect_stats(self):
        family = MetricFamily("nfcore_bad", MetricKind.GAUGE, "Bad.")
        family.add(1, nic="\\ud800")
        yield family
""",
}
FAULTS = {
    "raises": ("on_new_flow", "raised", "plugin bad: on_new_flow failed: LookupError: no policy"),
    "raises without words": (
        "on_new_flow",
        "raised",
        "plugin bad: on_new_flow failed: MuteError: Mute, whose message cannot be read",
    ),
    "answers the wrong shape": ("on_new_flow", "wrong_answer", "plugin bad: on_new_flow returned [0]; should be"),
    "blocks for good": ("on_new_flow", "broken_off", "plugin bad: on_new_flow was interrupted after"),
    "figures of one number": ("collect_stats", "wrong_answer", "plugin bad: collect_stats returned 5; should be"),
    "figures without an end": (
        "collect_stats",
        "wrong_answer",
        "plugin bad: collect_stats returned more than 10,000 objects, MetricFamily(",
    ),
    "figures that leave": (
        "collect_stats",
        "raised",
        "plugin bad: collect_stats failed: ExitError: it called sys.exit(3)",
    ),
    "figures that nobody can read": (
        "collect_stats",
        "wrong_answer",
        "metrics that break a rule: nfcore_bad: '\\ud800' is not",
    ),
}


def install(folder: Path, hooks: str) -> None:
    """Put a distribution with the plugin where an environment variable lets Python find it."""
    (folder / "bad_plugin.py").write_text(SOURCE.format(hooks=hooks))
    about = folder / "bad_plugin-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-plugin\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[nfcore.plugins]\n{NAME} = bad_plugin:Plugin\n")


@pytest.mark.parametrize("fault", HOOKS)
def test_the_daemon_goes_on_and_names_the_plugin(site: Site, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site.folder, HOOKS[fault])
    monkeypatch.setenv("PYTHONPATH", str(site.folder))
    hook, kind, words = FAULTS[fault]
    config = site.config()
    text = (
        config.read_text()
        .replace("plugins = [", f'plugins = ["{NAME}", ')
        .replace("[nf]", '[nf]\nhook_patience = "1s"')
    )
    config.write_text(text)
    with (site.folder / "log").open("w") as log:
        command = command_line("run", str(config))
        daemon = subprocess.Popen(command, stderr=log)
    site.daemons.started.append(daemon)
    assert eventually(site.socket.exists)
    frames = [tcp("198.18.1.2", "198.18.10.1", port) for port in (40_000, 40_001)]
    for frame in frames * 3:
        assert site.exchange(frame)
    assert eventually(lambda: site.metric("nfcore_hook_errors_total", plugin=NAME, hook=hook, kind=kind))
    # Whatever it did, the others' figures are there, and the balancer balances.
    assert site.metric("nfcore_packets_total", path="slow") >= len(frames) * 3
    refused = site.metric("nfcore_not_offloaded_total", reason="hook_failed")
    assert (refused >= 1) == (hook == "on_new_flow")
    assert request(site.socket, "offload", timeout=PATIENCE)["on"]
    daemon.terminate()
    assert daemon.wait(PATIENCE) == 0
    told = (site.folder / "log").read_text()
    assert words in told
    assert "Traceback" not in told


def test_hooks_are_traced_on_demand(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFCORE_TRACE_HOOKS", "1")
    daemon = site.start(site.config())
    site.exchange(tcp("198.18.1.2", "198.18.10.1"))
    for _ in range(2):
        site.exchange(tcp("198.18.1.2", "198.18.10.1"))
    assert site.installed(1)
    daemon.terminate()
    daemon.wait(PATIENCE)
    lines = [line for line in site.daemons.logged().splitlines() if "nfcore.trace" in line]
    for call in (
        "marking: allocate_mark(1 flows) → 1 results in ",
        "softnic: install_offload(eth1, 1 rules) → 1 results in ",
    ):
        assert any(call in line for line in lines), lines


def test_a_plugin_for_newer_hooks_is_refused_by_its_place(site: Site) -> None:
    install(site.folder, "    pass\n".replace("pass", "nfcore_api = 99"))
    config = site.config()
    config.write_text(config.read_text().replace("plugins = [", f'plugins = ["{NAME}", '))
    command = [sys.executable, "-m", "nfcore.cli", "check", str(config)]
    environment = os.environ | {"PYTHONPATH": str(site.folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{config}: nf.plugins[0]: plugin 'bad': was written for" in done.stderr
