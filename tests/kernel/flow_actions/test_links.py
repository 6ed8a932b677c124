# SPDX-License-Identifier: Apache-2.0
"""Interfaces of redirects that go, come back or change their names, seen by packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nfcore.bench.testbed import run
from nfcore.plugins.flow_actions.data_plane import DataPlane
from nfcore.plugins.flow_actions.entries import Target
from nfcore.plugins.flow_actions.targets import Targets

from .frames import frame
from .model import Match, rows
from .plane import open_plane, send

NUMBER = 9


@pytest.fixture
def plane() -> Iterator[DataPlane]:
    """One whose packets all leave by interface `there0`."""
    run("ip", "link", "add", "there0", "type", "veth", "peer", "name", "peer0")
    try:
        for end in ("there0", "peer0"):
            run("ip", "link", "set", end, "up")
        run("ethtool", "-K", "peer0", "gro", "on")
        with open_plane() as opened:
            opened.add(rows([Match(4, slot=4, target=NUMBER)]))
            yield opened
    finally:
        run("ip", "link", "del", "peer0")


def test_an_interface_under_another_name_gets_no_packets(plane: DataPlane) -> None:
    targets = Targets(plane, 8)
    targets.write({NUMBER: Target("redirect", interface="there0")}, may_miss=True)
    assert send(plane, frame(4)).verdict.name == "XDP_REDIRECT"
    run("ip", "link", "set", "there0", "name", "elsewhere0")
    (change,) = targets.follow_links()
    assert "there0" in change
    assert targets.missing() == ["there0"]
    assert send(plane, frame(4)).verdict.name == "XDP_DROP"
    run("ip", "link", "set", "elsewhere0", "name", "there0")
    assert len(targets.follow_links()) == 1
    assert targets.missing() == targets.follow_links() == []
    assert send(plane, frame(4)).verdict.name == "XDP_REDIRECT"
