# SPDX-License-Identifier: Apache-2.0
"""The emulated NIC: its program marks, drops, counts; its backend installs, removes, dumps; it survives its user."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether

from nfcore.api.flows import FlowMatch
from nfcore.api.rules import Drop, Outcome, Rule, RuleBatch, SetMark
from nfcore.errors import ConfigError, HostError
from nfcore.kernel import Map, Program, remove_bpffs
from nfcore.plugins.softnic.backend import SoftnicBackend
from nfcore.plugins.softnic.layouts import LINKS_SPEC, SHAPES_SPEC, STATS_SPEC, NicCounter, rules_spec
from nfcore.plugins.softnic.nic import load_program

from .pins import TABLE, Pins, plugin_of

MAC = {"src": "02:00:5e:00:00:02", "dst": "02:00:5e:00:00:01"}


@pytest.fixture(scope="module")
def nic() -> Iterator[tuple[SoftnicBackend, Program]]:
    maps = {spec.name: Map.create(spec) for spec in (rules_spec(TABLE), SHAPES_SPEC, STATS_SPEC, LINKS_SPEC)}
    maps["softnic_links"].update(0, 1)  # towards the loopback interface: a test run redirects nothing
    maps["softnic_links"].update(1, 1)
    with load_program("softnic_wire", maps) as program:
        yield SoftnicBackend(maps["softnic_rules"], maps["softnic_shapes"], maps["softnic_stats"]), program
    for opened in maps.values():
        opened.close()


@pytest.fixture(autouse=True)
def _empty(nic: tuple[SoftnicBackend, Program]) -> None:
    backend, _ = nic
    backend.remove(RuleBatch(np.ascontiguousarray(backend.dump()["rule"])))


def match(port: int, *, family: int = 4, proto: int = socket.IPPROTO_TCP) -> FlowMatch:
    ends = ("198.18.1.2", "198.18.10.1") if family == 4 else ("2001:db8:1::2", "2001:db8:10::1")
    src, dst = (ipaddress.ip_address(end) for end in ends)
    return FlowMatch(src, dst, proto, port, 80)


def frame(flow: FlowMatch) -> bytes:
    ip = IP(src=str(flow.src), dst=str(flow.dst)) if flow.family == 4 else IPv6(src=str(flow.src), dst=str(flow.dst))
    layer4 = (TCP if flow.proto == socket.IPPROTO_TCP else UDP)(sport=flow.sport, dport=flow.dport)
    return bytes(Ether(**MAC) / ip / layer4)


def rules(*ports: int, cookie: int = 1) -> RuleBatch:
    return RuleBatch.of([Rule(match(port), SetMark(port), cookie) for port in ports])


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", [socket.IPPROTO_TCP, socket.IPPROTO_UDP])
def test_a_matching_frame_is_marked_and_counted(nic: tuple[SoftnicBackend, Program], family: int, proto: int) -> None:
    backend, program = nic
    flow = match(1000, family=family, proto=proto)
    assert list(backend.install(RuleBatch.of([Rule(flow, SetMark(0xABCDE), 7)])).status) == [Outcome.INSTALLED]
    for _ in range(3):
        run = program.test_run(frame(flow))
        assert (run.verdict.name, run.metadata) == ("XDP_REDIRECT", struct.pack("=I", 0xABCDE))
        assert run.output == frame(flow)
    (row,) = backend.dump()
    assert (row["packets"], row["bytes"], row["rule"]["cookie"]) == (3, 3 * len(frame(flow)), 7)
    assert row["last_used"] > 0
    assert list(RuleBatch(backend.dump()["rule"])) == [Rule(flow, SetMark(0xABCDE), 7)]


def test_a_frame_of_another_flow_passes_unmarked(nic: tuple[SoftnicBackend, Program]) -> None:
    backend, program = nic
    backend.install(rules(1000))
    others = [
        frame(match(1001)),
        frame(match(1000, proto=socket.IPPROTO_UDP)),
        frame(match(1000, family=6)),
        bytes(Ether(**MAC) / ARP()),
        bytes(Ether(**MAC) / IP(src="198.18.1.2", dst="198.18.10.1", frag=1) / TCP(sport=1000, dport=80)),
    ]
    for other in others:
        run = program.test_run(other)
        assert (run.verdict.name, run.metadata, run.output) == ("XDP_REDIRECT", b"", other)
    assert [int(row["packets"]) for row in backend.dump()] == [0]


def test_a_drop_rule_drops_and_counts(nic: tuple[SoftnicBackend, Program]) -> None:
    backend, program = nic
    before = backend.counters()
    backend.install(RuleBatch.of([Rule(match(1000), Drop(), 1)]))
    assert program.test_run(frame(match(1000))).verdict.name == "XDP_DROP"
    assert [int(row["packets"]) for row in backend.dump()] == [1]
    assert (backend.counters() - before)[NicCounter.DROPPED] == 1


def test_a_full_table_refuses_the_rest_and_still_replaces(nic: tuple[SoftnicBackend, Program]) -> None:
    backend, _ = nic
    status = backend.install(rules(*range(1, TABLE + 4))).status
    assert list(status) == [Outcome.INSTALLED] * TABLE + [Outcome.FULL] * 3
    mixed = backend.install(rules(100, 3, 101, 4)).status
    assert list(mixed) == [Outcome.FULL, Outcome.INSTALLED, Outcome.FULL, Outcome.INSTALLED]
    assert len(backend.dump()) == TABLE


def test_removal_is_by_identity_and_can_be_repeated(nic: tuple[SoftnicBackend, Program]) -> None:
    backend, _ = nic
    backend.install(rules(1, 2, 3))
    backend.install(rules(2, cookie=9))  # by now somebody else's
    assert list(backend.remove(rules(1, 2, 5)).status) == [Outcome.REMOVED, Outcome.ABSENT, Outcome.ABSENT]
    assert list(backend.remove(rules(1)).status) == [Outcome.ABSENT]
    left = {rule.match.sport: rule.cookie for rule in RuleBatch(backend.dump()["rule"])}
    assert left == {2: 9, 3: 1}


@pytest.fixture
def links() -> Iterator[str]:
    """A namespace with two veth pairs: wire0, port0 and their peers."""
    name = f"nftest-softnic-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for link, peer in (("wire0", "net0"), ("port0", "host0")):
            subprocess.run(["ip", "-n", name, "link", "add", link, "type", "veth", "peer", peer], check=True)
            for end in (link, peer):
                subprocess.run(["ip", "-n", name, "link", "set", end, "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def nfcore(namespace: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["nsenter", f"--net=/run/netns/{namespace}", sys.executable, "-m", "nfcore.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_makes_a_nic_once_and_removes_all_of_it(links: str, tmp_path: Path) -> None:
    pin = tmp_path / "nic"
    create = ("softnic", "create", "--wire", "wire0", "--port", "port0", "--pin", str(pin), "--rules", "100")
    made = nfcore(links, *create)
    assert (made.returncode, made.stderr) == (0, "")
    backend = SoftnicBackend.open(pin, "softnic.pins.eth1")
    assert backend.capabilities().table_size == 100
    backend.install(rules(1))
    backend.close()

    again = nfcore(links, *create)
    assert again.returncode == 1
    assert "holds a softnic already" in again.stderr and "Traceback" not in again.stderr

    reopened = SoftnicBackend.open(pin, "softnic.pins.eth1")
    assert len(reopened.dump()) == 1  # the NIC keeps its rules when its user is gone
    reopened.close()

    assert nfcore(links, "softnic", "remove", "--pin", str(pin)).returncode == 0
    assert not pin.exists()
    shown = subprocess.run(["ip", "-n", links, "link"], capture_output=True, text=True, check=True).stdout
    assert "xdp" not in shown


def test_a_missing_interface_leaves_nothing_behind(links: str, tmp_path: Path) -> None:
    pin = tmp_path / "nic"
    failed = nfcore(links, "softnic", "create", "--wire", "wire0", "--port", "nowhere", "--pin", str(pin))
    assert failed.returncode == 1
    assert "nowhere" in failed.stderr and "Traceback" not in failed.stderr
    assert not pin.exists()


def test_a_missing_nic_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"softnic\.pins\.eth1: there is no softnic in .*nfcore softnic create"):
        SoftnicBackend.open(tmp_path / "nothing", "softnic.pins.eth1")


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Pins]:
    made = Pins(tmp_path / "nic")
    yield made
    made.remove()
    remove_bpffs(made.folder)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings since the last look."""
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return lines


def test_a_nic_that_was_made_again_is_noticed_and_has_no_rules(pins: Pins, caplog: pytest.LogCaptureFixture) -> None:
    pins.make()
    backend = SoftnicBackend.open(pins.folder, "softnic.pins.eth1")
    backend.install(rules(1, 2))
    for look in (lambda: len(backend.dump()), lambda: backend.remove(rules(1)).status.tolist().count(Outcome.REMOVED)):
        pins.remove()
        pins.make(size=16)
        assert look() == 0
        assert backend.capabilities().table_size == 16
        (line,) = said(caplog)
        assert line.endswith(f"softnic in {pins.folder} was created again, without nfcore's rules")
        assert list(backend.install(rules(1, 2)).status) == [Outcome.INSTALLED] * 2
        assert len(backend.dump()) == 2 and not said(caplog)
    pins.remove()
    pins.make()
    assert list(backend.install(rules(*range(1, TABLE + 2))).status) == [Outcome.INSTALLED] * TABLE + [Outcome.FULL]
    backend.close()


def test_while_a_nic_is_gone_rules_fail_with_words(pins: Pins, caplog: pytest.LogCaptureFixture) -> None:
    pins.make()
    backend = SoftnicBackend.open(pins.folder, "softnic.pins.eth1")
    backend.install(rules(1))
    pins.remove()
    for _ in range(3):
        outcomes = backend.install(rules(1, 2))
        assert list(outcomes.status) == [Outcome.FAILED] * 2
        assert outcomes.messages[0].startswith("softnic.pins.eth1: there is no softnic in")
        assert f"nfcore softnic create --wire IF --port IF --pin {pins.folder}" in outcomes.messages[0]
        assert list(backend.remove(rules(1)).status) == [Outcome.ABSENT]
        assert backend.dump().shape == (0,)
        assert backend.capabilities().mark_width == 0
    assert said(caplog) == [backend.missing]
    pins.make()
    assert list(backend.install(rules(1, 2)).status) == [Outcome.INSTALLED] * 2
    assert backend.capabilities().mark_width == 32
    assert len(said(caplog)) == 1
    backend.close()


def test_counters_never_go_backwards(pins: Pins) -> None:
    pins.make()
    pins.count(NicCounter.MARKED, 7)
    backend = SoftnicBackend.open(pins.folder, "softnic.pins.eth1")
    one = int(backend.counters()[NicCounter.MARKED])
    assert one >= 7
    pins.remove()
    assert backend.counters()[NicCounter.MARKED] == one
    backend.dump()
    assert backend.counters()[NicCounter.MARKED] == one
    pins.make()
    assert backend.counters()[NicCounter.MARKED] == one
    backend.dump()
    assert backend.counters()[NicCounter.MARKED] == one
    pins.count(NicCounter.MARKED, 7)
    assert backend.counters()[NicCounter.MARKED] == 2 * one
    backend.close()


def test_a_pin_that_is_missed_for_a_while_counts_once(pins: Pins) -> None:
    pins.make()
    pins.count(NicCounter.SENT, 5)
    backend = SoftnicBackend.open(pins.folder, "softnic.pins.eth1")
    before = backend.counters().tolist()
    table = Map.open_pinned(pins.folder / "softnic_rules", rules_spec(TABLE))
    (pins.folder / "softnic_rules").unlink()
    assert not len(backend.dump())
    table.pin(pins.folder / "softnic_rules")
    table.close()
    backend.dump()
    assert backend.missing == ""
    assert backend.counters().tolist() == before
    backend.close()


def test_pins_of_no_interface_are_a_mistake(tmp_path: Path) -> None:
    expected = r"softnic\.pins\.eth2: belongs to no interface; those of \[\[interfaces\]\] are: eth1"
    with pytest.raises(ConfigError, match=expected), plugin_of(tmp_path, interface="eth2"):
        pass


def test_a_nic_that_comes_later_is_used_once_it_is_there(pins: Pins, caplog: pytest.LogCaptureFixture) -> None:
    folder = pins.folder.parent
    with pytest.raises(HostError, match="there is no softnic"), plugin_of(folder):
        pass
    with plugin_of(folder, none=', "none"') as (plugins, device):
        capabilities = plugins.call("softnic", "probe_offload", device=device)
        assert capabilities.mark_width == 0
        # The engine says it: nothing is said twice.
        assert "there is no softnic" in capabilities.notes[0]
        assert said(caplog) == []
        assert not len(plugins.call("softnic", "dump_offload", device=device))
        pins.make()
        assert plugins.call("softnic", "probe_offload", device=device).mark_width == 32
        assert "is there now" in said(caplog)[0]
        outcomes = plugins.call("softnic", "install_offload", device=device, rules=rules(1))
        assert list(outcomes.status) == [Outcome.INSTALLED]
        pins.count(NicCounter.RECEIVED, 3)
        (family,) = plugins.call("softnic", "collect_stats")
        assert {sample.labels["interface"] for sample in family.samples} == {"eth1"}
