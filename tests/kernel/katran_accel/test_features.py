# SPDX-License-Identifier: Apache-2.0
"""A feature that nobody asks for is not in the program; one that is asked for later needs a restart, and says so."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest

from nfcore.api.flows import FLOW_KEY
from nfcore.config.loader import load_config
from nfcore.errors import ConfigError
from nfcore.hooks.manager import PluginManager
from nfcore.plugins.katran_accel.config import KatranTable
from nfcore.plugins.katran_accel.features import Features
from nfcore.plugins.katran_accel.layouts import AccelCounter
from nfcore.plugins.katran_accel.metrics import BalancerMetrics
from tests.paths import ROOT

from .world import TWO_FAMILIES, World, open_world, sent_to, tcp

INSTRUCTIONS_BEFORE = {"dest-id": 5306, "flow-id": 5788}
"""Of the program that could do TCP and UDP in IPIP and nothing else."""
OFF = """
encapsulation = "ipip"
too_big = "drop"
mtu = 1500
fragments = "drop"
vlan = false
tcp_server_ids = false
server_ids = []
source_routes = []
new_flow_limit = 125000
decap.ipip = false
decap.gue = false
decap.strict = false
"""
ON = {
    "icmp = false": "ICMP",
    'encapsulation = "gue"\nsource_v4 = "198.18.30.1"\nsource_v6 = "2001:db8:30::1"': "ENCAP_GUE",
    'too_big = "answer"': "TOO_BIG",
    "mtu = 1400": "MTU",
    'fragments = "hash-addresses"': "HASH_FRAGMENTS",
    "vlan = true": "VLAN",
    "tcp_server_ids = true": "TCP_SERVER_IDS",
    "new_flow_limit = 1000": "NEW_FLOWS_PER_WINDOW",
    "decap.ipip = true": "DECAP_IPIP",
    "decap.gue = true": "DECAP_GUE",
}
FLAGS = ("quic", "src_routing", "local", "global_lru", "udp_stable_routing", "udp_flow_migration")


def flagged(flag: str) -> str:
    return TWO_FAMILIES.replace('protocol = "udp"', f'protocol = "udp"\nflags = ["{flag}"]')


def tag(world: World) -> str:
    return world.balancer.program.tag


def test_the_example_asks_for_nothing_but_icmp() -> None:
    table = load_config(ROOT / "examples/demo.toml", PluginManager()).sections["katran_accel"]
    assert isinstance(table, KatranTable)
    assert Features.of(table).defines == {"ICMP": 1}


@pytest.mark.parametrize("strategy", INSTRUCTIONS_BEFORE)
def test_what_is_off_costs_no_instruction(tmp_path: Path, strategy: str) -> None:
    with open_world(tmp_path, strategy=strategy) as plain:
        assert plain.balancer.program.xlated_size // 8 <= INSTRUCTIONS_BEFORE[strategy]
        with open_world(tmp_path, strategy=strategy, katran=OFF) as off:
            assert tag(off) == tag(plain)


@pytest.mark.parametrize("toml", ON)
def test_what_is_on_is_in_the_program(tmp_path: Path, toml: str) -> None:
    with open_world(tmp_path) as plain, open_world(tmp_path, katran=toml) as on:
        assert (ON[toml] in on.balancer.features) is (ON[toml] != "ICMP")
        assert tag(on) != tag(plain)


@pytest.mark.parametrize("flag", FLAGS)
def test_the_flag_of_one_vip_brings_its_feature(tmp_path: Path, flag: str) -> None:
    with open_world(tmp_path) as plain, open_world(tmp_path, vips=flagged(flag)) as on:
        assert tag(on) != tag(plain)


def test_a_feature_that_a_reload_brings_needs_a_restart(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        balancer = world.balancer
        other = balancer.table.model_copy(update={"mtu": 1400, "encapsulation": "gue"})
        flags = [vip.model_copy(update={"flags": ["quic"]}) for vip in other.vips]
        with pytest.raises(ConfigError) as caught:
            balancer.reconfigure(balancer.config, other.model_copy(update={"vips": flags}))
        wheres = {problem.path for problem in caught.value.problems}
        assert wheres == {f"katran_accel.{key}" for key in ("mtu", "encapsulation", "gue_port", "vips")}
        assert "'quic'" in str(caught.value)


def test_a_feature_that_a_reload_does_not_want_stays_unused(tmp_path: Path) -> None:
    with open_world(tmp_path, vips=flagged("quic")) as world:
        balancer = world.balancer
        plain = [vip.model_copy(update={"flags": []}) for vip in balancer.table.vips]
        balancer.reconfigure(balancer.config, balancer.table.model_copy(update={"vips": plain}))
        assert "QUIC" in balancer.features


def test_more_new_flows_than_the_limit_are_sent_but_not_stored(tmp_path: Path) -> None:
    routed = TWO_FAMILIES.replace('protocol = "tcp"', 'protocol = "tcp"\nflags = ["src_routing"]')
    keys = 'new_flow_limit = 10\nsource_routes = [{ prefix = "198.18.1.0/24", real = "198.18.20.13" }]'
    with open_world(tmp_path, vips=routed, katran=keys) as world:
        flows = [tcp("198.18.1.2", "198.18.10.1", sport=sport, flags="S") for sport in range(1, 2001)]
        reals = [sent_to(world.send(frame)) for frame in flows]
        stored, _ = world.balancer.maps.lrus[world.cpu].lookup_all()
        assert 10 <= len(stored) < len(flows)  # those of the seconds that this takes
        assert reals[:10] == ["198.18.20.13"] * 10
        # In a flood the ring decides alone.
        ring = [world.ring_real(0, "198.18.1.2", sport, 80) for sport in range(1, 2001)]
        assert all(real in ("198.18.20.13", chosen) for real, chosen in zip(reals, ring, strict=True))
        assert reals.count("198.18.20.13") < len(flows)


def test_what_is_dropped_for_its_length_is_counted(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        assert world.send(tcp("198.18.1.2", "198.18.10.1", size=1461)).verdict.name == "XDP_DROP"
        assert world.send(tcp("198.18.1.2", "198.18.10.1", size=1460)).verdict.name == "XDP_TX"
        assert world.count(AccelCounter.TOO_BIG) == 1
        (drops,) = (each for each in BalancerMetrics(world.balancer).families() if each.name == "nfcore_drops_total")
        assert {sample.labels["reason"]: sample.value for sample in drops.samples}["too_big"] == 1


def test_flows_of_other_hosts_go_where_their_table_says(tmp_path: Path) -> None:
    with open_world(tmp_path, vips=TWO_FAMILIES.replace('"tcp"', '"tcp"\nflags = ["global_lru"]')) as world:
        frames = [tcp("198.18.1.2", "198.18.10.1", sport=sport) for sport in range(1, 20)]
        keys = np.zeros(len(frames), FLOW_KEY)
        keys["src"][:, :4], keys["dst"][:, :4] = [198, 18, 1, 2], [198, 18, 10, 1]
        keys["sport"], keys["dport"], keys["proto"] = range(1, 20), 80, 6
        number = world.balancer.inventory.reals[ip_address("198.18.20.12")]
        world.balancer.maps["fallback_glru"].update_batch(keys, np.full(len(frames), number, "<u4"))
        assert {sent_to(world.send(frame)) for frame in frames} == {"198.18.20.12"}
        # A SYN begins a new flow, and what it gets is remembered here.
        world.send(tcp("198.18.1.2", "198.18.10.1", sport=1, flags="S"))
        assert sent_to(world.send(frames[0])) == world.ring_real(0, "198.18.1.2", 1, 80)
