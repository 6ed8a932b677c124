# SPDX-License-Identifier: Apache-2.0
"""A flood: TCP segments that belong to no connection, from own addresses to the VIPs, a bounded number of them.

Started in the client's namespace as ``python -m demo.flood VIP … --source ADDRESS … --packets N``. It ends after N
packets, or by a signal, and prints how many it has sent.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import Annotated

import typer

from .load import Pace
from .stop import StopSwitch

_ACK, _WINDOW = 0x10, 512
FIRST_PORT = 50_000


def segment(source: str, vip: str, sport: int, dport: int) -> bytes:
    """Return a segment with a right checksum: the real answers that it knows of no such connection."""
    ends = ip_address(source).packed + ip_address(vip).packed

    def header(checksum: int) -> bytes:
        return struct.pack("!HHIIBBHHH", sport, dport, 1, 1, 5 << 4, _ACK, _WINDOW, checksum, 0)

    # With the pseudo-header, whose other fields are 0 in both families (RFC 9293, RFC 8200).
    words = ends + header(0)
    total = sum(struct.unpack(f"!{len(words) // 2}H", words)) + socket.IPPROTO_TCP + len(header(0))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header(~total & 0xFFFF)


def open_flows(vip: str, source: str, port: int, count: int) -> list[tuple[socket.socket, bytes]]:
    """Return a socket with what it sends, for each of `count` source ports."""
    opened = socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    # Nobody reads the answers.
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    opened.bind((source, 0))
    opened.connect((vip, 0))
    return [(opened, segment(source, vip, FIRST_PORT + number, port)) for number in range(count)]


def main(
    vips: Annotated[list[str], typer.Argument(help="Addresses to flood.")],
    source: Annotated[list[str], typer.Option(help="Own address; may be repeated.")],
    packets: Annotated[int, typer.Option(max=1_000_000, help="Packets to send.")],
    rate: Annotated[float, typer.Option(max=20_000, help="Packets per second at most.")] = 8_000.0,
    ports: Annotated[int, typer.Option(help="Source ports of each address.")] = 4,
    port: Annotated[int, typer.Option(help="TCP port of the VIPs.")] = 80,
) -> None:
    """Send so many packets, by turns from all addresses and ports."""
    stop = StopSwitch()
    pairs = [(vip, each) for vip in vips for each in source if (":" in vip) == (":" in each)]
    flows = [flow for vip, each in pairs for flow in open_flows(vip, each, port, ports)]
    pace = Pace(rate / len(flows))
    sent = 0
    while sent < packets and stop.number is None:
        pace.wait()
        for opened, data in flows[: packets - sent]:
            opened.send(data)
        sent = min(sent + len(flows), packets)
    print(sent, flush=True)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
