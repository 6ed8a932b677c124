# SPDX-License-Identifier: Apache-2.0
"""The plugin host: what it refuses, whom it calls, and what a failing plugin does to the others."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nfcore.errors import NfcoreError
from nfcore.flows import FlowBatch
from nfcore.hookspecs import hookimpl
from nfcore.host import PluginHost
from nfcore.marks import MarkMeaning, StrategyInfo
from nfcore.metrics import MetricFamily, MetricKind
from nfcore.session import make_context, make_engine, set_up

BATCH = FlowBatch.empty(2)


class Answers:
    """Answers `on_new_flow` and `allocate_mark` with what it was made with."""

    def __init__(self, reasons: NDArray[np.uint8] | None, marks: NDArray[np.uint32] | None) -> None:
        self._reasons, self._marks = reasons, marks
        self.asked = 0

    @hookimpl
    def on_new_flow(self, batch: FlowBatch) -> NDArray[np.uint8] | None:
        return self._reasons

    @hookimpl
    def allocate_mark(self, batch: FlowBatch) -> NDArray[np.uint32] | None:
        self.asked += 1
        return self._marks


class Raises:
    @hookimpl
    def on_new_flow(self, batch: FlowBatch) -> None:
        raise LookupError("no policy for that")

    @hookimpl
    def allocate_mark(self, batch: FlowBatch) -> None:
        raise LookupError("no mark either")


class Offers:
    @hookimpl
    def marking_strategies(self) -> Sequence[StrategyInfo]:
        return [StrategyInfo("odd-even", MarkMeaning.TARGET, "two marks are enough")]


class Silent:
    """Has no hook at all."""


@pytest.fixture
def host() -> PluginHost:
    return PluginHost()


def test_unknown_hook_is_refused_by_name(host: PluginHost) -> None:
    class Typo:
        @hookimpl
        def on_new_flows(self, batch: FlowBatch) -> None: ...

    with pytest.raises(NfcoreError, match=r"plugin 'typo': .*on_new_flows"):
        host.register(Typo(), "typo")
    assert host.loaded() == []


def test_another_signature_is_refused_with_both(host: PluginHost) -> None:
    class Old:
        @hookimpl
        def on_new_flow(self, flow: object) -> None: ...

    with pytest.raises(NfcoreError, match=r"(?s)plugin 'old': .*on_new_flow.*flow"):
        host.register(Old(), "old")
    assert host.loaded() == []
    assert host.implementing("on_new_flow") == []


def test_a_refused_plugin_does_not_spoil_the_host(host: PluginHost) -> None:
    class Typo:
        @hookimpl
        def collect_stat(self) -> None: ...

    with pytest.raises(NfcoreError):
        host.register(Typo(), "typo")
    host.register(Offers(), "offers")
    assert host.loaded() == ["offers"]


def test_a_name_is_given_once(host: PluginHost) -> None:
    host.register(Silent(), "one")
    with pytest.raises(NfcoreError, match="plugin 'one': the name is taken"):
        host.register(Silent(), "one")


def test_a_hook_may_take_fewer_arguments(host: PluginHost) -> None:
    class Short:
        @hookimpl
        def install_offload(self) -> str:
            return "called"

    host.register(Short(), "short")
    assert host.call("short", "install_offload", device=None, rules=None) == "called"


def test_call_reaches_one_plugin(host: PluginHost) -> None:
    host.register(Answers(np.array([1, 1], np.uint8), None), "first")
    host.register(Answers(np.array([2, 2], np.uint8), None), "second")
    assert host.call("second", "on_new_flow", batch=BATCH).tolist() == [2, 2]
    assert host.call("first", "on_new_flow", batch=BATCH).tolist() == [1, 1]


def test_call_of_a_hook_that_the_plugin_has_not(host: PluginHost) -> None:
    host.register(Silent(), "silent")
    assert host.call("silent", "on_new_flow", batch=BATCH) is None


def test_call_lets_errors_through(host: PluginHost) -> None:
    host.register(Raises(), "raises")
    with pytest.raises(LookupError, match="no policy"):
        host.call("raises", "on_new_flow", batch=BATCH)
    with pytest.raises(LookupError, match="no mark"):
        host.call("raises", "allocate_mark", batch=BATCH)


def test_a_list_is_an_answer_not_a_list_of_answers(host: PluginHost) -> None:
    host.register(Offers(), "offers")
    (info,) = host.call("offers", "marking_strategies")
    assert info.name == "odd-even"


def test_each_asks_in_loading_order(host: PluginHost) -> None:
    host.register(Answers(None, None), "quiet")
    host.register(Silent(), "silent")
    host.register(Answers(np.array([2, 2], np.uint8), None), "loud")
    assert [name for name, _ in host.each("on_new_flow", batch=BATCH)] == ["quiet", "loud"]
    assert host.implementing("on_new_flow") == ["quiet", "loud"]


def test_each_goes_on_after_a_plugin_that_raises(host: PluginHost, caplog: pytest.LogCaptureFixture) -> None:
    host.register(Raises(), "raises")
    host.register(Answers(np.array([2, 2], np.uint8), None), "loud")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert [name for name, _ in host.each("on_new_flow", batch=BATCH)] == ["loud"]
    assert host.errors == {("raises", "on_new_flow"): 3}
    assert len(caplog.records) == 1
    assert "plugin raises: on_new_flow failed: LookupError: no policy for that" in caplog.text


def test_first_stops_at_the_first_answer(host: PluginHost) -> None:
    last = Answers(None, np.array([9, 9], np.uint32))
    host.register(Raises(), "raises")
    host.register(Answers(None, None), "not in charge")
    host.register(Answers(None, np.array([1, 2], np.uint32)), "in charge")
    host.register(last, "too late")
    assert host.first("allocate_mark", batch=BATCH).tolist() == [1, 2]
    assert last.asked == 0
    assert host.errors["raises", "allocate_mark"] == 1


def test_first_without_any_answer(host: PluginHost) -> None:
    host.register(Answers(None, None), "not in charge")
    assert host.first("allocate_mark", batch=BATCH) is None


def test_attempt_tells_none_from_failure(host: PluginHost) -> None:
    host.register(Raises(), "raises")
    host.register(Answers(None, None), "quiet")
    assert host.attempt("quiet", "on_new_flow", batch=BATCH) == (True, None)
    assert host.attempt("raises", "on_new_flow", batch=BATCH) == (False, None)


def test_plugins_are_found_as_a_third_partys_would_be() -> None:
    host = PluginHost()
    assert {"katran_accel", "marking", "softnic", "stats"} <= host.installed().keys()
    info = host.describe("marking")
    assert (info.distribution, info.source) == ("nfcore", "nfcore.plugins.marking:MarkingPlugin")
    assert host.loaded() == []
    host.load("marking")
    host.load("marking")
    assert host.loaded() == ["marking"]
    assert {"allocate_mark", "marking_strategies", "release_mark"} <= set(host.hooks_of("marking"))


class Lives:
    """Notes when it is set up and torn down."""

    def __init__(self, name: str, notes: list[str], fails: Exception | None = None) -> None:
        self._name, self._notes, self._fails = name, notes, fails

    @hookimpl
    def setup(self, context: object) -> None:
        self._notes.append(f"{self._name} up")
        if self._fails:
            raise self._fails

    @hookimpl
    def teardown(self) -> None:
        self._notes.append(f"{self._name} down")
        if self._name == "b":
            raise RuntimeError("cannot")


def test_plugins_go_down_in_reverse_order_whatever_one_does(host: PluginHost, config: Any) -> None:
    notes: list[str] = []
    for name in "abc":
        host.register(Lives(name, notes), name)
    with set_up(make_context(config, host, []), host):
        notes.append("work")
    assert notes == ["a up", "b up", "c up", "work", "c down", "b down", "a down"]


def test_a_failed_setup_names_its_plugin_and_undoes_the_others(host: PluginHost, config: Any) -> None:
    notes: list[str] = []
    host.register(Lives("a", notes), "a")
    host.register(Lives("c", notes, KeyError("eth9")), "c")
    host.register(Lives("d", notes), "d")
    context = make_context(config, host, [])
    with pytest.raises(NfcoreError, match=r"plugin c: setup failed: KeyError: 'eth9'"), set_up(context, host):
        pytest.fail("must not get here")
    assert notes == ["a up", "c up", "c down", "a down"]


def test_figures_of_a_broken_plugin_are_left_out(host: PluginHost, config: Any) -> None:
    class Broken:
        @hookimpl
        def collect_stats(self) -> Iterable[MetricFamily]:
            yield MetricFamily("nfcore_half", MetricKind.GAUGE, "Half of them.")
            raise ValueError("the map is gone")

    class Works:
        @hookimpl
        def collect_stats(self) -> Iterable[MetricFamily]:
            return [MetricFamily("nfcore_whole", MetricKind.GAUGE, "All of them.")]

    class NoFigures:
        @hookimpl
        def collect_stats(self) -> None:
            return None

    for name, plugin in {"broken": Broken(), "nothing": NoFigures(), "works": Works()}.items():
        host.register(plugin, name)
    context = make_context(config, host, [])
    make_engine(context, host, {})
    given = {name: [family.name for family in families] for name, families in context.collect()}
    assert given.pop("nfcore")
    assert given == {"nothing": [], "works": ["nfcore_whole"]}
    assert host.errors["broken", "collect_stats"] == 1
