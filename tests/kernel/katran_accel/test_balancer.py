# SPDX-License-Identifier: Apache-2.0
"""The slow path, the reports and the counters of the real program."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether

from nfcore.api.flows import NO_TAGS
from nfcore.plugins.katran_accel.layouts import AccelCounter, StatsSlot
from nfcore.plugins.katran_accel.metrics import BalancerMetrics

from .world import CLIENT, NIC, World, forget_connections, open_world, outer, sent_to, set_ring, tcp, udp

FLOW = tcp("198.18.1.2", "198.18.10.1")
FAMILIES = {
    "v4": ("198.18.1.2", "198.18.10.1", 0, {"198.18.20.11", "198.18.20.12", "198.18.20.13"}),
    "v6": ("2001:db8:1::2", "2001:db8:10::1", 2, {"2001:db8:20::11", "2001:db8:20::12"}),
}


def figure(world: World | BalancerMetrics, name: str, **labels: str) -> float:
    figures = world if isinstance(world, BalancerMetrics) else BalancerMetrics(world.balancer)
    (family,) = [family for family in figures.families() if family.name == name]
    return sum(s.value for s in family.everything() if labels.items() <= s.labels.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_ring_and_hash_choose_the_real_as_computed_in_python(tmp_path: Path, family: str) -> None:
    src, dst, vip, reals = FAMILIES[family]
    with open_world(tmp_path) as world:
        seen = set()
        for port in range(30_000, 30_200):
            real = sent_to(world.send(tcp(src, dst, sport=port)))
            assert real == world.ring_real(vip, src, port, 80)
            seen.add(real)
        assert seen == reals


def test_the_inner_packet_is_untouched_and_padding_is_not_payload(tmp_path: Path) -> None:
    short = tcp("198.18.1.2", "198.18.10.1", size=0)
    padded = short + b"\0" * (60 - len(short))
    with open_world(tmp_path) as world:
        run = world.send(padded)
        assert outer(run).len == 20 + 40
        assert run.output[34:] == padded[14:]


@pytest.mark.parametrize("family", FAMILIES)
def test_packets_and_bytes_are_counted_per_vip_and_real_on_both_paths(tmp_path: Path, family: str) -> None:
    src, dst, vip, _ = FAMILIES[family]
    frame = tcp(src, dst, size=100)
    headers, uncounted = (60, 40) if family == "v6" else (40, 0)
    ip_bytes = headers + 100
    with open_world(tmp_path) as world:
        mark = world.offload(frame)
        for _ in range(6):
            world.send(frame)
        for _ in range(5):
            world.send(frame, mark)
        name, real = world.balancer.inventory.vips[vip].name, sent_to(world.send(frame))
        for label, value in (("vip", name), ("real", real)):
            assert figure(world, f"nfcore_{label}_packets_total", **{label: value}) == 13
        assert figure(world, "nfcore_vip_bytes_total", vip=name) == 13 * ip_bytes
        assert figure(world, "nfcore_real_bytes_total", real=real) == 13 * (ip_bytes - uncounted)
        assert figure(world, "nfcore_packets_total", path="fast") == 5
        assert figure(world, "nfcore_packets_total", path="slow") == 8
        world.send(tcp(src, dst, dport=81))
        assert figure(world, "nfcore_packets_total", path="none") == 1
        assert figure(world, "nfcore_verdicts_total", verdict="tx") == 13
        assert figure(world, "nfcore_verdicts_total", verdict="pass") == 1


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_each_vip_tells_what_went_by_mark_and_what_its_ring_routed(tmp_path: Path, strategy: str) -> None:
    other = udp("198.18.1.2", "198.18.10.2")
    with open_world(tmp_path, strategy=strategy) as world:
        first, second = (world.balancer.inventory.vips[number].name for number in (0, 1))
        mark = world.offload(FLOW)
        for _ in range(4):
            world.send(FLOW, mark)
        for sport in (40001, 40002):
            world.send(tcp("198.18.1.2", "198.18.10.1", sport=sport))
        # Ends by its mark, which no ring has a say in.
        forget_connections(world)
        world.send(tcp("198.18.1.2", "198.18.10.1", flags="FA"), mark)
        world.send(other)
        world.send(other)
        path = "nfcore_vip_path_packets_total"
        assert [figure(world, path, vip=first, path=each) for each in ("fast", "slow")] == [4, 4]
        assert [figure(world, path, vip=second, path=each) for each in ("fast", "slow")] == [0, 2]
        assert [figure(world, "nfcore_vip_new_flows_total", vip=each) for each in (first, second)] == [3, 1]
        of_reals = "nfcore_real_path_packets_total"
        assert [figure(world, of_reals, path=each) for each in ("fast", "slow")] == [4, 6]
        assert figure(world, "nfcore_real_new_flows_total") == figure(world, "nfcore_ring_routed_total") == 4
        assert figure(world, "nfcore_lru_inserts_total") == 5
        assert figure(world, "nfcore_lru_lookups_total", result="hit") == 1
        assert figure(world, "nfcore_lru_lookups_total", result="miss") == 5
        assert figure(world, "nfcore_lru_tcp_misses_total", kind="established") == 4


@contextmanager
def under_fire(world: World, frame: bytes, repeat: int = 1) -> Iterator[list[int]]:
    """Run a frame again and again, on another CPU where there is one; the list has how often, each time."""
    sent: list[int] = []
    enough = threading.Event()

    def fire() -> None:
        cpus = set(range(os.cpu_count() or 1))
        os.sched_setaffinity(0, cpus - {world.cpu} or cpus)
        while not enough.is_set():
            world.balancer.program.test_run(frame, repeat=repeat)
            sent.append(repeat)

    gun = threading.Thread(target=fire)
    gun.start()
    try:
        yield sent
    finally:
        enough.set()
        gun.join()


def test_what_is_left_of_counters_is_never_too_much_while_packets_come(tmp_path: Path) -> None:
    syn = tcp("198.18.1.2", "198.18.10.1", flags="S")
    with open_world(tmp_path) as world:
        figures = BalancerMetrics(world.balancer)
        with under_fire(world, syn) as sent:
            for _ in range(300):
                assert figure(figures, "nfcore_vip_path_packets_total", path="fast") == 0
                assert figure(figures, "nfcore_real_path_packets_total", path="fast") == 0
        assert figure(figures, "nfcore_vip_path_packets_total", path="slow") == len(sent) > 300
        # Nothing is sent, so that the frame stays as it is and can come at the greatest pace.
        set_ring(world, 0, 0)
        with under_fire(world, syn, repeat=10_000) as more:
            for _ in range(600):
                assert figure(figures, "nfcore_packets_total", path="none") == 0
                assert figure(figures, "nfcore_lru_lookups_total", result="hit") == 0
        assert figure(figures, "nfcore_lru_lookups_total", result="miss") == len(sent) + sum(more)
        assert figure(figures, "nfcore_packets_total") == len(sent) + sum(more)


def test_a_known_flow_keeps_its_real_when_the_ring_changes(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        real = sent_to(world.send(FLOW))
        other = next(n for a, n in world.balancer.inventory.reals.items() if str(a) != real and n <= 3)
        set_ring(world, 0, other)
        assert sent_to(world.send(FLOW)) == real
        # A new connection of the same ports is a new flow.
        syn = tcp("198.18.1.2", "198.18.10.1", flags="S")
        assert sent_to(world.send(syn)) == world.balancer.inventory.real_name(other)
        assert sent_to(world.send(FLOW)) == world.balancer.inventory.real_name(other)


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_a_flow_keeps_its_real_when_its_rule_goes(tmp_path: Path, strategy: str) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        mark = world.offload(FLOW)
        real = sent_to(world.send(FLOW, mark))
        set_ring(world, 0, next(n for a, n in world.balancer.inventory.reals.items() if str(a) != real and n <= 3))
        forget_connections(world)
        assert sent_to(world.send(FLOW, mark)) == real
        world.engine.switch(on=False)
        assert sent_to(world.send(FLOW)) == real


def test_rst_is_looked_up_but_not_remembered(tmp_path: Path) -> None:
    rst = tcp("198.18.1.2", "198.18.10.1", flags="R")
    with open_world(tmp_path) as world:
        assert world.send(rst).verdict.name == "XDP_TX"
        keys, _ = world.balancer.maps.lrus[world.cpu].lookup_all()
        assert len(keys) == 0


def test_a_udp_flow_idle_for_too_long_counts_as_new(tmp_path: Path) -> None:
    frame = udp("198.18.1.2", "198.18.10.2")
    with open_world(tmp_path) as world:
        world.send(frame)
        lru = world.balancer.maps.lrus[world.cpu]
        keys, values = lru.lookup_all()
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        chosen = world.balancer.inventory.real_name(int(values["pos"][0]))
        other = next(
            n
            for a, n in world.balancer.inventory.reals.items()
            if str(a) in ("198.18.20.11", "198.18.20.14") and str(a) != chosen
        )
        values["pos"] = other
        values["atime"] = now - 29 * 10**9
        lru.update_batch(keys, values)
        assert sent_to(world.send(frame)) == world.balancer.inventory.real_name(other)
        assert lru.lookup_all()[1]["atime"][0] >= now
        values["atime"] = now - 31 * 10**9
        lru.update_batch(keys, values)
        assert sent_to(world.send(frame)) == chosen


def test_under_a_flood_of_new_flows_nothing_is_remembered_or_reported(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        window = world.balancer.maps["stats"].read_slice(StatsSlot.NEW_FLOWS, 1)
        window["v1"], window["v2"] = 125_000, time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        world.balancer.maps["stats"].write_array(StatsSlot.NEW_FLOWS, window)
        assert world.send(FLOW).verdict.name == "XDP_TX"
        assert len(world.balancer.maps.lrus[world.cpu].lookup_all()[0]) == 0
        assert world.engine.poll() == 0


def test_a_flow_is_reported_when_it_has_shown_itself_and_again_ever_later(tmp_path: Path) -> None:
    with open_world(tmp_path, offload="min_packets = 5") as world:
        world.send(tcp("198.18.1.2", "198.18.10.1", flags="S"))
        reported = []
        for number in range(1, 80):
            world.send(FLOW)
            batch = world.balancer.read_events(10)
            reported += [(number, int(packets)) for packets in batch.rows["packets"]]
        assert reported == [(5, 5), (15, 15), (35, 35), (75, 75)]


@pytest.mark.parametrize("vlan", ["", "vlan = true"])
@pytest.mark.parametrize("events", ["ringbuf", "perf"])
def test_a_report_tells_the_flow_as_the_packet_carries_it(tmp_path: Path, events: str, vlan: str) -> None:
    with open_world(tmp_path, offload=f'min_packets = 1\nevents = "{events}"', katran=vlan) as world:
        world.send(tcp("2001:db8:1::2", "2001:db8:10::1", sport=1234))
        (flow,) = list(world.balancer.read_events(10))
        assert flow.vlans == NO_TAGS
        assert str(flow.match) == "[2001:db8:1::2]:1234 > [2001:db8:10::1]:80/tcp"
        assert (flow.nf, flow.cpu, flow.packets, flow.mark) == (world.balancer.number, world.cpu, 1, 0)


@pytest.mark.parametrize("flags", ["S", "SA", "F", "R"])
def test_neither_a_syn_nor_the_end_of_a_connection_is_reported(tmp_path: Path, flags: str) -> None:
    with open_world(tmp_path) as world:
        for _ in range(5):
            world.send(tcp("198.18.1.2", "198.18.10.1", flags=flags))
        assert world.engine.poll() == 0


def test_a_report_without_room_takes_no_mark_and_is_counted(tmp_path: Path) -> None:
    with open_world(tmp_path, strategy="flow-id", katran="forwarding_cpus = [0, 1]") as world:
        pools = world.balancer.pools
        assert pools is not None
        room = 0
        base = bytearray(udp("198.18.1.2", "198.18.10.2"))
        while not world.count(AccelCounter.REPORT_LOST):
            for _ in range(4096):
                room += 1
                base[26:30] = struct.pack("!I", 0xC6130000 + room)  # another source, another flow
                world.send(bytes(base))
            pools.lease(world.context.marks, 512)
        lost, reported = world.count(AccelCounter.REPORT_LOST), world.count(AccelCounter.REPORTED)
        assert lost + reported == room
        taken = int(pools.rows["taken"][world.cpu])
        assert taken + world.count(AccelCounter.POOL_EMPTY) == reported


def test_an_empty_pool_is_counted_and_the_flow_reported_without_a_mark(tmp_path: Path) -> None:
    with open_world(tmp_path, strategy="flow-id", katran="forwarding_cpus = []") as world:
        world.send(FLOW)
        assert [flow.mark for flow in world.balancer.read_events(10)] == [0]
        assert world.count(AccelCounter.POOL_EMPTY) == 1


VIP = '[[katran_accel.vips]]\naddress = "{}"\nport = {}\nprotocol = "tcp"\nflags = {}\nreals = [{}]\n'


def vip(address: str, port: int, *reals: str, flags: str = "[]") -> str:
    return VIP.format(address, port, flags, ", ".join(f'{{ address = "{real}" }}' for real in reals))


def test_the_narrowest_vip_wins(tmp_path: Path) -> None:
    vips = (
        vip("198.18.10.1", 80, "198.18.20.1")
        + vip("198.18.10.0/24", 80, "198.18.20.2")
        + vip("198.18.10.1", 0, "198.18.20.3")
        + vip("198.18.10.0/24", 0, "198.18.20.4")
        + vip("2001:db8:10::/48", 80, "2001:db8:20::5")
    )
    with open_world(tmp_path, vips=vips) as world:
        assert sent_to(world.send(tcp("198.18.1.2", "198.18.10.1", dport=80))) == "198.18.20.1"
        assert sent_to(world.send(tcp("198.18.1.2", "198.18.10.9", dport=80))) == "198.18.20.2"
        assert sent_to(world.send(tcp("198.18.1.2", "198.18.10.1", dport=81))) == "198.18.20.3"
        assert sent_to(world.send(tcp("198.18.1.2", "198.18.10.9", dport=81))) == "198.18.20.4"
        assert sent_to(world.send(tcp("2001:db8:1::2", "2001:db8:10:5::9"))) == "2001:db8:20::5"
        assert world.send(tcp("198.18.1.2", "198.18.11.1")).verdict.name == "XDP_PASS"


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_marks_of_prefix_and_any_port_vips_work(tmp_path: Path, strategy: str) -> None:
    vips = vip("198.18.10.0/24", 80, "198.18.20.1", "198.18.20.2") + vip("2001:db8:10::1", 0, "2001:db8:20::1")
    with open_world(tmp_path, vips=vips, strategy=strategy) as world:
        for frame in (
            tcp("198.18.1.2", "198.18.10.77"),
            tcp("198.18.1.2", "198.18.10.78"),
            tcp("2001:db8:1::2", "2001:db8:10::1", dport=4443),
        ):
            mark = world.offload(frame)
            assert world.send(frame, mark).output == world.send(frame).output
        assert world.count(AccelCounter.FAST) == 3
        outside = tcp("198.18.1.2", "198.18.11.77")
        assert world.send(outside, 1).verdict.name == "XDP_PASS"


def test_flags_of_a_vip(tmp_path: Path) -> None:
    reals = [f"198.18.20.{n}" for n in range(1, 9)]
    vips = (
        vip("198.18.10.1", 80, *reals, flags='["hash_no_src_port"]')
        + vip("198.18.10.2", 80, *reals, flags='["lru_bypass"]')
        + vip("198.18.10.3", 0, *reals)
        + vip("198.18.10.4", 0, *reals, flags='["hash_src_dst_port"]')
    )
    with open_world(tmp_path, vips=vips) as world:

        def spread(dst: str, *, sports: range = range(1), dports: range = range(80, 81)) -> int:
            return len(
                {sent_to(world.send(tcp("198.18.1.2", dst, sport=2000 + s, dport=d))) for s in sports for d in dports}
            )

        assert spread("198.18.10.1", sports=range(50)) == 1
        assert spread("198.18.10.3", dports=range(80, 130)) == 1
        assert spread("198.18.10.4", dports=range(80, 130)) > 1
        before = len(world.balancer.maps.lrus[world.cpu].lookup_all()[0])
        assert spread("198.18.10.2", sports=range(50)) > 1
        assert len(world.balancer.maps.lrus[world.cpu].lookup_all()[0]) == before


def test_a_vip_whose_reals_are_all_drained_drops_and_counts(tmp_path: Path) -> None:
    vips = '[[katran_accel.vips]]\naddress = "198.18.10.1"\nport = 80\nprotocol = "tcp"\n'
    with open_world(tmp_path, vips=vips + 'reals = [{ address = "198.18.20.1", weight = 0 }]') as world:
        assert world.send(FLOW).verdict.name == "XDP_DROP"
        assert figure(world, "nfcore_drops_total", reason="no_real") == 1


@pytest.mark.parametrize(
    ("what", "frame"),
    [
        ("fragment", Ether(src=CLIENT, dst=NIC) / IP(src="198.18.1.2", dst="198.18.10.1", flags="MF") / TCP(dport=80)),
        (
            "later fragment",
            Ether(src=CLIENT, dst=NIC) / IP(src="198.18.1.2", dst="198.18.10.1", frag=8) / TCP(dport=80),
        ),
        (
            "options",
            Ether(src=CLIENT, dst=NIC)
            / IP(src="198.18.1.2", dst="198.18.10.1", options=[b"\x94\x04\0\0"])
            / TCP(dport=80),
        ),
        (
            "v6 fragment",
            Ether(src=CLIENT, dst=NIC) / IPv6(src="2001:db8:1::2", dst="2001:db8:10::2") / IPv6ExtHdrFragment() / UDP(),
        ),
        ("half a TCP header", Ether(bytes(FLOW)[: 34 + 19])),
        ("half an IP header", Ether(bytes(FLOW)[:30])),
        ("half a UDP header", Ether(bytes(udp("2001:db8:1::2", "2001:db8:10::2"))[: 54 + 7])),
    ],
)
def test_malformed_packets_are_dropped_and_counted_marked_or_not(tmp_path: Path, what: str, frame: Ether) -> None:
    with open_world(tmp_path) as world:
        mark = world.offload(FLOW)
        for given_mark in (0, mark):
            assert (what, world.send(bytes(frame), given_mark).verdict.name) == (what, "XDP_DROP")
        assert figure(world, "nfcore_drops_total", reason="malformed") == 2


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_frame_does_harm(shared_world: World, data: st.DataObject) -> None:
    base = bytearray(data.draw(st.sampled_from([FLOW, udp("2001:db8:1::2", "2001:db8:10::2")])))
    for _ in range(data.draw(st.integers(0, 6))):
        base[data.draw(st.integers(0, len(base) - 1))] = data.draw(st.integers(0, 255))
    frame = bytes(base[: data.draw(st.integers(14, len(base)))])
    mark = data.draw(st.integers(0, 12))
    before = shared_world.balancer.maps["stats"].read_slice(StatsSlot.XDP_TOTAL, 4)["v1"].sum(axis=1)
    run = shared_world.send(frame, mark)
    after = shared_world.balancer.maps["stats"].read_slice(StatsSlot.XDP_TOTAL, 4)["v1"].sum(axis=1)
    assert run.verdict.name in ("XDP_TX", "XDP_DROP", "XDP_PASS")
    if run.verdict.name != "XDP_TX":
        assert run.output == frame
    # total, tx, drop, pass: one frame, one verdict.
    assert (after - before)[0] == 1 == (after - before)[1:].sum()


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory):  # noqa: ANN201
    with open_world(tmp_path_factory.mktemp("shared")) as world:
        yield world
