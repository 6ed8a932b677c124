# SPDX-License-Identifier: Apache-2.0
"""Rules with VLAN tags on the real classifier: in software on what a veth receives or sends, and in hardware alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nfcore.api.flows import NO_TAGS, SERVICE_TAG, FlowMatch
from nfcore.api.rules import Drop, Outcome, Rule, RuleBatch, SetMark
from nfcore.plugins.tc_offload.backend import Settings, TcBackend
from nfcore.plugins.tc_offload.shapes import action_cookie
from nfcore.testing import sample_frame

from .conftest import run

if TYPE_CHECKING:
    from tests.guest.simnic.nic import SimNic

    from .lines import Line

pytest_plugins = ["tests.guest.simnic.nic", "tests.guest.inside.lines"]
TCP4 = FlowMatch.parse("198.18.1.1:1111 > 198.19.1.2:80/tcp")
UDP6 = FlowMatch.parse("[2001:db8::1]:1111 > [2001:db8::2]:53/udp")
TAGS = [(100, 0), (SERVICE_TAG | 100, 0), (100, 7), (SERVICE_TAG | 100, 7), (SERVICE_TAG | 100, SERVICE_TAG | 7)]
"""One of each kind, all with the same ids."""
RULES = [
    Rule(flow, SetMark(mark), mark, vlans)
    for mark, (flow, vlans) in enumerate(((flow, vlans) for flow in (TCP4, UDP6) for vlans in (NO_TAGS, *TAGS)), 1)
]
"""Side by side: rules for one flow that differ in its tags alone."""
OTHERS = [(101, 0), (100, 8), (7, 100), (SERVICE_TAG | 101, 7), (100, SERVICE_TAG | 7)]
"""Tags of no rule."""


@pytest.fixture(params=["received", "hardware"])
def either(request: pytest.FixtureRequest) -> Line:
    found: Line = request.getfixturevalue(request.param)
    return found


def frame_of(rule: Rule) -> bytes:
    return sample_frame(rule.match, vlans=rule.vlans)


def test_each_frame_meets_the_rule_with_its_tags(either: Line) -> None:
    assert either.backend.capabilities().vlans
    rules = RuleBatch.of(RULES)
    assert either.backend.install(rules).status.tolist() == [Outcome.INSTALLED] * len(RULES)
    for rule in RULES:
        either.send([frame_of(rule)] * rule.cookie)
    either.send([sample_frame(flow, vlans=vlans) for flow in (TCP4, UDP6) for vlans in OTHERS])
    if either.in_hardware:
        assert either.seen() == {0: 2 * len(OTHERS), **{rule.cookie: rule.cookie for rule in RULES}}
    assert [either.counted(rule) for rule in RULES] == [rule.cookie for rule in RULES]
    rows = either.backend.dump()
    # QEMU's AVX2 makes numpy's other sorts of 64 bits wrong.
    rows = rows[np.argsort(rows["rule"]["cookie"], kind="stable")]
    assert list(RuleBatch(np.ascontiguousarray(rows["rule"]))) == RULES
    assert rows["packets"].tolist() == [rule.cookie for rule in RULES]
    removed = either.backend.remove(rules)
    assert removed.status.tolist() == [Outcome.REMOVED] * len(RULES)
    assert removed.counted is not None and removed.counted[:, 0].tolist() == [rule.cookie for rule in RULES]
    assert not either.shown()


def test_frames_that_a_rule_with_tags_drops_are_not_seen(hardware: Line) -> None:
    rules = [replace(rule, action=Drop()) for rule in RULES if rule.vlans != NO_TAGS]
    assert (hardware.backend.install(RuleBatch.of(rules)).status == Outcome.INSTALLED).all()
    hardware.send([frame_of(rule) for rule in RULES])
    assert hardware.seen() == {0: 2}
    assert [hardware.counted(rule) for rule in rules] == [1] * len(rules)


def test_what_a_vlan_device_sends_meets_the_rule_with_its_tag(software: Line) -> None:
    untagged, tagged = RULES[0], RULES[1]
    software.backend.install(RuleBatch.of([untagged, tagged]))
    run("ip", "link", "add", "link", software.wire, "name", "vlan100", "type", "vlan", "id", "100")
    run("ip", "link", "set", "vlan100", "addrgenmode", "none")
    run("ip", "link", "set", "vlan100", "up")
    replace(software, wire="vlan100").send([frame_of(untagged)] * 3)
    assert [software.counted(rule) for rule in (untagged, tagged)] == [0, 3]


def test_tc_shows_the_tags(either: Line) -> None:
    one, two = (replace(RULES[0], cookie=number, vlans=vlans) for number, vlans in ((5, TAGS[0]), (6, TAGS[3])))
    either.backend.install(RuleBatch.of([one, two]))
    keys = [either.shown()[action_cookie(rule.cookie).hex()]["keys"] for rule in (one, two)]
    assert (keys[0]["vlan_id"], keys[0]["vlan_ethtype"]) == (100, "ip")
    assert (keys[1]["vlan_id"], keys[1]["vlan_ethtype"]) == (100, "802.1Q")
    assert (keys[1]["cvlan_id"], keys[1]["cvlan_ethtype"]) == (7, "ip")
    assert not any("prio" in key for key in (*keys[0], *keys[1]))


def test_the_next_process_takes_rules_with_tags_over(either: Line) -> None:
    rules = RuleBatch.of(RULES)
    either.backend.install(rules)
    either.send([frame_of(rule) for rule in RULES])
    next_one = TcBackend(either.backend.settings)
    next_one.open()
    assert next_one.held == len(RULES)
    assert (next_one.install(rules).status == Outcome.INSTALLED).all()
    assert next_one.dump()["packets"].tolist() == [1] * len(RULES)
    assert (next_one.remove(rules).status == Outcome.REMOVED).all()
    assert not either.shown()
    next_one.close(remove=False)


@pytest.mark.parametrize("terse", [False, True])
def test_rules_with_tags_are_swept(either: Line, terse: bool) -> None:
    backend = TcBackend(replace(either.backend.settings, terse=terse))
    backend.open()
    backend.install(RuleBatch.of(RULES))
    assert len(backend.dump()) == len(RULES)
    assert backend.sweep() == len(RULES)
    assert not either.shown()
    backend.close(remove=False)


def test_a_filter_that_matches_more_of_a_tag_is_no_rule(software: Line) -> None:
    place = ("dev", software.filter_on, software.direction, "prio", "6006", "protocol", "802.1q")
    ends = "ip_proto tcp src_ip 198.18.1.1 dst_ip 198.19.1.2 src_port 1 dst_port 80"
    for match in ("vlan_id 5 vlan_prio 2 vlan_ethtype ipv4", "vlan_prio 0 vlan_ethtype ipv4"):
        drop = ("action", "drop", "cookie", action_cookie(77).hex())
        run("tc", "filter", "add", *place, "flower", *match.split(), *ends.split(), *drop)
    assert run("tc", "filter", "show", *place).count(action_cookie(77).hex()) == 2
    assert not len(software.backend.dump())


def test_a_driver_without_tags_gets_none(simnic: SimNic) -> None:
    simnic.set(vlans=0)
    backend = TcBackend(Settings(simnic.name, simnic.ifindex))
    backend.open()
    assert not backend.capabilities().vlans
    assert any(note.startswith("802.1Q: no: simnic: VLAN tags are not") for note in backend.capabilities().notes)
    status = backend.install(RuleBatch.of(RULES[:5])).status
    assert status.tolist() == [Outcome.INSTALLED] + [Outcome.UNSUPPORTED] * 4
    simnic.set(vlans=1)
    backend.reprobe()
    assert backend.capabilities().vlans
    assert (backend.install(RuleBatch.of(RULES[:5])).status == Outcome.INSTALLED).all()
    backend.close()
