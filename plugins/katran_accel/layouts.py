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
"""Flags of `vip_meta`, nfcore's own: packets of this family alone go to the VIP."""
BENEATH_SHIFT = 16
"""Where in the flags of a prefix VIP's `vip_meta` the length of the prefix beneath it is, and one (VIP_BENEATH)."""


class VipFlag(IntFlag):
    """Katran's VIP flags that are supported here."""

    HASH_NO_SRC_PORT = 1 << 0
    LRU_BYPASS = 1 << 1
    HASH_DPORT_ONLY = 1 << 3
    HASH_SRC_DST_PORT = 1 << 7


class RealFlag(IntFlag):
    """Katran's real flags."""

    IPV6 = 1 << 0
    GONE = 1 << 7
    """nfcore's own: nothing is sent to the real any more."""


class StatsSlot(IntEnum):
    """Slots of `stats` after those of the VIPs."""

    LRU = 512
    TCP_MISS = 513
    NEW_FLOWS = 514
    FALLBACK_LRU = 515
    TOO_BIG = 516
    ENCAP_FAIL = 519
    RING_DROP = 521
    XDP_TOTAL = 528
    XDP_TX = 529
    XDP_DROP = 530
    XDP_PASS = 531
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


def make_target(vip_num: int, real: int) -> int:
    """The target of a (VIP, real), a u64."""
    return vip_num << 32 | real
