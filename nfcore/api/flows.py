# SPDX-License-Identifier: Apache-2.0
"""Flows, as the hooks get them: batches with one row of type :data:`FLOW_ROW` per flow.

Keys are in network byte order, exactly as in the packet and in the kernel's maps; all else is in host order.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

FLOW_KEY = np.dtype(
    [
        ("src", "u1", (16,)),
        ("dst", "u1", (16,)),
        ("sport", ">u2"),
        ("dport", ">u2"),
        ("proto", "u1"),
        ("wild", "u1", (3,)),
    ]
)
"""A 5-tuple, 40 bytes: `struct flow_key` of bpf/lib/flow_key.h. An IPv4 address is in the first four bytes.

wild: what a masked match leaves open: low bits of the source address, low bits of the destination address, and the
:class:`Anything` flags. What is open is 0 in the key. In a packet, and in the match of one flow, all of `wild` is 0.
"""

FLOW_ROW = np.dtype(
    [
        ("key", FLOW_KEY),
        ("nf", "<u2"),
        ("family", "<u2"),
        ("ifindex", "<u4"),
        ("vlans", "<u2", (2,)),
        ("cpu", "<u2"),
        ("kind", "<u2"),
        ("target", "<u8"),
        ("mark", "<u4"),
        ("rate", "<f4"),
        ("packets", "<u8"),
    ]
)
"""One flow of a batch.

key: the 5-tuple. nf: number of the network function. family: 4 or 6 (the keys of ``c612:a01::`` and 198.18.10.1 are
equal). ifindex: device on which the flow arrives. vlans: the VLAN tags of the packet that was reported, the outer one
first, in the form of :data:`VLAN_ID`. cpu: the CPU that reported the flow. kind: :class:`ReportKind`.
target: what the NF does with the flow, opaque to all others. mark: the mark that XDP took for the flow, or 0. rate:
packets a second between the last two reports, 0 until there are two. packets: its packets when it was reported; of an
order, a number by which the function knows the order again.
"""


VLAN_ID, SERVICE_TAG = 0x0FFF, 0x1000
"""A VLAN tag in the column `vlans` of flows and rules: its VLAN id, 1 to 4094, and SERVICE_TAG where its TPID is
802.1ad's (0x88a8) and not 802.1Q's (0x8100). 0: there is no tag. Its priority does not count."""

NO_TAGS = (0, 0)
"""`vlans` of a packet without VLAN tags."""


class Anything(IntFlag):
    """What else than address bits a masked match may leave open: the third byte of a key's `wild`."""

    SPORT = 1
    DPORT = 2
    PROTO = 4


class ReportKind(IntEnum):
    """What a report says about a flow.

    The first three are those of a datapath. The others are an application's orders, by way of the NF: an ordered
    flow may be masked, has no idle timeout, and gets its place on the NIC before reported ones.
    """

    SHOWN = 0
    """It has had enough packets for a rule."""
    ENDED = 1
    """It has a rule, and its connection ends."""
    MOVED = 2
    """It has a rule, and a new connection with the same addresses goes to another target: that of the row."""
    ORDERED = 3
    """Its packets are to be marked."""
    ORDERED_DROP = 4
    """The NIC is to drop its packets."""
    WITHDRAWN = 5
    """An order for it has ended: its rule is removed, and the flow is forgotten. Comes before the flow's next order."""
    TARGET_GONE = 6
    """The target of the row exists no more, and no order has it any more; the rest of the row has no meaning."""


WHOLE_FLOW = f"V{FLOW_ROW.itemsize}"
"""A whole row as opaque bytes: numpy copies these at once, but a structured row field by field, much slower."""

ANY_CPU = 0xFFFF
"""Value of `cpu` when it is not known, such as for a flow that an earlier run reported."""

IDENTITY_BYTES = 48
"""Number of leading bytes of a row (key, nf, family, ifindex) that identify a flow. Its VLAN tags do not."""

PROTOCOL_NAMES = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}
PROTOCOL_NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items()}


def join_rows(parts: Iterable[NDArray[np.void]], dtype: np.dtype[Any]) -> NDArray[np.void]:
    """Join structured rows of one type, as bytes: numpy's concatenate would convert ports to the host's byte order."""
    return np.frombuffer(bytearray().join(part.tobytes() for part in parts), dtype=dtype)


def take_rows(rows: NDArray[np.void], which: NDArray[np.intp]) -> NDArray[np.void]:
    """Copy some rows of a contiguous structured array, as bytes: numpy would copy them field by field."""
    taken: NDArray[np.void] = rows.view(f"V{rows.dtype.itemsize}").take(which).view(rows.dtype)
    return taken


def pack_address(address: Address) -> NDArray[np.uint8]:
    """Give an address as the 16 bytes of a flow key."""
    return np.frombuffer(address.packed.ljust(16, b"\0"), dtype=np.uint8)


ADDRESS_BITS = {4: 32, 6: 128}
"""IP version → bits of its addresses."""
_ADDRESS_MASKS = np.stack(
    [np.packbits(np.arange(128) < (bits - np.arange(129))[:, None], axis=1) for bits in ADDRESS_BITS.values()]
)
"""Masks by family (0: IPv4, 1: IPv6) and number of open low bits, as the 16 bytes of a key's address."""


def masks_of(families: NDArray[Any], wild: NDArray[np.uint8]) -> NDArray[np.void]:
    """Give the bits that matches fix, as rows of FLOW_KEY; their own `wild` is 0. All of an address's rest is fixed.

    families: 4 or 6, shape (n,). wild: as in a key, shape (n, 3).
    """
    masks = np.zeros(len(families), dtype=FLOW_KEY)
    masks["src"], masks["dst"] = fixed_bits(families, wild[:, 0]), fixed_bits(families, wild[:, 1])
    for name, flag in zip(("sport", "dport", "proto"), Anything, strict=True):
        masks[name] = np.where(wild[:, 2] & flag, 0, 0xFFFF if name != "proto" else 0xFF)
    return masks


def fixed_bits(families: int | NDArray[Any], is_open: NDArray[Any]) -> NDArray[np.uint8]:
    """Give for numbers of open low bits the masks of the others, as the 16 bytes of a key's address."""
    masks: NDArray[np.uint8] = _ADDRESS_MASKS[np.equal(families, 6).astype(np.intp), is_open]
    return masks


def unpack_address(raw: NDArray[np.uint8] | bytes, family: int) -> Address:
    """Read the address in the 16 bytes of a key; `family` is 4 or 6."""
    data = bytes(raw)
    return ipaddress.IPv4Address(data[:4]) if family == 4 else ipaddress.IPv6Address(data)


@dataclass(frozen=True)
class Wild:
    """What a masked match leaves open."""

    src: int = 0
    """Low bits of the source address."""
    dst: int = 0
    """Low bits of the destination address."""
    anything: int = 0
    """:class:`Anything`."""


EXACT = Wild()
"""Nothing is open: the match of one flow."""


@dataclass(frozen=True)
class FlowMatch:
    """A 5-tuple as Python objects, with a text form for people. What `wild` leaves open is 0."""

    src: Address
    dst: Address
    proto: int
    sport: int
    dport: int
    wild: Wild = EXACT

    _TEXT = re.compile(
        r"\s*(\[[0-9A-Fa-f:./]+\]|[0-9./]+):([0-9]{1,5}|\*)\s*>\s*"
        r"(\[[0-9A-Fa-f:./]+\]|[0-9./]+):([0-9]{1,5}|\*)/(tcp|udp|[0-9]{1,3}|\*)\s*"
    )

    def __str__(self) -> str:
        def end(address: Address, open_bits: int, port: int, flag: Anything) -> str:
            prefix = f"/{address.max_prefixlen - open_bits}" if open_bits else ""
            number = "*" if self.wild.anything & flag else port
            return f"[{address}{prefix}]:{number}" if address.version == 6 else f"{address}{prefix}:{number}"

        any_proto = self.wild.anything & Anything.PROTO
        proto = "*" if any_proto else PROTOCOL_NAMES.get(self.proto, str(self.proto))
        source = end(self.src, self.wild.src, self.sport, Anything.SPORT)
        return f"{source} > {end(self.dst, self.wild.dst, self.dport, Anything.DPORT)}/{proto}"

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.src.version

    @classmethod
    def parse(cls, text: str) -> FlowMatch:
        """Read the form that ``str`` gives: ``198.18.1.2:40000 > 198.18.10.1:80/tcp``, ``198.18.1.0/24:* > …``.

        ValueError says what is wrong.
        """
        found = cls._TEXT.fullmatch(text)
        if not found:
            raise ValueError(f"{text!r} is not a flow; write it as '198.18.1.2:40000 > 198.18.10.1:80/tcp'")
        src, sport, dst, dport, proto = found.groups()
        ends = [ipaddress.ip_network(end.strip("[]")) for end in (src, dst)]
        if ends[0].version != ends[1].version:
            raise ValueError(f"{text!r} mixes IPv4 and IPv6")
        flags = zip((sport, dport, proto), Anything, strict=True)
        anything = sum(flag for part, flag in flags if part == "*")
        src_port, dst_port = (0 if port == "*" else int(port) for port in (sport, dport))
        if max(src_port, dst_port) > 0xFFFF:
            raise ValueError(f"{text!r}: a port is a number from 0 to 65535")
        number = 0 if proto == "*" else PROTOCOL_NUMBERS[proto] if proto in PROTOCOL_NUMBERS else int(proto)
        if number > 0xFF:
            raise ValueError(f"{text!r}: a protocol is tcp, udp or a number from 0 to 255")
        src_bits, dst_bits = (end.max_prefixlen - end.prefixlen for end in ends)
        addresses = [end.network_address for end in ends]
        return cls(addresses[0], addresses[1], number, src_port, dst_port, Wild(src_bits, dst_bits, anything))

    @classmethod
    def from_key(cls, key: np.void, family: int) -> FlowMatch:
        """Read one :data:`FLOW_KEY`."""
        src, dst, anything = key["wild"].tolist()
        return cls(
            unpack_address(key["src"], family),
            unpack_address(key["dst"], family),
            int(key["proto"]),
            int(key["sport"]),
            int(key["dport"]),
            Wild(src, dst, anything),
        )

    def to_key(self) -> np.void:
        """Give the flow as one :data:`FLOW_KEY`."""
        keys = np.zeros(1, dtype=FLOW_KEY)
        keys["src"], keys["dst"] = pack_address(self.src), pack_address(self.dst)
        keys["sport"], keys["dport"], keys["proto"] = self.sport, self.dport, self.proto
        keys["wild"] = self.wild.src, self.wild.dst, self.wild.anything
        key: np.void = keys[0]
        return key


@dataclass(frozen=True)
class Flow:
    """One row of a batch as an object: clear, but much slower than the array."""

    match: FlowMatch
    nf: int
    ifindex: int
    cpu: int
    target: int
    mark: int
    packets: int
    vlans: tuple[int, int] = NO_TAGS


class FlowBatch:
    """Flows of one network function. ``rows`` is the array, iteration gives :class:`Flow` objects."""

    __slots__ = ("rows",)

    def __init__(self, rows: NDArray[np.void]) -> None:
        if rows.dtype != FLOW_ROW:
            raise TypeError(f"a flow batch has rows of {FLOW_ROW}, not {rows.dtype}")
        self.rows = rows

    @classmethod
    def empty(cls, length: int = 0) -> FlowBatch:
        """Give a batch of `length` zeroed rows."""
        return cls(np.zeros(length, dtype=FLOW_ROW))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Flow]:
        for row in self.rows:
            yield _as_flow(row)

    @overload
    def __getitem__(self, which: int) -> Flow: ...
    @overload
    def __getitem__(self, which: slice | NDArray[Any]) -> FlowBatch: ...
    def __getitem__(self, which: int | slice | NDArray[Any]) -> Flow | FlowBatch:
        if isinstance(which, int):
            return _as_flow(self.rows[which])
        # As WHOLE_FLOW, for speed.
        return FlowBatch(self.rows.view(WHOLE_FLOW)[which].view(FLOW_ROW))


def _as_flow(row: np.void) -> Flow:
    return Flow(
        FlowMatch.from_key(row["key"], int(row["family"])),
        int(row["nf"]),
        int(row["ifindex"]),
        int(row["cpu"]),
        int(row["target"]),
        int(row["mark"]),
        int(row["packets"]),
        tags_of(row),
    )


def tags_of(row: np.void) -> tuple[int, int]:
    """Give the VLAN tags of a flow or a rule, one row: outer, inner."""
    outer, inner = row["vlans"].tolist()
    return outer, inner
