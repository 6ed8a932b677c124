# SPDX-License-Identifier: Apache-2.0
"""Devices with XDP behind flower's rules: in software in front of a veth, and in hardware alone. Fixtures."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from nfcore.api.rules import Rule
from nfcore.kernel import XdpMode, attach_xdp, detach_xdp
from nfcore.plugins.tc_offload.backend import Settings, TcBackend
from nfcore.plugins.tc_offload.shapes import action_cookie

from .conftest import VethPair, run
from .programs import count_marks, new_marks, new_target

if TYPE_CHECKING:
    from tests.guest.simnic.nic import SimNic


@dataclass
class Line:
    """A device with XDP behind flower, and the backend of its rules."""

    backend: TcBackend
    seen: Callable[[], dict[int, int]]
    """Frames that XDP has seen, by mark."""
    wire: str
    filter_on: str
    direction: str
    in_hardware: bool

    def send(self, frames: list[bytes]) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind((self.wire, 0))
            for frame in frames:
                try:
                    wire.send(frame)
                except OSError as error:
                    # A filter on the sender's own egress has dropped it.
                    assert (error.errno, self.direction) == (errno.ENOBUFS, "egress")

    def shown(self) -> dict[str, dict[str, Any]]:
        """Filters as `tc -s -j` shows them, by the cookie of their action."""
        filters = json.loads(run("tc", "-j", "-s", "filter", "show", "dev", self.filter_on, self.direction))
        found = (each["options"] for each in filters if "handle" in each.get("options", {}))
        return {options["actions"][0]["cookie"]: options for options in found}

    def counted(self, rule: Rule) -> int:
        """Packets of a rule as `tc` counts them, in hardware where the rule is there."""
        options = self.shown()[action_cookie(rule.cookie).hex()]
        assert bool(options.get("in_hw")) is self.in_hardware
        stats = options["actions"][0]["stats"]
        return int(stats.get("hw_packets", 0) if self.in_hardware else stats["packets"])


@contextmanager
def line(ifindex: int, wire: str, settings: Settings, in_hardware: bool) -> Iterator[Line]:
    with ExitStack() as leaving:
        marks = leaving.enter_context(new_marks())
        program = leaving.enter_context(count_marks(marks, leaving.enter_context(new_target()), "DROP"))
        attach_xdp(ifindex, program, mode=XdpMode.NATIVE)
        leaving.callback(lambda: detach_xdp(ifindex, expected=program.id))
        backend = TcBackend(settings)
        leaving.callback(backend.close)
        backend.open()

        def seen() -> dict[int, int]:
            keys, values = marks.lookup_all()
            return dict(zip(keys.tolist(), values.tolist(), strict=True))

        yield Line(backend, seen, wire, settings.filter_on, settings.direction, in_hardware)


@pytest.fixture
def software(veth_pair: VethPair) -> Iterator[Line]:
    """Rules on the egress of a veth's peer: what leaves it is what the veth, with XDP, receives."""
    settings = Settings(veth_pair.far, socket.if_nametoindex(veth_pair.far), "egress", skip_sw="off")
    with line(socket.if_nametoindex(veth_pair.near), veth_pair.far, settings, False) as made:
        yield made


@pytest.fixture
def received(veth_pair: VethPair) -> Iterator[Line]:
    """Rules on what a veth receives, of which the kernel has taken off the outer tag. Nobody counts frames by mark."""
    backend = TcBackend(Settings(veth_pair.near, socket.if_nametoindex(veth_pair.near), skip_sw="off"))
    backend.open()
    yield Line(backend, dict, veth_pair.far, veth_pair.near, "ingress", in_hardware=False)
    backend.close()


@pytest.fixture
def hardware(simnic: SimNic) -> Iterator[Line]:
    with line(simnic.ifindex, simnic.wire, Settings(simnic.name, simnic.ifindex), True) as made:
        yield made


@pytest.fixture(params=["software", "hardware"])
def either(request: pytest.FixtureRequest) -> Line:
    found: Line = request.getfixturevalue(request.param)
    return found
