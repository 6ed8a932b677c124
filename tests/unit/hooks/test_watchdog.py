# SPDX-License-Identifier: Apache-2.0
"""Hooks that take too long: reported while they run; interrupted on the event loop, but not on a worker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nfcore.api.flows import FlowBatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.metrics import MetricFamily, gauge
from nfcore.api.rules import Device, Outcome, Outcomes, RuleBatch
from nfcore.hooks import watchdog
from nfcore.hooks.faults import Fault
from nfcore.hooks.manager import PluginManager
from nfcore.hooks.watchdog import Watchdog

BATCH = FlowBatch.empty(1)
LONG = 60.0
"""Seconds; no test waits for so long."""


class Metrics:
    """Calls a function while its metrics are read: the code of a generator."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    @hookimpl
    def collect_stats(self) -> Iterator[MetricFamily]:
        yield gauge("nfcore_odd", "Odd.", "")
        self._function()


class Policy:
    """Calls a function in `on_new_flow`."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    @hookimpl
    def on_new_flow(self, batch: FlowBatch) -> Any:
        return self._function()


def spin() -> None:
    while True:
        pass


def spin_stubbornly() -> None:
    while True:
        try:
            spin()
        except Exception:  # noqa: BLE001 - what a plugin may do
            continue


def wait_in_the_kernel() -> None:
    threading.Event().wait(LONG)


@pytest.mark.parametrize("block", [lambda: time.sleep(LONG), wait_in_the_kernel, spin, spin_stubbornly])
def test_a_hook_that_blocks_the_loop_is_reported_then_interrupted(
    block: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    plugins = PluginManager()
    plugins.register(Policy(block), "blocks")
    plugins.register(Policy(lambda: None), "works")
    with Watchdog(plugins, patience=1.0) as watching, watching.guarding():
        called = [name for name, _ in plugins.call_each("on_new_flow", batch=BATCH)]
    assert called == ["works"]
    assert plugins.faults == {
        ("blocks", "on_new_flow", Fault.SLOW): 1,
        ("blocks", "on_new_flow", Fault.INTERRUPTED): 1,
    }
    assert "plugin blocks: on_new_flow has blocked the event loop for" in caplog.text
    assert "plugin blocks: on_new_flow was interrupted after" in caplog.text
    assert plugins.under_way == {}


@pytest.mark.parametrize("block", [lambda: time.sleep(LONG), spin_stubbornly])
def test_a_generator_that_blocks_the_loop_is_interrupted_like_any_hook(block: Callable[[], None]) -> None:
    plugins = PluginManager()
    plugins.register(Metrics(block), "blocks")
    plugins.register(Metrics(lambda: None), "works")
    with Watchdog(plugins, patience=1.0) as watching, watching.guarding():
        called = [name for name, _ in plugins.call_each("collect_stats")]
    assert called == ["works"]
    assert plugins.faults["blocks", "collect_stats", Fault.INTERRUPTED] == 1
    assert plugins.times["blocks", "collect_stats"].seconds >= 1.0


def test_a_slow_hook_is_reported_and_its_result_is_used() -> None:
    plugins = PluginManager()
    plugins.register(Policy(lambda: time.sleep(1.2)), "slow")
    with Watchdog(plugins, patience=LONG) as watching, watching.guarding():
        assert plugins.try_call("slow", "on_new_flow", batch=BATCH) == (True, None)
    assert plugins.faults == {("slow", "on_new_flow", Fault.SLOW): 1}


def test_the_fault_is_that_of_the_innermost_hook() -> None:
    plugins = PluginManager()
    plugins.register(Policy(lambda: time.sleep(LONG)), "inner")
    plugins.register(Policy(lambda: plugins.try_call("inner", "on_new_flow", batch=BATCH)[1]), "outer")
    with Watchdog(plugins, patience=1.0) as watching, watching.guarding():
        plugins.try_call("outer", "on_new_flow", batch=BATCH)
        assert plugins.under_way == {}
    assert plugins.faults["inner", "on_new_flow", Fault.INTERRUPTED] == 1


def test_nothing_is_interrupted_after_a_hook() -> None:
    plugins = PluginManager()
    plugins.register(Policy(lambda: time.sleep(0.8)), "slow")
    with Watchdog(plugins, patience=4.0) as watching, watching.guarding():  # also a busy machine sleeps no longer
        plugins.try_call("slow", "on_new_flow", batch=BATCH)
        time.sleep(4.5)
        threading.Event().wait(0.1)
    assert [fault for _, _, fault in plugins.faults] == [Fault.SLOW]


def test_a_worker_that_waits_for_its_nic_is_only_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchdog, "STUCK", 0.3)
    wake = threading.Event()

    class Nic:
        @hookimpl
        def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
            wake.wait(LONG)
            return Outcomes.all(Outcome.INSTALLED, len(rules))

    plugins, results = PluginManager(), []
    plugins.register(Nic(), "nic")
    install = {"device": Device("eth1", 4), "rules": RuleBatch.of([])}
    worker = threading.Thread(target=lambda: results.append(plugins.try_call("nic", "install_offload", **install)))
    with caplog.at_level(logging.ERROR), Watchdog(plugins, patience=1.0) as watching, watching.guarding():
        worker.start()
        deadline = time.monotonic() + LONG
        while not plugins.faults and time.monotonic() < deadline:
            time.sleep(0.05)
        wake.set()
        worker.join()
    assert plugins.faults == {("nic", "install_offload", Fault.STUCK): 1}
    assert [done for done, _ in results] == [True]
    assert "plugin nic: install_offload has not returned for" in caplog.text


def test_without_the_watchdog_nothing_is_reported() -> None:
    plugins = PluginManager()
    with Watchdog(plugins, patience=LONG) as watching, watching.guarding():
        pass
    plugins.register(Policy(lambda: time.sleep(0.7)), "slow")
    plugins.try_call("slow", "on_new_flow", batch=BATCH)
    assert plugins.faults == {}
