# SPDX-License-Identifier: Apache-2.0
"""Other programs use the same device: theirs stays, and blinds ours for nothing else than what it takes."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nfcore.api.rules import Outcome
from nfcore.bench.testbed import Daemons
from nfcore.errors import HostError
from nfcore.plugins.tc_offload.backend import Settings, TcBackend
from nfcore.plugins.tc_offload.netlink import RTM_NEWCHAIN, NetlinkError, TcSocket
from tests.waiting import eventually

from .conftest import run
from .test_simnic import TCP4, TCP6, UDP4, many, marks_of
from .test_simnic_balancer import FLOWS, PATIENCE, Site

if TYPE_CHECKING:
    from tests.guest.simnic.nic import SimNic

pytest_plugins = ["tests.guest.simnic.nic"]
RULES = marks_of(TCP4, UDP4, TCP6)
KINDS = {
    "u32": ("u32", "match", "u32", "0", "0"),
    "matchall": ("matchall", "skip_hw", "action", "pass"),
    "basic": ("basic", "action", "pass"),
    "fw": ("handle", "5", "fw", "action", "pass"),
}
"""Kinds without a terse dump, and their shortest filters."""


@pytest.fixture(params=[True, False], ids=["terse", "full"])
def settings(simnic: SimNic, request: pytest.FixtureRequest) -> Settings:
    """Of a backend in hardware mode, with either kind of dump."""
    return Settings(simnic.name, simnic.ifindex, terse=request.param)


@pytest.fixture
def backend(settings: Settings) -> Iterator[TcBackend]:
    opened = TcBackend(settings)
    opened.open()
    yield opened
    opened.close()


def add(nic: SimNic, prio: int, *filter_: str, protocol: str = "ip", direction: str = "ingress") -> None:
    where = ("dev", nic.name, direction, "prio", str(prio), "protocol", protocol)
    run("tc", "filter", "add", *where, *filter_)


def qdiscs(nic: SimNic) -> str:
    return run("tc", "qdisc", "show", "dev", nic.name)


def counted(backend: TcBackend) -> dict[int, int]:
    """Mark of each rule that a dump shows → packets."""
    rows = backend.dump()
    return dict(zip(rows["rule"]["mark"].tolist(), rows["packets"].tolist(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_of_another_kind_at_our_prio_takes_that_prio_alone(
    simnic: SimNic, settings: Settings, kind: str
) -> None:
    run("tc", "qdisc", "add", "dev", simnic.name, "clsact")
    add(simnic, 6000, *KINDS[kind])
    backend = TcBackend(settings)
    backend.open()
    assert backend.capabilities().mark_width == 32
    for _ in range(2):  # the refusal is not remembered
        assert backend.install(RULES).status.tolist() == [Outcome.FAILED, Outcome.INSTALLED, Outcome.INSTALLED]
    simnic.send(UDP4, 3)
    assert eventually(lambda: counted(backend) == {2: 3, 3: 0}, PATIENCE)
    assert not backend.counts["vanished"]
    run("tc", "filter", "del", "dev", simnic.name, "ingress", "prio", "6000")
    assert (backend.install(RULES).status == Outcome.INSTALLED).all()
    assert counted(backend).keys() == {1, 2, 3}
    assert backend.remove(RULES).status.tolist() == [Outcome.REMOVED] * 3
    backend.close()
    assert "clsact" in qdiscs(simnic)  # it is not ours


def test_handles_of_other_programs_are_not_taken(simnic: SimNic, backend: TcBackend) -> None:
    for handle in (1, 2, 3, 5):
        address = f"198.18.200.{handle}"
        add(simnic, 6001, "handle", str(handle), "flower", "skip_hw", "dst_ip", address, "action", "pass")
    for _ in range(2):
        assert (backend.install(many(6)).status == Outcome.INSTALLED).all()
        assert len(backend.dump()) == 6
        assert (backend.remove(many(6)).status == Outcome.REMOVED).all()
    shown = json.loads(run("tc", "-j", "filter", "show", "dev", simnic.name, "ingress"))
    assert sorted(each["options"]["handle"] for each in shown if "handle" in each.get("options", {})) == [1, 2, 3, 5]


@pytest.mark.parametrize(
    "filter_",
    [
        ("flower", "skip_hw", "ip_proto", "tcp", "tcp_flags", "0x2/0x17", "action", "pass", "action", "drop"),
        ("flower", "skip_hw", "ip_tos", "8", "action", "police", "rate", "1mbit", "burst", "10k"),
        ("flower", "skip_hw", "enc_key_id", "7", "action", "tunnel_key", "unset"),
        (
            "flower",
            "skip_hw",
            "src_mac",
            "02:00:00:00:00:01",
            "action",
            "pedit",
            "ex",
            "munge",
            "ip",
            "ttl",
            "set",
            "9",
        ),
        ("flower", "skip_hw", "ct_state", "+trk", "action", "ct"),
        ("flower", "skip_hw", "ip_ttl", "3", "action", "goto", "chain", "7"),
        (
            "flower",
            "skip_hw",
            "ip_proto",
            "tcp",
            "dst_port",
            "80-90",
            "action",
            "mirred",
            "egress",
            "mirror",
            "dev",
            "lo",
        ),
    ],
    ids=lambda filter_: f"{filter_[2]}-{filter_[-2]}",
)
def test_flower_of_other_programs_is_not_read_as_ours(
    simnic: SimNic, backend: TcBackend, filter_: tuple[str, ...]
) -> None:
    backend.install(RULES)
    add(simnic, 6000, *filter_)
    simnic.send(TCP4, 2)
    assert eventually(lambda: counted(backend) == {1: 2, 2: 0, 3: 0}, PATIENCE)
    backend.reconcile()
    assert backend.held == 3
    backend.reprobe()
    assert backend.held == 3


def test_the_probe_finds_a_prio_for_itself(simnic: SimNic, settings: Settings) -> None:
    run("tc", "qdisc", "add", "dev", simnic.name, "clsact")
    for prio in (*range(6008, 6012), *range(6013, 6016)):
        add(simnic, prio, *KINDS["u32"])
    backend = TcBackend(settings)
    backend.open()
    assert backend.capabilities().mark_width == 32
    assert backend.capabilities().ipv6 and backend.capabilities().drop
    add(simnic, 6012, *KINDS["matchall"])
    backend.reprobe()
    assert backend.capabilities().temporary
    assert "6008 to 6015 have filters of other programs" in backend.capabilities().notes[0]
    run("tc", "filter", "del", "dev", simnic.name, "ingress", "prio", "6010")
    backend.reprobe()
    assert backend.capabilities().mark_width == 32
    assert (backend.install(RULES).status == Outcome.INSTALLED).all()


def test_a_shared_block_that_comes_and_goes_is_no_lack_of_the_nic(simnic: SimNic, backend: TcBackend) -> None:
    backend.install(RULES)
    run("tc", "qdisc", "del", "dev", simnic.name, "clsact")
    run("tc", "qdisc", "add", "dev", simnic.name, "ingress_block", "22", "clsact")
    assert counted(backend) == {}
    outcomes = backend.install(RULES)
    assert outcomes.status.tolist() == [Outcome.FAILED] * 3
    run("tc", "qdisc", "del", "dev", simnic.name, "clsact")
    assert (backend.install(RULES).status == Outcome.INSTALLED).all()
    run("tc", "qdisc", "del", "dev", simnic.name, "clsact")
    run("tc", "qdisc", "add", "dev", simnic.name, "ingress_block", "22", "clsact")
    backend.reprobe()
    assert backend.capabilities().temporary
    assert "shared block is in the way" in backend.capabilities().notes[0]
    assert (backend.install(RULES).status == Outcome.FAILED).all()
    run("tc", "qdisc", "del", "dev", simnic.name, "clsact")
    backend.reprobe()
    assert (backend.install(RULES).status == Outcome.INSTALLED).all()


def test_a_qdisc_in_the_place_of_ours_is_not_removed(simnic: SimNic, settings: Settings) -> None:
    backend = TcBackend(settings)
    backend.open()
    run("tc", "qdisc", "del", "dev", simnic.name, "clsact")
    run("tc", "qdisc", "add", "dev", simnic.name, "clsact")
    backend.install(RULES)
    backend.remove(RULES)
    assert not backend.close()
    assert "clsact" in qdiscs(simnic)


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_a_chain_of_another_program_keeps_our_qdisc(simnic: SimNic, settings: Settings, direction: str) -> None:
    backend = TcBackend(settings)
    backend.open()
    chain = ("dev", simnic.name, direction, "chain", "5", "protocol", "ip", "flower", "dst_ip", "0.0.0.0/24")
    run("tc", "chain", "add", *chain)
    assert not backend.close()
    chains = run("tc", "chain", "show", "dev", simnic.name, direction)
    assert "chain 5" in chains
    assert str(0x0E6663) not in chains  # ours is gone
    run("tc", "chain", "del", "dev", simnic.name, direction, "chain", "5")
    again = TcBackend(settings)
    again.open()
    assert not again.close()
    assert "clsact" in qdiscs(simnic)


def test_what_a_killed_daemon_left_is_known_without_notes(simnic: SimNic, settings: Settings) -> None:
    killed = TcBackend(settings)
    killed.open()
    killed.install(RULES)
    killed.close(remove=False)
    cleaning = TcBackend(settings)
    assert cleaning.sweep() == 3
    assert cleaning.close()
    assert "clsact" not in qdiscs(simnic)


def test_who_only_looks_leaves_what_a_killed_daemon_left(simnic: SimNic, settings: Settings) -> None:
    killed = TcBackend(settings)
    killed.open()
    killed.install(RULES)
    killed.close(remove=False)
    looking = TcBackend(settings)
    looking.open(looking=True)
    assert looking.capabilities().mark_width == 32
    assert not looking.close()
    cleaning = TcBackend(settings)
    assert cleaning.sweep() == 3
    assert cleaning.close()
    assert "clsact" not in qdiscs(simnic)
    looking = TcBackend(settings)
    looking.open(looking=True)
    assert looking.close()  # its own
    assert "clsact" not in qdiscs(simnic)


def test_rules_keep_the_qdisc_ours_while_a_probe_is_refused(simnic: SimNic, settings: Settings) -> None:
    backend = TcBackend(settings)
    backend.open()
    backend.install(RULES)
    for prio in range(6006, 6016):
        add(simnic, prio, *KINDS["u32"])
    backend.reprobe()
    assert backend.capabilities().temporary
    for prio in range(6006, 6016):
        run("tc", "filter", "del", "dev", simnic.name, "ingress", "prio", str(prio))
    backend.reprobe()
    assert backend.remove(RULES).status.tolist() == [Outcome.REMOVED] * 3
    assert backend.close()
    assert "clsact" not in qdiscs(simnic)


class WithoutChains(TcSocket):
    """A kernel that makes no chain."""

    def request(self, message: bytes) -> None:
        if int.from_bytes(message[4:6], "little") == RTM_NEWCHAIN:
            raise NetlinkError(errno.ENOMEM, "")
        super().request(message)


def test_a_qdisc_that_cannot_be_marked_does_not_stay(simnic: SimNic, settings: Settings) -> None:
    with pytest.raises(HostError, match="qdisc clsact cannot be added"):
        TcBackend(settings, WithoutChains()).open()
    assert "clsact" not in qdiscs(simnic)


@pytest.fixture
def site(simnic: SimNic, tmp_path: Path) -> Iterator[Site]:
    made = Site(simnic, tmp_path, Daemons(tmp_path / "nf.sock"))
    yield made
    made.daemons.kill_all()


def all_marked(site: Site) -> bool:
    """Send the flows until the NIC marks each of them."""
    for flow in FLOWS:
        site.forwarded(flow)
    before = site.paths()
    for flow in FLOWS:
        site.forwarded(flow)
    return [now - then for now, then in zip(site.paths(), before, strict=True)] == [len(FLOWS), 0]


def test_a_daemon_gets_over_a_shared_block_at_any_time(site: Site) -> None:
    run("tc", "qdisc", "add", "dev", site.nic.name, "ingress_block", "22", "clsact")
    site.daemons.start(site.config("flow-id"))
    assert "shared block is in the way" in site.daemons.logged()
    for flow in FLOWS:
        site.forwarded(flow)
    run("tc", "qdisc", "del", "dev", site.nic.name, "clsact")
    assert eventually(lambda: all_marked(site), PATIENCE), site.daemons.logged()
    run("tc", "qdisc", "del", "dev", site.nic.name, "clsact")
    run("tc", "qdisc", "add", "dev", site.nic.name, "ingress_block", "22", "clsact")

    def refused() -> bool:
        for flow in FLOWS:
            site.forwarded(flow)
        return "shared" in site.daemons.logged().rpartition("vanished")[2]

    assert eventually(refused, PATIENCE)
    run("tc", "qdisc", "del", "dev", site.nic.name, "clsact")
    assert eventually(lambda: all_marked(site), PATIENCE), site.daemons.logged()
