# SPDX-License-Identifier: Apache-2.0
"""The kernel's answers about routes, neighbours and links: read as they were written, and no bytes lead to a fault."""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.kernel.links import Link, parse_link
from nfcore.kernel.netlink import HEADER, LINK, attribute, messages, nested
from nfcore.kernel.routes import Address, Neighbour, NextHop, NoRouteError, parse_neighbour, parse_route

REAL = ipaddress.ip_address("198.18.20.11")
ADDRESSES = st.ip_addresses()
NOISE = st.lists(st.builds(attribute, st.integers(20, 60), st.binary(max_size=20)), max_size=4)
MACS = st.binary(min_size=6, max_size=6)


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


def route(kind: int, *attributes: bytes) -> bytes:
    """A ``struct rtmsg`` of this type, and attributes."""
    return struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 0, 0, kind, 0) + b"".join(attributes)


@given(ifindex=st.integers(1, 2**31 - 1), gateway=ADDRESSES, other_family=st.booleans(), noise=NOISE)
def test_a_gateway_is_read_in_each_form(ifindex: int, gateway: Address, other_family: bool, noise: list[bytes]) -> None:
    via = struct.pack("=H", 10) + gateway.packed
    told = attribute(18, via) if other_family else attribute(5, gateway.packed)
    content = route(1, *noise, attribute(4, u32(ifindex)), told)
    assert parse_route(content, REAL) == NextHop(ifindex, gateway, gateway=True)


@given(ifindex=st.integers(1, 2**31 - 1), noise=NOISE)
def test_without_a_gateway_the_destination_is_next(ifindex: int, noise: list[bytes]) -> None:
    assert parse_route(route(1, attribute(4, u32(ifindex)), *noise), REAL) == NextHop(ifindex, REAL, gateway=False)


@pytest.mark.parametrize(
    ("kind", "words"), [(2, "an address of this machine"), (3, "a broadcast address"), (6, "forbids"), (7, "forbids")]
)
def test_a_way_that_leads_to_no_machine_is_none(kind: int, words: str) -> None:
    with pytest.raises(NoRouteError, match=words):
        parse_route(route(kind, attribute(4, u32(1))), REAL)


@given(mac=MACS, state=st.sampled_from([0x02, 0x04, 0x08, 0x10, 0x40, 0x80]))
def test_a_neighbour_in_a_usable_state_has_an_address(mac: bytes, state: int) -> None:
    content = struct.pack("=BxxxiHBB", 2, 3, state, 0, 1) + attribute(1, REAL.packed) + attribute(2, mac)
    assert parse_neighbour(content) == Neighbour(mac, fixed=state in (0x40, 0x80))


@given(mac=MACS, state=st.sampled_from([0x00, 0x01, 0x20]))
def test_a_neighbour_that_does_not_answer_has_none(mac: bytes, state: int) -> None:
    content = struct.pack("=BxxxiHBB", 2, 3, state, 0, 1) + attribute(2, mac)
    assert parse_neighbour(content) == Neighbour(None, failed=state == 0x20)


@given(ifindex=st.integers(1, 2**31 - 1), mac=MACS, master=st.integers(0, 2**31 - 1), noise=NOISE)
def test_a_link_is_read(ifindex: int, mac: bytes, master: int, noise: list[bytes]) -> None:
    kind = nested(18, attribute(1, b"bond\0"))
    content = LINK.pack(0, 1, ifindex, 0, 0) + attribute(3, b"bond0\0") + attribute(1, mac) + kind
    content += attribute(10, u32(master)) + b"".join(noise)
    assert parse_link(content) == Link(ifindex, "bond0", mac, "bond", master)


@given(st.binary(max_size=200))
def test_no_bytes_lead_to_a_fault(content: bytes) -> None:
    for read in (parse_neighbour, parse_link):
        read(content)
    with contextlib.suppress(NoRouteError):
        parse_route(content, REAL)
    for beginning in (route(1), struct.pack("=BxxxiHBB", 2, 3, 2, 0, 1), LINK.pack(0, 1, 3, 0, 0)):
        with contextlib.suppress(NoRouteError):
            parse_route(beginning + content, REAL)
        parse_neighbour(beginning + content)
        parse_link(beginning + content)
    list(messages(content))


@given(st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=40)), max_size=5), st.integers(0, 30))
def test_messages_of_a_datagram_are_read_one_by_one(sent: list[Any], cut: int) -> None:
    parts = []
    for sequence, (kind, content) in enumerate(sent):
        whole = HEADER.pack(HEADER.size + len(content), kind, 0, sequence, 0) + content
        parts.append(whole + bytes(-len(whole) % 4))
    told = [(kind, content) for kind, _, _, content in messages(b"".join(parts))]
    assert told == [(kind, content) for kind, content in sent]
    shorter = b"".join(parts)[: max(len(b"".join(parts)) - cut, 0)]
    assert [(kind, content) for kind, _, _, content in messages(shorter)] == told[: len(list(messages(shorter)))]
