# SPDX-License-Identifier: Apache-2.0
"""A correct NIC in memory: it forwards frames, marks, drops, counts, and outlives its plugin object."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import EXACT, PROTOCOL_NAMES, SERVICE_TAG, VLAN_ID, Anything, FlowMatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.rules import INSTALLED_ROW, Capabilities, Device, Outcome, Outcomes, Rule, RuleBatch, SetMark
from nfcore.testing import NicUnderTest, Seen
from tests.unit.engine.world import FOREIGN, Nic

DEVICE = Device("eth1", 4, ("reference",))
SIZE = 32
_PORTS = Anything.SPORT | Anything.DPORT


@dataclass
class Hardware:
    """State of the NIC, which outlives the plugin's process."""

    size: int = SIZE
    rules: dict[int, Rule] = field(default_factory=dict)
    """By cookie."""
    hits: dict[int, int] = field(default_factory=dict)
    octets: dict[int, int] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


class ReferenceNic(Nic):
    """A backend that keeps every promise. Each step is a method, so that a wrong backend can replace one."""

    TAKES = Capabilities(mark_width=16, masks=True, table_size=SIZE, vlans=True)

    def __init__(self, hardware: Hardware) -> None:
        super().__init__("reference", [], hardware.size)
        self.hardware = hardware
        self.rules, self.hits = hardware.rules, hardware.hits

    @hookimpl
    def probe_offload(self, device: Device) -> Capabilities:
        return self.TAKES

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        with self.hardware.lock:
            status = [self.take(rule) for rule in rules]
        return self.answer(status)

    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        with self.hardware.lock:
            counted = np.array([self.counted(rule) for rule in rules], dtype=np.uint64).reshape(len(rules), 2)
            status = [self.let_go(rule) for rule in rules]
        answer = self.answer(status)
        counted[answer.status != Outcome.REMOVED] = 0
        answer.counted = counted
        return answer

    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        with self.hardware.lock:
            rows = np.zeros(len(self.rules), dtype=INSTALLED_ROW)
            rows["rule"] = RuleBatch.of(list(self.rules.values())).rows
            both = [self.counted(rule) for rule in self.rules.values()]
        rows["packets"], rows["bytes"] = [packets for packets, _ in both], [size for _, size in both]
        return rows

    def answer(self, status: list[Outcome]) -> Outcomes:
        refused = [row for row, each in enumerate(status) if each in (Outcome.UNSUPPORTED, Outcome.FAILED)]
        return Outcomes(np.array(status, dtype=np.uint8), dict.fromkeys(refused[:1], "reference: not this one"))

    def take(self, rule: Rule) -> Outcome:
        if not self.knows(rule):
            return Outcome.UNSUPPORTED
        old = next((each for each in self.rules.values() if each.match == rule.match), None)
        if old is None and len(self.rules) >= self.hardware.size:
            return Outcome.FULL
        if old is not None and old.cookie != rule.cookie:
            self.forget(old.cookie)
        self.keep(rule)
        return Outcome.INSTALLED

    def knows(self, rule: Rule) -> bool:
        wide = isinstance(rule.action, SetMark) and rule.action.mark >> self.TAKES.mark_width
        open_ports = rule.match.wild.anything & _PORTS == _PORTS
        return (rule.match.proto in PROTOCOL_NAMES or open_ports) and not wide

    def keep(self, rule: Rule) -> None:
        self.rules[rule.cookie] = rule
        self.hits.setdefault(rule.cookie, 0)
        self.hardware.octets.setdefault(rule.cookie, 0)

    def let_go(self, rule: Rule) -> Outcome:
        there = self.rules.get(rule.cookie)
        if there is None or there.match != rule.match:
            return Outcome.ABSENT
        self.forget(rule.cookie)
        return Outcome.REMOVED

    def forget(self, cookie: int) -> None:
        for table in (self.rules, self.hits, self.hardware.octets):
            table.pop(cookie, None)

    def counted(self, rule: Rule) -> tuple[int, int]:
        return self.hits.get(rule.cookie, 0), self.hardware.octets.get(rule.cookie, 0)

    def receive(self, frame: bytes) -> int | None:
        """Receive a frame and return its mark, 0 without a rule; None: dropped."""
        vlans, behind = untag(frame)
        flow, has_ports = flow_of(behind)
        fitting = [each for each in self.rules.values() if self.fits_tags(each.vlans, vlans)]
        fitting = [each for each in fitting if self.fits(each.match, flow, has_ports)]
        if not fitting:
            return 0
        rule = next((each for each in fitting if each.match.wild == EXACT), fitting[0])
        self.hits[rule.cookie] += 1
        self.hardware.octets[rule.cookie] += len(frame)
        return rule.action.mark if isinstance(rule.action, SetMark) else None

    def fits_tags(self, wanted: tuple[int, ...], vlans: tuple[int, ...]) -> bool:
        """Whether a rule for the tags `wanted` is for a packet with the tags `vlans`."""
        return wanted == vlans

    def fits(self, match: FlowMatch, flow: FlowMatch, has_ports: bool) -> bool:
        """Whether a rule with this match is for a packet of `flow`."""
        ends = (
            (match.src, flow.src, match.wild.src, match.sport, flow.sport, Anything.SPORT),
            (match.dst, flow.dst, match.wild.dst, match.dport, flow.dport, Anything.DPORT),
        )
        for mine, its, bits, port, its_port, flag in ends:
            if mine.version != its.version or int(mine) >> bits != int(its) >> bits:
                return False
            if not flag & match.wild.anything and (not has_ports or port != its_port):
                return False
        return bool(Anything.PROTO & match.wild.anything) or match.proto == flow.proto

    def send(self, frame: bytes, count: int) -> Seen:
        with self.hardware.lock:
            marks = [self.receive(frame) for _ in range(count)]
        came = [mark for mark in marks if mark is not None]
        return Seen({mark: came.count(mark) for mark in came}, marks.count(None))


def under_test(kind: type[ReferenceNic] = ReferenceNic) -> NicUnderTest:
    """A NIC of a class, with all abilities that the suite can use."""
    hardware = Hardware()

    def restart() -> ReferenceNic:
        nic.plugin = kind(hardware)
        return nic.plugin

    def send(frame: bytes, count: int) -> Seen:
        assert isinstance(nic.plugin, ReferenceNic)
        return nic.plugin.send(frame, count)

    def foreign() -> Callable[[], bool]:
        assert isinstance(nic.plugin, ReferenceNic)
        nic.plugin.keep(FOREIGN)
        return lambda: FOREIGN.cookie in hardware.rules

    nic = NicUnderTest(
        plugin=kind(hardware),
        device=DEVICE,
        send=send,
        restart=restart,
        foreign=foreign,
        leftovers=lambda: [f"rule {cookie:#x}" for cookie in hardware.rules],
        patience=0.05,
    )
    return nic


def untag(frame: bytes) -> tuple[tuple[int, ...], bytes]:
    """The VLAN tags of a frame as in a rule, and the frame without them."""
    tags = []
    while (tpid := frame[12:14]) in (b"\x81\x00", b"\x88\xa8"):
        (tci,) = struct.unpack_from("!H", frame, 14)
        tags.append(tci & VLAN_ID | (SERVICE_TAG if tpid == b"\x88\xa8" else 0))
        frame = frame[:12] + frame[16:]
    return (*tags, *(0, 0)[len(tags) :]), frame


def flow_of(frame: bytes) -> tuple[FlowMatch, bool]:
    """The 5-tuple of a frame without options, and whether the NIC knows its ports."""
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    six = ethertype == 0x86DD
    at, length = (22, 16) if six else (26, 4)
    ends = [ipaddress.ip_address(frame[at + length * end : at + length * (end + 1)]) for end in (0, 1)]
    sport, dport = struct.unpack_from("!HH", frame, at + 2 * length)
    proto = frame[20 if six else 23]
    fragment = proto == socket.IPPROTO_FRAGMENT if six else frame[20] & 0x3F or frame[21]
    if six and fragment:
        proto = frame[54]
    return FlowMatch(ends[0], ends[1], proto, sport, dport), proto in PROTOCOL_NAMES and not fragment
