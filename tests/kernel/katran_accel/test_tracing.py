# SPDX-License-Identifier: Apache-2.0
"""`nfcore trace` on the loaded program: why it did what it did, also with the maps of every feature."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from nfcore.plugins.katran_accel.tracing import trace

from .every_feature import open_full_world
from .world import World, open_world, tcp

OPEN: dict[str, Callable[[Path], AbstractContextManager[World]]] = {
    "no feature": lambda folder: open_world(folder, katran="icmp = false"),
    "every feature": open_full_world,
}
DRAINED = """
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.11", weight = 0 }]
"""


@pytest.fixture(params=OPEN)
def opener(request: pytest.FixtureRequest) -> Callable[[Path], AbstractContextManager[World]]:
    return OPEN[request.param]


def test_paths_marks_vip_and_real(tmp_path: Path, opener: Callable[[Path], AbstractContextManager[World]]) -> None:
    with opener(tmp_path) as world:
        seen = trace(world.balancer, tcp("198.18.1.2", "198.18.10.9"), 0)
        assert (seen.verdict, seen.path, seen.vip, seen.real, seen.why, seen.passed_on) == (
            ("XDP_PASS", "none", None, None, "", True)
        )
        seen = trace(world.balancer, tcp("198.18.1.2", "198.18.10.1"), 4321)
        assert (seen.path, seen.vip) == ("slow", "198.18.10.1:80/tcp")
        assert "the mark has no entry" in seen.why and seen.real in ("198.18.20.11", "198.18.20.12", "198.18.20.13")


def test_each_frame_is_told_for_itself(tmp_path: Path) -> None:
    """What earlier frames have counted is not said of a later one."""
    with open_world(tmp_path) as world:
        frame = tcp("198.18.1.2", "198.18.10.1")
        (longest,) = {trace(world.balancer, tcp("198.18.1.2", "198.18.10.1", size=1460), 0).why}
        long = trace(world.balancer, tcp("198.18.1.2", "198.18.10.1", size=1461), 0)
        assert re.fullmatch(r"of 1501 bytes, longer than the MTU( of 1500)?: dropped", long.why)
        assert (long.verdict, long.path, long.vip) == ("XDP_DROP", "slow", None)
        marked = trace(world.balancer, frame, 4321)
        assert (longest, marked.why, trace(world.balancer, frame, 0).why) == ("", "the mark has no entry", "")


def test_a_vip_that_nobody_serves(tmp_path: Path) -> None:
    with open_world(tmp_path, vips=DRAINED) as world:
        seen = trace(world.balancer, tcp("198.18.1.2", "198.18.10.1"), 0)
        assert (seen.verdict, seen.why) == ("XDP_DROP", "the VIP has no real for new flows: dropped")
