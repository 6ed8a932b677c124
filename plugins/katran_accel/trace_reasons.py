# SPDX-License-Identifier: Apache-2.0
"""Why a traced frame went as it did: from the counters that it has raised, and where none tells, from the frame.

No counter tells of an answered echo request, of an ICMP error that is sent to a real, of a fragment that is, and of a
packet for this host. A frame that was in a tunnel is judged by its counters alone: its own headers are not looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nfcore.kernel import XdpAction

from . import layouts as lay

_SLOT, _ACCEL = lay.StatsSlot, lay.AccelCounter
OF_MARKS = {
    _ACCEL.MALFORMED: "to a VIP, but truncated, a fragment or with IP options",
    _ACCEL.INELIGIBLE: "SYN, FIN, RST, too long, an ICMP error or with a server id: never sent by a mark",
    _ACCEL.UNKNOWN_MARK: "the mark has no entry",
    _ACCEL.OTHER_FLOW: "the mark belongs to another flow or VIP",
    _ACCEL.STALE: "VIP or real changed since the mark was given",
    _ACCEL.REAL_GONE: "its real is gone: the ring chose another",
}
"""Counter → what it says about a packet that raised it."""

ETHERNET_BYTES, TAG_BYTES, MOST_TAGS = 14, 4, 2
_TAGS, _IPV4, _IPV6 = {0x8100, 0x88A8}, 0x0800, 0x86DD
_ICMP, _ICMPV6, _FRAGMENT_HEADER = 1, 58, 44
_ECHO_REQUEST = {4: 8, 6: 128}
_ERRORS = {4: {3}, 6: {1, 2}}
"""Family → types of ICMP errors that go to reals."""


@dataclass(frozen=True)
class FrameFacts:
    """What a frame shows of itself."""

    ip_bytes: int
    """Length without Ethernet header and VLAN tags."""
    is_fragment: bool = False
    is_echo_request: bool = False
    is_icmp_error: bool = False
    """Of a type that goes to the real of the flow that it quotes."""

    @classmethod
    def of(cls, frame: bytes) -> Self:
        """Read the frame, of at least 14 bytes; of one that is cut off, what is there."""
        at = ETHERNET_BYTES
        (kind,) = struct.unpack_from(">H", frame, at - 2)
        while kind in _TAGS and len(frame) >= at + TAG_BYTES and at < ETHERNET_BYTES + MOST_TAGS * TAG_BYTES:
            at += TAG_BYTES
            (kind,) = struct.unpack_from(">H", frame, at - 2)
        ip = frame[at:]
        if kind == _IPV4 and len(ip) >= 20:
            is_fragment = bool(struct.unpack_from(">H", ip, 6)[0] & 0x3FFF)
            return cls._of_icmp(ip, 4, ip[9] == _ICMP, ip[20:], is_fragment)
        if kind == _IPV6 and len(ip) >= 40:
            return cls._of_icmp(ip, 6, ip[6] == _ICMPV6, ip[40:], ip[6] == _FRAGMENT_HEADER)
        return cls(len(ip))

    @classmethod
    def _of_icmp(cls, ip: bytes, family: int, is_icmp: bool, message: bytes, is_fragment: bool) -> Self:
        kind = message[0] if is_icmp and message and not is_fragment else None
        return cls(len(ip), is_fragment, kind == _ECHO_REQUEST[family], kind in _ERRORS[family])


@dataclass(frozen=True)
class Raised:
    """By how much a frame has raised the counters, those of all CPUs together."""

    stats: NDArray[np.void]
    """:data:`.layouts.LB_STATS` by slot: of VIPs, then :class:`.layouts.StatsSlot`."""
    reals: NDArray[np.int64]
    """Packets by the real's number."""
    accel: NDArray[np.int64]
    """By :class:`.layouts.AccelCounter`."""
    fields: Mapping[str, int]
    """Map and field, such as ``quic_stats_map.cid_v1`` → packets; only what was raised; of a sample its value."""

    @property
    def vip(self) -> int | None:
        """Number of the packet's VIP, None when it was sent to none of its reals."""
        return _changed(self.stats["v1"][: lay.MAX_VIPS])

    @property
    def real(self) -> int | None:
        """Number of the real that the packet went to."""
        return _changed(self.reals)

    @property
    def path(self) -> str:
        """As :attr:`.PacketTrace.path`."""
        return "fast" if self.accel[_ACCEL.FAST] else "slow" if self.accel[_ACCEL.SLOW] else "none"

    def v1(self, slot: lay.StatsSlot) -> int:
        """What was added to the first counter of a slot of `stats`."""
        return int(self.stats["v1"][slot])

    def v2(self, slot: lay.StatsSlot) -> int:
        """What was added to the second counter of a slot of `stats`."""
        return int(self.stats["v2"][slot])

    def both(self, slot: lay.StatsSlot) -> int:
        """What was added to a slot of `stats`."""
        return self.v1(slot) + self.v2(slot)

    def families(self, slot: lay.StatsSlot) -> str:
        """The families that a slot has counted, v1 for IPv4 and v2 for IPv6; empty: none."""
        return " and ".join(["IPv4"] * bool(self.v1(slot)) + ["IPv6"] * bool(self.v2(slot)))


def _changed(counters: NDArray[np.generic]) -> int | None:
    """Index of the counter that changed, None when none did."""
    changed = np.flatnonzero(counters)
    return int(changed[0]) if len(changed) else None


def explain(raised: Raised, frame: FrameFacts, verdict: XdpAction, mtu: int) -> str:
    """Say why a frame went as it did; empty where path and verdict say it all. mtu: of the TOML, in bytes."""
    found = [
        *_of_tunnel(raised, verdict),
        *(text for counter, text in OF_MARKS.items() if raised.accel[counter]),
        *_of_icmp(raised, frame, verdict),
        *_of_ids(raised),
        *_of_flow(raised, frame),
        *_of_verdict(raised, frame, verdict),
    ]
    # The counter of what is dropped for its length does not say how long it was.
    if not found and verdict is XdpAction.DROP and raised.path != "none" and frame.ip_bytes > mtu:
        return f"of {frame.ip_bytes} bytes, longer than the MTU of {mtu}: dropped"
    return "; ".join(found)


def _of_tunnel(raised: Raised, verdict: XdpAction) -> Iterator[str]:
    outer = raised.families(_SLOT.DECAP)
    if not outer:
        if raised.v1(_SLOT.DECAP_ADDRESS):
            yield "a tunnel ends here, but there is no whole packet in it"
        return
    taken = f"taken out of a tunnel over {outer}"
    if inner := raised.families(_SLOT.EGRESS_DECAP):
        yield f"{taken}, and the {inner} packet sent back to where the frame came from"
    elif inner := raised.families(_SLOT.CROSS_POP):
        yield f"{taken} that ends here, and the {inner} packet looked at anew"
        if verdict is XdpAction.PASS and raised.real is None:
            yield "it is no VIP's"
    elif verdict is XdpAction.PASS:
        yield f"{taken}, whose address is none of decap.addresses: passed to the stack"
        if raised.fields.get("decap_vip_stats.v1"):
            yield "although it is for a VIP"
    else:
        yield f"{taken}, and its TTL is over: dropped"


def _of_icmp(raised: Raised, frame: FrameFacts, verdict: XdpAction) -> Iterator[str]:
    # Of what is sent to no real, echo replies alone are in no counter: so in a tunnel it was a request, too.
    is_request = frame.is_echo_request or raised.both(_SLOT.CROSS_POP)
    counted = raised.both(_SLOT.TOO_BIG) or raised.both(_SLOT.EGRESS_DECAP)
    if verdict is XdpAction.TX and raised.real is None and is_request and not counted:
        yield "an echo request to a VIP: answered"
    if not frame.is_icmp_error or raised.real is None:
        return
    kind = "an ICMP error"
    if raised.both(_SLOT.ICMP_TOO_BIG_V4) + raised.both(_SLOT.ICMP_TOO_BIG_V6):
        small = raised.v2(_SLOT.ICMP_TOO_BIG_V4) + raised.v2(_SLOT.ICMP_TOO_BIG_V6)
        kind = f"an ICMP error that tells an MTU{' below 1280' if small else ''}"
    yield f"{kind}: goes to the real of the flow that it quotes"


_QUIC, _STABLE, _TCP = "quic_stats_map", "stable_rt_stats", "tpr_stats_map"
_OF_IDS = {
    f"{_QUIC}.cid_initial": "the first packet of a QUIC flow has no server id yet",
    f"{_QUIC}.cid_unknown_real_dropped": "the real of its QUIC connection id does not exist: dropped",
    f"{_STABLE}.cid_routed": "its stable-routing id names the real",
    f"{_STABLE}.cid_invalid_server_id": "its stable-routing id is none of server_ids",
    f"{_STABLE}.cid_unknown_real_dropped": "the real of its stable-routing id does not exist: dropped",
    f"{_STABLE}.invalid_packet_type": "its payload has no stable-routing id",
    f"{_TCP}.sid_routed": "its TCP server id names the real",
    f"{_TCP}.tcp_syn": "a SYN has no server id yet",
    f"{_TCP}.ch_routed": "among its TCP options is no server id of a real",
}
"""Map and field → what it says about a packet that raised it."""
_WITHOUT_ID = {
    f"{_QUIC}.ch_routed": "its QUIC header has no server id",
    f"{_STABLE}.ch_routed": "its stable-routing id is 0",
}
"""The same of counters that other fields explain, if these were raised, too."""


def _of_ids(raised: Raised) -> Iterator[str]:
    fields = raised.fields
    for version in (1, 2, 3):
        if fields.get(f"{_QUIC}.cid_v{version}") and fields.get(f"{_QUIC}.cid_routed"):
            yield f"its QUIC connection id of version {version} names the real"
    if fields.get(f"{_QUIC}.cid_invalid_server_id"):
        server = fields.get(f"{_QUIC}.cid_invalid_server_id_sample")
        number = "" if server is None else f" {server}"
        yield f"its QUIC connection id has the server id{number}, which is none of server_ids"
    told = [text for field, text in _OF_IDS.items() if fields.get(field)]
    yield from told
    if not told and not fields.get(f"{_QUIC}.cid_invalid_server_id"):
        yield from (text for field, text in _WITHOUT_ID.items() if fields.get(field))
    if fields.get(f"{_QUIC}.dst_mismatch_in_lru") or fields.get(f"{_TCP}.dst_mismatch_in_lru"):
        yield "the connection table had another real and was corrected"


def _of_flow(raised: Raised, frame: FrameFacts) -> Iterator[str]:
    if raised.v2(_SLOT.GLOBAL_LRU):
        yield "a global connection table has the flow"
    if raised.v1(_SLOT.MIGRATED):
        yield "its real is down: the flow leaves it"
    if raised.v2(_SLOT.SOURCE_ROUTE):
        yield "a source route names the real"
    elif raised.v1(_SLOT.SOURCE_ROUTE):
        yield "no source route fits the client: the ring chose"
    if frame.is_fragment and raised.real is not None and not raised.both(_SLOT.DECAP):
        yield "a fragment: goes by its source address alone"


def _of_verdict(raised: Raised, frame: FrameFacts, verdict: XdpAction) -> Iterator[str]:
    if raised.both(_SLOT.TOO_BIG):
        outcome = "its sender is told" if verdict is XdpAction.TX else "dropped"
        yield f"of {frame.ip_bytes} bytes, longer than the MTU: {outcome}"
    if raised.v2(_SLOT.RING_DROP):
        yield "the VIP has no real for new flows: dropped"
    if raised.v1(_SLOT.RING_DROP):
        yield "the ring has a real that does not exist: dropped"
    if raised.v1(_SLOT.NO_NEXT_HOP):
        yield "no MAC address is known to send to: dropped"
    if raised.both(_SLOT.ENCAP_FAIL):
        yield "no room for the outer header, or none fits: dropped"
    if verdict is XdpAction.PASS and raised.real is not None:
        yield "its real is this host: passed to the stack"
