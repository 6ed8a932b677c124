# SPDX-License-Identifier: Apache-2.0
"""The decapsulation program on frames: as published, as the model says, and whatever comes."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from nfcore.plugins.katran_accel.decap.program import DecapOptions, Decapsulation
from tests.katran_model.decap import Decap
from tests.katran_model.features import Features, Quirks
from tests.katran_model.maps import Maps, padded
from tests.katran_model.suites import published

GUE = 6080
OWN = 0x01020304
BALANCER4, BALANCER6, REAL4, REAL6 = "172.16.1.1", "100::1", "198.18.20.11", "2001:db8:20::11"
BUILDS = {
    "ipip": DecapOptions(),
    "gue": DecapOptions(gue_port=GUE),
    "all": DecapOptions(gue_port=GUE, server_id=OWN, destinations=(ip_address(REAL4), ip_address(REAL6))),
    "published": DecapOptions(gue_port=GUE, server_id=OWN, drop_all_fragments=True),
}


@pytest.fixture(scope="module", params=BUILDS)
def build(request: pytest.FixtureRequest) -> Iterator[tuple[DecapOptions, Decapsulation]]:
    options = BUILDS[request.param]
    with Decapsulation(options) as opened:
        yield options, opened


def counted(opened: Decapsulation) -> Counter[str]:
    counts = opened.counts()
    ids = {f"tpr_{name}": value for name, value in (counts.server_ids or {}).items()}
    return Counter(counts.decapsulated) + Counter(counts.dropped) + Counter(ids)


@pytest.mark.parametrize("name", ["decap-ipip", "decap-gue"])
def test_every_frame_comes_out_as_published(name: str) -> None:
    suite = published().suites[name]
    built = suite.features
    port = built.gue_port if built.inline_decap_gue else None
    own = suite.server_id if built.decap_tcp_server_ids else None
    with Decapsulation(DecapOptions(gue_port=port, server_id=own, drop_all_fragments=True)) as opened:
        for case in suite.cases:
            before = counted(opened)
            run = opened.program.test_run(case.frame)
            assert (case.name, run.verdict.name, run.output) == (case.name, case.verdict.value, case.output)
            new = {f"decap_counters.{PUBLISHED.get(k, k)}": n for k, n in (counted(opened) - before).items()}
            assert {key: n for key, n in new.items() if key.split(".")[1] not in DROPS} == case.counters


PUBLISHED = {"v4": "decap_v4", "v6": "decap_v6"}
OURS = {published: ours for ours, published in PUBLISHED.items()}
DROPS = {"fragments", "options", "malformed"}


def model_of(options: DecapOptions) -> Decap:
    """The model of a program with these options."""
    features = Features(
        gue_port=options.gue_port or GUE,
        inline_decap_gue=options.gue_port is not None,
        strict_decap=bool(options.destinations),
        decap_tcp_server_ids=options.server_id is not None,
        decap_drops=True,
        quirks=Quirks(decap_drops_all_unfit=options.drop_all_fragments),
    )
    ends = {(padded(str(address)), address.version): 0 for address in options.destinations}
    return Decap(features, Maps(decap_addresses=ends), options.server_id or 0)


def check(build: tuple[DecapOptions, Decapsulation], frames: list[bytes]) -> Counter[str]:
    """Run frames; verdict, bytes and counters are the model's. What became of them."""
    options, opened = build
    before, total, verdicts = counted(opened), Counter[str](), Counter[str]()
    model = model_of(options)
    for frame in frames:
        verdict, output, counters = model.step(frame)
        run = opened.program.test_run(frame)
        assert (run.verdict.name, run.output.hex()) == (verdict.value, output.hex()), frame.hex()
        for name, count in counters.fields.items():
            field = name.partition(".")[2]
            total[OURS.get(field, field)] += count
        verdicts[verdict.value if run.output == frame else "decapsulated"] += 1
    assert counted(opened) - before == total
    return verdicts


def ether(packet: Packet) -> bytes:
    return bytes(Ether(src="02:00:5e:00:00:02", dst="02:00:5e:00:00:01") / packet)


def inners() -> list[Packet]:
    """Packets to the VIP; TCP without and with a server id: alone, behind NOPs, the last byte of the options."""
    ends4, ends6 = {"src": "198.18.1.2", "dst": "198.18.10.1"}, {"src": "2001:db8:1::2", "dst": "2001:db8:10::1"}
    own, other = (0xB7, struct.pack("<I", OWN)), (0xB7, struct.pack("<I", 77))
    nop = ("NOP", None)
    found: list[Packet] = []
    for ip in (IP(**ends4), IPv6(**ends6)):
        found += [ip / UDP(sport=1000, dport=443) / b"quic", ip / TCP(sport=1000, dport=80, flags="A") / b"http"]
        for options in ([own], [other], [nop, nop, other], [("MSS", 1460), own], [nop] * 14 + [other], [nop] * 15):
            found += [ip / TCP(sport=1000, dport=80, flags=flags, options=options) / b"x" for flags in ("PA", "S", "R")]
    return found


def outers(dst4: str = REAL4, dst6: str = REAL6) -> list[Callable[[Packet], Packet]]:
    """Every tunnel that there is, and some that are none."""
    four, six = IP(src=BALANCER4, dst=dst4, ttl=64, id=0), IPv6(src=BALANCER6, dst=dst6, hlim=64)

    def ipip(outer: Packet) -> Callable[[Packet], Packet]:
        field = "proto" if isinstance(outer, IP) else "nh"

        def wrap(inner: Packet) -> Packet:
            wrapped = outer.copy()
            wrapped.setfieldval(field, 4 if isinstance(inner, IP) else 41)
            return wrapped / Raw(bytes(inner))

        return wrap

    def gue(outer: Packet, port: int = GUE) -> Callable[[Packet], Packet]:
        return lambda inner: outer.copy() / UDP(sport=41_000, dport=port, chksum=0) / Raw(bytes(inner))

    return [ipip(four), ipip(six), gue(four), gue(six), gue(four, GUE + 1), gue(six, 443)]


def tunnels() -> list[bytes]:
    return [ether(wrap(inner)) for wrap in outers() for inner in inners()]


def odd() -> list[bytes]:
    """Fragments and packets with options, of tunnels and of others; tunnels in tunnels; frames that are no IP."""
    four, six = {"src": BALANCER4, "dst": REAL4}, {"src": BALANCER6, "dst": REAL6}
    inner4, inner6 = inners()[0], inners()[-1]
    frames = [Dot1Q(vlan=7) / IP(**four, proto=4) / inner4, ARP(pdst=REAL4), Raw(b"\x88\xcc" + bytes(60))]
    for more, offset in ((1, 0), (1, 185), (0, 185)):
        for proto in (4, 41, 6, 17, 1):
            frames.append(IP(**four, proto=proto, flags=more, frag=offset) / Raw(bytes(inner4)))
            frames.append(IPv6(**six) / IPv6ExtHdrFragment(nh=proto, offset=offset, m=more) / Raw(bytes(inner6)))
        part = IP(**four, flags=more, frag=offset) / UDP(sport=9, dport=GUE) / Raw(bytes(inner4))
        frames.append(part)
        fragment = IPv6ExtHdrFragment(nh=17, offset=offset, m=more)
        frames.append(IPv6(**six) / fragment / UDP(sport=9, dport=GUE) / Raw(bytes(inner6)))
    for payload in (Raw(bytes(inner4)), UDP(sport=9, dport=GUE) / Raw(bytes(inner4)), TCP(sport=9, dport=22)):
        proto = 4 if isinstance(payload, Raw) else payload.overload_fields[IP]["proto"]
        frames.append(IP(**four, proto=proto, options=[IPOption_RR()]) / payload)
        frames += [IP(**four, proto=proto, ihl=words) / payload for words in (0, 3, 15)]
    frames.append(IPv6(**six) / IPv6ExtHdrHopByHop() / Raw(bytes(inner6)))
    for first in outers():
        for second in outers():
            frames.append(first(second(inner4)))
            frames.append(first(second(first(inner6))))
    frames += [wrap(inner) for wrap in outers("198.18.20.99", "2001:db8:20::99") for inner in (inner4, inner6)]
    # What is promised is not there: the version, or a GUE header of variant 0.
    frames += [IP(**four, proto=4) / Raw(bytes(inner6)), IP(**four, proto=41) / Raw(bytes(inner4))]
    frames += [IPv6(**six, nh=4) / Raw(bytes(inner6)), IPv6(**six, nh=41) / Raw(bytes(inner4))]
    frames += [IP(**four) / UDP(dport=GUE) / Raw(bytes([first]) * 64) for first in (0x00, 0x04, 0x3F, 0x50, 0xFF)]
    return [ether(frame) for frame in frames]


def test_every_tunnel_in_every_other(build: tuple[DecapOptions, Decapsulation]) -> None:
    verdicts = check(build, tunnels())
    assert verdicts["decapsulated"] >= 2 * len(inners())
    assert verdicts["XDP_DROP"] == 0


def test_fragments_options_nested_tunnels_and_other_frames(build: tuple[DecapOptions, Decapsulation]) -> None:
    verdicts = check(build, odd())
    assert min(verdicts["decapsulated"], verdicts["XDP_DROP"], verdicts["XDP_PASS"]) > 0


def test_frames_that_end_at_any_byte(build: tuple[DecapOptions, Decapsulation]) -> None:
    whole = [ether(wrap(inner)) for wrap in outers() for inner in inners()[1:30:9]] + odd()[3:6]
    check(build, [frame[:end] for frame in whole for end in range(14, len(frame))])


def test_what_is_not_a_tunnels_reaches_the_stack() -> None:
    """Fragments and options are no reason to drop what a real gets besides."""
    plain = [IP(src="198.18.1.2", dst=REAL4, flags=1) / UDP(sport=53, dport=4000) / Raw(bytes(64))]
    plain += [IP(src="198.18.1.2", dst=REAL4, frag=20) / Raw(bytes(64))]
    plain += [IP(src="198.18.1.2", dst="224.0.0.1", proto=2, options=[IPOption_RR()]) / Raw(bytes(8))]
    plain += [IPv6(src="2001:db8:1::2", dst=REAL6) / IPv6ExtHdrFragment(nh=17, m=1) / UDP(sport=53, dport=4000)]
    with Decapsulation(DecapOptions(gue_port=GUE)) as opened:
        assert [opened.program.test_run(ether(packet)).verdict.name for packet in plain] == ["XDP_PASS"] * 4
        assert counted(opened) == {}


def test_addresses_of_both_families_with_the_same_key() -> None:
    """198.18.20.11 and c612:140b:: are the same 16 bytes in the published map."""
    frames = [ether(wrap(inners()[0])) for wrap in outers(REAL4, "c612:140b::")[:2]]
    for mine, decapsulated in ((REAL4, [1, 0]), ("c612:140b::", [0, 1])):
        with Decapsulation(DecapOptions(destinations=(ip_address(mine),))) as opened:
            assert [int(opened.program.test_run(frame).output != frame) for frame in frames] == decapsulated
    both = (ip_address(REAL4), ip_address("c612:140b::"))
    with Decapsulation(DecapOptions(destinations=both)) as opened:
        assert [int(opened.program.test_run(frame).output != frame) for frame in frames] == [1, 1]


def test_time_to_live_is_left_as_it_is() -> None:
    inner = IP(src="198.18.1.2", dst="198.18.10.1", ttl=1) / UDP(sport=1000, dport=443)
    with Decapsulation(DecapOptions()) as opened:
        run = opened.program.test_run(ether(outers()[0](inner)))
    assert (run.verdict.name, run.output) == ("XDP_PASS", ether(inner))


def test_mutated_frames_are_handled_as_the_model_says(build: tuple[DecapOptions, Decapsulation]) -> None:
    """Bytes that the program reads get values that it looks for, anywhere; lengths lie; frames are cut and grow."""
    chance, seeds = random.Random(2307), tunnels() + odd()
    frames = [mutated(chance.choice(seeds), chance) for _ in range(20_000)]
    verdicts = check(build, frames)
    assert min(verdicts["decapsulated"], verdicts["XDP_PASS"], verdicts["XDP_DROP"]) > 200


TELLING = bytes([0, 1, 4, 5, 6, 17, 41, 44, 0x40, 0x45, 0x46, 0x4F, 0x60, 0x86, 0xB7, 0xDD, 0xFF, 0x17, 0xC0, 8, 2])


def mutated(frame: bytes, chance: random.Random) -> bytes:
    changed = bytearray(frame)
    for _ in range(chance.choice((0, 1, 1, 2, 3, 6))):
        # Mostly behind the addresses of Ethernet, within the headers.
        at = chance.randrange(min(12 if chance.random() < 0.98 else 0, len(changed) - 1), min(len(changed), 140))
        changed[at] = chance.choice(TELLING) if chance.random() < 0.8 else chance.randrange(256)
    if chance.random() < 0.15:
        del changed[chance.randrange(14, len(changed) + 1) :]
    if chance.random() < 0.1:
        at = chance.randrange(14, len(changed) + 1)
        changed[at:at] = chance.randbytes(chance.randrange(1, 60))
    return bytes(changed)
