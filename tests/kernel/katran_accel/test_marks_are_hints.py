# SPDX-License-Identifier: Apache-2.0
"""A mark is a hint: forged, stale, unknown and reused ones never send a packet where it would not go without one."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest

from nfcore.api.hookspecs import hookimpl
from nfcore.api.marks import MarkState
from nfcore.api.rules import Device, Outcome, Outcomes, RuleBatch
from nfcore.engine.state import ACTIVE
from nfcore.plugins.katran_accel.layouts import AccelCounter
from tests.isolation import own_cpu

from .world import World, open_world, outer, sent_to, tcp, udp

FLOWS = {
    "tcp4": tcp("198.18.1.2", "198.18.10.1"),
    "udp4": udp("198.18.1.2", "198.18.10.2"),
    "tcp6": tcp("2001:db8:1::2", "2001:db8:10::1"),
    "udp6": udp("2001:db8:1::2", "2001:db8:10::2"),
}
REALS = {
    "tcp4": {"198.18.20.11", "198.18.20.12", "198.18.20.13"},
    "udp4": {"198.18.20.11", "198.18.20.14"},
    "tcp6": {"2001:db8:20::11", "2001:db8:20::12"},
    "udp6": {"2001:db8:20::11", "2001:db8:20::13"},
}


def populate(world: World) -> None:
    """Many live marks of all kinds."""
    for port in range(41000, 41100):
        world.offload(tcp("198.18.1.3", "198.18.10.1", sport=port))
        world.offload(udp("198.18.1.3", "198.18.10.2", sport=port))
        world.offload(tcp("2001:db8:1::3", "2001:db8:10::1", sport=port))
        world.offload(udp("2001:db8:1::3", "2001:db8:10::2", sport=port))


@pytest.mark.parametrize("flow", FLOWS)
def test_every_forged_flow_id_mark_changes_nothing(tmp_path: Path, flow: str) -> None:
    with open_world(tmp_path, strategy="flow-id") as world:
        populate(world)
        own = world.offload(FLOWS[flow])
        plain = world.send(FLOWS[flow]).output
        wrong = [mark for mark in range(65_536) if world.send(FLOWS[flow], mark).output != plain]
        assert wrong == []
        # Its own mark steers, and those that XDP took when it reported the flow again; the other flows' do not.
        assert 1 <= world.count(AccelCounter.FAST) <= world.count(AccelCounter.REPORTED) - 400
        assert world.count(AccelCounter.OTHER_FLOW) == 400
        assert world.send(FLOWS[flow], own).output == plain


@pytest.mark.parametrize("flow", FLOWS)
def test_every_forged_dest_id_mark_leads_to_a_real_of_the_packets_own_vip(tmp_path: Path, flow: str) -> None:
    with open_world(tmp_path) as world:
        populate(world)
        plain = world.send(FLOWS[flow]).output
        elsewhere = {}
        for mark in range(65_536):
            run = world.send(FLOWS[flow], mark)
            if run.output != plain:
                elsewhere[mark] = sent_to(run)
        assert set(elsewhere.values()) <= REALS[flow]
        # Only the marks of the VIP's own pairs steer at all.
        assert len(elsewhere) == len(REALS[flow]) - 1
        assert world.count(AccelCounter.FAST) == len(REALS[flow])


@pytest.mark.parametrize("mark", [65_536, 0x8000_0001, 0xFFFF_FFFF])
@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_a_mark_beyond_the_table_is_unknown(tmp_path: Path, strategy: str, mark: int) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        plain = world.send(FLOWS["tcp4"]).output
        assert world.send(FLOWS["tcp4"], mark).output == plain
        assert world.count(AccelCounter.UNKNOWN_MARK) == 1


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
@pytest.mark.parametrize("flow", FLOWS)
def test_a_marked_packet_is_sent_as_without_its_mark(tmp_path: Path, strategy: str, flow: str) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        mark = world.offload(FLOWS[flow])
        slow = world.send(FLOWS[flow])
        fast = world.send(FLOWS[flow], mark)
        assert world.count(AccelCounter.FAST) == 1
        assert fast == slow.__class__(slow.verdict, slow.output, b"", fast.duration_ns)


@pytest.mark.parametrize("what", ["vip_map_by_id", "hw_accel_reals"])
@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_a_changed_vip_or_real_makes_the_mark_stale(tmp_path: Path, strategy: str, what: str) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        mark = world.offload(FLOWS["tcp4"])
        plain = world.send(FLOWS["tcp4"]).output
        generations = world.balancer.maps[what].mmap()
        if what == "vip_map_by_id":
            generations["generation"][0] += 1
        else:
            generations[1:] += 1
        assert world.send(FLOWS["tcp4"], mark).output == plain
        assert (world.count(AccelCounter.STALE), world.count(AccelCounter.FAST)) == (1, 0)


def test_a_reused_flow_id_mark_means_the_new_flow_only(tmp_path: Path) -> None:
    parts = {
        "marking": 'quarantine = "1us"\nwidth = 2\npool_chunk = 3',
        "offload": "min_packets = 1\nmax_rules = 3",
        # Another CPU would get some of the three marks, and use none.
        "katran": f"forwarding_cpus = [{own_cpu()}]",
    }
    with open_world(tmp_path, strategy="flow-id", **parts) as world:
        old = FLOWS["tcp4"]
        mark = world.offload(old)
        plain = world.send(old).output
        world.engine.switch(on=False)
        wait_for_grace(world)
        world.engine.switch(on=True)
        assert world.send(old, mark).output == plain
        assert world.count(AccelCounter.UNKNOWN_MARK) == 1
        # Three marks exist: new flows soon get the old one.
        for port in range(42000, 42003):
            frame = tcp("198.18.1.9", "198.18.10.1", sport=port)
            if world.offload(frame) == mark:
                break
        else:
            pytest.fail("the mark was never used again")
        assert world.send(old, mark).output == plain
        assert world.count(AccelCounter.OTHER_FLOW) == 1
        assert world.send(frame, mark).output == world.send(frame).output


def wait_for_grace(world: World) -> None:
    deadline = time.monotonic() + 5
    while world.engine.table.count(*ACTIVE) and time.monotonic() < deadline:
        world.engine.tick()
        time.sleep(0.01)
    assert world.engine.table.count(*ACTIVE) == 0


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_an_ipv6_packet_of_the_same_bits_is_another_flow(tmp_path: Path, strategy: str) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        mark = world.offload(FLOWS["tcp4"])
        # c612:102:: and c612:a01:: have the bytes of 198.18.1.2 and 198.18.10.1, then zeros.
        twin = tcp("c612:102::", "c612:a01::")
        unmarked = world.send(twin)
        marked = world.send(twin, mark)
        assert (marked.verdict, marked.output) == (unmarked.verdict, unmarked.output)
        assert (world.count(AccelCounter.OTHER_FLOW), world.count(AccelCounter.FAST)) == (1, 0)


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
@pytest.mark.parametrize("flags", ["S", "SA", "FA", "R", "RA"])
def test_first_and_last_packets_of_a_connection_take_the_slow_path(tmp_path: Path, strategy: str, flags: str) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        mark = world.offload(FLOWS["tcp4"])
        edge = tcp("198.18.1.2", "198.18.10.1", flags=flags)
        assert world.send(edge, mark).output == world.send(edge).output
        assert (world.count(AccelCounter.INELIGIBLE), world.count(AccelCounter.FAST)) == (1, 0)


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_an_overlong_marked_frame_is_dropped_as_without_its_mark(tmp_path: Path, strategy: str) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        mark = world.offload(FLOWS["tcp4"])
        longest = tcp("198.18.1.2", "198.18.10.1", size=1514 - 54)
        assert world.send(longest, mark).verdict.name == "XDP_TX"
        assert world.send(longest + b"x", mark).verdict.name == "XDP_DROP"
        assert world.count(AccelCounter.FAST) == 1


@pytest.mark.parametrize("length", range(4, 33, 4))
def test_the_mark_is_the_first_word_of_metadata_of_any_length(tmp_path: Path, length: int) -> None:
    with open_world(tmp_path) as world:
        mark = world.offload(FLOWS["tcp4"])
        plain = world.send(FLOWS["tcp4"]).output
        metadata = mark.to_bytes(4, "little") + b"\xff" * (length - 4)
        run = world.balancer.program.test_run(FLOWS["tcp4"], metadata=metadata)
        assert (run.output, run.metadata) == (plain, b"")
        assert world.count(AccelCounter.FAST) == 1


def test_a_target_of_a_vip_with_a_narrower_one_inside_gets_no_rule(tmp_path: Path) -> None:
    reals = 'reals = [{ address = "198.18.20.11" }]'
    narrow = f'[[katran_accel.vips]]\naddress = "198.18.10.1"\nport = 80\nprotocol = "tcp"\n{reals}\n'
    wide = '[[katran_accel.vips]]\naddress = "198.18.10.1"\nport = 0\nprotocol = "tcp"\n'
    wide += 'reals = [{ address = "198.18.20.12" }]\n'
    with open_world(tmp_path, vips=narrow + wide) as world:
        other_port = tcp("198.18.1.2", "198.18.10.1", dport=81)
        assert sent_to(world.send(other_port)) == "198.18.20.12"
        world.engine.poll()
        assert world.engine.table.count(*ACTIVE) == 0
        for mark in range(1, 10):
            # A mark of the wide VIP's target must not draw the narrow VIP's packets to its reals.
            assert sent_to(world.send(tcp("198.18.1.2", "198.18.10.1"), mark)) == "198.18.20.11"


def test_a_port_goes_before_a_longer_address(tmp_path: Path) -> None:
    wide = '[[katran_accel.vips]]\naddress = "198.18.10.1"\nport = 0\nprotocol = "tcp"\n'
    wide += 'reals = [{ address = "198.18.20.11" }]\n'
    wins = '[[katran_accel.vips]]\naddress = "198.18.10.0/24"\nport = 80\nprotocol = "tcp"\n'
    wins += 'reals = [{ address = "198.18.20.99" }]\n'
    with open_world(tmp_path, vips=wide + wins) as world:
        for mark in range(10):
            assert sent_to(world.send(tcp("198.18.1.2", "198.18.10.1"), mark)) == "198.18.20.99"


@pytest.mark.slow
def test_random_packets_with_random_marks_stay_with_their_vips(tmp_path: Path) -> None:
    chance = random.Random(20190)
    with open_world(tmp_path) as world:
        populate(world)
        for _ in range(3000):
            kind = chance.choice(list(FLOWS))
            port, mark = chance.randrange(1, 65_536), chance.randrange(0, 40)
            src = "2001:db8:1::7" if kind.endswith("6") else "198.18.1.7"
            dst = {"tcp4": "198.18.10.1", "udp4": "198.18.10.2", "tcp6": "2001:db8:10::1", "udp6": "2001:db8:10::2"}
            frame = (tcp if kind.startswith("tcp") else udp)(src, dst[kind], sport=port)
            run = world.send(frame, mark)
            assert sent_to(run) in REALS[kind]
            assert bytes(outer(run).payload) == frame[14:]


def test_a_refused_rule_gives_its_mark_back(tmp_path: Path) -> None:
    with open_world(tmp_path, strategy="flow-id", backend=Unwilling()) as world:
        world.send(FLOWS["tcp4"])
        assert live_entries(world) == 1
        world.engine.poll()
        assert live_entries(world) == 0
        assert world.context.marks.count(MarkState.LIVE) == 0


def live_entries(world: World) -> int:
    entries = world.balancer.maps["hw_accel_mapping"].read_array()
    return int(np.count_nonzero(entries["vip_generation"]))


class Unwilling:
    """A NIC that takes no rule."""

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        return Outcomes.all(Outcome.UNSUPPORTED, len(rules), "no")
