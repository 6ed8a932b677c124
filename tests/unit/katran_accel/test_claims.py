# SPDX-License-Identifier: Apache-2.0
"""Which flows of later functions the balancer must see: those with a packet to one of its VIPs."""

from __future__ import annotations

import ipaddress
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.api.flows import Address, Anything, FlowBatch, FlowMatch, Wild
from nfcore.plugins.katran_accel.connection_table import NO_VIP, VipFinder

from .test_inventory import numbered, vip

SIX = vip(2, address="2001:db8:10::/64", port=0, protocol="udp")
FINDER = VipFinder(numbered(vip(1), SIX, vip(3, address="198.18.64.0/24", port=53, protocol="udp")))


def reach(match: FlowMatch) -> bool:
    batch = FlowBatch.empty(1)
    batch.rows["key"], batch.rows["family"] = match.to_key(), match.family
    return bool(FINDER.reach(batch)[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("198.18.1.2:40000 > 198.18.10.1:80/tcp", True),
        ("198.18.1.2:40000 > 198.18.10.1:81/tcp", False),
        ("198.18.1.2:40000 > 198.18.10.1:80/udp", False),
        ("198.18.1.2:40000 > 198.18.64.9:53/udp", True),
        ("[2001:db8:1::2]:40000 > [2001:db8:10::9]:7/udp", True),
        ("[c612:102::]:40000 > [c612:a01::]:80/tcp", False),  # 198.18.10.1 in its first bytes
        ("[::]:* > [c612::/16]:*/*", False),
        ("198.18.1.0/24:* > 198.18.10.1:80/tcp", True),
        ("198.18.1.0/24:* > 198.18.10.1:*/*", True),
        ("198.18.1.0/24:* > 198.18.10.0/24:80/tcp", True),
        ("198.18.1.0/24:* > 198.18.11.0/24:80/tcp", False),
        ("198.18.1.0/24:* > 198.18.10.0/24:*/udp", False),
        ("198.18.0.0/15:* > 0.0.0.0/0:53/udp", True),
        ("[2001:db8::]:* > [2001:db8::/32]:*/*", True),
        ("[2001:db8::]:* > [2001:db8:11::/48]:*/*", False),
    ],
)
def test_flows_to_a_vip_are_claimed(text: str, expected: bool) -> None:
    assert reach(FlowMatch.parse(text)) == expected


ADDRESSES = st.sampled_from(
    ["198.18.10.1", "198.18.10.3", "198.18.64.5", "198.18.65.5", "2001:db8:10::5", "2001:db8::1"]
)


@given(ADDRESSES, st.integers(0, 128), st.sampled_from([53, 80]), st.sampled_from([6, 17]), st.integers(0, 7))
def test_a_masked_flow_is_claimed_when_one_of_its_packets_is(
    text: str, open_bits: int, port: int, proto: int, anything: int
) -> None:
    address = ip_address(text)
    open_bits = min(open_bits, address.max_prefixlen)
    network = ip_network((address, address.max_prefixlen - open_bits), strict=False)
    packet = match_of(address, proto, port)
    flags = Anything(anything)
    masked = FlowMatch(
        packet.src,
        network.network_address,
        0 if flags & Anything.PROTO else proto,
        0 if flags & Anything.SPORT else packet.sport,
        0 if flags & Anything.DPORT else port,
        Wild(0, open_bits, anything),
    )
    batch = FlowBatch.empty(1)
    batch.rows["key"], batch.rows["family"] = packet.to_key(), packet.family
    if FINDER.owners(batch.rows["key"], batch.rows["family"])[0] != NO_VIP:
        assert reach(packet)
        assert reach(masked)


def match_of(dst: Address, proto: int, port: int) -> FlowMatch:
    src = ipaddress.ip_address("198.18.1.2" if dst.version == 4 else "2001:db8:1::2")
    return FlowMatch(src, dst, proto, 40_000, port)
