# SPDX-License-Identifier: Apache-2.0
"""The plugin manager: what it refuses, which plugins it calls, and how it handles faults."""

from __future__ import annotations

import asyncio
import inspect
import io
import itertools
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nfcore.api.config import ConfigTable, Section
from nfcore.api.flows import FlowBatch, FlowMatch
from nfcore.api.hookspecs import API, ROLES, CalledOn, Hooks, hookimpl
from nfcore.api.marks import MarkMeaning, StrategyInfo
from nfcore.api.metrics import MetricFamily, MetricKind, gauge
from nfcore.api.network_function import PacketTrace
from nfcore.api.rules import Capabilities, Device, Outcome, Outcomes, Rule, RuleBatch, SetMark
from nfcore.daemon.bootstrap import make_context, make_engine, set_up
from nfcore.errors import NfcoreError
from nfcore.hooks import discovery
from nfcore.hooks.faults import ExitError, Fault, MuteError
from nfcore.hooks.manager import TRACE_VARIABLE, PluginManager
from nfcore.hooks.manager import log as manager_log
from nfcore.logs import LogHandler

from .faults import errors_of

BATCH = FlowBatch.empty(2)


class Fixed:
    """Returns fixed results from `on_new_flow` and `allocate_mark`."""

    def __init__(self, reasons: NDArray[np.uint8] | None, marks: NDArray[np.uint32] | None) -> None:
        self._reasons, self._marks = reasons, marks
        self.calls = 0

    @hookimpl
    def on_new_flow(self, batch: FlowBatch) -> NDArray[np.uint8] | None:
        return self._reasons

    @hookimpl
    def allocate_mark(self, batch: FlowBatch) -> NDArray[np.uint32] | None:
        self.calls += 1
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
    """Has no hook."""


@pytest.fixture
def plugins() -> PluginManager:
    return PluginManager()


def test_an_unknown_hook_is_refused_with_its_name(plugins: PluginManager) -> None:
    class Typo:
        @hookimpl
        def on_new_flows(self, batch: FlowBatch) -> None: ...

    with pytest.raises(NfcoreError) as refused:
        plugins.register(Typo(), "typo")
    assert str(refused.value) == (
        "plugin 'typo': on_new_flows(batch: FlowBatch) -> None is no hook of nfcore; "
        "did you mean on_new_flow(batch: FlowBatch) -> NDArray[np.uint8] | None?"
    )
    assert plugins.loaded() == []


def test_another_signature_is_refused_with_both_signatures(plugins: PluginManager) -> None:
    class Old:
        @hookimpl
        def on_new_flow(self, flow: object) -> None: ...

    with pytest.raises(NfcoreError) as refused:
        plugins.register(Old(), "old")
    assert str(refused.value) == (
        "plugin 'old': on_new_flow(flow: object) -> None takes 'flow', which the hook does not have; "
        "should be on_new_flow(batch: FlowBatch) -> NDArray[np.uint8] | None, or with fewer arguments"
    )
    assert plugins.loaded() == []
    assert plugins.implementing("on_new_flow") == []


def test_a_wrapper_is_refused(plugins: PluginManager) -> None:
    class Wraps:
        @hookimpl(wrapper=True)
        def on_new_flow(self, batch: FlowBatch) -> Any:
            yield

    with pytest.raises(NfcoreError, match=r"plugin 'wraps': on_new_flow.* is a wrapper"):
        plugins.register(Wraps(), "wraps")


def test_a_hook_may_have_another_name_and_own_defaults(plugins: PluginManager) -> None:
    class Renamed:
        @hookimpl(specname="on_new_flow")
        def judge(self, batch: FlowBatch, strict: bool = True) -> Any:
            return np.full(len(batch), strict, dtype=np.uint8)

    plugins.register(Renamed(), "renamed")
    assert plugins.try_call("renamed", "on_new_flow", batch=BATCH)[1].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("version", "advice"), [(API + 1, "a newer nfcore"), (API - 1, "a newer release of the plugin")]
)
def test_a_plugin_for_another_version_of_the_hooks_is_refused(
    plugins: PluginManager, version: int, advice: str
) -> None:
    class Other:
        nfcore_api = version

    with pytest.raises(NfcoreError, match=rf"'other': .*version {version} of the hooks.* has {API}: install {advice}"):
        plugins.register(Other(), "other")


def test_a_hook_without_hookimpl_is_reported(plugins: PluginManager) -> None:
    class Forgot:
        nfcore_api = API

        def teardown(self) -> None: ...

    plugins.register(Forgot(), "forgot")
    assert plugins.remarks == ["plugin forgot: teardown has a hook's name without @hookimpl: it will not be called"]
    assert plugins.hooks_of("forgot") == []


def test_a_refused_plugin_leaves_the_manager_usable(plugins: PluginManager) -> None:
    class Typo:
        @hookimpl
        def collect_stat(self) -> None: ...

    with pytest.raises(NfcoreError):
        plugins.register(Typo(), "typo")
    plugins.register(Offers(), "offers")
    assert plugins.loaded() == ["offers"]


def test_a_name_can_be_used_once(plugins: PluginManager) -> None:
    plugins.register(Silent(), "one")
    with pytest.raises(NfcoreError, match="plugin 'one': the name is taken"):
        plugins.register(Silent(), "one")


def test_a_hook_may_take_fewer_arguments(plugins: PluginManager) -> None:
    class Short:
        @hookimpl
        def install_offload(self) -> str:
            return "called"

    plugins.register(Short(), "short")
    assert plugins.call("short", "install_offload", device=None, rules=None) == "called"


def test_call_reaches_one_plugin(plugins: PluginManager) -> None:
    plugins.register(Fixed(np.array([1, 1], np.uint8), None), "first")
    plugins.register(Fixed(np.array([2, 2], np.uint8), None), "second")
    assert plugins.call("second", "on_new_flow", batch=BATCH).tolist() == [2, 2]
    assert plugins.call("first", "on_new_flow", batch=BATCH).tolist() == [1, 1]


def test_a_call_of_a_missing_hook_gives_none(plugins: PluginManager) -> None:
    plugins.register(Silent(), "silent")
    assert plugins.call("silent", "on_new_flow", batch=BATCH) is None


def test_call_passes_exceptions_on(plugins: PluginManager) -> None:
    plugins.register(Raises(), "raises")
    with pytest.raises(LookupError, match="no policy"):
        plugins.call("raises", "on_new_flow", batch=BATCH)
    with pytest.raises(LookupError, match="no mark"):
        plugins.call("raises", "allocate_mark", batch=BATCH)


def test_a_list_is_one_result_not_a_list_of_results(plugins: PluginManager) -> None:
    plugins.register(Offers(), "offers")
    (info,) = plugins.call("offers", "marking_strategies")
    assert info.name == "odd-even"


def test_call_each_calls_in_loading_order(plugins: PluginManager) -> None:
    plugins.register(Fixed(None, None), "quiet")
    plugins.register(Silent(), "silent")
    plugins.register(Fixed(np.array([2, 2], np.uint8), None), "loud")
    assert [name for name, _ in plugins.call_each("on_new_flow", batch=BATCH)] == ["quiet", "loud"]
    assert plugins.implementing("on_new_flow") == ["quiet", "loud"]


def test_call_each_goes_on_after_a_plugin_that_raises(plugins: PluginManager, caplog: pytest.LogCaptureFixture) -> None:
    plugins.register(Raises(), "raises")
    plugins.register(Fixed(np.array([2, 2], np.uint8), None), "loud")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert [name for name, _ in plugins.call_each("on_new_flow", batch=BATCH)] == ["loud"]
    assert errors_of(plugins) == {("raises", "on_new_flow"): 3}
    assert "plugin raises: on_new_flow failed: LookupError: no policy for that" in caplog.text


def test_call_first_stops_at_the_first_result(plugins: PluginManager) -> None:
    last = Fixed(None, np.array([9, 9], np.uint32))
    plugins.register(Raises(), "raises")
    plugins.register(Fixed(None, None), "not in charge")
    plugins.register(Fixed(None, np.array([1, 2], np.uint32)), "in charge")
    plugins.register(last, "too late")
    assert plugins.call_first("allocate_mark", batch=BATCH)[1].tolist() == [1, 2]
    assert last.calls == 0
    assert errors_of(plugins)["raises", "allocate_mark"] == 1


def test_call_first_without_any_result(plugins: PluginManager) -> None:
    plugins.register(Fixed(None, None), "not in charge")
    assert plugins.call_first("allocate_mark", batch=BATCH)[1] is None


def test_try_call_distinguishes_none_from_a_fault(plugins: PluginManager) -> None:
    plugins.register(Raises(), "raises")
    plugins.register(Fixed(None, None), "quiet")
    assert plugins.try_call("quiet", "on_new_flow", batch=BATCH) == (True, None)
    assert plugins.try_call("raises", "on_new_flow", batch=BATCH) == (False, None)


def test_nfcores_plugins_are_found_like_all_others() -> None:
    plugins = PluginManager()
    assert {"katran_accel", "marking", "softnic", "stats"} <= discovery.installed().keys()
    info = discovery.describe("marking")
    assert (info.distribution, info.source) == ("nfcore", "nfcore.plugins.marking:MarkingPlugin")
    assert plugins.loaded() == []
    plugins.load("marking")
    plugins.load("marking")
    assert plugins.loaded() == ["marking"]
    assert {"allocate_mark", "marking_strategies", "release_mark"} <= set(plugins.hooks_of("marking"))


class Lives:
    """Records its setup and teardown."""

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


def test_plugins_are_torn_down_in_reverse_order_also_after_a_failure(plugins: PluginManager, config: Any) -> None:
    notes: list[str] = []
    for name in "abc":
        plugins.register(Lives(name, notes), name)
    with set_up(make_context(config, plugins, []), plugins):
        notes.append("work")
    assert notes == ["a up", "b up", "c up", "work", "c down", "b down", "a down"]


def test_a_failed_setup_names_its_plugin_and_undoes_the_others(plugins: PluginManager, config: Any) -> None:
    notes: list[str] = []
    plugins.register(Lives("a", notes), "a")
    plugins.register(Lives("c", notes, KeyError("eth9")), "c")
    plugins.register(Lives("d", notes), "d")
    context = make_context(config, plugins, [])
    with pytest.raises(NfcoreError, match=r"plugin c: setup failed: KeyError: 'eth9'"), set_up(context, plugins):
        pytest.fail("must not get here")
    assert notes == ["a up", "c up", "c down", "a down"]


def test_metrics_of_a_faulty_plugin_are_left_out(plugins: PluginManager, config: Any) -> None:
    class Broken:
        @hookimpl
        def collect_stats(self) -> Iterable[MetricFamily]:
            yield MetricFamily("nfcore_half", MetricKind.GAUGE, "Half of them.")
            raise ValueError("the map is gone")

    class Works:
        @hookimpl
        def collect_stats(self) -> Iterable[MetricFamily]:
            return [MetricFamily("nfcore_whole", MetricKind.GAUGE, "All of them.")]

    class NoMetrics:
        @hookimpl
        def collect_stats(self) -> None:
            return None

    for name, plugin in {"works": Works(), "nothing": NoMetrics(), "broken": Broken()}.items():
        plugins.register(plugin, name)
    context = make_context(config, plugins, [])
    make_engine(context, plugins, {})
    collected = list(context.services.collect())
    given = {name: [family.name for family in families] for name, families in collected if name != "nfcore"}
    assert given == {"works": ["nfcore_whole"], "nothing": []}
    last = {family.name: family for family in collected[-1][1]}
    (error,) = last["nfcore_hook_errors_total"].samples
    assert (error.value, error.labels) == (1, {"plugin": "broken", "hook": "collect_stats", "kind": "raised"})
    assert errors_of(plugins)["broken", "collect_stats"] == 1


def test_every_hook_has_a_role() -> None:
    assert list(ROLES) == [name for name in vars(Hooks) if not name.startswith("_")]
    first = {name for name, role in ROLES.items() if role.asked is CalledOn.FIRST}
    # pluggy's own option says the same.
    assert all(vars(Hooks)[name].nfcore_spec["firstresult"] for name in first)


WRONG_RESULTS: dict[str, tuple[str, Any, str]] = {
    "reasons of another length": (
        "on_new_flow",
        np.zeros(3, np.uint8),
        r"shape \(3,\); should be an array of 2 reasons",
    ),
    "no array": ("on_new_flow", [0, 0], r"returned \[0, 0\]; should be an array of 2 reasons, one per flow"),
    "a reason too large": ("on_new_flow", np.array([0, 256]), r"returned 256 for a flow; .* from 0 to 255"),
    "floating reasons": (
        "on_new_flow",
        np.zeros(2),
        r"returned an array of float64; should be an array of 2 reasons, one per flow, of dtype uint8",
    ),
    "floating marks": (
        "allocate_mark",
        np.zeros(2),
        r"returned an array of float64; should be an array of 2 marks, one per flow, of dtype uint32",
    ),
    "floating truth": ("publish_marks", np.ones(2), r"array of float64; should be .* truth values.*, of dtype bool"),
    "floating counts": (
        "remove_offload",
        Outcomes(np.full(2, 5, np.uint8), counted=np.zeros((2, 2))),
        r"counted = an array of float64, shape \(2, 2\); should be integers of shape \(2, 2\), .* of dtype uint64",
    ),
    "floating rows": ("dump_offload", np.zeros(2), r"returned an array of float64; should be rows of .*INSTALLED_ROW"),
    "floating targets": ("reconfigure", np.zeros(2), r"array of float64, shape \(2,\); should be .* of dtype uint64"),
    "targets as a list": ("reconfigure", [1], r"returned \[1\]; should be an array of the targets that are gone"),
    "a verdict alone": ("trace_packet", "XDP_TX", r"returned 'XDP_TX'; should be nfcore.*PacketTrace, or None"),
    "a frame as text": ("trace_packet", PacketTrace("XDP_TX", "", "slow", None, None), r"output = ''; should be bytes"),
    "an odd path": (
        "trace_packet",
        PacketTrace("XDP_TX", b"", "quick", None, None),
        r"path = 'quick'; should be",
    ),
    "a real as number": ("trace_packet", PacketTrace("XDP_TX", b"", "slow", None, 5), r"real = 5; should be a text"),
    "one text of what was cleaned up": ("cleanup", "all", r"returned 'all'; should be texts"),
    "paths of what was cleaned up": ("cleanup", [Path("/x")], r"among others; should be texts"),
    "protocols as text": (
        "probe_offload",
        Capabilities(16, protocols="tcp"),
        r"protocols = 'tcp'; should be a",
    ),
    "a protocol too large": ("probe_offload", Capabilities(16, protocols=(256,)), r"protocols = \(256,\); should be"),
    "masks as a number": ("probe_offload", Capabilities(16, masks=1), r"masks = 1; should be True or False"),
    "negative marks": ("allocate_mark", np.array([1, -1]), r"returned -1 for a flow"),
    "one number for all": ("publish_marks", True, r"returned True; should be an array of 2 truth values"),
    "numbers for truth": ("publish_marks", np.ones(2, np.uint8), r"returned an array of uint8"),
    "nothing published": ("publish_marks", None, r"returned None; should be an array of 2 truth values"),
    "no outcomes": ("install_offload", None, r"returned None; should be Outcomes with a status for each of 2 rules"),
    "a status too few": ("install_offload", Outcomes.all(Outcome.INSTALLED, 1), r"statuses of shape \(1,\)"),
    "unknown status": (
        "remove_offload",
        Outcomes(np.array([5, 99], np.uint8)),
        r"returned .*99.* a status of",
    ),
    "a status of the other hook": (
        "install_offload",
        Outcomes(np.array([1, 5], np.uint8)),
        r"returned .*5.* INSTALLED, FULL",
    ),
    "floating statuses": ("install_offload", Outcomes(np.array([1.0, 1.0])), r"returned .*1.0.* a status of"),
    "a message that is no text": (
        "install_offload",
        Outcomes(np.ones(2, np.uint8), {0: 5}),
        r"returned the messages \{0: 5\}",
    ),
    "messages as a list": (
        "install_offload",
        Outcomes(np.ones(2, np.uint8), ["no", "no"]),
        r"returned the messages \['no', 'no'\]",
    ),
    "counted too little": (
        "remove_offload",
        Outcomes(np.full(2, 5, np.uint8), counted=np.zeros((1, 2), np.uint64)),
        r"should be integers of shape \(2, 2\), or None",
    ),
    "rows of objects": ("dump_offload", [], r"returned \[\]; should be rows of nfcore.api.rules.INSTALLED_ROW"),
    "a tuple of capabilities": ("probe_offload", (16, True), r"returned \(16, True\); should be .*Capabilities"),
    "a width as text": ("probe_offload", Capabilities("16"), r"mark_width = '16'; should be a number of bits"),
    "too wide a mark": ("probe_offload", Capabilities(64), r"mark_width = 64; should be a number of bits from 0 to 32"),
    "a negative table": ("probe_offload", Capabilities(16, table_size=-1), r"table_size = -1; should be a number of"),
    "notes as a text": ("probe_offload", Capabilities(16, notes="slow"), r"notes = 'slow'; should be a tuple of texts"),
    "yes for true": ("probe_offload", Capabilities(16, ipv6="yes"), r"ipv6 = 'yes'; should be True or False"),
    "a table for a section": ("config_section", ConfigTable, r"should be a nfcore.api.config.Section"),
    "a section of a dict": ("config_section", Section(dict), r"should be a nfcore.api.config.Section of a .*Table"),
    "findings as a number": ("diagnose", [5], r"returned 5 among others; should be nfcore.api.findings.Finding"),
    "a dict of metrics": ("collect_stats", {"nfcore_x_total": 1}, r"returned 'nfcore_x_total' among others"),
    "a text as a strategy": ("marking_strategies", ["dest-id"], r"returned 'dest-id' .*StrategyInfo objects"),
}


@pytest.mark.parametrize("case", WRONG_RESULTS)
def test_a_wrong_result_is_a_fault(plugins: PluginManager, case: str, caplog: pytest.LogCaptureFixture) -> None:
    hook, result, pattern = WRONG_RESULTS[case]
    rules = RuleBatch.of([Rule(FlowMatch.parse(f"198.18.1.2:{n} > 198.18.10.1:80/tcp"), SetMark(1), n) for n in (1, 2)])
    values = {
        "batch": BATCH,
        "marks": np.ones(2, np.uint32),
        "device": Device("eth1", 4),
        "rules": rules,
        "context": None,
        "config": None,
        "nf": 1,
        "frame": b"",
        "mark": 0,
    }
    taken = [name for name in inspect.signature(vars(Hooks)[hook]).parameters if name != "self"]
    plugins.register(hooked(hook, taken, lambda **_: result), "wrong")
    assert plugins.try_call("wrong", hook, **{name: values[name] for name in taken}) == (False, None)
    assert plugins.faults == {("wrong", hook, Fault.WRONG_RESULT): 1}
    (record,) = caplog.records
    assert record.getMessage().startswith(f"plugin wrong: {hook} ")
    assert re.search(pattern, record.getMessage()), record.getMessage()


def hooked(hook: str, taken: Sequence[str], function: Callable[..., Any]) -> object:
    """A plugin whose only hook calls a function."""
    source = (
        f"def {hook}(self, {', '.join(taken)}):\n    return function({', '.join(f'{name}={name}' for name in taken)})"
    )
    names: dict[str, Any] = {"function": function}
    exec(source, names)
    return type("Hooked", (), {hook: hookimpl(names[hook])})()


def test_arguments_by_keyword_only_are_refused(plugins: PluginManager) -> None:
    class Keyword:
        @hookimpl
        def install_offload(self, *, device: Device, rules: RuleBatch) -> Outcomes:
            return Outcomes.all(Outcome.FAILED, len(rules))

    with pytest.raises(
        NfcoreError, match=r"takes 'device', 'rules' by keyword only; should be install_offload\(device"
    ):
        plugins.register(Keyword(), "keyword")


def test_a_plugin_may_not_end_the_process(plugins: PluginManager, caplog: pytest.LogCaptureFixture) -> None:
    plugins.register(hooked("on_new_flow", ["batch"], lambda batch: sys.exit(7)), "exits")
    assert plugins.try_call("exits", "on_new_flow", batch=BATCH) == (False, None)
    assert "plugin exits: on_new_flow failed: ExitError: it called sys.exit(7)" in caplog.text


@pytest.mark.parametrize("raised", [KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
def test_what_only_the_interpreter_raises_does_not_end_the_event_loop(
    plugins: PluginManager, raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def metrics() -> Iterator[MetricFamily]:
        raise raised
        yield gauge("nfcore_odd", "Odd.", "")

    plugins.register(hooked("collect_stats", [], metrics), "ends")
    plugins.loop_thread = threading.get_ident()
    assert plugins.try_call("ends", "collect_stats") == (False, None)
    assert f"plugin ends: collect_stats failed: ExitError: it raised {raised.__name__}" in caplog.text


class MessagelessError(Exception):
    """Its `str()` raises."""

    def __str__(self) -> str:
        raise LookupError("no message")


class OddResult:
    """Raises when it is read or shown."""

    def __init__(self, raised: BaseException) -> None:
        self._raised = raised

    def __iter__(self) -> Iterator[MetricFamily]:
        raise self._raised

    def __repr__(self) -> str:
        raise self._raised


def test_an_exception_without_a_message_is_reported_by_its_type(
    plugins: PluginManager, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(batch: FlowBatch) -> None:
        raise MessagelessError

    plugins.register(hooked("on_new_flow", ["batch"], fail), "mute")
    assert plugins.try_call("mute", "on_new_flow", batch=BATCH) == (False, None)
    assert plugins.faults == {("mute", "on_new_flow", Fault.RAISED): 1}
    assert "failed: MuteError: MessagelessError, whose message cannot be read" in caplog.text
    with pytest.raises(MuteError):
        plugins.call("mute", "on_new_flow", batch=BATCH)


@pytest.mark.parametrize("raised", [SystemExit(3), MessagelessError(), LookupError("odd")])
@pytest.mark.parametrize(("hook", "given"), [("collect_stats", {}), ("on_new_flow", {"batch": BATCH})])
def test_a_result_that_raises_when_it_is_read_is_a_fault(
    plugins: PluginManager, hook: str, given: dict[str, Any], raised: BaseException
) -> None:
    plugins.register(hooked(hook, list(given), lambda **_: OddResult(raised)), "odd")
    assert plugins.try_call("odd", hook, **given) == (False, None)
    assert errors_of(plugins) == {("odd", hook): 1}


def test_nfcores_own_metrics_are_collected_first(plugins: PluginManager) -> None:
    plugins.register(hooked("collect_stats", [], list), "other")
    plugins.load("stats")
    assert plugins.implementing("collect_stats") == ["stats", "other"]


def test_an_operator_may_interrupt_a_hook_of_a_command(plugins: PluginManager) -> None:
    def interrupted(context: object) -> None:
        raise KeyboardInterrupt

    plugins.register(hooked("diagnose", ["context"], interrupted), "long")
    with pytest.raises(KeyboardInterrupt):
        plugins.try_call("long", "diagnose", context=None)


def test_a_result_without_an_end_is_refused(plugins: PluginManager, caplog: pytest.LogCaptureFixture) -> None:
    plugins.register(hooked("collect_stats", [], lambda: itertools.repeat(gauge("nfcore_odd", "Odd.", ""))), "endless")
    assert plugins.try_call("endless", "collect_stats") == (False, None)
    assert "collect_stats returned more than 10,000 objects, " in caplog.text


def install_distribution(folder: Path, name: str, points: str, code: str = "") -> None:
    """Write a distribution; Python finds it once the folder is on its path."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[nfcore.plugins]\n{points}\n")
    (folder / f"{name}.py").write_text(code)


def test_the_name_of_an_own_plugin_belongs_to_nfcore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One that is found before nfcore, and one that sorts after it.
    install_distribution(tmp_path, "intruder", "softnic = intruder:Plugin\nacme = intruder:Plugin")
    install_distribution(tmp_path, "zz_intruder", "softnic = zz_intruder:Plugin")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert discovery.describe("softnic").distribution == "nfcore"
    assert discovery.competing_distributions("softnic") == ["intruder", "nfcore", "zz_intruder"]
    assert discovery.competing_distributions("acme") == discovery.competing_distributions("marking") == []


def test_a_name_in_two_distributions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("left", "right"):
        install_distribution(tmp_path, name, f"acme = {name}:Plugin", "class Plugin: ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NfcoreError, match="plugin 'acme': is in several distributions, left, right: uninstall all but"):
        PluginManager().load("acme")


def test_an_import_that_ends_the_process_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_distribution(tmp_path, "exiting", "acme = exiting:Plugin", "import sys; sys.exit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ExitError, match=r"it called sys.exit\(3\)"):
        PluginManager().load("acme")


def test_faults_that_differ_in_numbers_alone_are_repeats(plugins: PluginManager) -> None:
    numbers, written = itertools.count(), io.StringIO()
    handler = LogHandler(written)

    def fail(batch: FlowBatch) -> None:
        raise LookupError(f"flow {next(numbers)}")

    plugins.register(hooked("on_new_flow", ["batch"], fail), "fails")
    manager_log.addHandler(handler)
    try:
        for _ in range(5):
            plugins.try_call("fails", "on_new_flow", batch=BATCH)
    finally:
        manager_log.removeHandler(handler)
    assert plugins.faults == {("fails", "on_new_flow", Fault.RAISED): 5}
    first = "plugin fails: on_new_flow failed: LookupError: flow 0"
    assert written.getvalue().splitlines() == [first]
    handler.close()
    assert written.getvalue().splitlines()[1:] == [f"{first[:-1]}4 (4 more times since it was last logged)"]


def test_calls_are_counted_and_timed(plugins: PluginManager) -> None:
    plugins.register(Raises(), "raises")
    plugins.register(hooked("on_new_flow", ["batch"], lambda batch: time.sleep(0.01)), "slow")
    for _ in range(2):
        list(plugins.call_each("on_new_flow", batch=BATCH))
    assert {key: spent.calls for key, spent in plugins.times.items()} == {
        ("raises", "on_new_flow"): 2,
        ("slow", "on_new_flow"): 2,
    }
    spent = plugins.times["slow", "on_new_flow"]
    assert 0.02 <= spent.seconds >= spent.slowest >= 0.01
    assert plugins.under_way == {}


def test_every_call_is_logged_when_tracing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(TRACE_VARIABLE, "1")
    plugins = PluginManager()
    plugins.register(Raises(), "raises")
    plugins.register(Fixed(np.array([1, 1], np.uint8), None), "answers")
    with caplog.at_level(logging.INFO, "nfcore.trace"):
        list(plugins.call_each("on_new_flow", batch=BATCH))
        plugins.call_first("allocate_mark", batch=BATCH)[1]
    lines = [record.getMessage() for record in caplog.records if record.name == "nfcore.trace"]
    assert [re.sub(r"[0-9.]+ ms", "T", line) for line in lines] == [
        "raises: on_new_flow(2 flows) → it raised LookupError in T",
        "answers: on_new_flow(2 flows) → 2 results in T",
        "raises: allocate_mark(2 flows) → it raised LookupError in T",
        "answers: allocate_mark(2 flows) → None in T",
    ]


@pytest.mark.parametrize("value", ["", "0"])
def test_nothing_is_logged_without_tracing(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(TRACE_VARIABLE, value)
    plugins = PluginManager()
    plugins.register(Fixed(None, None), "quiet")
    with caplog.at_level(logging.DEBUG):
        list(plugins.call_each("on_new_flow", batch=BATCH))
    assert caplog.records == []
