# SPDX-License-Identifier: Apache-2.0
"""Whose packet a captured frame is, whatever is around it and wherever it is cut off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from nfcore.api.flows import FlowMatch
from nfcore.plugins.katran_accel.capture.frames import flow_of

FOUR, SIX = IP(src="198.18.1.2", dst="198.18.10.1"), IPv6(src="2001:db8:1::2", dst="2001:db8:10::1")
OUTER, OUTER_SIX = IP(src="172.16.1.2", dst="198.18.20.11"), IPv6(src="100::1", dst="2001:db8:20::11")
PORTS = TCP(sport=40000, dport=80)
OF_FOUR, OF_SIX = "198.18.1.2:40000 > 198.18.10.1:80/tcp", "[2001:db8:1::2]:40000 > [2001:db8:10::1]:80/tcp"
CASES: list[tuple[Packet, int, str | None]] = [
    (FOUR / PORTS, 0, OF_FOUR),
    (SIX / PORTS, 0, OF_SIX),
    (FOUR / UDP(sport=1, dport=53), 0, "198.18.1.2:1 > 198.18.10.1:53/udp"),
    (OUTER / FOUR / PORTS, 20, OF_FOUR),
    (OUTER_SIX / FOUR / PORTS, 40, OF_FOUR),
    (OUTER_SIX / SIX / PORTS, 40, OF_SIX),
    (OUTER / UDP(dport=6080) / Raw(bytes(FOUR / PORTS)), 28, OF_FOUR),
    (Dot1Q(vlan=7) / FOUR / PORTS, 0, OF_FOUR),
    (Dot1AD(vlan=7) / Dot1Q(vlan=8) / OUTER / SIX / PORTS, 20, OF_SIX),
    (IP(src="198.18.1.2", dst="198.18.10.1", options=[IPOption(b"\x94\x04\0\0")]) / PORTS, 0, OF_FOUR),
    (FOUR / ICMP(), 0, "198.18.1.2 > 198.18.10.1/1"),
    (IP(src="198.18.1.2", dst="198.18.10.1", frag=3, proto=6) / Raw(bytes(20)), 0, "198.18.1.2 > 198.18.10.1/tcp"),
    (ARP(), 0, None),
]


@pytest.mark.parametrize(("packet", "added", "flow"), CASES)
def test_flows(packet: Packet, added: int, flow: str | None) -> None:
    assert flow_of(bytes(Ether() / packet), added) == flow


@pytest.mark.parametrize(("packet", "added", "flow"), CASES)
def test_frames_that_are_cut_off(packet: Packet, added: int, flow: str | None) -> None:
    frame = bytes(Ether() / packet)
    known = {None, flow}
    if flow and "40000" in flow:
        match = FlowMatch.parse(flow)
        known.add(f"{match.src} > {match.dst}/tcp")  # the ports are cut off
    told = [flow_of(frame[:length], added) for length in range(len(frame) + 1)]
    assert set(told) <= known | {"198.18.1.2 > 198.18.10.1/udp"}
    assert (told[0], told[-1]) == (None, flow)


@given(st.binary(max_size=80), st.integers(0, 60))
def test_any_bytes(frame: bytes, added: int) -> None:
    told = flow_of(frame, added)
    assert told is None or " > " in told
