# SPDX-License-Identifier: Apache-2.0
"""Facts about a link, from rtnetlink and ethtool: state, MTU, driver, features, receive queues."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

IFF_UP = 1
HW_TC_OFFLOAD = "hw-tc-offload"
"""Feature: traffic control may offload filters to the NIC."""
# include/uapi/linux/{sockios,ethtool}.h
_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES = 0x1B, 0x37, 0x3A
_GRXFHINDIR, _GCHANNELS = 0x38, 0x3C
_SS_FEATURES = 4
_STRING_BYTES = 32
_BLOCK_WORDS = 4
"""Words per block of 32 features."""


@dataclass(frozen=True)
class LinkFacts:
    """State and features of one link."""

    up: bool
    mtu: int
    driver: str
    """Kind of a virtual link (veth, …), else empty."""
    features: Mapping[str, bool]
    """The kernel's name (`rx-gro`, `hw-tc-offload`, …) → whether it is on. Empty when the kernel reports none."""
    fixed: frozenset[str]
    """Features that cannot be changed."""


@dataclass(frozen=True)
class QueueFacts:
    """Receive queues of a link, and those over which RSS spreads packets that no rule steers."""

    receive_queues: int | None
    """Their number; None when the driver does not report it."""
    rss: frozenset[int] | None
    """Queues over which RSS spreads packets; None when the driver does not report them."""


def queue_facts(name: str) -> QueueFacts:
    """Read the receive queues of a link of this network namespace."""
    queues = None
    with suppress(OSError):
        # struct ethtool_channels: four maxima, then the counts of rx, tx, other and combined.
        reply = _ethtool(name, struct.pack("=I", _GCHANNELS), 32)
        receiving, _, _, combined = struct.unpack_from("=4I", reply, 20)
        queues = receiving + combined
    try:
        (size,) = struct.unpack_from("=I", _ethtool(name, struct.pack("=II", _GRXFHINDIR, 0), 0), 4)
        table = _ethtool(name, struct.pack("=II", _GRXFHINDIR, size), 4 * size)
    except OSError:
        return QueueFacts(queues, None)
    return QueueFacts(queues, frozenset(struct.unpack_from(f"={size}I", table, 8)) if size else None)


def link_facts(ifindex: int, name: str) -> LinkFacts:
    """Read state and features of a link of this network namespace."""
    from pyroute2 import IPRoute  # noqa: PLC0415 - takes 80 ms, which most commands need not wait

    with IPRoute() as netlink:
        (link,) = netlink.get_links(ifindex)
    info = link.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else None
    features = _features(name)
    return LinkFacts(
        up=bool(link["flags"] & IFF_UP),
        mtu=int(link.get_attr("IFLA_MTU")),
        driver=str(kind or ""),
        features={feature: on for feature, (on, _) in features.items()},
        fixed=frozenset(feature for feature, (_, changeable) in features.items() if not changeable),
    )


def _features(name: str) -> dict[str, tuple[bool, bool]]:
    """Feature → (on, changeable)."""
    try:
        numbers = _feature_numbers(name)
        blocks = _feature_blocks(name, max(numbers.values(), default=0))
    except OSError:
        return {}
    found = {}
    for feature, number in numbers.items():
        available, _, active, never_changed = blocks[number // 32]
        bit = 1 << number % 32
        found[feature] = bool(active & bit), bool(available & bit and not never_changed & bit)
    return found


def feature_is_on(ifindex: int, feature: str) -> bool | None:
    """Whether a feature of a link is on; None when there is no such link or feature.

    Needs one system call for the feature; :func:`link_facts` needs several.
    """
    try:
        name = socket.if_indextoname(ifindex)
        number = _feature_numbers(name).get(feature)
        if number is None:
            return None
        active = _feature_blocks(name, number)[number // 32][2]
    except OSError:
        return None
    return bool(active >> number % 32 & 1)


def _feature_blocks(name: str, last: int) -> list[tuple[int, ...]]:
    """Words of the blocks up to that of feature `last`: available, requested, active, never changed. OSError."""
    blocks = last // 32 + 1
    reply = _ethtool(name, struct.pack("=II", _GFEATURES, blocks), 4 * _BLOCK_WORDS * blocks)
    return list(struct.iter_unpack("=4I", reply[8:]))


@cache
def _feature_numbers(name: str) -> dict[str, int]:
    """Feature → its bit, the same for all links of a kernel."""
    reply = _ethtool(name, struct.pack("=IIQ", _GSSET_INFO, 0, 1 << _SS_FEATURES), 4)
    (count,) = struct.unpack_from("=I", reply, 16)
    reply = _ethtool(name, struct.pack("=III", _GSTRINGS, _SS_FEATURES, count), _STRING_BYTES * count)
    names = [reply[12 + _STRING_BYTES * number :][:_STRING_BYTES] for number in range(count)]
    return {name.split(b"\0")[0].decode(): number for number, name in enumerate(names)}


def _ethtool(name: str, request: bytes, room: int) -> bytes:
    """One SIOCETHTOOL ioctl: returns the request as the kernel has changed it, and `room` bytes of reply. OSError."""
    data = ctypes.create_string_buffer(request, len(request) + room)
    # struct ifreq: the name, and a pointer in its union of 24 bytes.
    ifreq = struct.pack("=16sQ16x", name.encode(), ctypes.addressof(data))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, ifreq)
    return data.raw
