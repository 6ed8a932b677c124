# SPDX-License-Identifier: Apache-2.0
"""Frames with VLAN tags on their whole way: reported, in hardware by rules that match the tags, sent with the tags."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from nfcore.api.flows import SERVICE_TAG, VLAN_ID
from nfcore.api.rules import RuleBatch
from tests.kernel.katran_accel.world import tcp, udp
from tests.kernel.network import send_frame
from tests.kernel.site import PATIENCE, Site, eventually

SOL_PACKET, PACKET_AUXDATA = 263, 8
FLOW = tcp("198.18.1.2", "198.18.10.1")
TAGS = {
    (100, 0): "8100 0064",
    (SERVICE_TAG | 200, 7): "88a8 00c8 8100 0007",
}
"""Tags of a rule, and in a frame."""
OTHERS = ["", "8100 0065", "8100 0064 8100 0007", "88a8 0064", "88a8 00c8 8100 0008"]


def tagged(frame: bytes, tags: str) -> bytes:
    return frame[:12] + bytes.fromhex(tags) + frame[12:]


def exchange(site: Site, frame: bytes, tags: str) -> bytes:
    """Send a frame with tags from the network; what the balancer sends, which must have them, without them."""
    site.network.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    send_frame(site.network, tagged(frame, tags))
    wanted, deadline = bytes.fromhex(tags), time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        received, ancillary, _, (_, _, kind, _, _) = site.network.recvmsg(4096, 64)
        if kind == socket.PACKET_OUTGOING or not received.endswith(frame[14:]):
            continue
        # The kernel has taken off the outer tag.
        _, _, _, _, _, tci, tpid = struct.unpack("=IIIHHHH", ancillary[0][2])
        outer = struct.pack("!HH", tpid, tci) if tpid else b""
        whole = received[:12] + outer + received[12:]
        assert whole[12 : 12 + len(wanted)] == wanted
        return whole[:12] + whole[12 + len(wanted) :]
    raise AssertionError("no encapsulated frame came back")


def tags_in_hardware(site: Site) -> list[tuple[int, int]]:
    with site.backend() as nic:
        return [rule.vlans for rule in RuleBatch(nic.dump()["rule"].copy())]


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
@pytest.mark.parametrize(("vlans", "tags"), TAGS.items(), ids=str)
def test_a_flow_with_tags_gets_a_rule_that_matches_them(
    site: Site, strategy: str, vlans: tuple[int, int], tags: str
) -> None:
    with site.running(site.config(strategy=strategy, katran="vlan = true")):
        slow = [exchange(site, FLOW, tags) for _ in range(3)]
        assert site.installed(1)
        assert tags_in_hardware(site) == [vlans]
        fast = [exchange(site, FLOW, tags) for _ in range(5)]
        # The same packets with other tags, or without, go the same way, but unmarked.
        others = [exchange(site, FLOW, each) for each in OTHERS if each != tags]
        assert set(slow) == set(fast) == set(others)
        assert site.metric("nfcore_softnic_packets_total", kind="marked") == 5
        (row,) = site.flows()
        assert row["vlans"] == [vlan & VLAN_ID for vlan in vlans if vlan]
    assert site.rules() == 0


def test_a_flow_that_comes_with_other_tags_gets_its_rule_when_the_old_one_is_idle(site: Site) -> None:
    old, new = TAGS.items()
    with site.running(site.config(katran="vlan = true", idle_timeout="400ms")):
        for _ in range(3):
            exchange(site, FLOW, old[1])
        assert eventually(lambda: tags_in_hardware(site) == [old[0]])
        assert eventually(lambda: exchange(site, FLOW, new[1]) and tags_in_hardware(site) == [new[0]])


def test_rules_with_tags_of_a_killed_daemon_are_taken_over(site: Site) -> None:
    (vlans, tags) = (SERVICE_TAG | 200, 7), TAGS[SERVICE_TAG | 200, 7]
    frame = udp("2001:db8:1::2", "2001:db8:10::1")
    config = site.config(katran="vlan = true")
    daemon = site.start(config)
    first, *_ = [exchange(site, frame, tags) for _ in range(3)]
    assert site.installed(1)
    daemon.kill()
    daemon.wait()
    assert tags_in_hardware(site) == [vlans]
    with site.running(config):
        assert site.metric("nfcore_flows", state="installed") == 1
        before = site.metric("nfcore_packets_total", path="fast")
        assert exchange(site, frame, tags) == first
        assert site.metric("nfcore_packets_total", path="fast") == before + 1
        assert tags_in_hardware(site) == [vlans]


def test_without_the_key_frames_with_tags_pass_by(site: Site) -> None:
    with site.running(site.config()):
        before = site.metric("nfcore_verdicts_total", verdict="pass")
        for _ in range(5):
            send_frame(site.network, tagged(FLOW, "8100 0064"))
        assert eventually(lambda: site.metric("nfcore_verdicts_total", verdict="pass") >= before + 5)
        assert site.rules() == 0
