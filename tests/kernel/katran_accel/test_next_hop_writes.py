# SPDX-License-Identifier: Apache-2.0
"""Next hops change while packets flow: between any two writes, each packet goes where it went or where it will go."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.l2 import Ether

from nfcore.api.rules import Device
from nfcore.kernel import Map
from nfcore.kernel.links import format_mac
from nfcore.plugins.katran_accel.next_hops import NO_MAC, DeviceFacts, Facts, Hop, Sending, send_by

from .world import World, open_world, tcp

REALS = [ipaddress.ip_address(f"198.18.20.{number}") for number in (11, 12, 13)]
VIPS = "".join(
    f'[[katran_accel.vips]]\naddress = "198.18.10.{number}"\nport = 80\nprotocol = "tcp"\n'
    f'reals = [{{ address = "{real}" }}]\n'
    for number, real in enumerate(REALS, 1)
)
FRAMES = [tcp("198.18.1.2", f"198.18.10.{number}") for number in range(1, len(REALS) + 1)]
GATEWAYS = {name: Hop(ipaddress.ip_address(f"198.18.2.{number}")) for number, name in enumerate("ABCD", 1)}
MACS = {hop: bytes([2, 0, 0x5E, 0, 2, number]) for number, hop in enumerate(GATEWAYS.values(), 1)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("writes"), vips=VIPS) as opened:
        yield opened


def facts(ways: str) -> Facts:
    """Of a letter for each real: its gateway."""
    hops = {real: GATEWAYS[way] for real, way in zip(REALS, ways, strict=True)}
    return Facts((DeviceFacts(Device("bench", 1), NO_MAC, hops=hops, macs=MACS),), tuple(REALS))


@contextmanager
def after_each_write(look: Callable[[], None]) -> Iterator[None]:
    """Call this whenever a map has been written."""

    def then(original: Callable[..., object]) -> Callable[..., object]:
        def write(*arguments: object) -> object:
            result = original(*arguments)
            look()
            return result

        return write

    with pytest.MonkeyPatch.context() as patch:
        for name in ("update_batch", "delete_batch"):
            patch.setattr(Map, name, then(getattr(Map, name)))
        yield


def macs_of_packets(world: World) -> list[str | None]:
    """The address that a packet to each real leaves to; None: it does not leave."""
    runs = [world.send(frame) for frame in FRAMES]
    return [str(Ether(run.output).dst) if run.verdict.name == "XDP_TX" else None for run in runs]


@pytest.mark.parametrize(
    "steps",
    [
        "AAB AAC",
        "ABC BBC",
        "AAB BBB",
        "AAB BAB CCC",
        "ABC BCA ABC",
        "AAB AAA AAB",
        "AAB BBA AAB",
        "ABC BCD CDA DAB AAA",
    ],
)
def test_no_packet_is_lost_or_goes_astray(world: World, steps: str, tmp_path: Path) -> None:
    sending = Sending()
    writer = world.balancer._writer  # noqa: SLF001 - the maps' only writer
    before: str | None = None
    for ways in steps.split():
        sending, seen = send_by(sending, facts(ways)), list[list[str | None]]()
        with after_each_write(lambda seen=seen: seen.append(macs_of_packets(world))):  # type: ignore[misc]
            writer.send_by(sending, world.balancer.inventory)
        assert writer.sends_by(sending, world.balancer.inventory)
        for macs in seen if before else ():
            for mac, *gateways in zip(macs, before or "", ways, strict=True):
                assert mac in {format_mac(MACS[GATEWAYS[gateway]]) for gateway in gateways}, (before, ways, macs)
        assert seen[-1] == [format_mac(MACS[GATEWAYS[gateway]]) for gateway in ways]
        before = ways
