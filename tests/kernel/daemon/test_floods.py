# SPDX-License-Identifier: Apache-2.0
"""Floods of SYNs, of ACKs, of new flows: who is in hardware stays there, and every report is accounted for."""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path

import numpy as np
import pytest

from nfcore.api.json_rows import materialize
from nfcore.bench.packet_source import FlowSource
from nfcore.bench.traffic import make_services
from nfcore.engine.flow_state import FlowState
from nfcore.plugins.katran_accel.metrics import BalancerMetrics
from nfcore.plugins.stats.registry import Registry
from tests.kernel.katran_accel.world import World, forget_connections, open_world
from tests.kernel.site import Metrics, Site, eventually
from tests.kernel.traffic import CLIENT, Rounds, flood, flow_frames

pytestmark = pytest.mark.usefixtures("_one_cpu")
KEPT = 20
BURST, RATE = 500, 1_000.0
FLOWS = 20_000
NEW_FLOWS = 100_000


@pytest.mark.parametrize("strategy", ["dest-id", "flow-id"])
def test_a_syn_flood_gets_no_rule_and_the_flows_in_hardware_do_not_notice(site: Site, strategy: str) -> None:
    with site.running(site.config(strategy=strategy)), Rounds(flow_frames(KEPT)) as rounds:
        rounds.offload(site)
        before, sent = site.metrics(), rounds.sent
        flood(200_000, "S", meanwhile=rounds.run)
        after = site.metrics()
        for name in ("nfcore_installed_total", "nfcore_events_total", "nfcore_reports_total"):
            assert after(name) == before(name) > 0
        assert after("nfcore_packets_total", path="slow") - before("nfcore_packets_total", path="slow") == 200_000
        assert after("nfcore_packets_total", path="fast") - before("nfcore_packets_total", path="fast") == (
            rounds.sent - sent
        )
        assert rounds.steady()
        assert site.rules() == KEPT


@pytest.mark.parametrize("strategy", ["dest-id", "flow-id"])
@pytest.mark.parametrize(("room", "waits_for"), [(60_000, "budget"), (600, "table_full")])
def test_an_ack_flood_gets_rules_at_the_rate_that_is_allowed(
    site: Site, strategy: str, room: int, waits_for: str
) -> None:
    offload = f"inserts_per_second = {RATE}\ninsert_burst = {BURST}\nwaiting = 2000\nmax_rules = {room}"
    began = time.monotonic()
    with site.running(site.config(strategy=strategy, offload=offload)), Rounds(flow_frames(KEPT)) as rounds:
        rounds.offload(site)
        began_with = site.in_hardware(f"{CLIENT}:")
        flood(FLOWS, "A", each=3, meanwhile=lambda: (rounds.run(), check(site, began, room)))
        after = check(site, began, room)
        assert after("nfcore_events_total") + after("nfcore_reports_lost_total") >= FLOWS
        assert after("nfcore_deferred_total", reason=waits_for) > 0
        assert after("nfcore_not_offloaded_total", reason="shed") > 0
        assert after("nfcore_flows", state="waiting") <= 2_000
        assert len(began_with) == KEPT
        assert site.in_hardware(f"{CLIENT}:") == began_with
        assert rounds.steady()
        fast, sent = site.metric("nfcore_packets_total", path="fast"), rounds.sent
        rounds.several(5)
        assert site.metric("nfcore_packets_total", path="fast") - fast == rounds.sent - sent


def check(site: Site, began: float, room: int) -> Metrics:
    """What has to be true all the time."""
    figures = site.metrics()
    allowed = BURST + RATE * (time.monotonic() - began)
    assert figures("nfcore_installed_total") <= allowed
    assert figures("nfcore_flows", state="installed") <= room
    assert figures.adds_up()
    return figures


def test_hot_flows_keep_their_rules_while_cold_ones_fill_the_table(site: Site) -> None:
    # A table of 300: flows of the flood fill it, and go again as they are idle, while those in use stay.
    config = site.config(offload="max_rules = 300\ninserts_per_second = 0", idle_timeout="5s")
    with site.running(config), Rounds(flow_frames(KEPT)) as rounds:
        rounds.offload(site)
        began = site.in_hardware(f"{CLIENT}:")
        flood(2_000, "A", each=3, meanwhile=rounds.run)
        assert eventually(lambda: rounds.run() and site.metric("nfcore_ended_total", reason="idle") > 200)
        assert site.in_hardware(f"{CLIENT}:") == began
        assert site.metrics().adds_up()
        assert rounds.steady()


def figures_of(world: World) -> Metrics:
    """What engine and balancer count."""
    registry = Registry()
    registry.add(world.engine.collect())
    registry.add(BalancerMetrics(world.balancer).families())
    return Metrics(materialize(registry.as_rows())["metrics"])


@pytest.mark.parametrize("strategy", ["dest-id", "flow-id"])
@pytest.mark.parametrize("events", ["ringbuf", "perf"])
def test_of_a_burst_of_new_flows_none_is_lost_silently(tmp_path: Path, strategy: str, events: str) -> None:
    offload = f'min_packets = 1\nevents = "{events}"'
    services = make_services([(ipaddress.ip_address("198.18.10.1"), 80)])
    with (
        open_world(tmp_path, strategy=strategy, marking="width = 18", offload=offload, lru_size=262_144) as world,
        FlowSource(services, 4, in_turn=True) as source,
    ):
        source.send_to(world.balancer.program)
        source.burst(NEW_FLOWS)
        made = figures_of(world)
        assert made("nfcore_reports_total") + made("nfcore_reports_lost_total") == NEW_FLOWS
        taken = drain(world)
        assert taken("nfcore_events_total") == taken("nfcore_reports_total")
        assert taken("nfcore_reports_total") + taken("nfcore_reports_lost_total") == NEW_FLOWS
        assert taken("nfcore_events_known_total") == 0
        # A report that was lost comes again, after twice as many packets.
        source.burst(NEW_FLOWS, 2)
        again = drain(world)
        heard = again("nfcore_reports_total") - taken("nfcore_reports_total")
        lost = again("nfcore_reports_lost_total") - taken("nfcore_reports_lost_total")
        assert heard + lost == NEW_FLOWS
        assert again.adds_up()
        assert sum(again("nfcore_flows", state=state) for state in ("installed", "waiting", "refused")) > 0


def drain(world: World) -> Metrics:
    """Let the engine take all reports; nothing may be unaccounted for at any time."""
    while world.engine.poll():
        assert figures_of(world).adds_up()
    return figures_of(world)


@pytest.mark.slow
def test_flow_id_offloads_as_many_flows_as_there_are_marks(tmp_path: Path) -> None:
    marks = (1 << 16) - 1
    services = make_services([(ipaddress.ip_address("198.18.10.1"), 80)])
    offload = f"min_packets = 1\nmax_rules = {marks}\ninserts_per_second = 0.0"
    with (
        open_world(
            tmp_path, strategy="flow-id", marking='quarantine = "10ms"', offload=offload, lru_size=262_144
        ) as world,
        FlowSource(services, 4, in_turn=True) as source,
    ):
        source.send_to(world.balancer.program)
        first = 0
        while first < marks:
            # No more at a time than the pool of this CPU has marks for.
            burst = min(256, marks - first)
            source.burst(burst, first=first)
            world.engine.poll()
            first += burst
        # The last find the pool empty: what the other CPUs have in stock is reclaimed, half of it each time, until
        # one mark is left to each.
        pools = world.balancer.pools
        assert pools is not None
        enough = marks - len(pools.cpus) + 1
        for _ in range(100):
            missing = marks - world.engine.table.count(FlowState.INSTALLED)
            if marks - missing >= enough:
                break
            assert eventually(lambda: (world.engine.tick(), pools.stock(world.cpu))[1])
            forget_connections(world)  # so that they are reported anew by their first packet
            source.burst(missing, first=marks - missing)
            drain(world)
        installed = world.engine.table.slots_in(FlowState.INSTALLED)
        assert len(installed) >= enough
        assert len(np.unique(world.engine.table.mark[installed])) == len(installed)
