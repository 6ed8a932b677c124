# SPDX-License-Identifier: Apache-2.0
"""A balancer of the model with a VIP of each family and protocol, and frames for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.katran_model import frames
from tests.katran_model.balancer import Balancer, Step
from tests.katran_model.features import Features
from tests.katran_model.maglev import build_ring
from tests.katran_model.maps import Maps, Real, Vip, VipKey, padded
from tests.katran_model.packet import TCP, UDP
from tests.katran_model.suites import real

CLIENT = {4: bytes([192, 168, 1, 1]), 6: bytes.fromhex("fc000002000000000000000000000001")}
VIP = {4: bytes([10, 200, 1, 1]), 6: bytes.fromhex("fc000001000000000000000000000001")}
NUMBERS = {(4, TCP): 0, (4, UDP): 1, (6, TCP): 2, (6, UDP): 3}
"""Family and protocol → number of the VIP, all of them on port 80."""
REALS = {1: "10.0.0.1", 2: "10.0.0.2", 3: "10.0.0.3", 4: "fc00::1", 5: "fc00::2", 6: "fc00::3"}
OF_FAMILY = {4: (1, 2, 3), 6: (4, 5, 6)}
OWN = {4: padded("10.0.13.37"), 6: padded("fc00:2307::1337")}
SERVERS = {1021 + number: number for number in REALS}
"""Server id → number of the real."""
ACK, SYN, RST = 0x10, 0x02, 0x04


def maps(flags: int = 0) -> Maps:
    """Maps in which all VIPs have these flags."""
    made = Maps(
        gateway_mac=bytes.fromhex("0000deadbeaf"),
        sources=dict(OWN),
        reals={number: real(address) for number, address in REALS.items()},
        server_ids=dict(SERVERS),
    )
    for (family, protocol), number in NUMBERS.items():
        made.vips[VipKey(VIP[family].ljust(16, b"\0"), 80, protocol)] = Vip(flags, number, family)
        made.rings[number] = build_ring({each: (REALS[each], 1) for each in OF_FAMILY[family]})
    return made


def balancer(features: Mapping[str, Any] | None = None, flags: int = 0) -> Balancer:
    """A balancer with features other than the defaults."""
    return Balancer(Features(**(features or {})), maps(flags))


def tcp(
    family: int = 4,
    flags: int = ACK,
    options: bytes = b"",
    sport: int = 31337,
    dport: int = 80,
    vip: bytes | None = None,
) -> bytes:
    """A TCP packet to the VIP, or to another address."""
    src, dst = CLIENT[family], vip or VIP[family]
    return frames.ip(src, dst, TCP, frames.tcp(src, dst, sport, dport, flags, options, b"some data"))


def udp(family: int = 4, payload: bytes = b"some data", sport: int = 31337, summed: bool = True) -> bytes:
    """A UDP packet to the VIP."""
    src, dst = CLIENT[family], VIP[family]
    return frames.ip(src, dst, UDP, frames.udp(src, dst, sport, 80, payload, summed))


def answer(family: int = 4, protocol: int = TCP) -> bytes:
    """A packet from the VIP to the client, of the flow of :func:`tcp` or :func:`udp`."""
    src, dst = VIP[family], CLIENT[family]
    segment = frames.tcp(src, dst, 80, 31337, ACK) if protocol == TCP else frames.udp(src, dst, 80, 31337)
    return frames.ip(src, dst, protocol, segment)


def error(quoted: bytes) -> bytes:
    """An ICMP error with MTU 1400, from a router on the way to the client."""
    family = quoted[0] >> 4
    kind, code = (3, 4) if family == 4 else (2, 0)
    return frames.icmp(CLIENT[family][:-1] + b"\xfe", VIP[family], kind, code, 1400, quoted)


def send(program: Balancer, packet: bytes, now: int = 0, cpu: int = 0) -> Step:
    """Run an IP packet in an untagged frame."""
    return program.step(frames.ethernet(packet), cpu, now)


def sent_to(step: Step) -> Real:
    """The real that an untagged frame was sent to, by its outer header."""
    assert step.verdict.name == "TX"
    packet = step.frame[14:]
    v6 = packet[0] >> 4 == 6
    return Real((packet[24:40] if v6 else packet[16:20]).ljust(16, b"\0"), v6)
