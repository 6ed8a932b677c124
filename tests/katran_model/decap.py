# SPDX-License-Identifier: Apache-2.0
"""The program for reals: takes the balancer's outer headers off."""

from __future__ import annotations

from dataclasses import dataclass, field

from .counters import Counters
from .features import Features
from .maps import Maps
from .packet import FRAGMENT, TCP, UDP, Packet, Verdict, number, read_ip
from .tcp_server_ids import server_id
from .tunnel import inside, is_ipip, without_outer
from .unfit import is_unfit

STATS = "decap_counters"
DROPS = "decap_drops"
"""nfcore's own."""
_FRAGMENT_HEADER = 8

Result = tuple[Verdict, bytes, Counters]


@dataclass
class Decap:
    """The program with its own server id; 0: none."""

    features: Features
    maps: Maps = field(default_factory=Maps)
    own_id: int = 0

    def step(self, frame: bytes) -> Result:
        """Decapsulate a frame."""
        packet = read_ip(frame, self.features)
        untouched = Verdict.PASS, frame, Counters()
        if isinstance(packet, Verdict):
            return untouched
        mine = self._is_tunnel(packet) and self._is_mine(packet)
        if is_unfit(packet) and (mine or self.features.quirks.decap_drops_all_unfit):
            return self._drop(packet)
        inner = inside(packet, self.features.quirks) if mine else None
        if inner is None:
            return untouched
        return self._take_off(packet, without_outer(packet, inner)) if inner.is_whole else self._drop(packet)

    def _is_tunnel(self, packet: Packet) -> bool:
        """Whether it is IPIP, or UDP to GUE's port. Only the first fragment has ports."""
        ports = packet.l4
        if packet.family == 6 and packet.is_fragment:
            if packet.protocol == FRAGMENT or len(packet.frame) < packet.l4 + _FRAGMENT_HEADER:
                return False
            ports += _FRAGMENT_HEADER
        if is_ipip(packet):
            return True
        whole = len(packet.frame) >= ports + 8 and not _is_later_fragment(packet)
        to_gue = number(packet.frame[ports + 2 : ports + 4]) == self.features.gue_port
        return self.features.inline_decap_gue and packet.protocol == UDP and whole and to_gue

    def _is_mine(self, packet: Packet) -> bool:
        """Whether tunnels to this destination end here."""
        if not self.features.strict_decap or packet.dst == self.maps.sources.get(packet.family):
            return True
        shared = self.features.quirks.families_share_keys
        return self.maps.decap_flags(packet.dst, packet.family, shared) is not None

    def _drop(self, packet: Packet) -> Result:
        counters = Counters()
        if self.features.decap_drops:
            reason = "options" if packet.options else "fragments" if packet.is_fragment else "malformed"
            counters.field(f"{DROPS}.{reason}")
        return Verdict.DROP, packet.frame, counters

    def _take_off(self, packet: Packet, frame: bytes) -> Result:
        counters = Counters()
        counters.field(f"{STATS}.decap_v{packet.family}")
        counters.field(f"{STATS}.total")
        wanted = self.features.decap_tcp_server_ids and self.own_id
        server = _server_id(frame, self.features) if wanted else 0
        if server and (packet.protocol == UDP or not self.features.quirks.ids_in_gue_only):
            counters.field(f"{STATS}.tpr_total")
            if server != self.own_id:
                counters.field(f"{STATS}.tpr_misrouted")
        return Verdict.PASS, frame, counters


def _is_later_fragment(packet: Packet) -> bool:
    """Whether it does not begin with the header of TCP or UDP."""
    at, bits = (packet.ip + 6, 0x1FFF) if packet.family == 4 else (packet.l4 + 2, 0xFFF8)
    return packet.is_fragment and bool(number(packet.frame[at : at + 2]) & bits)


def _server_id(frame: bytes, features: Features) -> int:
    """The id in a TCP packet that is no SYN; 0: none."""
    packet = read_ip(frame, features)
    if isinstance(packet, Verdict) or packet.protocol != TCP or packet.options or _is_later_fragment(packet):
        return 0
    packet.payload = packet.l4 + 20
    if (packet.family == 6 and packet.is_fragment) or len(frame) < packet.payload:
        return 0
    packet.flags = frame[packet.l4 + 13]
    return 0 if packet.syn else server_id(packet)
