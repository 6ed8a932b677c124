# SPDX-License-Identifier: Apache-2.0
"""Every packet on the wire is counted once: by the slow path, or by a rule, whatever becomes of rules and daemon."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from nfcore.api.flows import FlowMatch
from nfcore.api.rules import Drop, Rule, RuleBatch, make_cookies
from nfcore.control.client import request
from tests.kernel.network import send_frame
from tests.kernel.site import Metrics, Site, eventually
from tests.kernel.traffic import Rounds, flow_frames, flow_text

pytestmark = pytest.mark.usefixtures("_one_cpu")
FLOWS = 12


@pytest.fixture
def rounds(site: Site) -> Iterator[Rounds]:
    with Rounds(flow_frames(FLOWS)) as opened:
        yield opened


def counted(figures: Metrics) -> float:
    """Packets that were seen, each once: those with a mark that was not followed were seen by both."""
    hardware, slow = figures("nfcore_rule_packets_total"), figures("nfcore_packets_total", path="slow")
    return hardware + slow - figures("nfcore_marks_rejected_total")


def all_counted(site: Site, *senders: Rounds) -> bool:
    """Whether what is counted becomes what was sent, and no more than that."""
    sent = sum(sender.sent for sender in senders)
    assert eventually(lambda: counted(site.metrics()) >= sent), (counted(site.metrics()), sent)
    return counted(site.metrics()) == sent


@pytest.mark.slow
def test_each_packet_is_counted_once_from_install_to_restart(site: Site, rounds: Rounds, strategy: str) -> None:
    config = site.config(strategy=strategy, katran=f'pin_dir = "{site.pins}"', idle_timeout="2s")
    daemon = site.start(config)
    rounds.offload(site)
    rounds.several(20)
    assert all_counted(site, rounds)
    assert site.metric("nfcore_rule_packets_total") >= 20 * FLOWS

    # Aging: half of them fall silent, and come back.
    assert eventually(lambda: rounds.run(range(6)) and site.metric("nfcore_ended_total", reason="idle") == 6)
    assert all_counted(site, rounds)
    rounds.offload(site)
    rounds.several(10)
    assert all_counted(site, rounds)
    # Not by a command, which takes as long to start as rules may be idle.
    flows = request(site.socket, "flows", timeout=30, states=["installed"], match="", limit=100)["flows"]
    assert sum(row["hardware_packets"] for row in flows) == site.metric("nfcore_rule_packets_total")
    assert any(row["hardware_packets"] > row["packets"] for row in flows)

    # Packets that end connections are counted by rules and take the slow path all the same.
    with Rounds(flow_frames(3, flags="FA")) as ends:
        rounds.run()
        ends.run()
        assert eventually(
            lambda: rounds.run(range(3, FLOWS)) and site.metric("nfcore_ended_total", reason="ended") == 3
        )
        assert site.metric("nfcore_marks_rejected_total", kind="ineligible") == 3
        assert all_counted(site, rounds, ends)

        # Killed: the rules go on counting meanwhile, and what ended rules had counted is remembered.
        before = site.metrics()
        assert eventually(lambda: site.rules() == FLOWS - 3)
        wait_for_note(site)
        daemon.kill()
        daemon.wait()
        rounds.several(10)
        with site.running(config):
            after = site.metrics()
            assert after("nfcore_adopted_total") == FLOWS - 3
            assert after("nfcore_rule_packets_total") >= before("nfcore_rule_packets_total")
            assert all_counted(site, rounds, ends)
            rounds.offload(site)
            assert all_counted(site, rounds, ends)
    assert rounds.steady()


def wait_for_note(site: Site) -> None:
    """Wait until the daemon's notes for the next run have all that it has counted."""
    total = int(site.metric("nfcore_rule_packets_total"))
    assert eventually(lambda: f"[{total}, " in site.socket.with_name("nf.sock.state").read_text())


def test_rules_that_give_way_to_hotter_ones_keep_what_they_counted(site: Site, rounds: Rounds, strategy: str) -> None:
    cold, hot = range(4), range(4, 8)
    config = site.config(strategy=strategy, offload="max_rules = 4", idle_timeout="4s")
    with site.running(config):
        while site.metric("nfcore_flows", state="installed") < 4:
            rounds.run(cold)
        rounds.run(cold)
        assert eventually(lambda: rounds.run(hot) and rounds.run(hot) and hot_are_in(site))
        assert all_counted(site, rounds)
        assert (
            site.metric("nfcore_ended_total", reason="replaced") + site.metric("nfcore_ended_total", reason="idle") >= 4
        )
        assert rounds.steady() or not rounds.lost


def hot_are_in(site: Site) -> bool:
    return {flow_text(number) for number in range(4, 8)} <= site.in_hardware().keys()


def test_a_nic_whose_counters_begin_anew_takes_nothing_back(site: Site, rounds: Rounds, strategy: str) -> None:
    with site.running(site.config(strategy=strategy, idle_timeout="4s")):
        rounds.offload(site)
        rounds.several(5)
        assert all_counted(site, rounds)
        last = site.metric("nfcore_rule_packets_total")
        site.remove_nic()
        site.make_nic()
        for _ in range(30):
            rounds.run()
            now = site.metric("nfcore_rule_packets_total")
            assert now >= last
            last = now
        assert eventually(lambda: rounds.several(20) and site.rules() == FLOWS)
        assert site.metric("nfcore_rule_packets_total") >= last


def test_packets_that_the_nic_drops_are_counted_by_the_backend(site: Site) -> None:
    blocked = Rule(FlowMatch.parse(flow_text(0)), Drop(), cookie=0x1234_0000_0000_0002)
    with site.running(site.config()), site.backend() as nic:
        nic.install(RuleBatch.of([blocked]))
        (frame,) = flow_frames(1)
        for _ in range(7):
            send_frame(site.network, frame)
        assert eventually(lambda: site.metric("nfcore_softnic_packets_total", kind="dropped") == 7)
        assert site.metric("nfcore_packets_total") - site.metric("nfcore_packets_total", path="none") == 0


def test_what_a_drop_rule_of_ours_had_counted_stays_when_it_is_removed(site: Site) -> None:
    """No flow accounts for it: the next run takes it off the NIC, and counts what it had counted."""
    cookie = int(make_cookies(np.array([40_000]), np.array([1], dtype=np.uint16))[0])
    blocked = Rule(FlowMatch.parse(flow_text(0)), Drop(), cookie)
    with site.backend() as nic:
        nic.install(RuleBatch.of([blocked]))
        (frame,) = flow_frames(1)
        for _ in range(7):
            send_frame(site.network, frame)
        assert eventually(lambda: nic.dump()["packets"].tolist() == [7])
        with site.running(site.config()):
            assert site.metric("nfcore_stale_removed_total") == 1
            assert site.metric("nfcore_rule_packets_total", backend="softnic") == 7
            assert site.rules() == 0
