# SPDX-License-Identifier: Apache-2.0
"""Writes pcap-ng, the format of Wireshark: draft-ietf-opsawg-pcapng.

    section header │ interface eth1 │ packet │ packet │ interface eth2 │ packet │ …

Each block is `type, length, body, length` in little-endian words. An interface is described before its first packet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER = 0x1A2B3C4D
_ETHERNET = 1
"""LINKTYPE_ETHERNET."""
_NANOSECONDS = 9
"""if_tsresol: times are in units of 10⁻⁹ s."""
_END, _COMMENT = 0, 1
_SHB_APPLICATION = 4
_IF_NAME, _IF_TSRESOL = 2, 9
_EPB_FLAGS, _EPB_QUEUE, _EPB_VERDICT = 2, 6, 7
_INBOUND, _OUTBOUND = 1, 2
_XDP = 2
"""Kind of an epb_verdict: what follows is an ``enum xdp_action``, u64."""
_LONGEST_OPTION = 0xFFFF


@dataclass(frozen=True)
class Packet:
    """A packet of a capture."""

    interface: str
    time: int
    """Nanoseconds since the epoch, below 2⁶⁴."""
    frame: bytes
    """Its first bytes, beginning with the Ethernet header."""
    length: int
    """Bytes of the whole frame."""
    verdict: int
    """``enum xdp_action``."""
    queue: int
    comment: str
    sent: bool = False
    """Whether the frame is as it leaves the interface, not as it came."""


@dataclass
class PcapNg:
    """Makes the blocks of one section. Each method gives whole blocks."""

    snap_length: int
    """Bytes of a frame that a packet has at most; 0: no limit."""
    _interfaces: dict[str, int] = field(default_factory=dict)

    def header(self) -> bytes:
        """Begin the section."""
        body = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
        return _block(_SECTION, body + _options((_SHB_APPLICATION, b"nfcore")))

    def packet(self, packet: Packet) -> bytes:
        """Add a packet, after its interface if that is new."""
        return b"".join(self._blocks(packet))

    def _blocks(self, packet: Packet) -> Iterator[bytes]:
        number = self._interfaces.get(packet.interface)
        if number is None:
            number = self._interfaces[packet.interface] = len(self._interfaces)
            name = (_IF_NAME, _text(packet.interface))
            body = struct.pack("<HHI", _ETHERNET, 0, self.snap_length)
            yield _block(_INTERFACE, body + _options(name, (_IF_TSRESOL, bytes([_NANOSECONDS]))))
        head = struct.pack("<IIIII", number, *divmod(packet.time, 1 << 32), len(packet.frame), packet.length)
        options = _options(
            (_COMMENT, _text(packet.comment)),
            (_EPB_FLAGS, struct.pack("<I", _OUTBOUND if packet.sent else _INBOUND)),
            (_EPB_QUEUE, struct.pack("<I", packet.queue)),
            (_EPB_VERDICT, struct.pack("<BQ", _XDP, packet.verdict)),
        )
        yield _block(_PACKET, head + _padded(packet.frame) + options)


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def _options(*options: tuple[int, bytes]) -> bytes:
    written = [struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options]
    return b"".join([*written, struct.pack("<HH", _END, 0)])


def _padded(value: bytes) -> bytes:
    """Fill up to whole words."""
    return value + bytes(-len(value) % 4)


def _text(text: str) -> bytes:
    """Encode a text. What is too long for an option is cut off after a whole character."""
    whole = text.encode(errors="replace")
    return whole[:_LONGEST_OPTION].decode(errors="ignore").encode()
