# SPDX-License-Identifier: Apache-2.0
"""Frames by chance, of every kind that the data plane tells apart; the same ones for the same seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from . import frames
from .features import Features
from .icmp import ECHO_REQUEST, ERRORS
from .maps import Maps, Prefix
from .packet import TCP, UDP

Destination = tuple[bytes, int, int]
"""Address, port and protocol."""

ACK, SYN, RST, FIN = 0x10, 0x02, 0x04, 0x01
_STRANGERS = {4: bytes([198, 18, 200, 1]), 6: bytes.fromhex("20010db8ffff00000000000000000001")}
SIZES = {4: 4, 6: 16}
_SERVER_OPTION = 0xB7


def _within(prefix: Prefix) -> list[bytes]:
    """Addresses in a prefix, and one of the other family that begins with the same bytes."""
    head = (prefix.value << 128 - prefix.bits).to_bytes(16, "big")
    size = SIZES[prefix.family]
    ends = [b"\1", b"\2"] if size * 8 - prefix.bits >= 8 else [b""]
    other = head if prefix.family == 4 else head[:4]
    return [*(head[: size - len(end)] + end for end in ends), other]


@dataclass
class Population:
    """Who sends and who receives. Few, so that flows come again."""

    destinations: list[Destination]
    tunnels: dict[int, list[bytes]]
    """Family → addresses that packets in tunnels go to."""
    server_ids: list[int]
    gue_port: int
    clients: dict[int, list[bytes]] = field(default_factory=dict)
    ports: list[int] = field(default_factory=lambda: [1, 53, 80, 443, 1024, 31337, 40000, 65535])

    @classmethod
    def of(cls, maps: Maps, features: Features) -> Population:
        """Find the destinations in the maps; some beside them, too."""
        exact = [(key.address[: SIZES[vip.family]], key.port, key.protocol) for key, vip in maps.vips.items()]
        within = [
            (address, port, protocol) for prefix, port, protocol in maps.prefix_vips for address in _within(prefix)
        ]
        beside = [(address, 80, protocol) for address in _STRANGERS.values() for protocol in (TCP, UDP)]
        tunnels: dict[int, list[bytes]] = {4: [_STRANGERS[4]], 6: [_STRANGERS[6]]}
        for address, family in [*maps.decap_addresses, *((source, family) for family, source in maps.sources.items())]:
            tunnels[family].append(address[: SIZES[family]])
        unknown = [0, 1, 1234, 16_777_213, 16_777_214, 16_777_215]
        clients = {
            4: [bytes([192, 168, third, last]) for third in (1, 100, 200) for last in (1, 77, 200)],
            6: [bytes.fromhex("fc00000200000000000000000000") + bytes([0, last]) for last in (1, 2, 250)]
            + [bytes.fromhex("fc00230700010000a5a5000000000000")[:15] + bytes([last]) for last in (1, 9)],
        }
        return cls(exact + within + beside, tunnels, [*maps.server_ids, *unknown], features.gue_port, clients)


class FrameSource:
    """A source of valid frames."""

    def __init__(self, population: Population, seed: int) -> None:
        self.random = random.Random(seed)
        self._population = population
        self._kinds: list[Callable[[], bytes]] = [
            *[self._tcp] * 6,
            *[self._udp] * 6,
            *[self._error] * 4,
            *[self._tunnel] * 4,
            self._echo,
            self._other_icmp,
            self._fragment,
            self._options,
            self._other_protocol,
            self._long,
        ]

    def frame(self) -> bytes:
        """A frame."""
        draw = self.random.random()
        if draw < 0.01:
            return frames.LINK + b"\x08\x06" + bytes(28)
        tags: list[tuple[int, int]] = []
        while draw < 0.06 and self.random.random() < 0.6:
            tags.append((self.random.choice([0x8100, 0x88A8]), self.random.randrange(4096)))
        return frames.ethernet(self.packet(), tuple(tags))

    def packet(self) -> bytes:
        """An IP packet."""
        return self.random.choice(self._kinds)()

    def _ends(self, protocol: int | None = None) -> tuple[bytes, bytes, int, int, int]:
        """Source, destination, ports and protocol of a flow."""
        choice, population = self.random.choice, self._population
        destinations = [d for d in population.destinations if protocol in (None, d[2])]
        dst, dport, protocol = choice(destinations)
        src = choice(population.clients[4 if len(dst) == 4 else 6])
        if dport == 0 or self.random.random() < 0.05:
            dport = choice(population.ports)
        return src, dst, choice(population.ports), dport, protocol

    def _bytes(self, most: int) -> bytes:
        return self.random.randbytes(self.random.randrange(most + 1))

    def _rubbish(self) -> bytes:
        return self._bytes(40)

    def _tos(self) -> int:
        return self.random.choice([0, 0, 0, 0x8C, 0xFF])

    def _ttl(self) -> int:
        return self.random.choice([64, 64, 64, 2, 1, 0, 255])

    def _tcp(self) -> bytes:
        src, dst, sport, dport, _ = self._ends(TCP)
        flags = self.random.choice([ACK, ACK, ACK, ACK | 8, SYN, SYN | ACK, RST, RST | ACK, FIN | ACK, 0, 0xFF])
        segment = frames.tcp(src, dst, sport, dport, flags, self._tcp_options(), self._bytes(40))
        return frames.ip(src, dst, TCP, segment, self._tos(), self._ttl())

    def _tcp_options(self) -> bytes:
        """Options with or without the id of a server, well formed or without end."""
        choice = self.random.choice
        if choice([True, False]):
            return b""
        server = struct.pack("<I", choice(self._population.server_ids))
        options = b""
        for _ in range(choice([0, 1, 3, 14, 15, 16])):
            options += choice([b"\1", b"\1", b"\2\4\5\xb4", b"\3\3\7", bytes([8, 10]) + bytes(8), b"\x1e\0", b"\0"])
        options = options[: choice([16, 34, 40])]
        options += bytes([_SERVER_OPTION, choice([6, 6, 6, 6, 5, 7])]) + server
        options = options[:40]
        return options + b"\0" * (-len(options) % 4)

    def _udp(self) -> bytes:
        src, dst, sport, dport, _ = self._ends(UDP)
        payload = self.random.choice([self._quic_long, self._quic_short, self._stable, self._rubbish])()
        datagram = frames.udp(src, dst, sport, dport, payload, summed=self.random.random() < 0.8)
        return frames.ip(src, dst, UDP, datagram, self._tos(), self._ttl())

    def _connection_id(self) -> bytes:
        server = self.random.choice(self._population.server_ids)
        version = self.random.randrange(4)
        if version == 1:
            head = (version << 22 | (server & 0xFFFF) << 6 | self.random.randrange(64)).to_bytes(3, "big")
        elif version == 2:
            head = bytes([version << 6]) + (server & 0xFFFFFF).to_bytes(3, "big")
        else:
            head = bytes([version << 6]) + (server or 0x80000001).to_bytes(4, "big")
        return (head + self.random.randbytes(8))[:8]

    def _quic_long(self) -> bytes:
        first = 0xC0 | self.random.choice([0x00, 0x10, 0x20, 0x30]) | self.random.randrange(16)
        length = self.random.choice([8, 8, 8, 7, 20, 0])
        return bytes([first, 0, 0, 0, 1, length]) + self._connection_id() + self._bytes(20)

    def _quic_short(self) -> bytes:
        return bytes([0x40 | self.random.randrange(64)]) + self._connection_id() + self._bytes(20)

    def _stable(self) -> bytes:
        server = self.random.choice(self._population.server_ids) & 0xFFFFFF
        return bytes([self.random.choice([0x52, 0x52, 0x52, 0x53])]) + server.to_bytes(3, "big") + self._bytes(12)

    def _echo(self) -> bytes:
        src, dst, *_ = self._ends()
        kind = ECHO_REQUEST[4 if len(dst) == 4 else 6]
        return frames.icmp(src, dst, kind, 0, self.random.getrandbits(32), self._bytes(64))

    def _other_icmp(self) -> bytes:
        src, dst, *_ = self._ends()
        return frames.icmp(src, dst, self.random.randrange(256), self.random.randrange(5), 0, self._bytes(64))

    def _error(self) -> bytes:
        """An ICMP error for a packet that a VIP sent to a client."""
        choice = self.random.choice
        client, vip, sport, dport, protocol = self._ends()
        family = 4 if len(vip) == 4 else 6
        if protocol == TCP:
            quoted = frames.tcp(vip, client, dport, sport, choice([ACK, ACK, SYN | ACK, RST]), b"", self._bytes(60))
        else:
            quoted = frames.udp(vip, client, dport, sport, self._bytes(60))
        packet = frames.ip(vip, client, choice([protocol] * 9 + [132]), quoted)
        if family == 4 and self.random.random() < 0.2:
            packet = frames.with_options(packet, b"\1" * choice([4, 20, 40]))
        kept = choice([len(packet), len(packet), 28, 48, self.random.randrange(len(packet))])
        kind = choice(ERRORS[family])
        code = choice([0, 1, 3, 4, 4])
        router = choice([*self._population.clients[family], _STRANGERS[family]])
        return frames.icmp(router, vip, kind, code, choice([0, 1279, 1280, 1400]), packet[:kept])

    def _tunnel(self) -> bytes:
        """Packets in IPIP and GUE, in each other, too."""
        choice = self.random.choice
        inner = self.packet() if self.random.random() < 0.9 else self.random.randbytes(choice([0, 1, 19, 20, 40, 60]))
        family = choice([4, 6])
        src, dst = choice(self._population.clients[family]), choice(self._population.tunnels[family])
        if choice([True, False]):
            return frames.ipip(src, dst, inner, self._ttl())
        return frames.gue(src, dst, self._population.gue_port, inner, self._ttl())

    def _fragment(self) -> bytes:
        packet = self._tcp() if self.random.random() < 0.5 else self._udp()
        return frames.fragment(packet, self.random.choice([0x2000, 0x2001, 0x0001, 0x1FFF, 0x4000, 0x8000, 0]))

    def _options(self) -> bytes:
        """IPv4 options, or an extension header of IPv6."""
        packet = self._tcp() if self.random.random() < 0.5 else self._udp()
        if packet[0] >> 4 == 4:
            return frames.with_options(packet, b"\1" * self.random.choice([4, 8, 40]))
        return frames.extended(packet, self.random.choice([0, 43, 60]))

    def _other_protocol(self) -> bytes:
        src, dst, *_ = self._ends()
        return frames.ip(src, dst, self.random.choice([0, 1, 2, 47, 50, 58, 132, 255]), self._bytes(60))

    def _long(self) -> bytes:
        """About as long as a frame may be."""
        src, dst, sport, dport, _ = self._ends(UDP)
        size = self.random.choice([1514, 1515, 1513, 1518, 1522, 1600]) - 14 - (28 if len(dst) == 4 else 48)
        return frames.ip(src, dst, UDP, frames.udp(src, dst, sport, dport, bytes(size)))
