# SPDX-License-Identifier: Apache-2.0
"""The balancer forwards by these marks: frames through `nfcore trace`, which loads it as the daemon does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nfcore.api.flows import FlowMatch
from nfcore.testing import sample_frame

from .test_command import EXAMPLE, nfcore

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="nfcore trace loads a BPF program and needs root")
BLUE = [
    *(f"198.18.1.2:{port} > 198.18.10.1:80/tcp" for port in range(40_001, 40_017)),
    "[2001:db8::2]:40000 > [2001:db8:10::1]:443/udp",
]
GREEN = [f"198.18.1.2:{port} > 198.18.11.1:80/tcp" for port in range(40_001, 40_017)]
DEFAULT = ["198.18.1.2:40001 > 198.18.11.1:443/tcp"]


def trace(folder: Path, packets: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """Send a frame of each flow with its mark through a new balancer; return the results."""
    path = folder / "frames.txt"
    lines = [f"{sample_frame(FlowMatch.parse(flow)).hex()} mark={mark}" for flow, mark in packets]
    path.write_text("\n".join(lines), encoding="ascii")
    done = nfcore("trace", EXAMPLE, "--file", path, "--json")
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)["packets"]
    return results


def test_marks_show_the_owner_and_lead_to_the_real(tmp_path: Path) -> None:
    flows = {flow: block for block, flows in ((1, BLUE), (2, GREEN), (0, DEFAULT)) for flow in flows}
    first = trace(tmp_path, [(flow, 0) for flow in flows])
    marks = [packet["mark_allocated"] for packet in first]
    assert [mark >> 12 for mark in marks] == list(flows.values())
    assert {packet["path"] for packet in first} == {"slow"}
    # One mark per (VIP, real); there are enough flows for every real to have some.
    assert len(set(marks)) == len({(packet["vip"], packet["real"]) for packet in first}) == 6
    again = trace(tmp_path, list(zip(flows, marks, strict=True)))
    assert {(packet["verdict"], packet["path"]) for packet in again} == {("XDP_TX", "fast")}
    assert [packet["real"] for packet in again] == [packet["real"] for packet in first]
    assert [packet["output"] for packet in again] == [packet["output"] for packet in first]


def test_a_mark_of_another_tenant_is_refused(tmp_path: Path) -> None:
    (packet,) = trace(tmp_path, [(GREEN[0], 0x1000)])
    assert (packet["path"], packet["vip"]) == ("slow", "198.18.11.1:80/tcp")
