# SPDX-License-Identifier: Apache-2.0
"""Numbered flows, as bpf/bench/numbered_flow.h makes them, and their frames. Pure.

Flow n is TCP, from source address n mod 65,536 (of 198.19.0.0/16 or 2001:db8:19::/112) and port 1024 + n div 65,536,
to service n mod (number of services). Scattered flows have 131,072 sources (of 198.18.0.0/15 or
2001:db8:19::/111), and those of neighbouring numbers are far apart.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from socket import IPPROTO_TCP
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..api.flows import FLOW_KEY, Address, pack_address

Family = Literal[4, 6]

SERVICE = np.dtype([("addr", "u1", (16,)), ("port", ">u2"), ("pad", "u1", (6,))])
"""`struct bench_service`: where flows go to. Address and port in network byte order."""

SOURCES = 65_536
FIRST_PORT = 1024
MAX_FLOWS = SOURCES * (65_536 - FIRST_PORT)
"""Number of different flows."""
SYN, ACK = 0x02, 0x10
FRAME_BYTES: dict[Family, int] = {4: 60, 6: 74}
"""The shortest frames possible: 60 bytes are Ethernet's minimum, 74 are the headers."""

SCATTERED_SOURCES, SCATTERED_STEP = 131_072, 81_007
_SOURCE_V4 = ipaddress.ip_address("198.19.0.0")
_SCATTERED_V4 = ipaddress.ip_address("198.18.0.0")
_SOURCE_V6 = ipaddress.ip_address("2001:db8:19::")
ETHERNET_BYTES = 14
_ETHERNET = bytes.fromhex("02005e000001 02005e000002")
_ETHERTYPE: dict[Family, int] = {4: 0x0800, 6: 0x86DD}
_IP_BYTES: dict[Family, int] = {4: 20, 6: 40}


def make_services(endpoints: Iterable[tuple[Address, int]]) -> NDArray[np.void]:
    """Return :data:`SERVICE` rows for (address, port) pairs, in their order."""
    rows = [(pack_address(address), port, 0) for address, port in endpoints]
    return np.array(rows, dtype=SERVICE)


def flow_keys(
    flows: NDArray[Any], services: NDArray[np.void], family: Family, *, scattered: bool = False
) -> NDArray[np.void]:
    """Return the :data:`nfcore.api.flows.FLOW_KEY` of each flow number; `flows` has one dimension."""
    numbers = np.asarray(flows, dtype=np.uint32)
    keys = np.zeros(len(numbers), dtype=FLOW_KEY)
    first = _SOURCE_V6 if family == 6 else _SCATTERED_V4 if scattered else _SOURCE_V4
    keys["src"] = pack_address(first)
    last = 4 if family == 4 else 16
    count, step = (SCATTERED_SOURCES, SCATTERED_STEP) if scattered else (SOURCES, 1)
    source = numbers.astype(np.uint64) * np.uint64(step) % np.uint64(count)
    for place, shift in ((last - 1, 0), (last - 2, 8), (last - 3, 16)):
        keys["src"][:, place] |= (source >> np.uint64(shift) & np.uint64(0xFF)).astype(np.uint8)
    target = services[numbers % len(services)]
    keys["dst"], keys["dport"] = target["addr"], target["port"]
    keys["sport"], keys["proto"] = FIRST_PORT + numbers // count, IPPROTO_TCP
    return keys


def make_frames(
    flows: NDArray[Any], services: NDArray[np.void], family: Family, *, scattered: bool = False
) -> NDArray[np.uint8]:
    """Return a frame (ACK) of each flow number, shape (n, FRAME_BYTES[family]). Checksums are zero."""
    keys = flow_keys(flows, services, family, scattered=scattered)
    frames = np.tile(np.frombuffer(first_frame(family, ACK), np.uint8), (len(keys), 1))
    ip, size = (26, 4) if family == 4 else (22, 16)
    l4 = len(_ETHERNET) + 2 + _IP_BYTES[family]
    frames[:, ip : ip + size], frames[:, ip + size : ip + 2 * size] = keys["src"][:, :size], keys["dst"][:, :size]
    frames[:, l4 : l4 + 2] = np.ascontiguousarray(keys["sport"]).view(np.uint8).reshape(-1, 2)
    frames[:, l4 + 2 : l4 + 4] = np.ascontiguousarray(keys["dport"]).view(np.uint8).reshape(-1, 2)
    return frames


def first_frame(family: Family, tcp_flags: int) -> bytes:
    """Return the frame in which the wrapper (bpf/bench) changes only addresses and ports. Checksums are zero."""
    size = FRAME_BYTES[family] - ETHERNET_BYTES - _IP_BYTES[family]
    return ethernet(family) + packet(family, IPPROTO_TCP, tcp_header(tcp_flags).ljust(size, b"\0"))


def ethernet(family: Family) -> bytes:
    """Return the Ethernet header of all frames."""
    return _ETHERNET + struct.pack("!H", _ETHERTYPE[family])


def tcp_header(flags: int, options: bytes = b"") -> bytes:
    """Return a TCP header in which the wrapper changes the ports; `options`: whole words."""
    words = 5 + len(options) // 4
    return struct.pack("!HHIIBBHHH", FIRST_PORT, 0, 0, 0, words << 4, flags, 0xFFFF, 0, 0) + options


def packet(family: Family, protocol: int, l4: bytes, source: bytes = b"", destination: bytes = b"") -> bytes:
    """Return an IP packet with this behind its header; packed addresses, by default those that the wrapper changes."""
    if family == 4:
        ends = source or _SOURCE_V4.packed, destination or bytes(4)
        return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(l4), 0, 0, 64, protocol, 0, *ends) + l4
    ends = source or _SOURCE_V6.packed, destination or bytes(16)
    return struct.pack("!IHBB16s16s", 0x60000000, len(l4), protocol, 64, *ends) + l4


def unwrap(frame: bytes, family: Family) -> tuple[int, bytes] | None:
    """Return the flow number of an encapsulated frame, and the outer destination, 16 bytes as in a flow key.

    The outer header has the family of the packet. None when `frame` is not an encapsulated frame of a numbered flow.
    """
    outer = len(_ETHERNET) + 2
    inner = outer + _IP_BYTES[family]
    l4 = inner + _IP_BYTES[family]
    version = (frame[outer] >> 4, frame[inner] >> 4) if len(frame) >= l4 + 4 else (0, 0)
    if version != (family, family) or frame[12:14] != struct.pack("!H", _ETHERTYPE[family]):
        return None
    destination = frame[outer + 16 : outer + 20] if family == 4 else frame[outer + 24 : outer + 40]
    source = frame[inner + 14 : inner + 16] if family == 4 else frame[inner + 22 : inner + 24]
    number = int.from_bytes(source, "big") + (int.from_bytes(frame[l4 : l4 + 2], "big") - FIRST_PORT) * SOURCES
    return number, destination.ljust(16, b"\0")
