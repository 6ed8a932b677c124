# SPDX-License-Identifier: Apache-2.0
"""The balancer on a NIC with a table: flows that the daemon gives to the hardware arrive with their mark in metadata.

test ── sim0w ══ sim0: table ─► mark in metadata ─► balancer ─► XDP_TX ══ sim0w ── test
"""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nfcore.api.flows import NO_TAGS, SERVICE_TAG, VLAN_ID, FlowMatch
from nfcore.bench.testbed import Daemons, config_text
from tests.guest.inside.programs import OFFLOAD
from tests.waiting import eventually

from .conftest import run

if TYPE_CHECKING:
    from tests.guest.simnic.nic import SimNic

pytest_plugins = ["tests.guest.simnic.nic"]
PATIENCE = 120.0
"""Seconds until something counts as not happening; the guest is slow."""
GATEWAY = "02:00:00:00:00:99"
VIPS = """
[[katran_accel.vips]]
address = "198.18.10.1"
port = 53
protocol = "udp"
reals = [{ address = "198.18.20.11" }, { address = "198.18.20.12" }]
[[katran_accel.vips]]
address = "2001:db8:10::1"
port = 53
protocol = "udp"
reals = [{ address = "2001:db8:20::11" }, { address = "2001:db8:20::12" }]
"""
FLOWS = [FlowMatch.parse(f"198.18.1.1:{port} > 198.18.10.1:53/udp") for port in (1111, 1112, 1113)]
FLOWS += [FlowMatch.parse("[2001:db8:1::1]:1111 > [2001:db8:10::1]:53/udp")]


@dataclass
class Site:
    """The NIC and the daemons that served it."""

    nic: SimNic
    folder: Path
    daemons: Daemons
    vlans: tuple[int, int] = NO_TAGS
    """VLAN tags of all packets."""

    def config(self, strategy: str) -> Path:
        path = self.folder / "nf.toml"
        table = f'[katran_accel]\ngateway_mac = "{GATEWAY}"\nlru_size = 1024\npin_dir = "{self.folder}/pins"\n'
        table += f"vlan = {str(self.vlans != NO_TAGS).lower()}\n{VIPS}"
        marking = f'strategy = "{strategy}"\ncarrier = "metadata"'
        parts = {"interface": self.nic.name, "marking": marking, "offload": OFFLOAD}
        path.write_text(config_text(self.folder, "katran_accel", "tc_offload", table, **parts))
        return path

    def installed(self) -> float:
        return self.daemons.metric("nfcore_flows", state="installed")

    def paths(self) -> tuple[float, float]:
        """Packets by mark and without."""
        return self.daemons.metric("nfcore_packets_total", path="fast"), self.daemons.metric(
            "nfcore_packets_total", path="slow"
        )

    def forwarded(self, flow: FlowMatch) -> bytes:
        """Send a packet of ``flow``; the frame that comes back."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            # The kernel takes the outer tag off.
            kind = 0x8100 if self.vlans[1] else 0x86DD if flow.family == 6 else 0x0800
            wire.bind((self.nic.wire, kind))
            wire.settimeout(PATIENCE)
            self.nic.send(flow, vlans=self.vlans)
            return wire.recv(2048)

    def filters(self) -> list[dict[str, Any]]:
        """The rules as tc tells them."""
        shown = json.loads(run("tc", "-j", "-s", "filter", "show", "dev", self.nic.name, "ingress"))
        return [each["options"] for each in shown if "keys" in each.get("options", {})]

    def hits(self) -> int:
        """Packets that the hardware counted; tc leaves out what is zero."""
        return sum(int(each["actions"][0]["stats"].get("hw_packets", 0)) for each in self.filters())


@pytest.fixture
def site(simnic: SimNic, tmp_path: Path) -> Iterator[Site]:
    made = Site(simnic, tmp_path, Daemons(tmp_path / "nf.sock"))
    yield made
    made.daemons.kill_all()


QINQ = (SERVICE_TAG | 200, 7)


@pytest.mark.parametrize(("strategy", "vlans"), [("dest-id", NO_TAGS), ("flow-id", NO_TAGS), ("flow-id", QINQ)])
def test_flows_are_forwarded_by_marks_of_the_hardware(site: Site, strategy: str, vlans: tuple[int, int]) -> None:
    site.vlans = vlans
    config = site.config(strategy)
    daemon = site.daemons.start(config)
    slow = [site.forwarded(flow) for flow in FLOWS]
    gateway = bytes.fromhex(GATEWAY.replace(":", ""))
    for flow, frame in zip(FLOWS, slow, strict=True):
        assert frame[:6] == gateway
        assert flow.src.packed + flow.dst.packed in frame
    for _ in range(5):
        assert [site.forwarded(flow) for flow in FLOWS] == slow
    assert eventually(lambda: site.installed() == len(FLOWS), PATIENCE)

    # All rules are in hardware alone, and what they mark takes the fast path: the frames are the same.
    assert [(each["skip_sw"], each["in_hw"]) for each in site.filters()] == [(True, True)] * len(FLOWS)
    tags = [VLAN_ID & vlan or None for vlan in vlans]
    assert [[each["keys"].get(key) for key in ("vlan_id", "cvlan_id")] for each in site.filters()] == [tags] * len(
        FLOWS
    )
    hits, before = site.hits(), site.paths()
    for _ in range(10):
        assert [site.forwarded(flow) for flow in FLOWS] == slow
    assert site.hits() - hits == 10 * len(FLOWS)
    assert [now - then for now, then in zip(site.paths(), before, strict=True)] == [10 * len(FLOWS), 0]

    # Killed: table and program go on. Restarted: the rules are taken over.
    daemon.kill()
    daemon.wait()
    assert [site.forwarded(flow) for flow in FLOWS] == slow
    daemon = site.daemons.start(config)
    assert site.daemons.metric("nfcore_adopted_total") == len(FLOWS)
    before = site.paths()
    assert [site.forwarded(flow) for flow in FLOWS] == slow
    assert [now - then for now, then in zip(site.paths(), before, strict=True)] == [len(FLOWS), 0]

    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(PATIENCE) == 0
    assert "clsact" not in run("tc", "qdisc", "show", "dev", site.nic.name)


def test_flows_that_find_no_room_stay_on_the_slow_path(site: Site) -> None:
    daemon = site.daemons.start(site.config("dest-id"))
    site.nic.set(table_size=2)
    slow = [site.forwarded(flow) for flow in FLOWS]
    for _ in range(5):
        assert [site.forwarded(flow) for flow in FLOWS] == slow
    assert eventually(lambda: site.installed() == 2, PATIENCE)
    assert len(site.filters()) == 2
    before = site.paths()
    assert [site.forwarded(flow) for flow in FLOWS] == slow
    assert [now - then for now, then in zip(site.paths(), before, strict=True)] == [2, len(FLOWS) - 2]
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(PATIENCE) == 0
