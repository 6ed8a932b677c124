# SPDX-License-Identifier: Apache-2.0
"""The suite for network functions: those of nfcore and the skeleton keep its promises, a wrong one breaks its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nfcore.api.flows import FlowMatch
from nfcore.api.network_function import NetworkFunction
from nfcore.bench.testbed import config_text
from nfcore.plugins.flow_actions import FlowActionsPlugin
from nfcore.plugins.katran_accel import KatranAccelPlugin
from nfcore.testing import FunctionUnderTest, NetworkFunctionConformance, sample_flow
from nfcore.testing.promises import promises_of
from tests.kernel.katran_accel.world import GATEWAY, TWO_FAMILIES

from .wrong_functions import NAME, WRONG, Plugin, under_test

pytest_plugins = ["pytester"]

ACTIONS = """
[[flow_actions.flows]]
name = "counted"
family = 4
proto = "tcp"
dport = 8080
action = "count"
[[flow_actions.flows]]
name = "dropped"
dst = "198.19.10.1"
dport = 8081
proto = "tcp"
action = "drop"
"""
OTHERS = tuple(replace(sample_flow(9, family), dport=9999) for family in (4, 6))


def to_vips(function: NetworkFunction) -> Sequence[FlowMatch]:
    """A flow to each VIP of the balancer."""
    facts = [function.target_facts(target) for target in function.targets().rows["target"].tolist()]
    vips = {(each.network, each.port, each.protocol) for each in facts if each.network is not None}
    return [
        replace(sample_flow(1, network.version, proto or 0), dst=network.network_address, dport=port or 0)
        for network, port, proto in sorted(vips, key=str)
    ]


class TestBalancerByDestination(NetworkFunctionConformance):
    STRATEGY = "dest-id"

    @pytest.fixture
    def function(self, tmp_path: Path) -> FunctionUnderTest:
        path = tmp_path / "nf.toml"
        table = f'[katran_accel]\ngateway_mac = "{GATEWAY}"\nlru_size = 4096\n{TWO_FAMILIES}'
        path.write_text(config_text(tmp_path, "katran_accel", "none", table, marking=f'strategy = "{self.STRATEGY}"'))
        vip = 'address="198.18.10.9", port=80, protocol="tcp", reals=[{address="198.18.20.11"}]'
        another = [f"katran_accel.vips=[{{{vip}}}]"]
        lacks = {"another": "the maps of entries tell runs apart"} if self.STRATEGY == "flow-id" else {}
        return FunctionUnderTest(
            KatranAccelPlugin,
            "katran_accel",
            path,
            to_vips,
            lambda function: OTHERS,
            another=[] if lacks else another,
            lacks=lacks,
        )


class TestBalancerByFlow(TestBalancerByDestination):
    STRATEGY = "flow-id"


class TestFlowActions(NetworkFunctionConformance):
    @pytest.fixture
    def function(self, tmp_path: Path) -> FunctionUnderTest:
        path = tmp_path / "nf.toml"
        path.write_text(config_text(tmp_path, "flow_actions", "none", ACTIONS))
        return FunctionUnderTest(
            FlowActionsPlugin,
            "flow_actions",
            path,
            lambda function: [replace(sample_flow(number), dport=8080) for number in (1, 2)],
            lambda function: OTHERS,
            another=['flow_actions.flows=[{name="a", family=4, action="pass"}]'],
            lacks={"reports": "an application orders flows", "checks": "an entry's `require` says what is checked"},
        )


class TestSkeleton(NetworkFunctionConformance):
    @pytest.fixture
    def function(self) -> FunctionUnderTest:
        return under_test(Plugin)


FILE = """
import pytest
from nfcore.testing import NetworkFunctionConformance
from tests.kernel.testing.wrong_functions import WRONG, under_test

class TestFunction(NetworkFunctionConformance):
    @pytest.fixture
    def function(self):
        return under_test(WRONG[{name!r}][0])
"""


@pytest.mark.parametrize("name", WRONG)
def test_the_promise_that_a_wrong_function_breaks_is_reported(pytester: pytest.Pytester, name: str) -> None:
    promise = WRONG[name][1]
    path = pytester.makepyfile(FILE.format(name=name))
    test = f"{path}::TestFunction::test_{promise.replace('-', '_')}"
    recorder = pytester.inline_run("-p", "no:cacheprovider", "-q", test)
    (failed,) = [report for report in recorder.getreports("pytest_runtest_logreport") if report.failed]
    assert isinstance(failed, pytest.TestReport)
    statement = promises_of(NetworkFunctionConformance)[promise].statement
    assert f"{promise} is broken by {NAME}" in failed.longreprtext, failed.longreprtext
    assert f"promised: {statement}" in failed.longreprtext


def test_each_promise_is_broken_by_a_wrong_function() -> None:
    assert {promise for _, promise in WRONG.values()} == set(promises_of(NetworkFunctionConformance))
