# SPDX-License-Identifier: Apache-2.0
"""What packets are sent by, whatever routes and neighbours do: always where the kernel would send, or had sent last."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfcore.api.flows import Address
from nfcore.api.rules import Device
from nfcore.errors import HostError
from nfcore.plugins.katran_accel import layouts as lay
from nfcore.plugins.katran_accel.next_hops import (
    FIXED,
    DeviceFacts,
    Facts,
    Hop,
    Sending,
    changes,
    device_rows,
    require_next_hops,
    send_by,
)

REALS = tuple(ipaddress.ip_address(text) for text in ("198.18.20.11", "198.18.20.12", "198.18.2.77", "2001:db8:20::11"))
GATEWAYS = tuple(Hop(ipaddress.ip_address(text)) for text in ("198.18.2.1", "198.18.2.9", "2001:db8:2::1"))
DEVICES = (Device("eth1", 3), Device("eth2", 5))
MACS = [bytes([2, 0, 0x5E, 0, 0, number]) for number in range(1, 7)]


@st.composite
def device_facts(draw: st.DrawFn, device: Device) -> DeviceFacts:
    hops = {}
    for real in REALS:
        hop = draw(st.sampled_from([*GATEWAYS, Hop(real, gateway=False), None]))
        if hop is not None:
            hops[real] = hop
    macs = {hop: draw(st.sampled_from(MACS)) for hop in set(hops.values()) if draw(st.booleans())}
    silent = frozenset(hop for hop in set(hops.values()) - macs.keys() if draw(st.booleans()))
    unreachable = {real: "Network is unreachable" for real in REALS if real not in hops}
    return DeviceFacts(device, draw(st.sampled_from(MACS)), {}, False, hops, unreachable, macs, silent)


@st.composite
def all_facts(draw: st.DrawFn, count: int) -> Facts:
    return Facts(tuple(draw(device_facts(device)) for device in DEVICES[:count]), REALS)


@settings(max_examples=60)
@given(data=st.data(), count=st.integers(1, 2))
def test_packets_go_where_the_kernel_says_or_said_last(data: st.DataObject, count: int) -> None:
    before = Sending()
    for _ in range(data.draw(st.integers(1, 5))):
        facts = data.draw(all_facts(count))
        now = send_by(before, facts)
        for place, device in enumerate(facts.devices):
            for real in REALS:
                _goes_right(now, before, device, real, place)
        _numbers_keep_their_meaning(before, now)
        assert len(now.rows) <= 2 * lay.MAX_REALS * count
        before = now


def _goes_right(now: Sending, before: Sending, device: DeviceFacts, real: Address, place: int) -> None:
    mac = now.mac_of(real, place)
    hop = device.hops.get(real)
    if hop in device.macs:
        assert mac == device.macs[hop]
    elif real in before.groups and before.mac_of(real, place) is not None:
        assert mac is not None, "an address that was known once is not lost"
    # Group 0 is read without a look whether its address is known.
    assert now.groups[real] or mac is not None
    name = device.device.name
    if hop is not None and hop.gateway and hop in device.silent:
        assert any(each.startswith(f"{name}: {hop} does not answer") for each in now.troubles)


def _numbers_keep_their_meaning(before: Sending, now: Sending) -> None:
    for number, hops in now.members.items():
        if number and number in before.members:
            assert before.members[number] == hops


@given(facts=all_facts(2))
def test_the_same_facts_change_nothing(facts: Facts) -> None:
    first = send_by(Sending(), facts)
    second = send_by(first, facts)
    assert np.array_equal(first.rows, second.rows) and first.groups == second.groups
    assert changes(first, second) == []


def facts_of(hops: dict[Address, Hop], macs: dict[Hop, bytes], **more: object) -> Facts:
    unreachable = {real: "Network is unreachable" for real in REALS if real not in hops}
    return Facts((DeviceFacts(DEVICES[0], MACS[0], {}, False, hops, unreachable, macs, **more),), REALS)  # type: ignore[arg-type]


def test_one_gateway_is_the_default_address_also_for_reals_without_a_route_of_their_family() -> None:
    hops = dict.fromkeys(REALS[:3], GATEWAYS[0])
    sending = send_by(Sending(), facts_of(hops, {GATEWAYS[0]: MACS[1]}))
    assert set(sending.groups.values()) == {0} and sending.rows["mac"].tobytes() == MACS[1]
    assert (sending.troubles, sending.warnings) == ((), ())


def test_a_real_of_a_routed_family_without_a_route_is_told() -> None:
    hops = dict.fromkeys((*REALS[1:3], REALS[3]), GATEWAYS[0])
    sending = send_by(Sending(), facts_of(hops, {GATEWAYS[0]: MACS[1]}))
    assert "no route to real 198.18.20.11" in sending.warnings[0]
    assert sending.mac_of(REALS[0], 0) == MACS[1]


def test_an_address_given_before_stays_until_the_gateway_answers() -> None:
    fixed = send_by(Sending(), facts_of(dict.fromkeys(REALS, FIXED), {FIXED: MACS[1]}))
    hops = dict.fromkeys(REALS, GATEWAYS[0])
    asking = send_by(fixed, facts_of(hops, {}))
    assert {asking.mac_of(real, 0) for real in REALS} == {MACS[1]}
    assert send_by(asking, facts_of(hops, {GATEWAYS[0]: MACS[2]})).mac_of(REALS[0], 0) == MACS[2]


def test_a_silent_gateway_is_trouble_until_it_answers_and_a_silent_real_a_warning() -> None:
    near = Hop(REALS[2], gateway=False)
    hops = {**dict.fromkeys(REALS, GATEWAYS[0]), REALS[2]: near}
    known = {GATEWAYS[0]: MACS[1], near: MACS[2]}
    well = send_by(Sending(), facts_of(hops, known))
    silent = send_by(well, facts_of(hops, {}, silent=frozenset({GATEWAYS[0], near})))
    assert len(silent.troubles) == len(silent.warnings) == 1 and "02:00:5e:00:00:02" in silent.troubles[0]
    asked_again = send_by(silent, facts_of(hops, {}))
    assert asked_again.troubles == silent.troubles
    assert send_by(asked_again, facts_of(hops, known)).troubles == ()


def test_a_start_is_refused_without_a_way_or_an_answer() -> None:
    with pytest.raises(HostError, match=r"eth1 has no route to reals 198\.18\.20\.11, .*no default route.*advice"):
        require_next_hops(facts_of({}, {}), "advice")
    with pytest.raises(HostError, match=r"the gateway 198\.18\.2\.1 of interface eth1 does not answer.*advice"):
        require_next_hops(facts_of(dict.fromkeys(REALS, GATEWAYS[0]), {}), "advice")
    # A server that is off must not keep the others from being served.
    hops = {**dict.fromkeys(REALS, GATEWAYS[0]), REALS[2]: Hop(REALS[2], gateway=False)}
    require_next_hops(facts_of(hops, {GATEWAYS[0]: MACS[1]}), "advice")


def test_ports_are_rows_of_their_device() -> None:
    facts = Facts((DeviceFacts(DEVICES[0], MACS[0]), DeviceFacts(DEVICES[1], MACS[1], {7: MACS[1], 8: MACS[2]})), ())
    keys, rows = device_rows(send_by(Sending(), facts))
    assert keys.tolist() == [3, 5, 7, 8]
    assert [(int(row["ifindex"]), int(row["number"])) for row in rows] == [(3, 0), (5, 1), (5, 1), (5, 1)]
    assert bytes(rows["mac"][3]) == MACS[2]
