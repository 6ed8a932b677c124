# SPDX-License-Identifier: Apache-2.0
"""The two strategies, called as the engine calls them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.api.config import Config
from nfcore.api.context import Context
from nfcore.api.flows import FlowBatch
from nfcore.api.marks import MarkAllocator, MarkMeaning, MarkState
from nfcore.api.rules import Device
from nfcore.daemon.bootstrap import find_strategy, make_context
from nfcore.hooks.manager import PluginManager
from nfcore.plugins.marking import DEST_ID, FLOW_ID, DestId, MarkingPlugin

DEVICE = Device("eth1", 4, ("some_nic",))


def batch(targets: list[int], marks: list[int] | None = None, nf: int = 1) -> FlowBatch:
    flows = FlowBatch.empty(len(targets))
    flows.rows["target"], flows.rows["nf"] = targets, nf
    flows.rows["mark"] = marks or 0
    return flows


@pytest.fixture
def plugins() -> PluginManager:
    plugins = PluginManager()
    plugins.register(MarkingPlugin(), "marking")
    return plugins


def set_up(plugins: PluginManager, config: Config, strategy: str, *devices: Device) -> Context:
    marking = config.marking.model_copy(update={"strategy": strategy, "width": 4})
    context = make_context(replace(config, marking=marking), plugins, list(devices))
    plugins.call("marking", "setup", context=context)
    return context


@pytest.mark.parametrize(("name", "meaning"), [("flow-id", MarkMeaning.FLOW), ("dest-id", MarkMeaning.TARGET)])
def test_the_toml_chooses_by_name(plugins: PluginManager, config: Config, name: str, meaning: MarkMeaning) -> None:
    marking = config.marking.model_copy(update={"strategy": name})
    chosen = find_strategy(replace(config, marking=marking), plugins)
    assert chosen is not None
    plugin, info = chosen
    assert (plugin, info.name, info.meaning) == ("marking", name, meaning)


def test_flow_id_confirms_leased_marks(plugins: PluginManager, config: Config) -> None:
    context = set_up(plugins, config, "flow-id", DEVICE)
    leased = context.marks.take(3, MarkState.LEASED).tolist()
    live = context.marks.take(1).tolist()
    reported = [leased[1], 0, live[0], 9, 2**31, leased[1], leased[2]]
    marks = plugins.call_first("allocate_mark", batch=batch([7] * len(reported), reported))[1]
    assert marks.tolist() == [leased[1], 0, 0, 0, 0, 0, leased[2]]
    assert marks.dtype == np.uint32
    assert context.marks.state[leased].tolist() == [MarkState.LEASED, MarkState.LIVE, MarkState.LIVE]


def test_flow_id_puts_released_marks_into_quarantine(plugins: PluginManager, config: Config) -> None:
    context = set_up(plugins, config, "flow-id", DEVICE)
    marks = context.marks.take(2)
    plugins.call("marking", "release_mark", marks=marks)
    assert context.marks.count(MarkState.QUARANTINED) == 2


@given(st.lists(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2**64 - 1)), max_size=12), max_size=5))
def test_dest_id_is_one_mark_per_target(batches: list[list[tuple[int, int]]]) -> None:
    strategy = DestId(MarkAllocator(10, 0.0))
    known: dict[tuple[int, int], int] = {}
    for pairs in batches:
        flows = batch([target for _, target in pairs])
        flows.rows["nf"] = [nf for nf, _ in pairs]
        marks = strategy.allocate(flows).tolist()
        for pair, mark in zip(pairs, marks, strict=True):
            assert mark == known.setdefault(pair, mark)
    assert sorted(known.values()) == list(range(1, len(known) + 1))


def test_dest_id_gives_a_target_that_comes_back_another_mark() -> None:
    marks = MarkAllocator(4, 5.0, lambda: 0.0)
    strategy = DestId(marks)
    strategy.allocate(batch([7, 8]))
    strategy.release(np.array([1], dtype=np.uint32))
    assert marks.state[1] == MarkState.QUARANTINED
    assert strategy.allocate(batch([8, 7])).tolist() == [2, 3]


def test_dest_id_without_marks_left(plugins: PluginManager, config: Config) -> None:
    set_up(plugins, config, "dest-id", DEVICE)
    marks = plugins.call_first("allocate_mark", batch=batch(list(range(20))))[1]
    assert marks.tolist() == [*range(1, 16), 0, 0, 0, 0, 0]
    assert plugins.call_first("allocate_mark", batch=batch([19, 3]))[1].tolist() == [0, 4]


def test_another_strategy_leaves_this_plugin_out(plugins: PluginManager, config: Config) -> None:
    set_up(plugins, config, "odd-even", DEVICE)
    assert plugins.call_first("allocate_mark", batch=batch([1]))[1] is None


def test_without_a_backend_there_are_no_marks(plugins: PluginManager, config: Config) -> None:
    context = set_up(plugins, config, "dest-id", Device("eth1", 4))
    assert context.strategy is None
    assert plugins.call_first("allocate_mark", batch=batch([1]))[1] is None


def test_teardown_forgets(plugins: PluginManager, config: Config) -> None:
    set_up(plugins, config, "dest-id", DEVICE)
    plugins.call("marking", "teardown")
    assert plugins.call_first("allocate_mark", batch=batch([1]))[1] is None


@pytest.mark.parametrize("info", [FLOW_ID, DEST_ID])
def test_strategies_say_what_they_are(info: Any) -> None:
    assert info.help
