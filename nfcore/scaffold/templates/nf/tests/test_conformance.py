# SPDX-License-Identifier: Apache-2.0
"""The conformance suite for every network function: each test is a promise, which its docstring states.

To load the program needs root. Nothing here names what the function does: it comes from the plugin and example.toml.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from nfcore.api.flows import FlowMatch
from nfcore.api.network_function import NetworkFunction
from nfcore.errors import ConfigError
from nfcore.testing import FunctionDriver, FunctionUnderTest, NetworkFunctionConformance, sample_flow

from nfcore_my_name import MyNamePlugin
from nfcore_my_name.meter import NAME

EXAMPLE = Path(__file__).parents[1] / "example.toml"


def flows_of(function: NetworkFunction) -> Sequence[FlowMatch]:
    """Give flows that the function handles: to each of its targets, of each family and protocol."""
    ports = [function.target_facts(target).port or 0 for target in function.targets().rows["target"].tolist()]
    kinds = [(family, protocol) for family in (4, 6) for protocol in ("tcp", "udp")]
    return [replace(sample_flow(1, *kind), dport=port) for kind in kinds for port in ports[:2]]


def others_of(function: NetworkFunction) -> Sequence[FlowMatch]:
    """Give flows that are none of its traffic: to a port that is no target."""
    ports = {function.target_facts(target).port for target in function.targets().rows["target"].tolist()}
    free = next(port for port in range(1024, 65_536) if port not in ports)
    return [replace(sample_flow(1, family), dport=free) for family in (4, 6)]


class TestConformance(NetworkFunctionConformance):
    """Name in `lacks` what the function does not do, with the reason."""

    @pytest.fixture
    def function(self) -> FunctionUnderTest:
        plugin, another = MyNamePlugin, [f"{NAME}.ports=[8080]"]
        return FunctionUnderTest(plugin, NAME, EXAMPLE, flows_of, others_of, another=another)

    # Promises of this function alone: add yours.

    def test_marks_of_flows_are_refused(self, nf: FunctionDriver) -> None:
        """It needs a strategy with one mark per target, and says so."""
        with pytest.raises(ConfigError, match=r"marking\.strategy: is 'flow-id'"):
            nf.run(["marking.strategy=flow-id"])
