# SPDX-License-Identifier: Apache-2.0
"""Announcements about links: those that are watched, and what became of them, also when some were lost."""

from __future__ import annotations

import os
import select
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from nfcore.kernel.ethtool import feature_is_on, link_facts
from nfcore.kernel.link_monitor import LinkChange, LinkMonitor
from tests.kernel.network import enter, ip, namespaces

NAMESPACE = f"nftest-links-{os.getpid()}"
PATIENCE = 20.0


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """Ifindexes of near0 and far0, joined and up, in a namespace of their own."""
    with namespaces(NAMESPACE):
        ip(NAMESPACE, "link", "add", "near0", "type", "veth", "peer", "far0")
        for name in ("near0", "far0"):
            ip(NAMESPACE, "link", "set", name, "addrgenmode", "none", "up")
        with enter(NAMESPACE):
            indexes = socket.if_nametoindex("near0"), socket.if_nametoindex("far0")
        yield indexes


def watch(*ifindexes: int, buffer: int | None = None) -> LinkMonitor:
    with enter(NAMESPACE):
        return LinkMonitor(ifindexes, buffer=buffer)


def settled(watched: LinkMonitor, wanted: Callable[[dict[int, LinkChange]], bool]) -> dict[int, LinkChange]:
    """All that is told until it is as wanted; the carrier is announced a little later than what moves it."""
    told: dict[int, LinkChange] = {}
    while not wanted(told) and select.select([watched], [], [], PATIENCE)[0]:
        told |= watched.poll()
    return told


def test_nothing_is_told_while_nothing_happens(pair: tuple[int, int]) -> None:
    near, far = pair
    with watch(near, far) as watched:
        settled(watched, lambda told: not select.select([watched], [], [], 1.5)[0])  # what the fixture began
        assert watched.poll() == {}


def test_down_and_up_and_a_lost_carrier_are_told(pair: tuple[int, int]) -> None:
    near, _ = pair
    with watch(near) as watched:
        for name in ("near0", "far0"):
            ip(NAMESPACE, "link", "set", name, "down")
            told = settled(watched, lambda told: near in told and not told[near].up)
            assert told == {near: LinkChange("near0", up=False, gone=False)}
            ip(NAMESPACE, "link", "set", name, "up")
            told = settled(watched, lambda told: near in told and told[near].up)
            assert told == {near: LinkChange("near0", up=True, gone=False)}


def test_other_links_are_not_told(pair: tuple[int, int]) -> None:
    near, _ = pair
    with watch(near) as watched:
        settled(watched, lambda told: not select.select([watched], [], [], 1.5)[0])
        ip(NAMESPACE, "link", "add", "other0", "type", "veth", "peer", "other1")
        ip(NAMESPACE, "link", "set", "other0", "up")
        ip(NAMESPACE, "link", "del", "other0")
        assert select.select([watched], [], [], PATIENCE)[0]  # the kernel did announce them
        assert watched.poll() == {}


def test_a_removed_link_and_one_that_moved_away_are_gone(pair: tuple[int, int]) -> None:
    near, far = pair
    elsewhere = f"{NAMESPACE}-2"
    with watch(near, far) as watched, namespaces(elsewhere):
        ip(NAMESPACE, "link", "set", "far0", "netns", elsewhere)
        told = settled(watched, lambda told: far in told and told[far].gone)
        assert told[far] == LinkChange("far0", up=False, gone=True)
        ip(NAMESPACE, "link", "del", "near0")
        told = settled(watched, lambda told: near in told and told[near].gone)
        assert told[near] == LinkChange("near0", up=False, gone=True)


def test_a_new_name_is_told(pair: tuple[int, int]) -> None:
    near, _ = pair
    with watch(near) as watched:
        ip(NAMESPACE, "link", "set", "near0", "down")
        ip(NAMESPACE, "link", "set", "near0", "name", "renamed0")
        told = settled(watched, lambda told: near in told and told[near].name == "renamed0")
        assert told[near].name == "renamed0"


def test_a_port_that_leaves_a_bridge_is_not_gone(pair: tuple[int, int]) -> None:
    near, _ = pair
    ip(NAMESPACE, "link", "add", "bridge0", "type", "bridge")
    ip(NAMESPACE, "link", "set", "near0", "master", "bridge0")
    with watch(near) as watched:
        ip(NAMESPACE, "link", "set", "near0", "nomaster")
        told = settled(watched, lambda told: near in told)
        told |= watched.poll()
        assert not told[near].gone


def test_a_change_of_a_feature_is_told(pair: tuple[int, int]) -> None:
    near, _ = pair
    with watch(near) as watched:
        settled(watched, lambda told: not select.select([watched], [], [], 1.5)[0])
        command = ["nsenter", f"--net=/run/netns/{NAMESPACE}", "ethtool", "-K", "near0", "tx", "off"]
        subprocess.run(command, check=True, capture_output=True)
        assert settled(watched, lambda told: near in told) == {near: LinkChange("near0", up=True, gone=False)}


def test_single_features_are_what_ethtool_tells(pair: tuple[int, int]) -> None:
    near, _ = pair
    command = ["nsenter", f"--net=/run/netns/{NAMESPACE}", "ethtool", "-K", "near0", "gro", "on", "tso", "off"]
    subprocess.run(command, check=True, capture_output=True)
    with enter(NAMESPACE):
        told = {name: on for name, on in link_facts(near, "near0").features.items() if name}
        assert (told["rx-gro"], told["tx-tcp-segmentation"]) == (True, False)
        assert {name: feature_is_on(near, name) for name in told} == told
        assert feature_is_on(near, "no-such-feature") is None
        assert feature_is_on(near + 1000, "rx-gro") is None


def tc(*words: str) -> None:
    command = ["nsenter", f"--net=/run/netns/{NAMESPACE}", "tc", *words]
    subprocess.run(command, check=True, capture_output=True)


def test_a_qdisc_for_filters_is_told_on_demand(pair: tuple[int, int]) -> None:
    near, _ = pair
    with watch(near) as watched:
        settled(watched, lambda told: not select.select([watched], [], [], 1.5)[0])
        tc("qdisc", "add", "dev", "near0", "clsact")
        watched.watch_qdiscs(True)
        tc("qdisc", "add", "dev", "far0", "clsact")
        tc("chain", "add", "dev", "near0", "ingress", "chain", "5")
        assert watched.poll() == {}
        tc("qdisc", "del", "dev", "near0", "clsact")
        with enter(NAMESPACE):
            told = settled(watched, lambda told: near in told)
        assert told == {near: LinkChange("near0", up=True, gone=False, qdisc=True)}
        watched.watch_qdiscs(False)
        tc("qdisc", "add", "dev", "near0", "clsact")
        assert watched.poll() == {}


def test_when_announcements_are_lost_every_link_is_told_as_it_is(pair: tuple[int, int]) -> None:
    near, far = pair
    ip(NAMESPACE, "link", "add", "still0", "type", "veth", "peer", "still1")
    with enter(NAMESPACE):
        still = socket.if_nametoindex("still0")
    with watch(near, far, still, buffer=1) as watched:
        for number in range(40):
            ip(NAMESPACE, "link", "set", "near0", "mtu", str(1400 + number))
        ip(NAMESPACE, "link", "set", "far0", "down")
        ip(NAMESPACE, "link", "del", "near0")  # takes far0 with it
        with enter(NAMESPACE):
            told = watched.poll()
        assert told == {
            near: LinkChange("near0", up=False, gone=True),
            far: LinkChange("far0", up=False, gone=True),
            still: LinkChange("still0", up=False, gone=False),
        }
        ip(NAMESPACE, "link", "set", "still0", "up")
        told = settled(watched, lambda told: still in told)
        assert told[still].name == "still0" and not told[still].gone
