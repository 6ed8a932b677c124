# SPDX-License-Identifier: Apache-2.0
"""The published packets: same verdict, same bytes, whatever the marking."""

from __future__ import annotations

import pytest

from nfcore.cli.trace import TracedPacket, TraceInput, trace
from nfcore.config.loader import load_config
from nfcore.hooks.manager import PluginManager
from tests.katran_model.packet import Verdict
from tests.katran_model.suites import published
from tests.paths import DATA

NOT_SO_FAR = ("echo", "ICMP", "quic", "udp VIP")
"""How the names of packets begin that need what the balancer cannot do so far."""
CASES = [case for case in published().suites["ipip"].cases if not case.name.startswith(NOT_SO_FAR)]


def run_all(*overrides: str) -> list[TracedPacket]:
    plugins = PluginManager()
    config = load_config(DATA / "published.toml", plugins, overrides)
    return trace(config, plugins, [TraceInput(case.frame) for case in CASES])


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
@pytest.mark.parametrize("events", ["ringbuf", "perf"])
@pytest.mark.parametrize("cpus", ['"all"', "[]"])
def test_every_frame_comes_out_as_published(strategy: str, events: str, cpus: str) -> None:
    traced = run_all(f"marking.strategy={strategy}", f"offload.events={events}", f"katran_accel.forwarding_cpus={cpus}")
    for case, packet in zip(CASES, traced, strict=True):
        assert (case.name, packet.trace.verdict) == (case.name, case.verdict.value)
        if case.verdict is not Verdict.DROP:
            assert (case.name, packet.trace.output.hex()) == (case.name, case.output.hex())


def test_dest_id_marks_are_numbered_in_the_order_of_vips_and_reals() -> None:
    by_case = {case.name: packet for case, packet in zip(CASES, run_all(), strict=True)}
    # Three reals per VIP: udp is the first VIP, tcp the second; both flows go to the third real.
    assert (by_case["udp v4"].trace.real, by_case["udp v4"].mark_allocated) == ("10.0.0.3", 3)
    assert (by_case["tcp v4"].trace.real, by_case["tcp v4"].mark_allocated) == ("10.0.0.3", 6)
    assert by_case["tcp v4, known flow"].mark_allocated is None


def test_a_flow_id_mark_needs_a_pool() -> None:
    assert all(packet.mark_allocated is None for packet in run_all("marking.strategy=flow-id"))
    marks = [
        packet.mark_allocated for packet in run_all("marking.strategy=flow-id", 'katran_accel.forwarding_cpus="all"')
    ]
    given = [mark for mark in marks if mark is not None]
    assert given == list(range(1, len(given) + 1)) and given


def test_path_vip_and_real_are_told() -> None:
    by_case = {case.name: packet.trace for case, packet in zip(CASES, run_all(), strict=True)}
    assert (by_case["tcp v6"].path, by_case["tcp v6"].vip) == ("slow", "[fc00:1::1]:80/tcp")
    assert by_case["tcp v6"].real == "fc00::3"
    for case in ("ARP", "no VIP, v4", "IPv4 fragment"):
        assert (by_case[case].path, by_case[case].vip, by_case[case].real) == ("none", None, None)
