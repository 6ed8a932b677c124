# SPDX-License-Identifier: Apache-2.0
"""Each packet goes to a VIP of its own family, and each connection stays with its real whatever others do."""

from __future__ import annotations

import random
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from nfcore.engine.flow_state import FlowState
from nfcore.plugins.katran_accel.connection_table import NO_VIP, entry_keys
from nfcore.plugins.katran_accel.layouts import AccelCounter

from .world import CLIENT, NIC, World, open_world, sent_to, set_ring, tcp, udp

V4_REALS, V6_REALS = [f"198.18.20.{n}" for n in (11, 12)], [f"2001:db8:20::{n}" for n in (11, 12)]


def vip(address: str, reals: list[str], port: int = 80, flags: str = "", protocol: str = "tcp") -> str:
    written = ", ".join(f'{{ address = "{real}" }}' for real in reals)
    text = f'[[katran_accel.vips]]\naddress = "{address}"\nport = {port}\nprotocol = "{protocol}"\n'
    return f"{text}flags = [{flags}]\nreals = [{written}]\n"


def drain(world: World, real: str) -> None:
    """Let the rings give every new flow to the other real of its VIP."""
    reals = {str(address): number for address, number in world.balancer.inventory.reals.items()}
    for number, table in world.balancer.inventory.vips.items():
        other = next(str(each.address) for each in table.reals if str(each.address) != real)
        set_ring(world, number, reals[other])


@pytest.mark.parametrize(
    ("flags", "port", "ports"),
    [
        ('"hash_no_src_port"', 80, [(sport, 80) for sport in range(40_000, 40_040)]),
        ('"hash_no_src_port"', 0, [(40_000 + number, 80 + number) for number in range(40)]),
        ("", 0, [(40_000, dport) for dport in range(80, 120)]),
    ],
)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_new_connection_moves_no_other_whose_hash_is_the_same(
    tmp_path: Path, flags: str, port: int, ports: list[tuple[int, int]], protocol: str
) -> None:
    make = tcp if protocol == "tcp" else udp
    with open_world(tmp_path, vips=vip("198.18.10.1", V4_REALS, port, flags, protocol)) as world:
        old = [make("198.18.1.2", "198.18.10.1", sport=sport, dport=dport) for sport, dport in ports]
        (real,) = {sent_to(world.send(frame)) for frame in old}
        drain(world, real)
        fresh = {"sport": 50_000 if "hash_no_src_port" in flags else 40_000, "dport": 80 if port else 200}
        if protocol == "tcp":
            assert sent_to(world.send(tcp("198.18.1.2", "198.18.10.1", flags="S", **fresh))) != real
        assert sent_to(world.send(make("198.18.1.2", "198.18.10.1", **fresh))) != real
        assert [sent_to(world.send(frame)) for frame in old] == [real] * len(old)


@pytest.mark.parametrize(("flags", "port"), [('"hash_no_src_port"', 80), ("", 0)])
@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_each_of_the_flows_with_one_hash_gets_its_mark(tmp_path: Path, flags: str, port: int, strategy: str) -> None:
    vips = vip("198.18.10.1", V4_REALS, port, flags)
    with open_world(tmp_path, vips=vips, strategy=strategy, offload="min_packets = 4") as world:
        frames = [tcp("198.18.1.2", "198.18.10.1", sport=40_000 + n, dport=port or 80 + n) for n in range(50)]
        for _ in range(4):
            for frame in frames:
                world.send(frame)
        world.engine.poll()
        assert world.engine.table.count(FlowState.INSTALLED) == 50
        assert all(world.mark_of(frame) for frame in frames)


@pytest.mark.parametrize("other", [None, "::/0", "c612:a00::/24"])
def test_a_prefix_of_ipv4_takes_no_ipv6_packets(tmp_path: Path, other: str | None) -> None:
    vips = vip("0.0.0.0/1", V4_REALS) + vip("128.0.0.0/1", V4_REALS) + (vip(other, V6_REALS) if other else "")
    with open_world(tmp_path, vips=vips) as world:
        run = world.send(tcp("c612:140b::1", "c612:a01::"))
        assert sent_to(run) in V6_REALS if other else run.verdict.name == "XDP_PASS"
        run = world.send(tcp("c612:140b::1", "2001:db8::1"))
        assert sent_to(run) in V6_REALS if other == "::/0" else run.verdict.name == "XDP_PASS"
        assert sent_to(world.send(tcp("198.18.1.2", "198.18.10.1"))) in V4_REALS


def test_an_ipv6_prefix_takes_no_ipv4_packets(tmp_path: Path) -> None:
    with open_world(tmp_path, vips=vip("::/0", V6_REALS) + vip("c612:a01::", V6_REALS)) as world:
        assert world.send(tcp("198.18.1.2", "198.18.10.1")).verdict.name == "XDP_PASS"
        assert sent_to(world.send(tcp("2001:db8::1", "c612:a01::"))) in V6_REALS


NESTED = [
    "198.18.10.1", "198.18.10.0/24", "198.0.0.0/8", "128.0.0.0/1", "c612:a01::/33", "c612:a02::", "c612:a00::/28",
    "c612::/16", "c000::/2", "c612:a01::1",
]  # fmt: skip


def test_the_narrowest_vip_of_the_packets_family_wins(tmp_path: Path) -> None:
    """Prefixes of both families, each within the bits of the next, in several choices."""
    chance = random.Random(8)
    for _ in range(12):
        chosen = [(text, port) for text in NESTED for port in (80, 0) if chance.random() < 0.6]
        networks = [(ip_network(text), port) for text, port in chosen]
        vips = "".join(vip(text, V4_REALS if "." in text else V6_REALS, port) for text, port in chosen)
        with open_world(tmp_path, vips=vips) as world:
            finder = world.balancer.finder
            for dst in ("198.18.10.1", "198.18.10.2", "198.18.11.1", "198.1.1.1", "200.1.1.1", "c612:a01::",
                        "c612:a01::1", "c612:a02::", "c612:b01::", "c600::", "c700::1", "d000::"):  # fmt: skip
                for port in (80, 81):
                    address = ip_address(dst)
                    mine = [
                        (of_port != 0, network.prefixlen, number)
                        for number, (network, of_port) in enumerate(networks)
                        if network.version == address.version and address in network and of_port in (0, port)
                    ]
                    expected = max(mine)[2] if mine else NO_VIP
                    before = world.balancer.maps["stats"].read_slice(0, len(chosen))["v1"].sum(axis=1)
                    frame = tcp("198.18.1.2" if address.version == 4 else "c612:102::", dst, dport=port)
                    run = world.send(frame)
                    counted = world.balancer.maps["stats"].read_slice(0, len(chosen))["v1"].sum(axis=1) - before
                    assert (dst, port, run.verdict.name == "XDP_TX") == (dst, port, expected != NO_VIP)
                    assert (dst, port, counted.nonzero()[0].tolist()) == (dst, port, [expected] if mine else [])
            # User space finds the VIP of each connection again.
            keys, _ = world.balancer.maps.lrus[world.cpu].lookup_all()
            world.balancer.connections.purge(world.balancer.inventory, finder)
            assert len(world.balancer.maps.lrus[world.cpu].lookup_all()[0]) == len(keys)


TWIN_VIPS = {
    "no other VIP": vip("198.18.10.1", V4_REALS),
    "within a prefix": vip("198.18.10.1", V4_REALS) + vip("c612::/16", V6_REALS),
    "within two prefixes": vip("198.18.0.0/15", V4_REALS) + vip("::/0", V6_REALS),
}


@pytest.mark.parametrize("vips", TWIN_VIPS.values(), ids=TWIN_VIPS)
@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_an_ipv6_syn_of_the_same_bytes_moves_no_ipv4_connection(tmp_path: Path, vips: str, strategy: str) -> None:
    with open_world(tmp_path, vips=vips, strategy=strategy) as world:
        flow = tcp("198.18.1.2", "198.18.10.1")
        real = sent_to(world.send(flow))
        drain(world, real)
        syn = world.send(tcp("c612:102::", "c612:a01::", flags="S"))
        if "::" in vips:
            assert sent_to(syn) in V6_REALS
            assert sent_to(world.send(tcp("c612:102::", "c612:a01::"))) == sent_to(syn)
        else:
            assert syn.verdict.name == "XDP_PASS"
        assert sent_to(world.send(flow)) == real
        # The keys are those under which user space purges and restores connections.
        world.engine.poll()
        flows = world.engine.table.batch(world.engine.table.slots_in(FlowState.INSTALLED))
        keys, _ = world.balancer.maps.lrus[world.cpu].lookup_all()
        expected = entry_keys(flows.rows["key"], flows.rows["family"])
        assert {key.tobytes() for key in expected} == {key.tobytes() for key in keys}
        world.balancer.connections.purge(world.balancer.inventory, world.balancer.finder)
        assert sent_to(world.send(flow)) == real


FEATURES = {
    "v4 options": lambda dst, proto, dport: IP(dst=dst, options=[b"\x94\x04\0\0"]) / proto(dport=dport),
    "v4 first fragment": lambda dst, proto, dport: IP(dst=dst, flags="MF") / proto(dport=dport) / Raw(b"x" * 1400),
    "v4 later fragment": lambda dst, proto, dport: (
        IP(dst=dst, frag=185, proto=proto().overload_fields[IP]["proto"]) / Raw(b"x" * 900)
    ),
    "v4 cut off": lambda dst, proto, dport: IP(bytes(IP(dst=dst) / proto(dport=dport))[:27]),
    "v4 cut off before the ports": lambda dst, proto, dport: IP(bytes(IP(dst=dst) / proto(dport=dport))[:22]),
    "v6 first fragment": lambda dst, proto, dport: IPv6(dst=dst) / IPv6ExtHdrFragment(m=1) / proto(dport=dport),
    "v6 later fragment": lambda dst, proto, dport: (
        IPv6(dst=dst) / IPv6ExtHdrFragment(offset=150, nh=proto().overload_fields[IP]["proto"]) / Raw(b"x" * 900)
    ),
    "v6 cut off": lambda dst, proto, dport: IPv6(bytes(IPv6(dst=dst) / proto(dport=dport))[:46]),
    "v6 cut off before the ports": lambda dst, proto, dport: IPv6(bytes(IPv6(dst=dst) / proto(dport=dport))[:42]),
}
BY_ADDRESS = {feature for feature in FEATURES if "fragment" in feature or "before" in feature}
"""Those without ports in each packet."""
PLACES = {
    "v4": {"VIP": "198.18.10.1", "prefix": "198.18.64.9", "own": "198.18.0.1"},
    "v6": {"VIP": "2001:db8:10::1", "prefix": "2001:db8:64::9", "own": "2001:db8::1"},
}
UNFIT_VIPS = "".join(
    [
        vip("198.18.10.1", V4_REALS),
        vip("198.18.64.0/24", V4_REALS),
        vip("2001:db8:10::1", V6_REALS),
        vip("2001:db8:64::/48", V6_REALS),
    ]
)


def wire(packet: Packet) -> bytes:
    return bytes(Ether(src=CLIENT, dst=NIC) / packet)


@pytest.fixture(scope="module")
def unfit(tmp_path_factory: pytest.TempPathFactory):  # noqa: ANN201
    with open_world(tmp_path_factory.mktemp("unfit"), vips=UNFIT_VIPS) as world:
        yield world


@pytest.mark.parametrize("feature", FEATURES)
def test_only_what_is_addressed_to_a_vip_is_dropped(unfit: World, feature: str) -> None:
    """VIPs are TCP, port 80. A packet without ports is a VIP's by its address and protocol."""
    make = FEATURES[feature]
    for place, address in PLACES[feature[:2]].items():
        for proto, dport in ((TCP, 80), (TCP, 81), (UDP, 80)):
            is_vips = place != "own" and proto is TCP and (dport == 80 or feature in BY_ADDRESS)
            before = unfit.count(AccelCounter.MALFORMED)
            run = unfit.send(wire(make(address, proto, dport)))
            expected = "XDP_DROP" if is_vips else "XDP_PASS"
            assert (place, proto, dport, run.verdict.name) == (place, proto, dport, expected)
            assert unfit.count(AccelCounter.MALFORMED) - before == is_vips


ALERT = [b"\x94\x04\0\0"]


@pytest.mark.parametrize(
    ("what", "packet"),
    [
        ("IGMP with router alert", IP(dst="224.0.0.22", proto=2, ttl=1, options=ALERT) / Raw(b"\x22" + b"\0" * 7)),
        (
            "MLD with router alert",
            IPv6(dst="ff02::16", hlim=1) / IPv6ExtHdrHopByHop(options=RouterAlert()) / ICMPv6MLReport2(),
        ),
        ("a large ping of a VIP", IP(dst="198.18.10.1", flags="MF") / ICMP() / Raw(b"x" * 1400)),
        ("the rest of it", IP(dst="198.18.10.1", frag=185, proto=1) / Raw(b"x" * 900)),
        ("a ping with options", IP(dst="198.18.10.1", options=ALERT) / ICMP()),
        ("a large ping of an IPv6 VIP", IPv6(dst="2001:db8:10::1") / IPv6ExtHdrFragment(m=1) / ICMPv6EchoRequest()),
        ("options behind IPv6", IPv6(dst="2001:db8::1") / IPv6ExtHdrDestOpt() / TCP(dport=80)),
        ("a fragment of another protocol", IPv6(dst="2001:db8::1") / IPv6ExtHdrFragment(m=1, nh=50) / Raw(b"x" * 8)),
        ("an IPv6 packet of a VIP's bytes", IPv6(dst="c612:a01::") / IPv6ExtHdrFragment(m=1) / TCP(dport=80)),
    ],
)  # fmt: skip
def test_what_no_vip_has_goes_to_the_kernel(unfit: World, what: str, packet: Packet) -> None:
    assert (what, unfit.send(wire(packet)).verdict.name) == (what, "XDP_PASS")
