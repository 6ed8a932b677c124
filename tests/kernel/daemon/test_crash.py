# SPDX-License-Identifier: Apache-2.0
"""The daemon is killed again and again, and the NIC changes behind its back: packets go on, nothing leaks."""

from __future__ import annotations

import itertools
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nfcore.api.flows import FlowMatch
from nfcore.api.rules import Rule, RuleBatch, SetMark, split_cookies
from tests.kernel.site import REALS, SIX, Site, command_line, eventually, ip, nfcore, succeed, vip_toml
from tests.kernel.traffic import Rounds, flood, flow_frames, flow_text

pytestmark = pytest.mark.usefixtures("_one_cpu")
KILLS = 6
FLOWS = 20
FOREIGN = Rule(FlowMatch.parse("198.18.9.9:9 > 198.18.10.1:80/tcp"), SetMark(60_000), cookie=0x1234_0000_0000_0001)
"""A rule of somebody else."""


@pytest.fixture
def rounds(site: Site) -> Iterator[Rounds]:
    with Rounds(flow_frames(FLOWS)) as opened:
        yield opened


def ours(site: Site) -> NDArray[np.void]:
    """Rules of ours; the one of somebody else must be there and as it was."""
    with site.backend() as nic:
        rules = nic.dump()["rule"]
    mine, _, _ = split_cookies(rules["cookie"])
    (foreign,) = RuleBatch(np.ascontiguousarray(rules[~mine]))
    assert foreign == FOREIGN
    found: NDArray[np.void] = rules[mine]
    return found


def flows_of(rules: NDArray[np.void]) -> set[str]:
    return {str(FlowMatch.from_key(rule["key"], int(rule["family"]))) for rule in rules}


def add_foreign_rule(site: Site) -> None:
    with site.backend() as nic:
        nic.install(RuleBatch.of([FOREIGN]))


def tracked(site: Site) -> float:
    """Flows that take a place in the NIC."""
    figures = site.metrics()
    return sum(figures("nfcore_flows", state=state) for state in ("installed", "pending", "draining"))


@pytest.mark.slow
@pytest.mark.parametrize("pinned", [False, True])
def test_no_frame_is_lost_however_often_the_daemon_is_killed(
    site: Site, rounds: Rounds, strategy: str, pinned: bool
) -> None:
    config = site.config(strategy=strategy, katran=f'pin_dir = "{site.pins}"' if pinned else "")
    add_foreign_rule(site)
    first = site.start(config)
    first.kill()
    first.wait()
    fresh = itertools.count()
    chance = random.Random(f"{strategy} {pinned}")
    for _ in range(KILLS):
        daemon, log = start_unwatched(config)
        killed_at = time.monotonic() + chance.uniform(0.2, 3.0)
        while time.monotonic() < killed_at:
            # New flows, so that reports, marks and rules are under way when it dies.
            flood(20, "A", each=3, first=next(fresh) * 20, meanwhile=rounds.run)
        assert daemon.poll() is None, f"it ended by itself: {log.read_text()}"
        daemon.kill()
        daemon.wait()
        rounds.several(3)
        ours(site)
        assert rounds.steady()
    mine = {flow_text(number) for number in range(FLOWS)}
    with site.running(config):
        # A flow that was reported often is reported again after more and more packets: many, however slow the machine.
        assert eventually(lambda: rounds.several(50) and mine <= site.in_hardware().keys())
        assert eventually(lambda: rounds.run() and len(ours(site)) == tracked(site))
        assert eventually(lambda: rounds.run() and flows_of(ours(site)) == site.in_hardware().keys() >= mine)
        before = site.metric("nfcore_packets_total", path="fast")
        rounds.run()
        assert site.metric("nfcore_packets_total", path="fast") - before == FLOWS
        assert site.metric("nfcore_orphans_removed_total") == 0
        if strategy == "flow-id":
            assert eventually(lambda: site.metric("nfcore_marks_in_use") == len(ours(site)))
        assert rounds.steady()
    assert len(ours(site)) == 0
    assert site.program() is None
    cleaned = succeed("cleanup", str(config))
    assert ("removed pin" in cleaned) == pinned
    assert not site.pins.exists() or not any(site.pins.iterdir())
    assert sorted(path.name for path in site.folder.iterdir() if path != site.pins) == ["nf.toml", "nic"]
    assert len(ours(site)) == 0


def start_unwatched(config: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a daemon and do not wait: it is to be killed at any moment of its life. Returns its log, too."""
    with tempfile.NamedTemporaryFile(delete=False) as log:
        return subprocess.Popen(command_line("run", str(config)), stderr=log), Path(log.name)


def test_cleanup_after_a_kill_leaves_what_is_not_ours(site: Site, rounds: Rounds, strategy: str) -> None:
    config = site.config(strategy=strategy, katran=f'pin_dir = "{site.pins}"')
    add_foreign_rule(site)
    daemon = site.start(config)
    rounds.offload(site)
    daemon.kill()
    daemon.wait()
    assert f"removed {FLOWS} rules" in succeed("cleanup", str(config))
    assert len(ours(site)) == 0
    assert site.program() is None
    assert not site.pins.exists()
    assert nfcore("cleanup", str(config)).stdout == "nothing was left\n"


def test_rules_that_are_wiped_are_put_back(site: Site, rounds: Rounds, strategy: str) -> None:
    with site.running(site.config(strategy=strategy, idle_timeout="10s")):
        rounds.offload(site)
        add_foreign_rule(site)
        before = site.in_hardware()
        with site.backend() as nic:
            nic.remove(RuleBatch(np.ascontiguousarray(nic.dump()["rule"])))
        assert site.rules() == 0
        add_foreign_rule(site)
        slow = site.metric("nfcore_packets_total", path="slow")
        rounds.run()
        assert site.metric("nfcore_packets_total", path="slow") - slow == FLOWS
        assert eventually(lambda: rounds.several(20) and len(ours(site)) == FLOWS)
        assert eventually(lambda: site.metric("nfcore_refill_seconds") > 0)
        assert site.metric("nfcore_vanished_total") == FLOWS
        assert site.metrics().adds_up()
        assert site.in_hardware() == before
        fast = site.metric("nfcore_packets_total", path="fast")
        rounds.run()
        assert site.metric("nfcore_packets_total", path="fast") - fast == FLOWS
        assert rounds.steady()


@pytest.mark.parametrize("killed", [False, True])
def test_flows_keep_their_reals_when_all_else_has_forgotten_them(
    site: Site, rounds: Rounds, strategy: str, killed: bool
) -> None:
    """Two of three reals are drained, others have pushed the flows out of the connection table, the rules are wiped."""
    katran = f'pin_dir = "{site.pins}"'
    config = partial(site.config, strategy=strategy, idle_timeout="20s", lru_size=128, katran=katran)
    daemon = site.start(config())
    try:
        rounds.offload(site)
        drained = config(vips=vip_toml(f"{REALS[0]}*0", f"{REALS[1]}*0", REALS[2]) + SIX)
        succeed("reload", str(drained))
        flood(4_000, "A")
        if killed:
            daemon.kill()
            daemon.wait()
        with site.backend() as nic:
            nic.remove(RuleBatch(np.ascontiguousarray(nic.dump()["rule"])))
        rounds.several(3)
        assert rounds.steady() and len(set().union(*rounds.reals)) == len(REALS)
        if killed:
            daemon = site.start(drained)
        flood(4_000, "A", first=30_000)
        rounds.offload(site)
        rounds.several(3)
        assert rounds.steady()
        assert killed or site.metric("nfcore_ended_total", reason="moved") == 0
    finally:
        site.daemons.kill_all()


def test_flows_of_rules_that_are_taken_over_keep_their_reals_without_pins(site: Site, rounds: Rounds) -> None:
    """The new run has an empty connection table, and learns from the rules where their flows go."""
    daemon = site.start(site.config(idle_timeout="20s"))
    try:
        rounds.offload(site)
        daemon.kill()
        daemon.wait()
        site.start(site.config(idle_timeout="20s", vips=vip_toml(f"{REALS[0]}*0", f"{REALS[1]}*0", REALS[2]) + SIX))
        assert site.metric("nfcore_adopted_total") == FLOWS
        with site.backend() as nic:
            nic.remove(RuleBatch(np.ascontiguousarray(nic.dump()["rule"])))
        rounds.several(3)
        assert rounds.steady() and len(set().union(*rounds.reals)) == len(REALS)
    finally:
        site.daemons.kill_all()


def test_a_nic_that_is_made_anew_gets_its_rules_back(site: Site, rounds: Rounds, strategy: str) -> None:
    with site.running(site.config(strategy=strategy, idle_timeout="20s")) as daemon:
        rounds.offload(site)
        before = site.in_hardware()
        site.remove_nic()
        site.make_nic()
        assert eventually(lambda: rounds.several(20) and site.rules() == FLOWS)
        assert site.metric("nfcore_vanished_total") == FLOWS
        assert eventually(lambda: site.metric("nfcore_refill_seconds") > 0)
        # On a slow machine the NIC was away for so long that flows were given up and reported again, with new marks.
        reals = {flow: real for flow, (_, real) in before.items()}
        assert {flow: real for flow, (_, real) in site.in_hardware().items()} == reals
        fast = site.metric("nfcore_packets_total", path="fast")
        rounds.run()
        assert site.metric("nfcore_packets_total", path="fast") - fast == FLOWS
        assert site.metrics().adds_up()
        assert rounds.steady()
        assert daemon.poll() is None
    assert site.rules() == 0


def test_a_link_that_goes_down_and_up_again_goes_on(site: Site, rounds: Rounds, strategy: str) -> None:
    with site.running(site.config(strategy=strategy)) as daemon:
        rounds.offload(site)
        before = site.in_hardware()
        for _ in range(3):
            ip("link", "set", "eth1", "down")
            ip("link", "set", "eth1", "up")
        # The peers take a moment to have a carrier again.
        assert eventually(lambda: len(rounds.run()) == FLOWS)
        rounds.lost.clear()
        fast = site.metric("nfcore_packets_total", path="fast")
        rounds.several(5)
        assert site.metric("nfcore_packets_total", path="fast") - fast == 5 * FLOWS
        assert rounds.steady()
        assert site.in_hardware() == before
        assert daemon.poll() is None
        with Rounds(flow_frames(5, client="198.18.1.7")) as fresh:
            fresh.offload(site, FLOWS + 5)
            assert fresh.steady()
