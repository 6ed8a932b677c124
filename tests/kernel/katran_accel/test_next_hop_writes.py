# SPDX-License-Identifier: Apache-2.0
"""Next hops change while packets flow: between any two writes, each packet goes where it went or where it will go."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from scapy.layers.l2 import Ether

from nfcore.api.context import Context
from nfcore.api.marks import MarkAllocator
from nfcore.api.rules import Device
from nfcore.api.state_file import StateFile
from nfcore.config.loader import load_config
from nfcore.errors import HostError
from nfcore.hooks.manager import PluginManager
from nfcore.kernel import Map, Program
from nfcore.kernel.links import format_mac
from nfcore.plugins.katran_accel.balancer import Balancer
from nfcore.plugins.katran_accel.config import NAME, KatranTable
from nfcore.plugins.katran_accel.next_hops import NO_MAC, DeviceFacts, Facts, Hop, Sending, send_by

from .world import World, balancer_toml, open_world, tcp

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


def macs_of_packets(program: Program) -> list[str | None]:
    """The address that a packet to each real leaves to; None: it does not leave."""
    runs = [program.test_run(frame) for frame in FRAMES]
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
def test_no_packet_is_lost_or_goes_astray(world: World, steps: str) -> None:
    sending = Sending()
    writer = world.balancer._writer
    before: str | None = None
    for ways in steps.split():
        sending = send_by(sending, facts(ways))
        seen: list[list[str | None]] = []
        with after_each_write(lambda seen=seen: seen.append(macs_of_packets(world.balancer.program))):  # type: ignore[misc]
            writer.send_by(sending, world.balancer.inventory)
        if before is None:
            seen = seen[-1:]
        assert writer.sends_by(sending, world.balancer.inventory)
        go_right(seen, before or ways, ways)
        before = ways


def test_a_write_that_fails_is_made_up_for_and_nobody_else_is_blamed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    balancer = world.balancer

    def refuse(*_: object) -> None:
        raise HostError("the kernel refuses it")

    def follow(ways: str) -> list[str]:
        monkeypatch.setattr(balancer, "_look", lambda *_, **__: facts(ways))
        return list(balancer.resolve()())

    follow("AAB")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Map, "write_array", refuse)
        with pytest.raises(HostError):
            follow("CCD")
    assert not any("another program" in each for each in follow("AAB"))
    assert macs_of_packets(balancer.program) == [format_mac(MACS[GATEWAYS[way]]) for way in "AAB"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Map, "write_array", refuse)
        with pytest.raises(HostError):
            follow("CCD")
    assert len(follow("CCD")) == 2  # told as if nothing had failed
    assert macs_of_packets(balancer.program) == [format_mac(MACS[GATEWAYS[way]]) for way in "CCD"]


def go_right(seen: list[list[str | None]], before: str, ways: str) -> None:
    """Each packet has gone where it went before or goes now, and the last ones where they go now."""
    macs = {way: format_mac(MACS[hop]) for way, hop in GATEWAYS.items()}
    for each in seen:
        for mac, *either in zip(each, before, ways, strict=True):
            assert mac in [macs[way] for way in either], (before, ways, each)
    assert seen[-1] == [macs[way] for way in ways]


@contextmanager
def run_with_pins(folder: Path, ways: str) -> Iterator[Balancer]:
    """A run until it would be attached. Its locks end at once, as when it is killed."""
    path = folder / "nf.toml"
    path.write_text(balancer_toml(folder, VIPS, "", katran=f'pin_dir = "{folder / "pins"}"'))
    config = load_config(path, PluginManager())
    table = config.sections[NAME]
    assert isinstance(table, KatranTable)
    balancer = Balancer(config, table, None)
    context = Context(config, [], None, MarkAllocator(16, 0.0), state_file=StateFile(folder / "notes.state"))
    with closing(balancer), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Balancer, "_look", lambda *_: facts(ways))
        with context.locks:
            balancer.open(context)
        yield balancer


@pytest.mark.parametrize(("earlier", "later"), [("ABC", "BCA"), ("ABC", "ABC"), ("AAB", "CCD"), ("ABC", "CCC")])
def test_a_killed_runs_program_sends_right_until_the_next_is_attached(tmp_path: Path, earlier: str, later: str) -> None:
    seen: list[list[str | None]] = []
    with run_with_pins(tmp_path, earlier) as killed:
        go_right([macs_of_packets(killed.program)], earlier, earlier)
        watched = after_each_write(lambda: seen.append(macs_of_packets(killed.program)))
        with watched, run_with_pins(tmp_path, later) as now:
            go_right(seen, earlier, later)
            go_right([macs_of_packets(now.program)], later, later)
