# SPDX-License-Identifier: Apache-2.0
"""Facts about a link, from rtnetlink and ethtool: state, MTU, driver, features, receive queues."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from .netlink import RTM_GETLINK, attributes, link_request, namespace_number
from .syscall import enter_network_namespace

IFF_UP = 1
HW_TC_OFFLOAD = "hw-tc-offload"
"""Feature: traffic control may offload filters to the NIC."""
# include/uapi/linux/{sockios,ethtool}.h
_SIOCETHTOOL, _SIOCGIFFLAGS = 0x8946, 0x8913
_GSTRINGS, _GSTATS, _GSSET_INFO, _GFEATURES = 0x1B, 0x1D, 0x37, 0x3A
_GRXFHINDIR, _GCHANNELS = 0x38, 0x3C
_SS_STATS, _SS_FEATURES = 1, 4
_IFLA_XDP, _XDP_ATTACHED = 43, 2
_IFLA_MTU, _IFLA_LINK, _IFLA_LINKINFO, _IFLA_LINK_NETNSID, _INFO_KIND = 4, 5, 18, 37, 1
_NAMESPACES = Path("/run/netns")
_STRING_BYTES = 32
_BLOCK_WORDS = 4
"""Words per block of 32 features."""


_T = TypeVar("_T")


@dataclass(frozen=True)
class Peer:
    """The other end of a veth."""

    name: str
    namespace: str
    """Name of its network namespace, as `ip netns` has it; empty when it is this one."""
    features: Mapping[str, bool]
    has_program: bool
    """Whether an XDP program is attached to it."""

    def command(self, words: str) -> str:
        """Give the shell command that changes the link: ``ethtool -K LINK `` and some words."""
        enter = f"ip netns exec {self.namespace} " if self.namespace else ""
        return f"{enter}ethtool -K {self.name} {words}"


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
    peer: Peer | None = None
    """The other end of a veth; None when it is none, or in a namespace that has no name here."""


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
    link = link_request(RTM_GETLINK, ifindex)
    kind = dict(attributes(link.get(_IFLA_LINKINFO, b""))).get(_INFO_KIND, b"").rstrip(b"\0").decode()
    features = _features(name)
    return LinkFacts(
        up=_is_up(name),
        mtu=_number(link, _IFLA_MTU) or 0,
        driver=kind,
        peer=_find_peer(link) if kind == "veth" else None,
        features={feature: on for feature, (on, _) in features.items()},
        fixed=frozenset(feature for feature, (_, changeable) in features.items() if not changeable),
    )


def link_counters(name: str) -> dict[str, int]:
    """Read the driver's own counters of a link, as `ethtool -S` shows them; none when the driver has none."""
    try:
        names = _strings(name, _SS_STATS)
        reply = _ethtool(name, struct.pack("=II", _GSTATS, len(names)), 8 * len(names))
    except OSError:
        return {}
    return dict(zip(names, struct.unpack_from(f"={len(names)}Q", reply, 8), strict=True))


def _number(link: Mapping[int, bytes], kind: int) -> int | None:
    return int(struct.unpack("=i", link[kind])[0]) if kind in link else None


def _is_up(name: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        reply = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("=16s24x", name.encode()))
    return bool(struct.unpack_from("=H", reply, 16)[0] & IFF_UP)


def _find_peer(link: Mapping[int, bytes]) -> Peer | None:
    ifindex, number = _number(link, _IFLA_LINK), _number(link, _IFLA_LINK_NETNSID)
    if ifindex is None:
        return None
    if number is None:
        return _peer(ifindex, "")
    for path, namespace in _named_namespaces():
        if namespace_number(namespace) == number:
            with suppress(BrokenExecutor):  # without the right to enter it, the peer is not known
                return _inside(namespace, partial(_peer, ifindex, path.name))
    return None


def namespace_with(name: str) -> Path | None:
    """Find a named network namespace that has an interface of this name; None without one, or without rights."""
    with suppress(BrokenExecutor):
        for path, namespace in _named_namespaces():
            if name in {other for _, other in _inside(namespace, socket.if_nameindex)}:
                return path
    return None


def _named_namespaces() -> Iterator[tuple[Path, int]]:
    """Those of `ip netns`: path and, until the next one, an open descriptor."""
    for path in sorted(_NAMESPACES.iterdir()) if _NAMESPACES.is_dir() else ():
        with suppress(OSError), path.open("rb") as namespace:
            yield path, namespace.fileno()


def _inside(namespace: int, query: Callable[[], _T]) -> _T:
    """Call a function in a network namespace. BrokenExecutor when this process may not enter it."""
    # A thread has a namespace of its own, so this one need not leave its own.
    with ThreadPoolExecutor(1, "", enter_network_namespace, (namespace,)) as there:
        return there.submit(query).result()


def _peer(ifindex: int, namespace: str) -> Peer | None:
    try:
        name = socket.if_indextoname(ifindex)
        xdp = dict(attributes(link_request(RTM_GETLINK, ifindex).get(_IFLA_XDP, b"")))
    except OSError:
        return None
    features = {feature: on for feature, (on, _) in _features(name).items()}
    return Peer(name, namespace, features, has_program=xdp.get(_XDP_ATTACHED, b"\0") != b"\0")


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
    state = _feature(ifindex, feature)
    return None if state is None else state[0]


def can_be_switched_on(ifindex: int, feature: str) -> bool:
    """Whether a feature of a link is off, and a user may switch it on."""
    return _feature(ifindex, feature) == (False, True)


def _feature(ifindex: int, feature: str) -> tuple[bool, bool] | None:
    """Whether a feature is on, and whether it is changeable; None when there is no such link or feature."""
    try:
        name = socket.if_indextoname(ifindex)
        number = _feature_numbers(name).get(feature)
        if number is None:
            return None
        available, _, active, never_changed = (
            word >> number % 32 & 1 for word in _feature_blocks(name, number)[number // 32]
        )
    except OSError:
        return None
    return bool(active), bool(available and not never_changed)


def _feature_blocks(name: str, last: int) -> list[tuple[int, ...]]:
    """Words of the blocks up to that of feature `last`: available, requested, active, never changed. OSError."""
    blocks = last // 32 + 1
    reply = _ethtool(name, struct.pack("=II", _GFEATURES, blocks), 4 * _BLOCK_WORDS * blocks)
    return list(struct.iter_unpack("=4I", reply[8:]))


@cache
def _feature_numbers(name: str) -> dict[str, int]:
    """Feature → its bit, the same for all links of a kernel."""
    return {feature: number for number, feature in enumerate(_strings(name, _SS_FEATURES))}


def _strings(name: str, which: int) -> list[str]:
    """Read a set of names of a link. OSError."""
    reply = _ethtool(name, struct.pack("=IIQ", _GSSET_INFO, 0, 1 << which), 4)
    (known,) = struct.unpack_from("=Q", reply, 8)
    if not known:
        return []  # the driver has no such set
    (count,) = struct.unpack_from("=I", reply, 16)
    reply = _ethtool(name, struct.pack("=III", _GSTRINGS, which, count), _STRING_BYTES * count)
    names = [reply[12 + _STRING_BYTES * number :][:_STRING_BYTES] for number in range(count)]
    return [each.split(b"\0")[0].decode(errors="replace") for each in names]


def _ethtool(name: str, request: bytes, room: int) -> bytes:
    """One SIOCETHTOOL ioctl: returns the request as the kernel has changed it, and `room` bytes of reply. OSError."""
    data = ctypes.create_string_buffer(request, len(request) + room)
    # struct ifreq: the name, and a pointer in its union of 24 bytes.
    ifreq = struct.pack("=16sQ16x", name.encode(), ctypes.addressof(data))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, ifreq)
    return data.raw
