# SPDX-License-Identifier: Apache-2.0
"""VIPs, reals and weights change while flows are sending; rings, connection tables and CPUs under flows with a rule."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nfcore.kernel import online_cpus
from tests.kernel.site import REALS, SIX, VIP, VIPS, Site, begin, eventually, nfcore, vip_toml, wait_while
from tests.kernel.traffic import Rounds, flood, flow_frames

pytestmark = pytest.mark.usefixtures("_one_cpu")
SLOW_CLIENT, NEW_CLIENT = "198.18.1.3", "198.18.1.4"
EXCLUDED = f'exclude = ["{SLOW_CLIENT}"]'
OTHER_VIP = "198.18.10.2"
MARKED, UNMARKED = 30, 30
FIRST, *OTHERS = REALS


@pytest.fixture
def rounds(site: Site) -> Iterator[Rounds]:
    """Flows that get rules, and flows that never do."""
    with Rounds(flow_frames(MARKED) + flow_frames(UNMARKED, client=SLOW_CLIENT)) as opened:
        yield opened


def let_every_cpu_know(rounds: Rounds) -> None:
    """Send from each CPU, so that each has all flows in its connection table.

    A frame on veth is now and then handled by another CPU than the sender's, which was busy with that device already.
    """
    here = os.sched_getaffinity(0)
    for cpu in online_cpus():
        os.sched_setaffinity(0, {cpu})
        rounds.run()
    os.sched_setaffinity(0, here)


def reload(config: Path, rounds: Rounds) -> None:
    """`nfcore reload` while all flows are sending."""
    let_every_cpu_know(rounds)
    before = rounds.sent
    assert "changed: katran_accel" in wait_while(begin("reload", str(config)), rounds.run)
    assert rounds.sent > before


def sent_to(rounds: Sequence[dict[int, str]]) -> set[str]:
    return {real for each in rounds for real in each.values()}


def test_a_removed_real_gets_nothing_once_the_reload_has_returned(site: Site, rounds: Rounds, strategy: str) -> None:
    with site.running(site.config(strategy=strategy, offload=EXCLUDED)):
        rounds.offload(site, MARKED)
        before = rounds.run()
        assert sent_to([before]) == set(REALS)
        reload(site.config(strategy=strategy, offload=EXCLUDED, vips=vip_toml(*OTHERS) + SIX), rounds)
        after = rounds.several(20)
        assert sent_to(after) == set(OTHERS)
        # One write makes a real void: its flows have left it for good, and nobody else has noticed.
        for flow, real in before.items():
            assert rounds.reals[flow] == {real} if real != FIRST else len(rounds.reals[flow]) == 2
        assert not rounds.lost
        rounds.offload(site, MARKED)
        assert {real for _, real in site.in_hardware().values()} == set(OTHERS)
        assert eventually(lambda: site.rules() == MARKED)
        fast = site.metric("nfcore_packets_total", path="fast")
        rounds.run()
        assert site.metric("nfcore_packets_total", path="fast") - fast == MARKED
        assert site.metrics().adds_up()


def test_a_drained_real_keeps_its_flows_and_gets_no_other(site: Site, rounds: Rounds, strategy: str) -> None:
    with site.running(site.config(strategy=strategy, offload=EXCLUDED)):
        rounds.offload(site, MARKED)
        before = site.in_hardware()
        assert FIRST in {real for _, real in before.values()}
        drained = vip_toml(f"{FIRST}*0", *OTHERS) + SIX
        reload(site.config(strategy=strategy, offload=EXCLUDED, vips=drained), rounds)
        rounds.several(20)
        assert rounds.steady()
        assert site.in_hardware() == before
        with Rounds(flow_frames(60, client=NEW_CLIENT)) as fresh:
            assert sent_to(fresh.several(3)) == set(OTHERS)


def test_weights_change_for_new_flows_alone(site: Site, rounds: Rounds, strategy: str) -> None:
    with site.running(site.config(strategy=strategy, offload=EXCLUDED)):
        rounds.offload(site, MARKED)
        before = site.in_hardware()
        heavy = vip_toml(f"{FIRST}*8", *OTHERS) + SIX
        reload(site.config(strategy=strategy, offload=EXCLUDED, vips=heavy), rounds)
        rounds.several(20)
        assert rounds.steady()
        assert site.in_hardware() == before
        with Rounds(flow_frames(200, client=NEW_CLIENT)) as fresh:
            got = list(fresh.run().values())
        assert got.count(FIRST) > sum(got.count(real) for real in OTHERS)


@pytest.mark.slow
def test_vips_come_and_go_and_the_others_do_not_notice(site: Site, rounds: Rounds, strategy: str) -> None:
    other = vip_toml("198.18.20.14", "198.18.20.15", address=OTHER_VIP)
    config = site.config(strategy=strategy, offload=EXCLUDED)
    with site.running(config), Rounds(flow_frames(10, vip=OTHER_VIP)) as guests:
        rounds.offload(site, MARKED)
        before = site.in_hardware()
        assert guests.run() == {}
        guests.lost.clear()
        reload(site.config(strategy=strategy, offload=EXCLUDED, vips=VIPS + other), rounds)
        guests.run()
        guests.offload(site, MARKED + 10)
        assert sent_to([guests.run()]) == {"198.18.20.14", "198.18.20.15"}
        assert guests.steady()
        reload(site.config(strategy=strategy, offload=EXCLUDED), rounds)
        assert guests.run() == {}
        rounds.several(5)
        assert rounds.steady()
        assert eventually(lambda: site.rules() == MARKED)
        assert site.in_hardware() == before
        assert site.metric("nfcore_ended_total", reason="target_gone") == 10


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (FIRST, "198.18.20.300", "katran_accel.vips[0].reals[0].address"),
        ("idle_timeout", "idle_timeot", "offload.idle_timeot"),
        ("min_packets = 3", "min_packets = 9", "offload.min_packets: is 9 and was 3; that takes a restart"),
        ('quarantine = "100ms"', 'quarantine = "9s"', "marking: has changed, which takes a restart"),
        ("lru_size = 4096", "lru_size = 8192", "katran_accel.lru_size"),
        ("[softnic]", "[softnic", "line "),
    ],
)
def test_a_reload_that_cannot_be_changes_nothing_and_says_why(site: Site, old: str, new: str, named: str) -> None:
    config = site.config()
    with site.running(config), Rounds(flow_frames(10)) as rounds:
        rounds.offload(site)
        before, program = site.in_hardware(), site.program()
        # A change that could be, beside the one that cannot: it is all or nothing.
        text = config.read_text().replace(OTHERS[0], "198.18.20.19")
        assert old in text
        config.write_text(text.replace(old, new, 1))
        refused = nfcore("reload", "--socket", str(site.socket))
        assert refused.returncode in (1, 2)
        assert named in refused.stderr and "Traceback" not in refused.stderr
        rounds.several(5)
        assert rounds.steady()
        assert (site.in_hardware(), site.program()) == (before, program)
        # And the next one can be. Another file names the same daemon, which does not read it.
        site.config()
        assert "nothing has changed" in nfcore("reload", str(config)).stdout
        other = config.with_name("other.toml")
        other.write_text(config.read_text())
        assert f"was started with {config}" in nfcore("reload", str(other)).stderr


def test_a_vip_without_reals_does_not_hinder_the_others(site: Site) -> None:
    empty = '[[katran_accel.vips]]\naddress = "198.18.10.7"\nport = 80\nprotocol = "tcp"\nreals = []\n'
    said = "katran_accel.vips[2].reals: is []: packets to this VIP are dropped and counted"
    config = site.config()
    with site.running(config), Rounds(flow_frames(10)) as rounds:
        before = rounds.run()
        site.config(vips=vip_toml(*OTHERS) + SIX + empty)
        reloaded = nfcore("reload", str(config))
        assert (reloaded.returncode, reloaded.stderr.strip()) == (0, f"warning: {config}: {said}")
        assert json.loads(nfcore("reload", str(config), "--json").stdout)["warnings"] == [said]
        assert sent_to(rounds.several(3)) == set(OTHERS) and set(before.values()) > set(OTHERS)
        checked = nfcore("check", str(config))
        assert (checked.returncode, checked.stderr.strip()) == (0, f"warning: {config}: {said}")
    with site.running(config):
        assert said in site.daemons.logged()


def many_vips(weight: int) -> str:
    """100 VIPs of 50 reals: their rings take more than a moment."""
    reals = [f"198.18.21.{number}*{weight if number == 1 else 1}" for number in range(1, 51)]
    return VIPS + "".join(vip_toml(*reals, address=f"198.18.11.{number}") for number in range(1, 101))


def test_the_daemon_answers_and_gives_marks_while_it_reloads(site: Site, rounds: Rounds, strategy: str) -> None:
    config = site.config(strategy=strategy, offload=EXCLUDED, vips=many_vips(1))
    with site.running(config) as daemon:
        rounds.offload(site, MARKED)
        site.config(strategy=strategy, offload=EXCLUDED, vips=many_vips(3))
        with Rounds(flow_frames(20, client=NEW_CLIENT)) as fresh, ThreadPoolExecutor(2) as clients:
            both = [clients.submit(site.request, "reload") for _ in range(2)]
            answered = 0
            while not all(reload.done() for reload in both):
                assert site.request("health")["troubles"] == []
                fresh.run()
                answered += 1
            assert answered > 5
            # Each in its turn: the second has found nothing more to do.
            assert sorted(reload.result()["changed"] for reload in both) == [[], ["katran_accel"]]
            fresh.offload(site, MARKED + 20)
        rounds.several(3)
        assert rounds.steady()
        assert site.metrics().adds_up()
        # And it stops in the middle of one.
        site.config(strategy=strategy, offload=EXCLUDED, vips=many_vips(5))
        threads = Path(f"/proc/{daemon.pid}/task")
        before = len(list(threads.iterdir()))
        third = begin("reload", str(config))
        assert eventually(lambda: len(list(threads.iterdir())) > before)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0
        third.communicate(timeout=60)
        assert third.returncode == 1
    assert "Traceback" not in site.daemons.logged()
    assert site.program() is None


@pytest.fixture
def _two_cpus() -> None:
    if len(os.sched_getaffinity(1)) < 2:
        pytest.skip("needs two CPUs")


def send_from(cpu: int, rounds: Rounds, times: int = 3) -> None:
    """Frames are handled on the CPU that sends them."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        rounds.several(times)
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.slow
@pytest.mark.usefixtures("_two_cpus")
def test_flows_keep_their_real_when_all_that_remembers_them_is_gone(site: Site, strategy: str) -> None:
    first, second = sorted(os.sched_getaffinity(1))[:2]
    config = site.config(strategy=strategy, idle_timeout="1s", lru_size=1024)
    with site.running(config), Rounds(flow_frames(40)) as rounds:
        rounds.offload(site)
        assert {real for _, real in site.in_hardware().values()} == set(REALS)
        drained = site.config(strategy=strategy, idle_timeout="1s", lru_size=1024, vips=drained_first())
        reload(drained, rounds)
        # More flows than the connection table holds, while the marks keep those of ours out of it.
        flood(10_000, "A", meanwhile=rounds.run)
        send_from(second, rounds)
        assert rounds.steady()
        assert site.metric("nfcore_marks_rejected_total") == 0
        assert eventually(lambda: site.metric("nfcore_ended_total", reason="idle") == 40)
        assert eventually(lambda: site.rules() == 0)
        slow = site.metric("nfcore_packets_total", path="slow")
        send_from(first, rounds, 1)
        send_from(second, rounds, 1)
        assert site.metric("nfcore_packets_total", path="slow") - slow == 80
        assert rounds.steady()
        # The ring has changed indeed, and the flood was larger than the table.
        with Rounds(flow_frames(60, vip=VIP, client=NEW_CLIENT)) as fresh:
            assert sent_to([fresh.run()]) == set(OTHERS)


def drained_first() -> str:
    return vip_toml(f"{FIRST}*0", *OTHERS) + SIX
