# SPDX-License-Identifier: Apache-2.0
"""Marks by owner: every mark is in its owner's block, and a full block does not affect other owners."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nfcore.api.flows import FlowBatch
from nfcore.api.marks import MarkState
from nfcore_strategy_tenant.config import NAME

from .strategy_run import Run, load, toml

WIDTH, BITS, QUARANTINE = 5, 2, 5.0
VIPS = {
    "198.18.10.1:80/tcp": 1,
    "198.18.10.0/24:0/udp": 1,
    "[2001:db8:10::7]:443/udp": 1,
    "198.18.11.1:80/tcp": 3,
    "198.18.11.1:80/udp": 0,
    "198.18.10.0/23:80/tcp": 0,  # part of it is blue's, and part is not
    "198.18.99.1:80/tcp": 0,
    "of another kind": 0,
}
SIZES = {0: 7, 1: 8, 2: 8, 3: 8}
"""Block → number of marks; mark 0 is not used."""


def batch(targets: list[int], nf: int = 1) -> FlowBatch:
    flows = FlowBatch.empty(len(targets))
    flows.rows["nf"], flows.rows["target"] = nf, targets
    return flows


class Tenants(RuleBasedStateMachine):
    """The plugin, called through the plugin manager, compared with a dictionary of targets."""

    @initialize()
    def begin(self) -> None:
        self.now = 100.0
        with tempfile.TemporaryDirectory() as folder:
            self.run = Run(*load(Path(folder), toml(bits=BITS, width=WIDTH)), lambda: self.now, QUARANTINE)
        self.marks: dict[int, int] = {}
        self.released: dict[int, float] = {}
        self.next_target = 1

    @rule(vips=st.lists(st.sampled_from(sorted(VIPS)), min_size=1, max_size=6))
    def targets_appear(self, vips: list[str]) -> None:
        fresh = range(self.next_target, self.next_target + len(vips))
        self.next_target += len(vips)
        self.run.function.vips |= zip(fresh, vips, strict=True)
        self._allocate(list(fresh))

    @rule(data=st.data())
    @precondition(lambda self: self.run.function.vips)
    def known_ones_have_flows(self, data: st.DataObject) -> None:
        self._allocate(data.draw(st.lists(st.sampled_from(sorted(self.run.function.vips)), max_size=8)))

    def _allocate(self, targets: list[int]) -> None:
        room = {block: SIZES[block] - self._busy(block) for block in SIZES}
        given = self.run.plugins.call_first("allocate_mark", batch=batch(targets))[1].tolist()
        for target, mark in zip(targets, given, strict=True):
            block = VIPS[self.run.function.vips[target]]
            if target in self.marks:
                assert mark == self.marks[target]
            elif mark:
                assert mark >> (WIDTH - BITS) == block
                assert mark not in self.marks.values()
                assert self.now - self.released.pop(mark, -QUARANTINE) >= QUARANTINE
                self.marks[target] = mark
                room[block] -= 1
            else:
                assert room[block] == 0, "a mark was refused although the block has room"

    def _busy(self, block: int) -> int:
        in_quarantine = [mark for mark, since in self.released.items() if self.now - since < QUARANTINE]
        return sum(mark >> (WIDTH - BITS) == block for mark in [*self.marks.values(), *in_quarantine])

    @rule(data=st.data())
    @precondition(lambda self: self.marks)
    def targets_go(self, data: st.DataObject) -> None:
        gone = data.draw(st.lists(st.sampled_from(sorted(self.marks)), min_size=1, unique=True))
        marks = [self.marks.pop(target) for target in gone]
        for target in gone:
            del self.run.function.vips[target]
        self.run.plugins.call(NAME, "release_mark", marks=np.array(marks, dtype=np.uint32))
        self.released |= dict.fromkeys(marks, self.now)

    @rule(seconds=st.sampled_from([1.0, QUARANTINE]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def metrics_show_what_is_in_use(self) -> None:
        families = {family.name: family for family in self.run.plugins.call(NAME, "collect_stats")}
        in_use = {s.labels["owner"]: s.value for s in families["nfcore_tenant_marks_in_use"].samples}
        blocks = [mark >> (WIDTH - BITS) for mark in self.marks.values()]
        assert in_use == {"default": blocks.count(0), "blue": blocks.count(1), "green": blocks.count(3)}
        assert sum(in_use.values()) == self.run.context.marks.count(MarkState.LIVE)
        sizes = {s.labels["owner"]: s.value for s in families["nfcore_tenant_marks_size"].samples}
        assert sizes == {"default": 7, "blue": 8, "green": 8}


TestTenants = Tenants.TestCase
TestTenants.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(*load(tmp_path, toml(bits=BITS, width=WIDTH)), lambda: 0.0)


def test_a_full_block_is_logged_once_and_counted(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.function.vips = dict.fromkeys(range(1, 11), "198.18.10.1:80/tcp") | {11: "198.18.11.1:80/tcp"}
    assert run.plugins.call_first("allocate_mark", batch=batch(list(range(1, 12))))[1].tolist() == [
        *range(8, 16),
        0,
        0,
        24,
    ]
    assert run.plugins.call_first("allocate_mark", batch=batch([10, 10, 1]))[1].tolist() == [0, 0, 8]
    assert [record.message for record in caplog.records] == [
        "the block of blue is full: its 8 marks are in use or in quarantine"
    ]
    families = {family.name: family for family in run.plugins.call(NAME, "collect_stats")}
    refused = {s.labels["owner"]: s.value for s in families["nfcore_tenant_marks_refused_total"].samples}
    assert refused == {"default": 0, "blue": 3, "green": 0}


def test_another_strategy_leaves_the_plugin_out(tmp_path: Path) -> None:
    text = toml().replace('["tenant_marks"]', '["tenant_marks", "marking"]').replace('"tenant"', '"dest-id"')
    run = Run(*load(tmp_path, text), lambda: 0.0)
    assert run.plugins.call(NAME, "allocate_mark", batch=batch([1])) is None
    assert list(run.plugins.call(NAME, "collect_stats")) == []
    run.plugins.call(NAME, "release_mark", marks=np.array([1], dtype=np.uint32))


def test_teardown_forgets(run: Run) -> None:
    run.plugins.call(NAME, "teardown")
    assert run.plugins.call_first("allocate_mark", batch=batch([1]))[1] is None
