# SPDX-License-Identifier: Apache-2.0
"""The program of health checks on packets: as published, and as the model says."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from nfcore.api.flows import PROTOCOL_NUMBERS
from nfcore.plugins.katran_accel.healthcheck.path import ProbePath
from nfcore.plugins.katran_accel.healthcheck.program import ProbeProgram
from tests.katran_model.features import Features
from tests.katran_model.healthcheck import Healthcheck, without_outer_sport
from tests.katran_model.maps import VipKey
from tests.katran_model.suites import mac, published, real

SETTINGS = published().settings
REALS = {1: "10.0.0.1", 2: "fc00::1", 0xFFFF_FFFF: "10.0.0.3"}
KEYS = {0: ("10.200.1.1", 80, "tcp"), 1: ("10.200.1.1", 80, "udp"), 511: ("fc00:1::1", 443, "tcp")}


@contextmanager
def loaded(gue_port: int | None = None, reals: dict[int, str] = REALS) -> Iterator[ProbeProgram]:
    sources = {4: ip_address(SETTINGS.source_v4), 6: ip_address(SETTINGS.source_v6)}
    macs = (mac(SETTINGS.local_mac), mac(SETTINGS.gateway_mac))
    with ProbeProgram(ProbePath("lo", 1, "lo", 1, *macs, sources), gue_port) as program:
        program.write_marks({mark: ip_address(address) for mark, address in reals.items()})
        keys = {i: (ip_address(address), port, PROTOCOL_NUMBERS[proto]) for i, (address, port, proto) in KEYS.items()}
        program.write_keys(keys)
        yield program


@pytest.mark.parametrize("name", ["healthcheck-ipip", "healthcheck-gue"])
def test_every_packet_comes_out_as_published(name: str) -> None:
    suite = published().suites[name]
    port = suite.features.gue_port if suite.features.encapsulation == "gue" else None
    with loaded(port, dict(suite.state.healthcheck_marks)) as program:
        for case in suite.cases:
            before = Counter(program.packets())
            run = program.program.test_run(case.frame, mark=case.mark)
            output, expected = run.output, case.output
            if suite.random_gue_port and run.verdict == 7:
                output, expected = without_outer_sport(output), without_outer_sport(expected)
            assert (case.name, f"TC_ACT_{run.verdict.name}", output) == (case.name, case.verdict.value, expected)
            new = {f"hc_stats_map.pckts_{name}": n for name, n in (Counter(program.packets()) - before).items()}
            assert (case.name, new) == (case.name, case.counters)


def probes() -> list[Packet]:
    four, six = {"src": "10.0.13.37", "dst": "10.200.1.1"}, {"src": "fc00:2307::1337", "dst": "fc00:1::1"}
    found: list[Packet] = []
    for ip in (IP(**four, tos=0xB8, ttl=3), IPv6(**six, tc=0xB8, fl=77), IPv6(src="fc00:2307::1337", dst="fc00:9::")):
        for dport in (80, 443):
            found += [ip / TCP(sport=1000, dport=dport, flags="S"), ip / UDP(sport=1000, dport=dport) / b"ping"]
        found.append(ip / TCP(sport=1000, dport=80, flags="PA") / Raw(bytes(1400)))
    return [*found, IP(**four) / ICMP(), IPv6(**six) / ICMPv6EchoRequest()]


def model(gue_port: int | None) -> Healthcheck:
    features = Features(encapsulation="ipip" if gue_port is None else "gue", gue_port=gue_port or 6080)
    return Healthcheck(
        features,
        {mark: real(address) for mark, address in REALS.items()},
        {4: real(SETTINGS.source_v4).address, 6: real(SETTINGS.source_v6).address},
        mac(SETTINGS.local_mac),
        mac(SETTINGS.gateway_mac),
        {VipKey(real(address).address, port, PROTOCOL_NUMBERS[proto]): i for i, (address, port, proto) in KEYS.items()},
    )


@pytest.mark.parametrize("gue_port", [None, 6080])
def test_probes_of_both_versions_to_reals_of_both(gue_port: int | None) -> None:
    """An IPv6 probe of an IPv4 real has the EtherType of IPv4 outside, which Katran's has not."""
    expect, chance = model(gue_port), random.Random(2307)
    packets = [(bytes(Ether(type=probe.overload_fields[Ether]["type"]) / probe), probe) for probe in probes()]
    with loaded(gue_port) as program:
        counted: Counter[str] = Counter()
        ports = set()
        for _ in range(2000):
            frame, _ = chance.choice(packets)
            mark = chance.choice([*REALS, 0, 3, 4])
            verdict, output, counters = expect.step(frame, mark)
            run = program.program.test_run(frame, mark=mark)
            got = run.output
            assert f"TC_ACT_{run.verdict.name}" == verdict.value
            if gue_port is not None and verdict.value == "TC_ACT_REDIRECT":
                at = 34 if got[12:14] == b"\x08\x00" else 54
                ports.add(int.from_bytes(got[at : at + 2]))
                got, output = without_outer_sport(got), without_outer_sport(output)
            assert got == output
            assert run.mark == (mark if run.output == frame else 0)
            counted += counters.fields
        assert all(port & 0x0400 for port in ports)
        assert len(ports) > 500 or gue_port is None
        assert {f"hc_stats_map.pckts_{name}": n for name, n in program.packets().items() if n} == {
            name: n for name, n in counted.items() if name.startswith("hc_stats_map")
        }
        for index in KEYS:
            assert program.probes()[index] == counted[f"per_hckey_stats[{index}]"] > 0
        assert int(program.probes().sum()) == sum(counted[f"per_hckey_stats[{index}]"] for index in KEYS)


def test_a_packet_that_is_no_ip_is_dropped_if_it_has_a_mark() -> None:
    frame = bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="10.200.1.1"))
    with loaded() as program:
        runs = [program.program.test_run(frame, mark=mark) for mark in (1, 0, 7)]
        assert [(run.verdict.name, run.output == frame) for run in runs] == [
            ("SHOT", True),
            ("UNSPEC", True),
            ("UNSPEC", True),
        ]
        assert program.packets() == {"processed": 0, "dropped": 1, "skipped": 2}


def test_packets_that_end_at_any_byte_and_lengths_that_lie() -> None:
    chance = random.Random(77)
    frames = [bytes(Ether() / probe) for probe in probes()[:8]]
    with loaded(6080) as program:
        for frame in frames:
            # The kernel makes no socket buffer of less than an IP header.
            for end in range(34 if frame[12] == 8 else 54, min(len(frame), 120)):
                run = program.program.test_run(frame[:end], mark=chance.choice((1, 2)))
                assert run.verdict.name in ("REDIRECT", "SHOT")
                if run.verdict.name == "REDIRECT":
                    assert run.output.endswith(frame[14:end])
        for _ in range(3000):
            changed = bytearray(chance.choice(frames))
            for _ in range(3):
                changed[chance.randrange(14, min(len(changed), 60))] = chance.randrange(256)
            run = program.program.test_run(bytes(changed), mark=chance.choice((1, 2)))
            assert run.verdict.name == "REDIRECT" and run.output.endswith(bytes(changed[14:]))


def test_marks_and_keys_that_are_gone_lead_nowhere() -> None:
    frame = bytes(Ether() / IP(src="10.0.13.37", dst="10.200.1.1") / TCP(dport=80, flags="S"))
    with loaded() as program:
        assert program.program.test_run(frame, mark=1).verdict.name == "REDIRECT"
        assert program.probes()[0] == 1
        program.write_marks({5: ip_address("10.0.0.9")})
        program.write_keys({0: (ip_address("10.200.1.9"), 80, 6)})
        assert program.program.test_run(frame, mark=1).verdict.name == "UNSPEC"
        assert program.program.test_run(frame, mark=5).output[30:34] == ip_address("10.0.0.9").packed
        assert program.probes()[0] == 0


def test_only_the_first_fragment_of_a_probe_has_a_port_to_be_counted_by() -> None:
    whole = IP(src="10.0.13.37", dst="10.200.1.1", proto=17, id=7) / Raw(b"\x10\x00\x00\x50" * 40)
    with loaded() as program:
        for flags, offset, counted in (("MF", 0, 1), ("MF", 10, 1), ("", 20, 1), ("", 0, 2)):
            part = whole.copy()
            part[IP].flags, part[IP].frag = flags, offset
            assert program.program.test_run(bytes(Ether() / part), mark=1).verdict.name == "REDIRECT"
            assert program.probes()[1] == counted
