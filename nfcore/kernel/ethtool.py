# SPDX-License-Identifier: Apache-2.0
"""Facts about a link that decide whether packets get through: state, MTU, driver, features."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from pyroute2 import Ethtool, IPRoute
from pyroute2.netlink.exceptions import NetlinkError

IFF_UP = 1
HW_TC_OFFLOAD = "hw-tc-offload"
"""Feature: filters of traffic control may go into the NIC."""
# include/uapi/linux/{sockios,ethtool}.h
_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES = 0x1B, 0x37, 0x3A
_GRXFHINDIR, _GCHANNELS = 0x38, 0x3C
_SS_FEATURES = 4
_STRING_BYTES = 32
_BLOCK_WORDS = 4
"""32 features: available, requested, active, never changed."""


@dataclass(frozen=True)
class LinkFacts:
    """One link."""

    up: bool
    mtu: int
    driver: str
    """Kind of a virtual link (veth, …) or the driver's name; empty when neither is told."""
    features: Mapping[str, bool]
    """Names as the kernel has them (`rx-gro`, `hw-tc-offload`, …) → on or off; those that it tells."""
    fixed: frozenset[str]
    """Features that cannot be changed."""


@dataclass(frozen=True)
class QueueFacts:
    """Where a link's packets arrive that no rule steers."""

    receive_queues: int | None
    """How many there are; None when it is not told."""
    rss: frozenset[int] | None
    """Queues over which RSS spreads packets; None when the driver does not tell."""


def queue_facts(name: str) -> QueueFacts:
    """Ask the kernel about the receive queues of a link."""
    queues = None
    with suppress(OSError):
        # struct ethtool_channels: four maxima, then the counts of rx, tx, other and combined.
        told = _ethtool(name, struct.pack("=I", _GCHANNELS), 32)
        receiving, _, _, combined = struct.unpack_from("=4I", told, 20)
        queues = receiving + combined
    try:
        sized = _ethtool(name, struct.pack("=II", _GRXFHINDIR, 0), 0)
        (size,) = struct.unpack_from("=I", sized, 4)
        told = _ethtool(name, struct.pack("=II", _GRXFHINDIR, size), 4 * size)
    except OSError:
        return QueueFacts(queues, None)
    return QueueFacts(queues, frozenset(struct.unpack_from(f"={size}I", told, 8)) if size else None)


def link_facts(ifindex: int, name: str) -> LinkFacts:
    """Ask the kernel about a link of this network namespace."""
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
        with Ethtool() as ethtool:
            told = ethtool.get_features(name)
    except (OSError, NetlinkError, KeyError, TypeError):
        return {}
    return {feature: (bool(state.enable), bool(state.available)) for feature, state in told.features.items()}


def feature_is_on(ifindex: int, feature: str) -> bool | None:
    """Whether a feature of a link is on; None when there is no such link or feature.

    For those who ask often: one call to the kernel, where :func:`link_facts` needs several.
    """
    try:
        name = socket.if_indextoname(ifindex)
        number = _feature_numbers(name).get(feature)
        if number is None:
            return None
        blocks = number // 32 + 1
        told = _ethtool(name, struct.pack("=II", _GFEATURES, blocks), 4 * _BLOCK_WORDS * blocks)
    except OSError:
        return None
    (active,) = struct.unpack_from("=I", told, 8 + 4 * (_BLOCK_WORDS * (number // 32) + 2))
    return bool(active >> number % 32 & 1)


@cache
def _feature_numbers(name: str) -> dict[str, int]:
    """Feature → its bit, the same for all links of a kernel."""
    sized = _ethtool(name, struct.pack("=IIQ", _GSSET_INFO, 0, 1 << _SS_FEATURES), 4)
    (count,) = struct.unpack_from("=I", sized, 16)
    told = _ethtool(name, struct.pack("=III", _GSTRINGS, _SS_FEATURES, count), _STRING_BYTES * count)
    words = [told[12 + _STRING_BYTES * number :][:_STRING_BYTES] for number in range(count)]
    return {word.split(b"\0")[0].decode(): number for number, word in enumerate(words)}


def _ethtool(name: str, request: bytes, room: int) -> bytes:
    """One SIOCETHTOOL: the request as the kernel leaves it, with `room` bytes behind it for its answer. OSError."""
    data = ctypes.create_string_buffer(request, len(request) + room)
    # struct ifreq: the name, and a pointer in its union of 24 bytes.
    asked = struct.pack("=16sQ16x", name.encode(), ctypes.addressof(data))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, asked)
    return data.raw
