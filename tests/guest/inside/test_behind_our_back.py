# SPDX-License-Identifier: Apache-2.0
"""What others do to a NIC while we use it: rules that are lost are missed, and can be put back."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from nfcore.api.rules import Outcome, RuleBatch
from nfcore.bench.testbed import Daemons
from nfcore.kernel.ethtool import feature_is_on, link_facts
from nfcore.plugins.tc_offload.backend import Settings, TcBackend
from tests.waiting import eventually

from .conftest import run
from .test_simnic import TCP4, TCP6, UDP4, many, marks_of, seen_by_xdp
from .test_simnic_balancer import FLOWS, PATIENCE, Site

if TYPE_CHECKING:
    from tests.guest.simnic.nic import SimNic

pytest_plugins = ["tests.guest.simnic.nic"]
Shell = Callable[..., str]
RULES = marks_of(TCP4, UDP4, TCP6)


@pytest.fixture(params=[True, False], ids=["terse", "full"])
def backend(simnic: SimNic, request: pytest.FixtureRequest) -> Iterator[TcBackend]:
    """A backend in hardware mode, with either kind of dump."""
    opened = TcBackend(Settings(simnic.name, simnic.ifindex, terse=request.param))
    opened.open()
    yield opened
    opened.close()


def offload(nic: SimNic, state: str) -> None:
    run("ethtool", "-K", nic.name, "hw-tc-offload", state)


def held(backend: TcBackend) -> list[int]:
    """Marks of the rules that a dump shows."""
    return sorted(backend.dump()["rule"]["mark"].tolist())


def filters(nic: SimNic) -> list[dict[str, Any]]:
    """The rules as tc tells them."""
    shown = json.loads(run("tc", "-j", "filter", "show", "dev", nic.name, "ingress"))
    return [each["options"] for each in shown if "keys" in each.get("options", {})]


def put_back(backend: TcBackend, nic: SimNic) -> None:
    """Install the rules again, and see that the NIC marks by each of them."""
    assert backend.install(RULES).status.tolist() == [Outcome.INSTALLED] * 3
    assert held(backend) == [1, 2, 3]
    assert [each["in_hw"] for each in filters(nic)] == [True] * 3
    with seen_by_xdp(nic) as seen:
        for flow in (TCP4, UDP4, TCP6):
            nic.send(flow)
        assert seen() == {1: 1, 2: 1, 3: 1}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return lines


def test_the_kernel_is_asked_for_features(simnic: SimNic) -> None:
    assert feature_is_on(simnic.ifindex, "hw-tc-offload") is True
    offload(simnic, "off")
    assert feature_is_on(simnic.ifindex, "hw-tc-offload") is False
    told = link_facts(simnic.ifindex, simnic.name).features
    assert {name: feature_is_on(simnic.ifindex, name) for name in told if name} == {
        n: on for n, on in told.items() if n
    }


def test_rules_that_went_with_the_qdisc_are_put_back(simnic: SimNic, backend: TcBackend) -> None:
    backend.install(RULES)
    run("tc", "qdisc", "del", "dev", simnic.name, "clsact")
    assert held(backend) == []
    assert backend.counts["vanished"] == 3
    put_back(backend, simnic)
    run("tc", "qdisc", "del", "dev", simnic.name, "clsact")
    backend.reprobe()
    assert held(backend) == []
    put_back(backend, simnic)


def test_offload_that_is_switched_off_is_noticed(
    simnic: SimNic, backend: TcBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.install(RULES)
    offload(simnic, "off")
    assert held(backend) == held(backend) == []
    words = "sim0: hw-tc-offload was switched off; nothing is offloaded: ethtool -K sim0 hw-tc-offload on"
    outcomes = backend.install(many(5))
    assert (outcomes.status.tolist(), outcomes.messages) == ([Outcome.UNSUPPORTED] * 5, {0: words})
    assert not backend.install(many(5)).messages
    assert said(caplog) == [words]
    offload(simnic, "on")
    assert held(backend) == []
    assert filters(simnic) == []  # what the driver forgot is in nobody's way
    assert len(said(caplog)) == 1
    put_back(backend, simnic)


def test_offload_that_was_off_while_nobody_looked_is_noticed_when_told_to_look(
    simnic: SimNic, backend: TcBackend
) -> None:
    backend.install(RULES)
    offload(simnic, "off")
    offload(simnic, "on")
    with seen_by_xdp(simnic) as seen:
        simnic.send(TCP4)
        assert seen() == {0: 1}  # the NIC has forgotten it, and the kernel does not know
    assert len(filters(simnic)) == 3
    backend.reprobe()
    assert held(backend) == []
    assert backend.counts["vanished"] == 3
    put_back(backend, simnic)


def test_a_probe_disturbs_no_rule(simnic: SimNic, backend: TcBackend) -> None:
    backend.install(RULES)
    simnic.send(UDP4, 4)
    before = backend.dump()
    backend.reprobe()
    after = backend.dump()
    assert sorted(map(bytes, before["rule"])) == sorted(map(bytes, after["rule"]))
    assert sorted(after["packets"].tolist()) == [0, 0, 4]
    assert backend.counts["vanished"] == 0
    assert backend.capabilities().mark_width == 32


def test_what_was_refused_is_tried_again(simnic: SimNic, backend: TcBackend) -> None:
    simnic.set(ipv6=0)
    assert backend.install(RULES).status.tolist() == [Outcome.INSTALLED, Outcome.INSTALLED, Outcome.UNSUPPORTED]
    simnic.set(ipv6=1)
    assert backend.install(RULES).status.tolist()[2] == Outcome.UNSUPPORTED
    backend.reprobe()
    put_back(backend, simnic)
    simnic.set(ipv6=0, mark_bits=16)
    backend.reprobe()
    assert (backend.capabilities().mark_width, backend.capabilities().ipv6) == (16, False)
    assert held(backend) == [1, 2, 3]


def test_a_link_that_was_down_has_its_rules(simnic: SimNic, backend: TcBackend) -> None:
    backend.install(RULES)
    run("ip", "link", "set", simnic.name, "down")
    backend.reprobe()
    assert held(backend) == [1, 2, 3]
    run("ip", "link", "set", simnic.name, "up")
    backend.reprobe()
    assert held(backend) == [1, 2, 3]
    put_back(backend, simnic)


def test_offload_that_comes_after_us_is_used(simnic: SimNic) -> None:
    offload(simnic, "off")
    backend = TcBackend(Settings(simnic.name, simnic.ifindex))
    backend.open()
    assert backend.capabilities().mark_width == 0
    assert backend.install(RULES).status.tolist() == [Outcome.FAILED] * 3  # it may be switched on
    assert "clsact" not in run("tc", "qdisc", "show", "dev", simnic.name)
    offload(simnic, "on")
    backend.reprobe()
    assert backend.capabilities().mark_width == 32
    put_back(backend, simnic)
    offload(simnic, "off")
    backend.reprobe()
    assert backend.capabilities().mark_width == 0
    assert "hw-tc-offload on" in backend.capabilities().notes[0]
    offload(simnic, "on")
    backend.reprobe()
    put_back(backend, simnic)
    backend.close()


def test_rules_outside_the_hardware_are_of_no_use(simnic: SimNic, backend: TcBackend) -> None:
    offload(simnic, "off")
    software = TcBackend(Settings(simnic.name, simnic.ifindex, skip_sw="off"))
    software.open()
    software.install(RULES)
    software.close(remove=False)
    offload(simnic, "on")
    backend.reconcile()
    assert backend.held == 3
    assert [each.get("in_hw", False) for each in filters(simnic)] == [False] * 3
    assert held(backend) == []
    assert backend.counts["vanished"] == 3
    assert filters(simnic) == []
    put_back(backend, simnic)


def test_rules_of_the_kernel_stand_in_and_make_way(simnic: SimNic) -> None:
    backend = TcBackend(Settings(simnic.name, simnic.ifindex, software_helps=True))
    backend.open()
    backend.install(RULES)
    for state, hardware in (("off", False), ("on", True)):
        offload(simnic, state)
        backend.reprobe()
        assert backend.probed.hardware is hardware
        assert held(backend) == []
        assert (backend.install(RULES).status == Outcome.INSTALLED).all()
        assert held(backend) == [1, 2, 3]
        assert [each.get("in_hw", False) for each in filters(simnic)] == [hardware] * 3
    backend.close()


def test_a_full_table_can_be_looked_at_and_taken_over(simnic: SimNic, backend: TcBackend) -> None:
    backend.install(many(10))
    simnic.set(table_size=10)
    backend.reprobe()
    assert backend.capabilities().mark_width == 32
    assert held(backend) == list(range(1, 11))
    second = TcBackend(backend.settings)
    second.open(looking=True)
    assert second.capabilities().mark_width == 0
    assert len(filters(simnic)) == 10
    second.open()
    assert second.capabilities().mark_width == 32
    assert second.held == 9  # one made room for trying
    second.close(remove=False)


def test_rules_that_were_given_up_go_at_the_end(simnic: SimNic) -> None:
    backend = TcBackend(Settings(simnic.name, simnic.ifindex))
    backend.open()
    backend.install(RULES)
    offload(simnic, "off")
    assert held(backend) == []
    assert backend.close()
    assert "clsact" not in run("tc", "qdisc", "show", "dev", simnic.name)


def test_a_nic_that_is_gone_is_no_error(simnic: SimNic, backend: TcBackend) -> None:
    backend.install(RULES)
    run("ip", "link", "del", simnic.wire)
    backend.reprobe()
    assert backend.capabilities().mark_width == 0
    assert "sim0: " in backend.capabilities().notes[0]
    assert held(backend) == []
    assert backend.install(RuleBatch(np.ascontiguousarray(RULES.rows))).status.tolist() == [Outcome.UNSUPPORTED] * 3
    assert (backend.remove(RULES).status == Outcome.ABSENT).all()


@pytest.fixture
def site(simnic: SimNic, tmp_path: Path) -> Iterator[Site]:
    made = Site(simnic, tmp_path, Daemons(tmp_path / "nf.sock"))
    yield made
    made.daemons.kill_all()


def test_a_daemon_puts_back_what_others_remove(site: Site) -> None:
    site.daemons.start(site.config("flow-id"))
    frames = [site.forwarded(flow) for flow in FLOWS]

    def all_marked() -> bool:
        assert [site.forwarded(flow) for flow in FLOWS] == frames
        before = site.paths()
        assert [site.forwarded(flow) for flow in FLOWS] == frames
        return [now - then for now, then in zip(site.paths(), before, strict=True)] == [len(FLOWS), 0]

    assert eventually(all_marked, PATIENCE)
    run("tc", "qdisc", "del", "dev", site.nic.name, "clsact")
    assert eventually(all_marked, PATIENCE)
    offload(site.nic, "off")
    offload(site.nic, "on")
    assert eventually(all_marked, PATIENCE)
