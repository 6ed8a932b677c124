# SPDX-License-Identifier: Apache-2.0
"""The simulated NIC as a fixture of the tests in the guest, and frames for its wire."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from nfcore.api.flows import NO_TAGS, FlowMatch
from nfcore.bench.testbed import NIC_MAC
from nfcore.testing import sample_frame

from .build import module_path

_MODULE = Path("/sys/module/simnic")
_DEFAULTS = {"table_size": 65536, "mark_bits": 32, "ipv6": 1, "masks": 1, "drops": 1, "vlans": 1}


@dataclass(frozen=True)
class SimNic:
    """Both devices of a NIC, up, in this namespace; they are quiet unless a test talks."""

    name: str
    wire: str

    @property
    def ifindex(self) -> int:
        """The NIC's own."""
        return socket.if_nametoindex(self.name)

    def set(self, **parameters: int) -> None:
        """Set parameters of the module: table_size, mark_bits, ipv6, masks, drops, vlans."""
        for name, value in parameters.items():
            (_MODULE / "parameters" / name).write_text(str(value), encoding="ascii")

    def send(self, match: FlowMatch, count: int = 1, size: int = 32, vlans: tuple[int, int] = NO_TAGS) -> int:
        """Have ``count`` frames of a flow, with ``size`` bytes of payload and VLAN tags, arrive; bytes of a frame."""
        frame = bytes.fromhex(NIC_MAC.replace(":", "")) + sample_frame(match, size, vlans=vlans)[6:]
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind((self.wire, 0))
            for _ in range(count):
                wire.send(frame)
        return len(frame)


def load() -> None:
    """Load the module that the host built, unless it is loaded."""
    if not _MODULE.is_dir():
        _run("insmod", str(module_path(os.uname().release)))


@pytest.fixture
def simnic() -> Iterator[SimNic]:
    """A NIC for one test."""
    with open_simnic() as nic:
        yield nic


@contextmanager
def open_simnic() -> Iterator[SimNic]:
    """Make sim0 and sim0w, without addresses of IPv6, so that no frame is there but a test's."""
    load()
    nic = SimNic("sim0", "sim0w")
    nic.set(**_DEFAULTS)
    _run("ip", "link", "add", nic.name, "type", "simnic")
    _run("ip", "link", "set", nic.name, "address", NIC_MAC)
    for name in (nic.name, nic.wire):
        # Not in one command, which would bring the device up first.
        _run("ip", "link", "set", name, "addrgenmode", "none")
        _run("ip", "link", "set", name, "up")
    yield nic
    if nic.name in (name for _, name in socket.if_nameindex()):
        _run("ip", "link", "del", nic.name)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
