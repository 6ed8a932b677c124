# SPDX-License-Identifier: Apache-2.0
"""Rules are encoded as ethtool's exact match and decoded again; other rules of a NIC are not taken for own ones."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from driver import Driver
from hypothesis import given
from hypothesis import strategies as st

from nfcore.api.flows import FlowMatch
from nfcore.api.rules import Drop, Rule, RuleBatch, SetMark
from nfcore_nic_ntuple.ethtool import Nic
from nfcore_nic_ntuple.flowspec import decode, encode, match_of, same_rules
from nfcore_nic_ntuple.layouts import FLOW_EXT, FLOW_RSS, FLOW_SPEC

PORTS = st.integers(0, 0xFFFF)


def matches(version: int) -> st.SearchStrategy[FlowMatch]:
    address = st.ip_addresses(v=version)
    return st.builds(FlowMatch, address, address, st.sampled_from([6, 17]), PORTS, PORTS)


RULES = st.builds(
    Rule,
    matches(4) | matches(6),
    st.builds(SetMark, st.integers(1, 0xFFFF_FFFF)) | st.just(Drop()),
    st.integers(0, (1 << 64) - 1),
)


@given(st.lists(RULES, max_size=5))
def test_what_is_encoded_is_decoded(rules: list[Rule]) -> None:
    batch = RuleBatch.of(rules)
    back, good = decode(encode(batch.rows))
    assert good.all() and same_rules(back, batch.rows).all()
    assert [match_of(row) for row in back] == [match_of(row) for row in batch.rows]
    back["cookie"] = batch.rows["cookie"]
    assert back.tobytes() == batch.rows.tobytes()


@given(RULES.filter(lambda rule: not isinstance(rule.action, SetMark) or rule.action.mark < 16))
def test_the_driver_reads_the_same_rule(rule: Rule) -> None:
    """By the simulated driver's decoder: a frame of the flow is steered by the rule, a similar one is not."""
    driver = Driver()
    spec = encode(RuleBatch.of([rule]).rows)[0]
    spec["location"] = 5
    assert Nic(driver).insert(spec) == 5
    match = rule.match
    expected = rule.action.mark if isinstance(rule.action, SetMark) else None
    assert driver.receive(frame(match)) == expected
    beside = FlowMatch(match.src, match.dst, match.proto, match.sport, match.dport ^ 1)
    assert driver.receive(frame(beside)) == 0
    other = FlowMatch(match.src, match.dst, 23 - match.proto, match.sport, match.dport)
    assert driver.receive(frame(other)) == 0


def frame(match: FlowMatch) -> bytes:
    """A frame with the headers that a classifier reads."""
    ports = match.sport.to_bytes(2, "big") + match.dport.to_bytes(2, "big")
    ends = match.src.packed + match.dst.packed
    if match.family == 4:
        return bytes(12) + b"\x08\x00\x45" + bytes(8) + bytes([match.proto]) + bytes(2) + ends + ports
    return bytes(12) + b"\x86\xdd\x60" + bytes(5) + bytes([match.proto]) + b"\x40" + ends + ports


ONE = Rule(FlowMatch(*map(ipaddress.ip_address, ("198.18.1.2", "198.18.10.1")), 6, 40_000, 80), SetMark(3), 1)


def spec_of(rule: Rule = ONE) -> np.ndarray:
    return encode(RuleBatch.of([rule]).rows)


def is_read(specs: np.ndarray) -> bool:
    return bool(decode(specs)[1].all())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flow_type", 0x0D),  # IPV4_USER_FLOW
        ("flow_type", 1 | FLOW_RSS),
        ("m_u", np.zeros(52, dtype=np.uint8)),
        ("m_u", np.array([255] * 11 + [254] + [0] * 40, dtype=np.uint8)),  # not the last bit of a port
        ("m_u", np.full(52, 0xFF, dtype=np.uint8)),  # the type of service, too
        ("ring_cookie", 0),
        ("ring_cookie", 1 << 32 | 3),  # a queue of a virtual function
        ("ring_cookie", 0xFFFF_FFFF_FFFF_FFFE),  # RX_CLS_FLOW_WAKE
    ],
)
def test_other_rules_are_not_taken_for_own_ones(field: str, value: object) -> None:
    spec = spec_of()
    assert is_read(spec)
    spec[field] = value
    assert not is_read(spec)


def test_additional_fields_count_where_they_are_compared() -> None:
    spec = spec_of()
    spec["flow_type"] |= FLOW_EXT
    assert is_read(spec)
    spec["m_ext"]["vlan_tci"] = 0xFFFF
    assert not is_read(spec)


@given(st.binary(min_size=FLOW_SPEC.itemsize, max_size=FLOW_SPEC.itemsize))
def test_any_bytes_are_read(raw: bytes) -> None:
    rules, good = decode(np.frombuffer(raw, FLOW_SPEC))
    assert not good[0] or rules["family"][0] in (4, 6)


def test_a_shape_without_exact_match_is_no_flow_spec() -> None:
    match = FlowMatch(ONE.match.src, ONE.match.dst, 132, 1, 2)
    with pytest.raises(KeyError):
        encode(RuleBatch.of([Rule(match, Drop(), 1)]).rows)
