# SPDX-License-Identifier: Apache-2.0
"""tc_offload keeps every promise of a backend: with the kernel's own filters on a veth, and in hardware."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nfcore.api.rules import Capabilities, Device
from nfcore.kernel import XdpMode, attach_xdp, detach_xdp
from nfcore.plugins.tc_offload import TcOffloadPlugin
from nfcore.testing import BackendConformance, NicUnderTest, Seen, context_for, sample_flow, sample_frame

from .conftest import VethPair, run
from .programs import count_marks, new_marks, new_target

if TYPE_CHECKING:
    from tests.guest.simnic.nic import SimNic

pytest_plugins = ["tests.guest.simnic.nic"]
FOREIGN = "prio 7000 flower ip_proto udp src_ip 198.18.250.1 action skbedit mark 9"
SO_RCVMARK, SO_RCVBUFFORCE = 75, 33
_LAST = sample_frame(sample_flow(65_535, 4, "udp"), 100)
"""Sent behind the others: when it arrives, they have."""


class Site:
    """A device with the plugin set up over it, again and again."""

    def __init__(self, name: str, table: dict[str, Any], folder: Path, leaving: ExitStack) -> None:
        self.device = Device(name, socket.if_nametoindex(name), ("tc_offload",))
        self._table = table
        self._folder = folder
        self._leaving = leaving

    def set_up(self) -> TcOffloadPlugin:
        plugin = TcOffloadPlugin()
        self._leaving.callback(plugin.teardown)
        plugin.setup(context_for(plugin, "tc_offload", [self.device], self._table, folder=self._folder))
        return plugin

    def foreign(self) -> Callable[[], bool]:
        run("tc", "filter", "add", "dev", self.device.name, "ingress", "protocol", "ip", *FOREIGN.split())
        return lambda: "mark 9" in run("tc", "filter", "show", "dev", self.device.name, "ingress")

    def leftovers(self) -> list[str]:
        shown = run("tc", "filter", "show", "dev", self.device.name, "ingress")
        qdiscs = run("tc", "qdisc", "show", "dev", self.device.name)
        return re.findall(r"filter .*handle.*", shown) + re.findall(r"qdisc clsact.*", qdiscs)


class Listener:
    """Sockets on a device behind its ingress filters: what the stack gets, with its marks."""

    def __init__(self, pair: VethPair) -> None:
        self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._wire.bind((pair.far, 0))
        # The kernel takes the outer tag off: behind it may be an inner one.
        self._four, *self._others = (self._listen(pair.near, kind) for kind in (0x0800, 0x86DD, 0x8100))
        for ear in self._others:
            ear.setblocking(False)

    @staticmethod
    def _listen(name: str, kind: int) -> socket.socket:
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        ear.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
        ear.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        ear.settimeout(10)
        ear.bind((name, kind))
        return ear

    def close(self) -> None:
        for opened in (self._wire, self._four, *self._others):
            opened.close()

    def send(self, frame: bytes, count: int) -> Seen:
        for each in [frame] * count + [_LAST]:
            self._wire.send(each)
        marks: Counter[int] = Counter()
        while (heard := self._hear(self._four))[0] != _LAST:
            marks[heard[1]] += 1
        for ear in self._others:
            with suppress(BlockingIOError):
                while True:
                    marks[self._hear(ear)[1]] += 1
        return Seen(marks, count - marks.total())

    @staticmethod
    def _hear(ear: socket.socket) -> tuple[bytes, int]:
        """A frame and its mark."""
        frame, ((_, _, mark),), _, _ = ear.recvmsg(4096, 64)
        return frame, int.from_bytes(mark, "little")


class TestInSoftware(BackendConformance):
    @pytest.fixture
    def nic(self, veth_pair: VethPair, tmp_path: Path) -> Iterator[NicUnderTest]:
        with ExitStack() as leaving:
            site = Site(veth_pair.near, {"skip_sw": "off"}, tmp_path, leaving)
            listener = Listener(veth_pair)
            leaving.callback(listener.close)
            yield NicUnderTest(
                site.set_up(),
                site.device,
                Capabilities(mark_width=32, masks=True, vlans=True),
                send=listener.send,
                restart=site.set_up,
                foreign=site.foreign,
                leftovers=site.leftovers,
                lacks={"table_size": "the kernel's table has no end"},
                batch=250,
            )


class OnSimnic(BackendConformance):
    """Hardware; a subclass sets what it can do."""

    BITS, IPV6, MASKS, VLANS = 32, 1, 1, 1

    @pytest.fixture
    def nic(self, simnic: SimNic, tmp_path: Path) -> Iterator[NicUnderTest]:
        simnic.set(table_size=256, mark_bits=self.BITS, ipv6=self.IPV6, masks=self.MASKS, vlans=self.VLANS)
        with ExitStack() as leaving:
            marks = leaving.enter_context(new_marks())
            program = leaving.enter_context(count_marks(marks, leaving.enter_context(new_target()), "DROP"))
            attach_xdp(simnic.ifindex, program, mode=XdpMode.NATIVE)
            leaving.callback(lambda: detach_xdp(simnic.ifindex, expected=program.id))
            wire = leaving.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
            wire.bind((simnic.wire, 0))

            def counted() -> dict[int, int]:
                keys, values = marks.lookup_all()
                return dict(zip(keys.tolist(), values.tolist(), strict=True))

            def send(frame: bytes, count: int) -> Seen:
                before = counted()
                for _ in range(count):
                    wire.send(frame)
                came = {mark: now - before.get(mark, 0) for mark, now in counted().items()}
                came = {mark: frames for mark, frames in came.items() if frames}
                return Seen(came, count - sum(came.values()))

            site = Site(simnic.name, {}, tmp_path, leaving)
            yield NicUnderTest(
                site.set_up(),
                site.device,
                Capabilities(
                    mark_width=self.BITS, ipv6=bool(self.IPV6), masks=bool(self.MASKS), vlans=bool(self.VLANS)
                ),
                send=send,
                restart=site.set_up,
                table_size=256,
                foreign=site.foreign,
                leftovers=site.leftovers,
            )


class TestInHardware(OnSimnic):
    """Marks of 32 bits, IPv6, masks, VLAN tags."""


class TestInNarrowHardware(OnSimnic):
    """Marks of 16 bits, no IPv6, no masks, no VLAN tags."""

    BITS, IPV6, MASKS, VLANS = 16, 0, 0, 0
