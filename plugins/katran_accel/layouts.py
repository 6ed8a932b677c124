# SPDX-License-Identifier: Apache-2.0
"""The structs of bpf/balancer as numpy dtypes: katran_abi.h, device.h, mark_entry.h, flow_route.h, mark_pool.h and
report.h; and its counters.

Addresses and ports are in network byte order, the rest in the host's. A test compares sizes and offsets with those
that the compiler gives the structs.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

from nfcore.api.flows import FLOW_KEY

RING_SLOTS = 65_537
MAX_VIPS = 512
MAX_REALS = 4096
MAX_PREFIX_VIPS = 256
MAX_DECAP_ADDRESSES = 512
MAX_SERVER_IDS = 16_777_214
"""Entries of `server_id_map` as an array: the ids below."""
MAX_SOURCE_ROUTES = 3_000_000
POOL_SLOTS = 4096
CTL_INTROSPECTION = 5
"""Slot of `ctl_array`, a u64: whether the program gives samples of packets in `event_pipe`."""

VIP_DEFINITION = np.dtype([("addr", "u1", (16,)), ("port", ">u2"), ("proto", "u1"), ("pad", "u1")])
VIP_META = np.dtype([("flags", "<u4"), ("vip_num", "<u4")])
VIP_LPM_KEY = np.dtype([("prefixlen", "<u4"), ("port", ">u2"), ("proto", "u1"), ("pad", "u1"), ("addr", "u1", (16,))])
VIP_ADDRESS_KEY = np.dtype(
    [("prefixlen", "<u4"), ("family", "u1"), ("proto", "u1"), ("pad", "<u2"), ("addr", "u1", (16,))]
)
REAL_DEFINITION = np.dtype([("addr", "u1", (16,)), ("flags", "u1"), ("pad", "u1"), ("next_hop", "<u2")])
REAL_POS_LRU = np.dtype([("pos", "<u4"), ("left", "<u2"), ("reports", "u1"), ("by_syn", "u1"), ("atime", "<u8")])
LB_STATS = np.dtype([("v1", "<u8"), ("v2", "<u8")])
QUIC_STATS = np.dtype(
    [
        (name, "<u8")
        for name in (
            "ch_routed",
            "cid_initial",
            "cid_invalid_server_id",
            "cid_invalid_server_id_sample",
            "cid_routed",
            "cid_unknown_real_dropped",
            "cid_v0",
            "cid_v1",
            "cid_v2",
            "cid_v3",
            "dst_match_in_lru",
            "dst_mismatch_in_lru",
            "dst_not_found_in_lru",
        )
    ]
)
STABLE_ROUTING_STATS = np.dtype(
    [
        (name, "<u8")
        for name in (
            "ch_routed",
            "cid_routed",
            "cid_invalid_server_id",
            "cid_unknown_real_dropped",
            "invalid_packet_type",
        )
    ]
)
TCP_SERVER_ID_STATS = np.dtype(
    [(name, "<u8") for name in ("ch_routed", "dst_mismatch_in_lru", "sid_routed", "tcp_syn")]
)
SOURCE_KEY_V4 = np.dtype([("prefixlen", "<u4"), ("addr", "u1", (4,))])
SOURCE_KEY_V6 = np.dtype([("prefixlen", "<u4"), ("addr", "u1", (16,))])
ADDRESS = np.dtype([("addr", "u1", (16,))])
"""Key of `decap_dst`; an IPv4 address fills the first four bytes."""
CTL_VALUE = np.dtype([("mac", "u1", (6,)), ("pad", "u1", (2,))])
"""Also a row of `hw_accel_next_hops`, where pad[0] is 1 when the MAC address is known; and a key of `hw_accel_macs`."""
DEVICE = np.dtype([("ifindex", "<u4"), ("number", "<u4"), ("mac", "u1", (6,)), ("pad", "u1", (2,))])

VIP_BY_ID = np.dtype(
    [
        ("addr", "u1", (16,)),
        ("mask", "u1", (16,)),
        ("port", ">u2"),
        ("proto", "u1"),
        ("family", "u1"),
        ("flags", "<u4"),
        ("generation", "<u4"),
        ("pad", "<u4"),
    ]
)
HW_ACCEL_FLOW = np.dtype(
    [
        ("vip_num", "<u4"),
        ("real_key", "<u4"),
        ("flow", FLOW_KEY),
        ("vip_generation", "<u4"),
        ("real_generation", "<u4"),
        ("family", "<u4"),
        ("pad", "<u4"),
    ]
)
HW_ACCEL_ROUTE = np.dtype([("vip_num", "<u4"), ("real_key", "<u4")])
HW_ACCEL_TARGET = np.dtype(
    [("vip_num", "<u4"), ("real_key", "<u4"), ("vip_generation", "<u4"), ("real_generation", "<u4")]
)
HW_ACCEL_EVENT = np.dtype(
    [
        ("flow", FLOW_KEY),
        ("vip_num", "<u4"),
        ("real_key", "<u4"),
        ("mark", "<u4"),
        ("packets", "<u4"),
        ("ifindex", "<u4"),
        ("cpu", "<u2"),
        ("family", "u1"),
        ("kind", "u1"),
    ]
)
HW_ACCEL_VLAN_EVENT = np.dtype([*HW_ACCEL_EVENT.descr, ("vlans", "<u2", (2,)), ("pad", "<u4")])
"""`hw_accel_event` of a program that is built with VLAN."""
MARK_POOL = np.dtype(
    [
        ("taken", "<u4"),
        ("pad_taken", "<u4", (15,)),
        ("filled", "<u4"),
        ("pad_filled", "<u4", (15,)),
        ("slots", "<u4", (POOL_SLOTS,)),
    ]
)


ONLY_FAMILY = {4: 1 << 30, 6: 1 << 31}
"""Flags of `vip_meta` and `decap_dst`, nfcore's own: the entry is for packets of this family alone."""
BENEATH_SHIFT = 16
"""Where in the flags of a prefix VIP's `vip_meta` the length of the prefix beneath it is, and one (VIP_BENEATH)."""


class VipFlag(IntFlag):
    """Katran's VIP flags."""

    HASH_NO_SRC_PORT = 1 << 0
    LRU_BYPASS = 1 << 1
    QUIC = 1 << 2
    HASH_DPORT_ONLY = 1 << 3
    SRC_ROUTING = 1 << 4
    LOCAL = 1 << 5
    GLOBAL_LRU = 1 << 6
    HASH_SRC_DST_PORT = 1 << 7
    UDP_STABLE_ROUTING = 1 << 8
    UDP_FLOW_MIGRATION = 1 << 9


class RealFlag(IntFlag):
    """Katran's real flags."""

    IPV6 = 1 << 0
    LOCAL = 1 << 1
    """A packet of a VIP with :attr:`VipFlag.LOCAL` is passed to this host's stack."""
    GONE = 1 << 7
    """nfcore's own: nothing is sent to the real any more."""


class StatsSlot(IntEnum):
    """Slots of `stats` after those of the VIPs."""

    LRU = 512
    TCP_MISS = 513
    NEW_FLOWS = 514
    FALLBACK_LRU = 515
    TOO_BIG = 516
    SOURCE_ROUTE = 517
    DECAP_ADDRESS = 518
    ENCAP_FAIL = 519
    GLOBAL_LRU = 520
    RING_DROP = 521
    DECAP = 522
    QUIC_ICMP = 523
    ICMP_TOO_BIG_V6 = 524
    ICMP_TOO_BIG_V4 = 525
    CROSS_POP = 526
    MIGRATED = 527
    XDP_TOTAL = 528
    XDP_TX = 529
    XDP_DROP = 530
    XDP_PASS = 531
    EGRESS_DECAP = 532
    NO_NEXT_HOP = 1022
    """nfcore's own."""
    RING = 1023
    """nfcore's own; the others are Katran's."""


class AccelCounter(IntEnum):
    """Slots of `hw_accel_stats`, in the order of bpf/balancer/counters.h."""

    FAST = 0
    SLOW = 1
    INELIGIBLE = 2
    UNKNOWN_MARK = 3
    OTHER_FLOW = 4
    STALE = 5
    REPORTED = 6
    REPORT_LOST = 7
    POOL_EMPTY = 8
    MALFORMED = 9
    REAL_GONE = 10
    TOO_BIG = 11


def make_target(vip_num: int, real: int) -> int:
    """The target of a (VIP, real), a u64."""
    return vip_num << 32 | real
