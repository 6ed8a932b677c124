# SPDX-License-Identifier: Apache-2.0
"""VIPs: parsed, formatted, and compared by the packets that belong to them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore_strategy_tenant.vips import Vip

V4 = st.tuples(st.integers(0, 3), st.integers(29, 32)).map(lambda pair: _network(0xC6120A00 + pair[0], pair[1]))
V6 = st.tuples(st.integers(0, 3), st.integers(125, 128)).map(lambda p: _network((0x20010DB8 << 96) + p[0], p[1]))
ANY_PORT = st.sampled_from([0, 80, 443, 65_535])
VIPS = st.one_of(
    st.builds(Vip, st.one_of(V4, V6)),
    st.builds(Vip, st.one_of(V4, V6), ANY_PORT, st.sampled_from(["tcp", "udp"])),
)


def _network(address: int, length: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network((address, length), strict=False)


def packets(vip: Vip) -> set[tuple[object, int, str]]:
    """All packets of a VIP, for the ports that these tests use."""
    ports = [80, 443, 65_535, 1] if vip.port == 0 else [vip.port]
    protocols = [vip.protocol] if vip.protocol else ["tcp", "udp"]
    return {(address, port, protocol) for address in vip.network for port in ports for protocol in protocols}


@given(VIPS)
def test_what_is_written_is_read(vip: Vip) -> None:
    assert Vip.parse(str(vip)) == vip


@given(VIPS, VIPS)
def test_covers_and_overlaps_are_about_packets(one: Vip, other: Vip) -> None:
    assert one.covers(other) == (packets(other) <= packets(one))
    assert one.overlaps(other) == other.overlaps(one) == bool(packets(one) & packets(other))


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        vip = Vip.parse(text)
    except ValueError as error:
        assert str(error).startswith("should be an address")
    else:
        assert Vip.parse(str(vip)) == vip


BAD = ["", "198.18.10.1:80", "198.18.10.1:80/sctp", "198.18.10.1:70000/tcp", "198.18.10.1/24", "2001:db8::1:80/tcp"]


@pytest.mark.parametrize("value", [*BAD, "[198.18.10.1]:80/tcp", "[2001:db8::1", "blue", 7, None])
def test_what_is_no_vip(value: object) -> None:
    with pytest.raises(ValueError, match="should be an address, a prefix or one VIP"):
        Vip.parse(value)
