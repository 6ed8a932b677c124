# SPDX-License-Identifier: Apache-2.0
"""Rules in hardware alone: a driver that takes, counts, refuses and forgets them, and marks for XDP to see."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nfcore.api.flows import FlowMatch
from nfcore.api.rules import Drop, Outcome, Rule, RuleBatch, SetMark
from nfcore.kernel import Map, XdpMode, attach_xdp, detach_xdp
from nfcore.plugins.tc_offload.backend import Settings, TcBackend

from .conftest import VethPair
from .programs import count_and_drop, count_marks, new_counts, new_marks, new_target

if TYPE_CHECKING:
    from tests.guest.simnic.nic import SimNic

pytest_plugins = ["tests.guest.simnic.nic"]
Shell = Callable[..., str]
Tc = Callable[[str, str], str]
TCP4 = FlowMatch.parse("198.18.1.1:1111 > 198.18.1.2:80/tcp")
UDP4 = FlowMatch.parse("198.18.1.1:1111 > 198.18.1.2:53/udp")
TCP6 = FlowMatch.parse("[2001:db8::1]:1111 > [2001:db8::2]:443/tcp")
UDP6 = FlowMatch.parse("[2001:db8::1]:1111 > [2001:db8::2]:53/udp")
OTHER = FlowMatch.parse("198.18.1.1:1112 > 198.18.1.2:53/udp")
TUPLE = "ip_proto udp src_ip 198.18.1.1 dst_ip 198.18.1.2 src_port 1111 dst_port 53"
"""UDP4 in tc's words."""


@pytest.fixture
def backend(simnic: SimNic) -> Iterator[TcBackend]:
    opened = TcBackend(Settings(simnic.name, simnic.ifindex))
    opened.open()
    yield opened
    opened.close()


@pytest.fixture
def tc(shell: Shell, simnic: SimNic) -> Tc:
    """Add or replace a filter for IPv4 on what the NIC receives, in tc's words."""
    shell("tc", "qdisc", "add", "dev", simnic.name, "clsact")
    place = ("dev", simnic.name, "ingress", "protocol", "ip")
    return lambda verb, words: shell("tc", "filter", verb, *place, *words.split())


def marks_of(*flows: FlowMatch, first: int = 1) -> RuleBatch:
    """Rules that mark flows, with marks and cookies that count from `first`."""
    return RuleBatch.of([Rule(flow, SetMark(mark), mark) for mark, flow in enumerate(flows, first)])


def many(count: int) -> RuleBatch:
    return marks_of(*(FlowMatch.parse(f"198.18.1.1:{1000 + port} > 198.18.1.2:53/udp") for port in range(count)))


@contextmanager
def seen_by_xdp(nic: SimNic, answer: str = "DROP", target: str = "") -> Iterator[Callable[[], dict[int, int]]]:
    """Attach a program that counts marks: what it has counted so far, frames by mark."""
    with new_marks() as marks, new_target() as targets:
        if target:
            targets.update(0, socket.if_nametoindex(target))
        with count_marks(marks, targets, answer) as program:
            assert attach_xdp(nic.ifindex, program, mode=XdpMode.NATIVE) is XdpMode.NATIVE
            yield lambda: counted(marks)
            detach_xdp(nic.ifindex, expected=program.id)


def counted(marks: Map) -> dict[int, int]:
    keys, values = marks.lookup_all()
    return dict(zip(keys.tolist(), values.tolist(), strict=True))


# What tc says


def test_tc_puts_a_rule_into_hardware_alone(shell: Shell, tc: Tc, simnic: SimNic) -> None:
    tc("add", f"prio 1 flower skip_sw {TUPLE} action skbedit mark 42")
    size = simnic.send(UDP4, 3)
    simnic.send(OTHER, 2)
    listing = shell("tc", "-s", "filter", "show", "dev", simnic.name, "ingress")
    assert re.search(r"skip_sw\s+in_hw in_hw_count 1", listing)
    assert f"Sent hardware {3 * size} bytes 3 pkt" in listing
    assert "used_hw_stats immediate" in listing


@pytest.mark.parametrize(
    ("rule", "words", "masks"),
    [
        ("ip_proto udp dst_port 53 action drop", "as a whole, without masks", 0),
        (TUPLE.replace("1.1 ", "1.0/24 ") + " action drop", "as a whole, without masks", 0),
        (f"{TUPLE} ip_ttl 64 action drop", "only addresses, ports, the protocol and VLAN tags are matched", 1),
        (f"{TUPLE} ip_flags nofrag action drop", "control.flags", 1),
        (TUPLE.replace("udp", "sctp") + " action drop", "only ports of TCP and UDP", 1),
        (f"{TUPLE} action mirred egress redirect dev sim0w", "the only actions are", 1),
    ],
)
def test_the_driver_says_why_it_refuses(simnic: SimNic, tc: Tc, rule: str, words: str, masks: int) -> None:
    simnic.set(masks=masks)
    with pytest.raises(AssertionError, match=f"simnic: .*{re.escape(words)}"):
        tc("add", f"prio 1 flower skip_sw {rule}")


def test_a_rule_cannot_be_replaced_in_place(tc: Tc) -> None:
    tc("add", f"prio 1 handle 1 flower skip_sw {TUPLE} action skbedit mark 1")
    with pytest.raises(AssertionError, match="simnic: there is a rule for this flow"):
        tc("replace", f"prio 1 handle 1 flower skip_sw {TUPLE} action skbedit mark 2")


def test_offload_can_be_switched_off(shell: Shell, tc: Tc, simnic: SimNic) -> None:
    shell("ethtool", "-K", simnic.name, "hw-tc-offload", "off")
    with pytest.raises(AssertionError, match="TC offload is disabled"):
        tc("add", f"prio 1 flower skip_sw {TUPLE} action drop")


# The backend


def test_the_probe_finds_the_hardware(backend: TcBackend) -> None:
    assert backend.probed.hardware
    capabilities = backend.capabilities()
    can = "marks of 32 bits, IPv6, drop, masked rules, VLAN tags, rules in hardware alone"
    assert capabilities.describe().startswith(can)
    refused = backend.probed.refused
    assert refused.keys() == {"nofrag", "indev", "pedit"}
    assert "simnic: the only actions are skbedit mark, drop and pass" in str(refused["pedit"])


def test_what_the_nic_lacks_is_found(simnic: SimNic) -> None:
    simnic.set(mark_bits=16, ipv6=0, masks=0)
    backend = TcBackend(Settings(simnic.name, simnic.ifindex))
    backend.open()
    capabilities = backend.capabilities()
    assert (capabilities.mark_width, capabilities.ipv6, capabilities.drop) == (16, False, True)
    assert not capabilities.masks
    outcomes = backend.install(marks_of(TCP4, TCP6))
    assert outcomes.status.tolist() == [Outcome.INSTALLED, Outcome.UNSUPPORTED]
    backend.close()


@pytest.mark.parametrize("terse", [False, True])
def test_hardware_counts_and_marks(simnic: SimNic, terse: bool) -> None:
    backend = TcBackend(Settings(simnic.name, simnic.ifindex, terse=terse))
    backend.open()
    flows = (TCP4, UDP4, TCP6, UDP6)
    rules = marks_of(*flows, first=0xFFFF_0001)
    assert (backend.install(rules).status == Outcome.INSTALLED).all()
    with seen_by_xdp(simnic) as seen:
        sizes = [simnic.send(flow, count) for count, flow in enumerate(flows, 1)]
        simnic.send(OTHER, 5)
        assert seen() == {0xFFFF_0001: 1, 0xFFFF_0002: 2, 0xFFFF_0003: 3, 0xFFFF_0004: 4, 0: 5}
    rows = backend.dump()
    assert sorted(RuleBatch(np.ascontiguousarray(rows["rule"])), key=str) == sorted(rules, key=str)
    rows = rows[np.argsort(rows["rule"]["cookie"])]
    assert rows["packets"].tolist() == [1, 2, 3, 4]
    assert rows["bytes"].tolist() == [count * size for count, size in enumerate(sizes, 1)]
    # The kernel asks for differences: nothing is counted twice.
    assert sorted(backend.dump()["packets"].tolist()) == [1, 2, 3, 4]
    backend.close()


def test_a_dropped_packet_never_meets_xdp(simnic: SimNic, backend: TcBackend) -> None:
    backend.install(RuleBatch.of([Rule(UDP4, Drop(), 77)]))
    with seen_by_xdp(simnic) as seen:
        simnic.send(UDP4, 4)
        simnic.send(OTHER)
        assert seen() == {0: 1}
        assert backend.dump()["packets"].tolist() == [4]
        backend.remove(RuleBatch.of([Rule(UDP4, Drop(), 77)]))
        simnic.send(UDP4, 2)
        assert seen() == {0: 3}


def test_a_full_table_takes_no_more_until_there_is_room(simnic: SimNic, backend: TcBackend) -> None:
    simnic.set(table_size=10)
    rules = many(15)
    outcomes = backend.install(rules)
    assert outcomes.status.tolist() == [Outcome.INSTALLED] * 10 + [Outcome.FULL] * 5
    assert "simnic: the table is full" in next(iter(outcomes.messages.values()))
    assert len(backend.dump()) == 10
    assert (backend.remove(RuleBatch(rules.rows[:5])).status == Outcome.REMOVED).all()
    assert (backend.install(RuleBatch(rules.rows[10:])).status == Outcome.INSTALLED).all()
    assert sorted(backend.dump()["rule"]["mark"].tolist()) == list(range(6, 16))


def test_a_refusal_gives_the_drivers_words_once(simnic: SimNic, backend: TcBackend) -> None:
    simnic.set(ipv6=0)
    outcomes = backend.install(marks_of(TCP4, TCP6, UDP4, UDP6))
    assert outcomes.status.tolist() == [Outcome.INSTALLED, Outcome.UNSUPPORTED] * 2
    assert "IPv6 TCP rules to set mark are not offloaded" in outcomes.messages[1]
    assert "simnic: IPv6 is not matched" in outcomes.messages[1]
    again = backend.install(marks_of(TCP6, UDP6))
    assert again.status.tolist() == [Outcome.UNSUPPORTED] * 2
    assert not again.messages


def test_a_replacement_keeps_its_counters(simnic: SimNic, backend: TcBackend) -> None:
    with seen_by_xdp(simnic) as seen:
        for mark, count in ((1, 3), (2, 1), (3, 2)):
            batch = RuleBatch.of([Rule(UDP4, SetMark(mark), 77)])
            assert backend.install(batch).status.tolist() == [Outcome.INSTALLED]
            simnic.send(UDP4, count)
        assert seen() == {1: 3, 2: 1, 3: 2}
    (row,) = backend.dump()
    assert (row["rule"]["mark"], row["packets"]) == (3, 6)


def test_rules_outlive_their_process_and_are_taken_over(simnic: SimNic, backend: TcBackend) -> None:
    rules = many(20)
    backend.install(rules)
    simnic.send(FlowMatch.parse("198.18.1.1:1000 > 198.18.1.2:53/udp"), 7)
    second = TcBackend(backend.settings)
    second.open()
    assert second.held == 20
    assert second.dump()["packets"].sum() == 7
    assert (second.remove(rules).status == Outcome.REMOVED).all()
    second.close(remove=False)


# What XDP may answer


def test_passed_frames_carry_the_mark_into_the_stack(shell: Shell, tc: Tc, simnic: SimNic, backend: TcBackend) -> None:
    backend.install(marks_of(UDP4, first=9))
    tc("add", "prio 7000 handle 9 fw action pass")
    with seen_by_xdp(simnic, "PASS") as seen:
        simnic.send(UDP4, 6)
        simnic.send(OTHER, 2)
        assert seen() == {9: 6, 0: 2}
    # Without a program the mark is there all the same.
    simnic.send(UDP4, 1)
    listing = shell("tc", "-s", "filter", "show", "dev", simnic.name, "ingress", "prio", "7000")
    assert re.findall(r"Sent \d+ bytes (\d+) pkt", listing) == ["7"]


def test_sent_back_frames_reach_the_wire(simnic: SimNic, backend: TcBackend) -> None:
    backend.install(marks_of(TCP6, first=9))
    with seen_by_xdp(simnic, "TX") as seen, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((simnic.wire, 0x86DD))
        wire.settimeout(10)
        simnic.send(TCP6, 2)
        assert seen() == {9: 2}
        frames = [wire.recv(2048) for _ in range(2)]
    assert all(TCP6.src.packed + TCP6.dst.packed in frame for frame in frames)


def test_redirected_frames_reach_another_device(simnic: SimNic, backend: TcBackend, veth_pair: VethPair) -> None:
    backend.install(marks_of(UDP4, first=9))
    with new_counts() as counts, count_and_drop(counts) as program:
        attach_xdp(socket.if_nametoindex(veth_pair.near), program, mode=XdpMode.NATIVE)
        with seen_by_xdp(simnic, "REDIRECT", veth_pair.far) as seen:
            simnic.send(UDP4, 5)
            assert seen() == {9: 5}
        assert counts.read_array().tolist() == [0, 5, 0, 0]


def test_every_frame_has_metadata_up_to_the_largest(shell: Shell, simnic: SimNic, backend: TcBackend) -> None:
    shell("ip", "link", "set", simnic.wire, "mtu", "3000")
    backend.install(marks_of(UDP4, first=9))
    with seen_by_xdp(simnic) as seen:
        for size in (0, 100, 1472, 2972):
            simnic.send(UDP4, size=size)
            simnic.send(OTHER, size=size)
        assert seen() == {9: 4, 0: 4}


# Coming and going


@pytest.mark.parametrize("removal", ["ip link del sim0w", "rmmod simnic"])
def test_the_nic_goes_under_traffic(shell: Shell, simnic: SimNic, backend: TcBackend, removal: str) -> None:
    stopping = threading.Event()

    def flood() -> None:
        while not stopping.is_set():
            try:
                simnic.send(UDP4, 50)
            except OSError:
                return

    sender = threading.Thread(target=flood)
    sender.start()
    try:
        for number in range(20):
            with seen_by_xdp(simnic, ("TX", "PASS", "DROP")[number % 3]):
                backend.install(many(120))
                backend.remove(many(120))
        backend.install(many(120))
        shell(*removal.split())
    finally:
        stopping.set()
        sender.join()
    assert not len(backend.dump())
    assert simnic.name not in (name for _, name in socket.if_nameindex())
    assert not re.search(r"BUG|WARNING:|Call Trace", shell("dmesg"))
