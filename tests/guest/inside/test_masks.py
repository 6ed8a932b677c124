# SPDX-License-Identifier: Apache-2.0
"""Masked rules and drops on the real classifier: in software in front of a veth, and in hardware alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from nfcore.api.flows import FlowMatch
from nfcore.api.rules import Drop, Outcome, Rule, RuleBatch, SetMark
from nfcore.plugins.tc_offload.backend import Settings, TcBackend
from nfcore.plugins.tc_offload.messages import encode_rule, payloads
from nfcore.plugins.tc_offload.netlink import TcSocket
from nfcore.plugins.tc_offload.shapes import Shape, action_cookie
from nfcore.testing import sample_frame

from .conftest import run
from .programs import NO_MARK

if TYPE_CHECKING:
    from tests.guest.simnic.nic import SimNic

    from .lines import Line

pytest_plugins = ["tests.guest.simnic.nic", "tests.guest.inside.lines"]
WEB = "198.18.1.0/24:* > 198.19.1.2:80/tcp"
NETS = "198.18.2.0/23:* > 198.19.0.0/16:*/*"
WEB6 = "[2001:db8:1::/48]:* > [::/0]:443/tcp"
HOST = "198.18.9.1:7 > 198.19.1.2:80/tcp"
FRAMES = {
    WEB: [sample_frame(FlowMatch.parse(f"198.18.1.{host}:5 > 198.19.1.2:80/tcp")) for host in (1, 77, 255)],
    NETS: [
        sample_frame(FlowMatch.parse("198.18.2.1:5 > 198.19.200.1:9/udp")),
        sample_frame(FlowMatch.parse("198.18.3.255:5 > 198.19.0.1:9/1")),
        sample_frame(FlowMatch.parse("198.18.3.7:5 > 198.19.0.1:9/tcp"), fragment=True),
        sample_frame(FlowMatch.parse("198.18.3.7:5 > 198.19.0.1:9/47")),
    ],
    WEB6: [sample_frame(FlowMatch.parse("[2001:db8:1:9::1]:5 > [2001:db8:5::2]:443/tcp"))] * 2,
    HOST: [sample_frame(FlowMatch.parse(HOST))],
}
"""Rules, and frames that each of them matches."""
OTHERS = [
    sample_frame(FlowMatch.parse(flow))
    for flow in (
        "198.18.0.1:5 > 198.19.1.2:80/tcp",
        "198.18.1.1:5 > 198.19.1.2:81/tcp",
        "198.18.1.1:5 > 198.19.1.2:80/udp",
        "198.18.4.0:5 > 198.19.1.1:9/udp",
        "[2001:db8:2::1]:5 > [2001:db8:5::2]:443/tcp",
        "198.18.9.1:8 > 198.19.1.2:80/tcp",
    )
]


def rules_of(*texts: str, drop: bool = False) -> RuleBatch:
    marks = enumerate(texts, start=1)
    return RuleBatch.of([Rule(FlowMatch.parse(text), Drop() if drop else SetMark(mark), mark) for mark, text in marks])


def test_dropped_packets_are_counted_by_tc_and_not_seen_by_xdp(either: Line) -> None:
    rules = rules_of(*FRAMES, drop=True)
    assert either.backend.capabilities().masks and either.backend.capabilities().drop
    assert either.backend.install(rules).status.tolist() == [Outcome.INSTALLED] * len(rules)
    for frames in FRAMES.values():
        either.send(frames)
    either.send(OTHERS)
    # Where no NIC sets marks in metadata there is none.
    assert either.seen() == {0 if either.in_hardware else NO_MARK: len(OTHERS)}
    sent = [len(frames) for frames in FRAMES.values()]
    assert [either.counted(rule) for rule in rules] == sent
    rows = either.backend.dump()
    rows = rows[np.argsort(rows["rule"]["cookie"])]
    assert list(RuleBatch(np.ascontiguousarray(rows["rule"]))) == list(rules)
    assert rows["packets"].tolist() == sent
    removed = either.backend.remove(rules)
    assert removed.status.tolist() == [Outcome.REMOVED] * len(rules)
    assert removed.counted is not None and removed.counted[:, 0].tolist() == sent
    either.send([frames[0] for frames in FRAMES.values()])
    assert sum(either.seen().values()) == len(OTHERS) + len(FRAMES)


def test_hardware_marks_by_mask(hardware: Line) -> None:
    rules = rules_of(*FRAMES)
    assert (hardware.backend.install(rules).status == Outcome.INSTALLED).all()
    for frames in FRAMES.values():
        hardware.send(frames)
    hardware.send(OTHERS)
    sent = [len(frames) for frames in FRAMES.values()]
    assert hardware.seen() == {0: len(OTHERS), **dict(enumerate(sent, start=1))}
    assert [hardware.counted(rule) for rule in rules] == sent


def test_the_exact_rule_comes_first(either: Line) -> None:
    rules = rules_of("198.18.9.0/24:* > 198.19.1.2:80/tcp", drop=True)
    either.backend.install(rules)
    either.backend.install(RuleBatch.of([Rule(FlowMatch.parse(HOST), SetMark(9), 9)]))
    either.send(FRAMES[HOST])
    assert either.seen() == {9 if either.in_hardware else NO_MARK: 1}
    assert either.counted(next(iter(rules))) == 0


def test_tc_shows_masks_and_leaves_out_what_is_open(either: Line) -> None:
    rules = rules_of(WEB, NETS, WEB6, drop=True)
    either.backend.install(rules)
    web, nets, web6 = (either.shown()[action_cookie(rule.cookie).hex()] for rule in rules)
    assert web["keys"] == {
        "eth_type": "ipv4",
        "ip_proto": "tcp",
        "src_ip": "198.18.1.0/24",
        "dst_ip": "198.19.1.2",
        "dst_port": 80,
    }
    assert nets["keys"] == {"eth_type": "ipv4", "src_ip": "198.18.2.0/23", "dst_ip": "198.19.0.0/16"}
    assert web6["keys"] == {"eth_type": "ipv6", "ip_proto": "tcp", "src_ip": "2001:db8:1::/48", "dst_port": 443}
    assert web["actions"][0]["control_action"]["type"] == "drop"


def test_the_next_process_takes_masked_rules_over(either: Line) -> None:
    rules = rules_of(WEB, NETS, WEB6, HOST)
    either.backend.install(rules)
    either.send(FRAMES[NETS])
    next_one = TcBackend(either.backend.settings)
    next_one.open()
    assert next_one.held == 4
    assert next_one.dump()["packets"].sum() == len(FRAMES[NETS])
    # The same match and cookie: it is replaced by itself, and keeps what it counted.
    assert (next_one.install(rules).status == Outcome.INSTALLED).all()
    assert next_one.dump()["packets"].sum() == len(FRAMES[NETS])
    assert (next_one.remove(rules).status == Outcome.REMOVED).all()
    assert not either.shown()
    next_one.close(remove=False)


def test_a_filter_that_no_rule_can_be_is_no_rule(software: Line) -> None:
    place = ("dev", software.filter_on, software.direction, "prio", "6004", "protocol", "ip")
    drop = ("action", "drop", "cookie", action_cookie(77).hex())
    for match in ("ip_proto tcp dst_port 0x50/0xf0", "src_ip 198.18.0.0/16 ip_ttl 9"):
        run("tc", "filter", "add", *place, "flower", *match.split(), *drop)
    _add_odd_mask(software.backend)
    assert run("tc", "filter", "show", *place).count(action_cookie(77).hex()) == 3
    assert not len(software.backend.dump())
    rules = rules_of(WEB, drop=True)
    software.backend.reconcile()
    assert software.backend.install(rules).status.tolist() == [Outcome.FAILED]
    run("tc", "filter", "del", *place)
    assert software.backend.install(rules).status.tolist() == [Outcome.INSTALLED]


def _add_odd_mask(backend: TcBackend) -> None:
    """Add a filter with nfcore's cookie whose mask is no prefix, which `tc` does not take."""
    action = {"kind": "gact", "action": "drop", "cookie": action_cookie(77)}
    message = encode_rule(backend.place, Shape.MASKED4, {"src_ip": "198.18.0.0/16", "action": action}, handle=1000)
    at, length = payloads(message)["TCA_FLOWER_KEY_IPV4_SRC_MASK"]
    raw = bytearray(message.data)
    raw[at : at + length] = bytes((255, 0, 255, 0))
    messages = TcSocket()
    messages.request(bytes(raw))
    messages.close()


@pytest.mark.parametrize("terse", [False, True])
def test_many_masks_side_by_side(software: Line, terse: bool) -> None:
    backend = TcBackend(Settings(**{**vars(software.backend.settings), "terse": terse}))
    backend.open()
    texts = [
        f"198.18.{number}.0/{prefix}:* > 198.19.{number}.{prefix}:{port}/{proto}"
        for number, prefix in enumerate(range(24, 32))
        for port, proto in (("80", "tcp"), ("*", "tcp"), ("53", "udp"), ("*", "*"), ("*", "47"))
        if proto != "tcp" or port != "*" or prefix % 2
    ]
    rules = rules_of(*texts, drop=True)
    assert (backend.install(rules).status == Outcome.INSTALLED).all()
    dumped = RuleBatch(np.ascontiguousarray(backend.dump()["rule"]))
    assert sorted(dumped, key=str) == sorted(rules, key=str)
    assert (backend.remove(rules).status == Outcome.REMOVED).all()
    backend.close(remove=False)


def test_a_driver_without_masks_gets_none(simnic: SimNic) -> None:
    simnic.set(masks=0)
    backend = TcBackend(Settings(simnic.name, simnic.ifindex))
    backend.open()
    assert not backend.capabilities().masks
    assert any(note.startswith("IPv4 masked: no: simnic: addresses and ports") for note in backend.capabilities().notes)
    assert backend.install(rules_of(WEB, HOST)).status.tolist() == [Outcome.UNSUPPORTED, Outcome.INSTALLED]
    simnic.set(masks=1)
    backend.reprobe()
    assert backend.capabilities().masks
    assert backend.install(rules_of(WEB)).status.tolist() == [Outcome.INSTALLED]
    backend.close()
