# SPDX-License-Identifier: Apache-2.0
"""The parts around the suites: messages, the summary, the cost of the import, sample frames and rules."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

from nfcore import testing
from nfcore.api.config import ConfigTable, Section
from nfcore.api.flows import SERVICE_TAG, FlowMatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.rules import Device, Drop, SetMark
from nfcore.errors import ConfigError
from nfcore.testing import (
    BackendConformance,
    NetworkFunctionConformance,
    StrategyConformance,
    context_for,
    sample_flow,
    sample_frame,
    sample_rules,
)
from nfcore.testing.promises import promises_of
from nfcore.testing.results import is_excused
from nfcore.testing.samples import masked_samples

from .reference_nic import Hardware, ReferenceNic, flow_of, untag
from .suite_runs import reports_of

pytest_plugins = ["pytester"]
README = Path(testing.__file__).with_name("README.md")
SUITE = """
import dataclasses
import pytest
from nfcore.api.rules import Capabilities
from nfcore.testing import BackendConformance
from tests.unit.testing.reference_nic import ReferenceNic, under_test

class CountsNothing(ReferenceNic):
    TAKES = dataclasses.replace(ReferenceNic.TAKES, counters=False)

class TestNic(BackendConformance):
    @pytest.fixture
    def nic(self):
        return dataclasses.replace(under_test(CountsNothing), {changes})
"""


def python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_loading_it_in_every_run_costs_nothing() -> None:
    heavy = ("numpy", "pluggy", "pydantic", "hypothesis", "pytest")
    script = f"import sys, nfcore.testing.pytest_plugin; print([name for name in {heavy} if name in sys.modules])"
    assert python(script) == "[]"


@pytest.mark.parametrize(("missing", "name"), [("pytest", "BackendConformance"), ("hypothesis", "StrategyConformance")])
def test_what_is_missing_is_named_with_how_to_get_it(missing: str, name: str) -> None:
    script = f"""
import sys
sys.modules[{missing!r}] = None
try:
    from nfcore.testing import {name}
except ImportError as error:
    print(error)
"""
    assert python(script) == f"nfcore.testing needs {missing}: pip install 'nfcore[test]'"


def test_all_names_are_there_and_no_other() -> None:
    assert all(getattr(testing, name) for name in testing.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'BackendConformanse'"):
        _ = testing.BackendConformanse


@pytest.mark.parametrize("suite", [BackendConformance, StrategyConformance, NetworkFunctionConformance])
def test_every_promise_is_a_sentence(suite: type) -> None:
    promises = promises_of(suite)
    assert len(promises) > 10
    assert all(promise.statement.endswith(".") for promise in promises.values())


@pytest.mark.parametrize(
    ("suite", "kind"),
    [
        (BackendConformance, "backend"),
        (StrategyConformance, "strategy"),
        (NetworkFunctionConformance, "network function"),
    ],
)
def test_the_readme_has_every_promise(suite: type, kind: str) -> None:
    text = README.read_text(encoding="utf-8").split(f"## What a {kind} promises", 1)[1].split("\n## ", 1)[0]
    listed = dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", text, flags=re.MULTILINE))
    assert listed == {promise.id: promise.statement for promise in promises_of(suite).values()}


def test_a_lack_with_a_reason_is_no_gap(pytester: pytest.Pytester) -> None:
    changes = "send=None, foreign=None, lacks={'send': 'there is no wire'}"
    reports = [report for report in reports_of(pytester, SUITE.format(changes=changes)) if report.skipped]
    why = {report.nodeid.rpartition("::")[2]: str(report.longrepr) for report in reports}
    excused = {report.nodeid.rpartition("::")[2] for report in reports if is_excused(report)}
    assert "the suite cannot send frames to the NIC: there is no wire" in why["test_packets_are_marked"]
    assert "its rules do not count" in why["test_packets_are_counted"]
    assert "its `lacks` does not say why" in why["test_foreign_rules_stay"]
    assert set(why) - excused == {"test_foreign_rules_stay"}
    assert "test_packets_are_marked" in excused


def test_where_nothing_may_be_skipped_a_reason_is_enough() -> None:
    suite = f"{Path(__file__).with_name('test_backend.py')}::TestTheGuidesNic"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", suite]
    environment = {**os.environ, "CI": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"[1-9]\d* skipped", done.stdout)


def test_a_run_shows_what_was_kept(pytester: pytest.Pytester) -> None:
    path = pytester.makepyfile(SUITE.format(changes="foreign=None, lacks={'foreign': 'one owner'}"))
    lines = pytester.runpytest_inprocess("-p", "no:cacheprovider", str(path)).stdout
    lines.fnmatch_lines(["*= nfcore conformance =*", "reference (*::TestNic): * promises kept, * not applicable"])
    lines.fnmatch_lines(["*throughput: */s installed, */s dumped, */s removed"])
    lines.fnmatch_lines(
        ["*not applicable: foreign-rules-stay: the suite cannot install a rule of another program: one owner"]
    )


def test_a_run_without_the_suites_shows_nothing(pytester: pytest.Pytester) -> None:
    path = pytester.makepyfile("def test_nothing(): pass")
    pytester.runpytest_inprocess("-p", "no:cacheprovider", str(path)).stdout.no_fnmatch_line("*nfcore conformance*")


def test_a_suite_without_its_fixture_says_which(pytester: pytest.Pytester) -> None:
    text = "from nfcore.testing import BackendConformance\nclass TestNic(BackendConformance): pass\n"
    report = next(iter(reports_of(pytester, text)))
    assert "TestNic needs a fixture `nic` that returns a NicUnderTest" in report.longreprtext


SHAPES = st.tuples(st.sampled_from([4, 6]), st.sampled_from(["tcp", "udp"]))


@given(st.integers(0, 0xFFFF), SHAPES, st.integers(0, 1400), st.booleans())
def test_frames_are_whole_and_right(number: int, shape: tuple[int, str], payload: int, fragment: bool) -> None:
    flow = sample_flow(number, *shape)
    frame = sample_frame(flow, payload, fragment=fragment)
    read, has_ports = flow_of(frame)
    assert has_ports is not fragment
    if fragment:
        assert (read.src, read.dst, read.proto) == (flow.src, flow.dst, flow.proto)
        return
    assert read == flow
    layers = Ether(frame)
    (network,) = (layers[layer] for layer in (IP, IPv6) if layers.haslayer(layer))
    again = network.copy()
    for layer in (again, again.payload):
        if "chksum" in layer.fields:
            del layer.chksum
    length = len(bytes(again))
    assert bytes(again) == frame[14 : 14 + length]


@pytest.mark.parametrize("family", [4, 6])
def test_tags_are_in_front_of_the_packet(family: int) -> None:
    flow = sample_flow(5, family)
    frame = sample_frame(flow, vlans=(SERVICE_TAG | 200, 7))
    assert untag(frame) == ((SERVICE_TAG | 200, 7), sample_frame(flow))
    outer, inner = Ether(frame)[Dot1AD], Ether(frame)[Dot1Q]
    assert (outer.vlan, inner.vlan, inner.payload.name) == (200, 7, "IP" if family == 4 else "IPv6")
    assert Ether(sample_frame(flow, vlans=(100, 0)))[Dot1Q].vlan == 100


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_masked_samples_have_the_frames_that_they_say(family: int, protocol: str) -> None:
    fits = ReferenceNic(Hardware()).fits
    samples = masked_samples(family, protocol)
    for sample in samples:
        assert FlowMatch.parse(str(sample.match)) == sample.match
        for frame in sample.hits:
            assert [each.match for each in samples if fits(each.match, *flow_of(frame))] == [sample.match]
        for frame in sample.misses:
            assert not any(fits(each.match, *flow_of(frame)) for each in samples)
    assert len({rule.cookie for rule in sample_rules([sample.match for sample in samples], 1)}) == len(samples)


def test_every_sample_rule_has_a_cookie_of_its_own() -> None:
    flows = [sample_flow(number, *shape) for number in range(2000) for shape in ((4, "tcp"), (4, "udp"), (6, "tcp"))]
    rules = sample_rules(flows, 1)
    assert len(np.unique(rules.rows["cookie"])) == len(flows)
    assert (rules.rows["cookie"] != sample_rules(flows, 1, generation=2).rows["cookie"]).all()
    assert [rule.action for rule in sample_rules(flows[:3], [7, 0, 9])] == [SetMark(7), Drop(), SetMark(9)]


class Queues(ConfigTable):
    queues: int = 4


class WithTable:
    @hookimpl
    def config_section(self) -> Section:
        return Section(Queues)


def test_a_context_has_the_plugins_table(tmp_path: Path) -> None:
    device = Device("eth1", 4, ("with_table",))
    context = context_for(WithTable(), "with_table", [device], {"queues": 8}, folder=tmp_path)
    assert context.config.sections["with_table"] == Queues(queues=8)
    assert context.devices == [device] and context.strategy is None
    with pytest.raises(ValidationError, match="queues"):
        context_for(WithTable(), "with_table", [device], {"queues": "many"}, folder=tmp_path)
    with pytest.raises(ConfigError, match=r"bare: belongs to a plugin without config_section\(\)"):
        context_for(object(), "bare", [device], {"queues": 8}, folder=tmp_path)
