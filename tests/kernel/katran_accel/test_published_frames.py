# SPDX-License-Identifier: Apache-2.0
"""The published packets: same verdict, same bytes, whatever the marking."""

from __future__ import annotations

import json

import pytest

from nfcore.cli.trace import TracedPacket, TraceInput, trace
from nfcore.config.loader import load_config
from nfcore.hooks.manager import PluginManager
from tests.paths import DATA

FRAMES = json.loads((DATA / "published_frames.json").read_text())["frames"]


def run_all(*overrides: str) -> list[TracedPacket]:
    plugins = PluginManager()
    config = load_config(DATA / "published.toml", plugins, overrides)
    return trace(config, plugins, [TraceInput(bytes.fromhex(frame["in"])) for frame in FRAMES])


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
@pytest.mark.parametrize("events", ["ringbuf", "perf"])
@pytest.mark.parametrize("cpus", ['"all"', "[]"])
def test_every_frame_comes_out_as_published(strategy: str, events: str, cpus: str) -> None:
    traced = run_all(f"marking.strategy={strategy}", f"offload.events={events}", f"katran_accel.forwarding_cpus={cpus}")
    for frame, packet in zip(FRAMES, traced, strict=True):
        assert (frame["case"], packet.trace.verdict) == (frame["case"], frame["verdict"])
        if frame["verdict"] != "XDP_DROP":
            assert (frame["case"], packet.trace.output.hex()) == (frame["case"], frame["out"])


def test_dest_id_marks_are_numbered_in_the_order_of_vips_and_reals() -> None:
    by_case = {frame["case"]: packet for frame, packet in zip(FRAMES, run_all(), strict=True)}
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
    by_case = {frame["case"]: packet.trace for frame, packet in zip(FRAMES, run_all(), strict=True)}
    assert (by_case["tcp v6"].path, by_case["tcp v6"].vip) == ("slow", "[fc00:1::1]:80/tcp")
    assert by_case["tcp v6"].real == "fc00::3"
    for case in ("ARP", "no VIP, v4", "IPv4 fragment"):
        assert (by_case[case].path, by_case[case].vip, by_case[case].real) == ("none", None, None)
