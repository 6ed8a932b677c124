# SPDX-License-Identifier: Apache-2.0
"""Counts the packets that reach the reals, on the wire: by source and DSCP, after decapsulation."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Self

from pyroute2 import netns

from .lab import NETNS_FOLDER, Lab

_IPV4, _IPV6 = 0x0800, 0x86DD
_LONGEST_HEADER = 40
_BUFFER = 4 << 20
"""Bytes for packets that are not read yet."""


class Wire:
    """Context: counts from its begin to its end. A packet socket sees what XDP, and with it the outer header, left."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._counts: Counter[tuple[bytes, int]] = Counter()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._sockets: list[socket.socket] = []
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as exits:
            for real in self._lab.reals:
                for protocol in (_IPV4, _IPV6):
                    opened = _socket_in(self._lab.namespace(real.name), protocol)
                    self._sockets.append(exits.enter_context(opened))
            self._thread.start()
            exits.callback(self._thread.join)
            exits.callback(self._done.set)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._exits.close()

    def counts(self) -> Counter[tuple[str, int]]:
        """Return the packets so far, by source address and DSCP."""
        with self._lock:
            return Counter({(str(ip_address(source)), dscp): n for (source, dscp), n in self._counts.items()})

    def sources(self) -> Counter[str]:
        """Return the packets so far, by source address."""
        found: Counter[str] = Counter()
        for (source, _), packets in self.counts().items():
            found[source] += packets
        return found

    def _read(self) -> None:
        while not self._done.is_set():
            for ready in select.select(self._sockets, [], [], 0.1)[0]:
                heads: list[tuple[bytes, int]] = []
                with contextlib.suppress(BlockingIOError):
                    while len(heads) < 1_000:
                        heads.append(head(ready.recv(_LONGEST_HEADER)))
                with self._lock:
                    self._counts.update(heads)


def head(packet: bytes) -> tuple[bytes, int]:
    """Return the source address and the DSCP of a packet."""
    if packet[0] >> 4 == 4:
        return packet[12:16], packet[1] >> 2
    return packet[8:24], (packet[0] << 8 | packet[1]) >> 6 & 0x3F


def _socket_in(namespace: str, protocol: int) -> socket.socket:
    """Open a packet socket in a network namespace, for what is received."""

    def opened() -> socket.socket:
        netns.setns(str(NETNS_FOLDER / namespace))
        found = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(protocol))
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        found.setblocking(False)
        return found

    # In a thread of its own, which ends: a thread is in one namespace, and a socket stays in that of its birth.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(opened).result()
