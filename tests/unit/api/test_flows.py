# SPDX-License-Identifier: Apache-2.0
"""Flows as text, as keys and as rows of a batch."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.api.flows import FLOW_KEY, FLOW_ROW, IDENTITY_BYTES, FlowBatch, FlowMatch, join_rows

PORTS = st.integers(0, 65_535)


def matches(version: int) -> st.SearchStrategy[FlowMatch]:
    addresses = st.ip_addresses(v=version)
    return st.builds(FlowMatch, addresses, addresses, st.integers(0, 255), PORTS, PORTS)


ANY_MATCH = st.one_of(matches(4), matches(6))


def batch_of(*flows: FlowMatch, **columns: object) -> FlowBatch:
    batch = FlowBatch.empty(len(flows))
    for row, flow in zip(batch.rows, flows, strict=True):
        row["key"], row["family"] = flow.to_key(), flow.family
    for name, values in columns.items():
        batch.rows[name] = values
    return batch


@given(ANY_MATCH)
def test_text_round_trip(flow: FlowMatch) -> None:
    assert FlowMatch.parse(str(flow)) == flow
    assert FlowMatch.parse(f"  {flow}\n") == flow


@given(ANY_MATCH)
def test_key_round_trip(flow: FlowMatch) -> None:
    key = flow.to_key()
    assert key.dtype == FLOW_KEY
    assert FlowMatch.from_key(key, flow.family) == flow


def test_key_is_what_the_packet_carries() -> None:
    key = FlowMatch.parse("198.18.1.2:40000 > 198.18.10.1:80/tcp").to_key()
    expected = bytes([198, 18, 1, 2]) + bytes(12) + bytes([198, 18, 10, 1]) + bytes(12)
    assert key.tobytes() == expected + (40_000).to_bytes(2, "big") + (80).to_bytes(2, "big") + bytes([6, 0, 0, 0])


def test_text_of_a_flow() -> None:
    assert (
        str(FlowMatch.parse("[2001:db8::1]:1 > [2001:0db8:0::2]:443/udp")) == "[2001:db8::1]:1 > [2001:db8::2]:443/udp"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "198.18.1.2 > 198.18.10.1/tcp",
        "198.18.1.2:40000 > 198.18.10.1:80",
        "198.18.1.2:40000 > 198.18.10.1:80/icmp",
        "198.18.1.2:40000 > 198.18.10.1:80/256",
        "198.18.1.2:40000 > 198.18.10.1:65536/tcp",
        "198.18.1.999:40000 > 198.18.10.1:80/tcp",
        "198.18.1.2:40000 > [2001:db8::1]:80/tcp",
        "2001:db8::1:1 > 2001:db8::2:80/tcp",
        "[fe80::1%eth0]:1 > [fe80::2]:80/tcp",
        "198.18.1.2:٣ > 198.18.10.1:80/tcp",
    ],
)
def test_bad_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        FlowMatch.parse(text)


@given(st.text(max_size=60))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        FlowMatch.parse(text)
    except ValueError as error:
        assert str(error)


def identities(batch: FlowBatch) -> list[bytes]:
    """The bytes that identify the flow of each row."""
    return [row.tobytes()[:IDENTITY_BYTES] for row in batch.rows]


@given(st.lists(st.tuples(ANY_MATCH, st.integers(1, 3), st.integers(1, 3)), unique=True, max_size=20))
def test_identities_differ_exactly_when_flows_do(flows: list[tuple[FlowMatch, int, int]]) -> None:
    batch = batch_of(*(flow for flow, _, _ in flows), nf=[nf for _, nf, _ in flows], ifindex=[i for _, _, i in flows])
    before = identities(batch)
    assert len(set(before)) == len(flows)
    batch.rows["packets"], batch.rows["cpu"], batch.rows["mark"], batch.rows["target"] = 9, 9, 9, 9
    assert identities(batch) == before


def test_identities_distinguish_the_families() -> None:
    v4 = FlowMatch.parse("198.18.1.2:1 > 198.18.10.1:80/tcp")
    v6 = FlowMatch(
        ipaddress.IPv6Address(bytes(v4.src.packed) + bytes(12)),
        ipaddress.IPv6Address(bytes(v4.dst.packed) + bytes(12)),
        v4.proto,
        v4.sport,
        v4.dport,
    )
    assert v4.to_key() == v6.to_key()
    assert len(set(identities(batch_of(v4, v6)))) == 2


def test_a_batch_as_objects() -> None:
    v4, v6 = FlowMatch.parse("198.18.1.2:1 > 198.18.10.1:80/tcp"), FlowMatch.parse("[2001:db8::1]:1 > [::2]:80/udp")
    batch = batch_of(v4, v6, target=[7, 1 << 63], mark=[3, 0], cpu=[0, 5], packets=[8, 9], nf=1, ifindex=4)
    first, second = batch
    assert (first.match, first.target, first.mark, first.cpu, first.packets) == (v4, 7, 3, 0, 8)
    assert (second.match, second.target, second.nf, second.ifindex) == (v6, 1 << 63, 1, 4)
    assert batch[1] == second
    assert list(batch[np.array([False, True])]) == [second]
    assert [len(batch), len(batch[1:]), len(batch[:0])] == [2, 1, 0]


def test_a_batch_without_rows() -> None:
    empty = FlowBatch.empty()
    assert list(empty) == []


def test_other_rows_are_refused() -> None:
    with pytest.raises(TypeError, match="flow batch has rows of"):
        FlowBatch(np.zeros(3, dtype=FLOW_KEY))


def test_joined_rows_keep_the_byte_order_of_ports() -> None:
    batch = FlowBatch.empty(2)
    batch.rows["key"] = FlowMatch.parse("198.18.1.2:40000 > 198.18.10.1:80/tcp").to_key()
    joined = join_rows([batch.rows[:1], batch.rows[1:], batch.rows[:0]], FLOW_ROW)
    assert (joined.dtype, joined.tobytes()) == (FLOW_ROW, batch.rows.tobytes())
    assert len(join_rows([], FLOW_ROW)) == 0
    joined["mark"] = 7  # it can be written to
