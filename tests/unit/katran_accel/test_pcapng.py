# SPDX-License-Identifier: Apache-2.0
"""What is written as pcap-ng is read back by scapy as it was."""

from __future__ import annotations

import io
import struct

from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import RawPcapNgReader

from nfcore.plugins.katran_accel.capture.pcapng import Packet, PcapNg

PACKETS = st.builds(
    Packet,
    interface=st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=15),
    time=st.integers(0, 2**64 - 1),
    frame=st.binary(max_size=260),
    length=st.integers(0, 2**32 - 1),
    verdict=st.integers(0, 4),
    queue=st.integers(0, 2**32 - 1),
    comment=st.text(max_size=50),
    sent=st.booleans(),
)


def read(data: bytes) -> list[tuple[bytes, RawPcapNgReader.PacketMetadata]]:
    file = io.BytesIO(data)
    reader, found = RawPcapNgReader(file), []
    while True:
        try:
            found.append(reader._read_packet(size=1 << 20))
        except EOFError:
            assert file.read() == b""
            return found


def options(block: bytes) -> dict[int, bytes]:
    """The options of the packet block that is the last one of some blocks."""
    (length,) = struct.unpack("<I", block[-4:])
    block = block[-length:]
    captured = struct.unpack_from("<I", block, 20)[0]
    rest, found = block[28 + captured + -captured % 4 : -4], {}
    while rest:
        code, size = struct.unpack_from("<HH", rest)
        found[code] = rest[4 : 4 + size]
        rest = rest[4 + size + -size % 4 :]
    return found


@given(st.lists(PACKETS, max_size=8), st.integers(0, 2**32 - 1))
def test_packets_are_read_back(packets: list[Packet], snap_length: int) -> None:
    section = PcapNg(snap_length)
    blocks = [section.packet(packet) for packet in packets]
    found = read(section.header() + b"".join(blocks))
    assert [frame for frame, _ in found] == [packet.frame for packet in packets]
    for packet, block, (_, meta) in zip(packets, blocks, found, strict=True):
        assert (meta.linktype, meta.tsresol, meta.wirelen) == (1, 10**9, packet.length)
        assert meta.tshigh << 32 | meta.tslow == packet.time
        assert meta.ifname == packet.interface.encode()
        assert meta.comments == [packet.comment.encode()]
        assert meta.direction == (2 if packet.sent else 1)
        assert options(block)[6] == struct.pack("<I", packet.queue)
        assert options(block)[7] == b"\2" + struct.pack("<Q", packet.verdict)
        assert options(block)[0] == b""


def test_an_interface_is_described_once_and_before_its_packets() -> None:
    section = PcapNg(128)
    first = Packet("eth1", 1, b"frame", 60, 1, 0, "")
    with_interface, without = section.packet(first), section.packet(first)
    assert with_interface.endswith(without) and len(with_interface) > len(without)
    assert struct.unpack_from("<II", with_interface)[0] == 1
    assert struct.unpack_from("<II", without)[0] == 6


def test_a_file_can_be_read_up_to_any_whole_block() -> None:
    section = PcapNg(0)
    data = section.header()
    for number in range(3):
        assert len(read(data)) == number
        data += section.packet(Packet(f"eth{number}", number, bytes(number), number, 3, 0, "é"))


def test_a_comment_of_any_length_is_cut_after_a_whole_character() -> None:
    section = PcapNg(0)
    (packet,) = read(section.header() + section.packet(Packet("eth1", 0, b"", 0, 3, 0, "é" * 40_000)))
    assert packet[1].comments == [("é" * 32_767).encode()]
