# SPDX-License-Identifier: Apache-2.0
"""The program for reals: takes the balancer's outer headers off."""

from __future__ import annotations

from dataclasses import dataclass, field

from .counters import Counters
from .features import Features
from .inline_decap import inner_packet, without_outer
from .maps import Maps, Memory
from .packet import IP_HEADER, IPIP, IPV6, TCP, UDP, Packet, Verdict, read_header, read_ip
from .run import Run
from .tcp_server_ids import server_id

STATS = "decap_counters"


@dataclass
class Decap:
    """The program with its own server id; 0: none."""

    features: Features
    maps: Maps = field(default_factory=Maps)
    own_id: int = 0

    def step(self, frame: bytes) -> tuple[Verdict, bytes, Counters]:
        """Decapsulate a frame."""
        run = Run(self.features, self.maps, Memory(), 0, 0)
        packet = read_ip(frame, self.features)
        if isinstance(packet, Verdict):
            return packet, frame, run.counters
        if packet.is_fragment or packet.options:
            return Verdict.DROP, frame, run.counters
        inner = self._inner(run, packet)
        if inner is None:
            return Verdict.PASS, frame, run.counters
        at, family = inner
        if len(frame) < at + IP_HEADER[family]:
            return Verdict.DROP, frame, run.counters
        run.counters.field(f"{STATS}.decap_v{packet.family}")
        run.counters.field(f"{STATS}.total")
        frame = without_outer(packet, at, family)
        if packet.protocol == UDP and self.features.decap_tcp_server_ids:
            self._count_id(run, frame)
        return Verdict.PASS, frame, run.counters

    def _inner(self, run: Run, packet: Packet) -> tuple[int, int] | None:
        """Offset and family of what is inside; None: nothing to be decapsulated."""
        gue = (
            self.features.inline_decap_gue
            and packet.protocol == UDP
            and read_header(packet)
            and packet.dport == self.features.gue_port
        )
        if not gue and packet.protocol not in (IPIP, IPV6):
            return None
        flags = self.maps.decap_flags(packet.dst, packet.family, self.features.quirks.families_share_keys)
        strict = self.features.strict_decap and flags is None
        if strict and packet.dst != self.maps.sources.get(packet.family):
            return None
        return inner_packet(packet, run, gue)

    def _count_id(self, run: Run, frame: bytes) -> None:
        packet = read_ip(frame, self.features)
        if isinstance(packet, Verdict) or packet.protocol != TCP or not read_header(packet) or packet.syn:
            return
        server = server_id(packet)
        if self.own_id and server:
            run.counters.field(f"{STATS}.tpr_total")
            if server != self.own_id:
                run.counters.field(f"{STATS}.tpr_misrouted")
