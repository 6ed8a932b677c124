# SPDX-License-Identifier: Apache-2.0
"""A compiled object in place of nfcore's program: `[katran_accel] program`."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from nfcore.api.metrics import MetricFamily
from nfcore.api.rules import Device
from nfcore.config.loader import load_config
from nfcore.errors import ConfigError, HostError
from nfcore.hooks.manager import PluginManager
from nfcore.plugins.katran_accel.config import KatranTable
from nfcore.plugins.katran_accel.metrics import BalancerMetrics
from nfcore.plugins.katran_accel.next_hops import NO_MAC, DeviceFacts, Facts, Hop, Sending, send_by
from nfcore.plugins.katran_accel.object_writer import to_one_station
from nfcore.plugins.katran_accel.tracing import trace
from tests.descriptors import open_files
from tests.kernel.site import REALS, VIP, Site, succeed, vip_toml

from .foreign_reader import ForeignMap
from .objects import FEW_RINGS, compile_object
from .world import GATEWAY, World, balancer_toml, open_world, sent_to, tcp, udp

VIPS = """
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.11" }, { address = "198.18.20.12", weight = 3 }]
[[katran_accel.vips]]
address = "198.18.10.2"
port = 53
protocol = "udp"
reals = [{ address = "198.18.20.13" }]
"""


@pytest.fixture(scope="module")
def few_rings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_object(tmp_path_factory.mktemp("object"), FEW_RINGS)


@pytest.fixture
def world(tmp_path: Path, few_rings: Path) -> Iterator[World]:
    with open_world(tmp_path, vips=VIPS, katran=f'program = "{few_rings}"') as opened:
        yield opened


def flows(count: int) -> list[tuple[str, int]]:
    """Sources of so many flows."""
    return [(f"198.18.30.{number % 250 + 1}", 40_000 + number) for number in range(count)]


def reconfigure(world: World, folder: Path, vips: str, katran: str) -> None:
    """Reload with other VIPs."""
    path = folder / "changed.toml"
    path.write_text(balancer_toml(folder, vips, 'strategy = "dest-id"', katran=katran))
    config = load_config(path, PluginManager())
    table = config.sections["katran_accel"]
    assert isinstance(table, KatranTable)
    world.balancer.reconfigure(config, table)


def metrics(world: World) -> dict[str, MetricFamily]:
    return {family.name: family for family in BalancerMetrics(world.balancer).families()}


def sample(family: MetricFamily, **labels: str) -> float:
    (value,) = [each.value for each in family.everything() if dict(each.labels) == labels]
    return value


def test_frames_go_where_the_ring_says(world: World) -> None:
    for source, port in flows(60):
        run = world.send(tcp(source, "198.18.10.1", port))
        assert sent_to(run) == world.ring_real(0, source, port, 80)
        assert sent_to(world.send(udp(source, "198.18.10.2", port))) == "198.18.20.13"
    assert Ether(world.send(tcp("198.18.30.1", "198.18.10.1")).output).dst == GATEWAY
    assert world.send(tcp("198.18.30.1", "198.18.10.9")).verdict.name == "XDP_PASS"


def test_weights_are_in_the_ring(world: World) -> None:
    to = Counter(sent_to(world.send(tcp(source, "198.18.10.1", port))) for source, port in flows(400))
    assert 2 < to["198.18.20.12"] / to["198.18.20.11"] < 4.5


def test_connections_are_kept_in_the_table_of_the_cpu(world: World) -> None:
    for source, port in flows(30):
        world.send(tcp(source, "198.18.10.1", port))
    keys, values = world.balancer.maps.lrus[world.cpu].lookup_all()
    assert len(keys) == 30
    reals = world.balancer.inventory.reals
    assert set(values["pos"].tolist()) == {number for real, number in reals.items() if str(real) != "198.18.20.13"}
    assert len(world.balancer.maps["fallback_cache"].lookup_all()[0]) == 0


def test_cpus_without_a_table_use_the_fallback(tmp_path: Path, few_rings: Path) -> None:
    with open_world(tmp_path, vips=VIPS, katran=f'program = "{few_rings}"\nforwarding_cpus = [127]') as world:
        world.send(tcp("198.18.30.1", "198.18.10.1"))
        assert len(world.balancer.maps["fallback_cache"].lookup_all()[0]) == 1


def test_its_statistics_are_read(world: World) -> None:
    frame = tcp("198.18.30.1", "198.18.10.1")
    real = {sent_to(world.send(frame)) for _ in range(5)}.pop()
    world.send(tcp("198.18.30.1", "198.18.10.9"))
    found = metrics(world)
    vip = "198.18.10.1:80/tcp"
    assert sample(found["nfcore_vip_packets_total"], vip=vip) == 5
    assert sample(found["nfcore_vip_bytes_total"], vip=vip) == 5 * (len(frame) - 14)
    assert sample(found["nfcore_real_packets_total"], real=real) == 5
    assert sample(found["nfcore_vip_path_packets_total"], vip=vip, path="slow") == 5
    assert sample(found["nfcore_packets_total"], path="slow") == 5
    assert sample(found["nfcore_packets_total"], path="none") == 1
    assert sample(found["nfcore_verdicts_total"], verdict="tx") == 5
    assert sample(found["nfcore_verdicts_total"], verdict="pass") == 1
    # Of what it does not count, nothing is said.
    assert not found.keys() & {"nfcore_lru_inserts_total", "nfcore_reports_total", "nfcore_marks_rejected_total"}


def test_trace_tells_vip_and_real(world: World) -> None:
    found = trace(world.balancer, udp("198.18.30.1", "198.18.10.2"), 0)
    assert (found.verdict, found.path, found.vip, found.real) == (
        "XDP_TX",
        "slow",
        "198.18.10.2:53/udp",
        "198.18.20.13",
    )
    assert trace(world.balancer, udp("198.18.30.1", "198.18.10.9"), 0).vip is None


def test_it_finds_itself_where_it_looks_for_what_to_call(world: World) -> None:
    assert world.balancer.maps["subprograms"].lookup(0) == world.balancer.program.id


def test_a_reload_changes_rings_vips_and_reals(world: World, tmp_path: Path, few_rings: Path) -> None:
    program = f'program = "{few_rings}"'
    kept = {flow: sent_to(world.send(tcp(flow[0], "198.18.10.1", flow[1]))) for flow in flows(40)}
    assert set(kept.values()) == {"198.18.20.11", "198.18.20.12"}
    vips = """
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.12" }, { address = "198.18.20.14" }]
[[katran_accel.vips]]
address = "198.18.10.3"
port = 443
protocol = "tcp"
reals = [{ address = "198.18.20.15" }]
"""
    reconfigure(world, tmp_path, vips, program)
    for (source, port), real in kept.items():
        # The connections of a real that stays are kept; the others go by the new ring.
        wanted = real if real == "198.18.20.12" else world.ring_real(0, source, port, 80)
        assert sent_to(world.send(tcp(source, "198.18.10.1", port))) == wanted
    number = world.balancer.inventory.vip_numbers
    assert len(number) == 2
    assert sent_to(world.send(tcp("198.18.30.1", "198.18.10.3", dport=443))) == "198.18.20.15"
    assert world.send(udp("198.18.30.1", "198.18.10.2")).verdict.name == "XDP_PASS"


def test_a_reload_changes_the_gateway(world: World, tmp_path: Path, few_rings: Path) -> None:
    text = balancer_toml(tmp_path, VIPS, "", katran=f'program = "{few_rings}"')
    path = tmp_path / "changed.toml"
    path.write_text(text.replace(GATEWAY, "02:00:5e:00:00:99"))
    config = load_config(path, PluginManager())
    table = config.sections["katran_accel"]
    assert isinstance(table, KatranTable)
    world.balancer.reconfigure(config, table)
    assert Ether(world.send(tcp("198.18.30.1", "198.18.10.1")).output).dst == "02:00:5e:00:00:99"
    assert {row["mac"] for row in world.balancer.next_hops({})} == {"02:00:5e:00:00:99"}  # type: ignore[attr-defined]


def test_another_program_takes_a_restart(world: World, tmp_path: Path, few_rings: Path) -> None:
    another = compile_object(tmp_path, FEW_RINGS, "OTHER_NAME")
    for katran in ("", f'program = "{another}"'):
        with pytest.raises(ConfigError, match=r"katran_accel\.program: is .* a change needs a restart"):
            reconfigure(world, tmp_path, VIPS, katran)


def test_the_maps_hold_what_katran_writes_and_nothing_else(world: World) -> None:
    maps = world.balancer.maps
    keys, metas = maps["vip_map"].lookup_all()
    flags = {int(meta["vip_num"]): int(meta["flags"]) for meta in metas}
    assert flags == {0: 0, 1: 0}
    assert {key["addr"][:4].tobytes() for key in keys} == {bytes([198, 18, 10, 1]), bytes([198, 18, 10, 2])}
    reals = maps["reals"].read_array()
    assert not reals["flags"].any()
    assert not reals["next_hop"].any()
    assert np.count_nonzero(reals["addr"].any(axis=1)) == 3
    assert maps["ctl_array"].read_array()["mac"][0].tobytes().hex(":") == GATEWAY
    assert set(maps.maps) == {
        *("vip_map", "ch_rings", "reals", "lru_mapping", "fallback_cache", "stats", "reals_stats", "ctl_array"),
        "subprograms",
    }


def test_published_sizes_with_all_rings(tmp_path: Path) -> None:
    made = compile_object(tmp_path)
    with open_world(tmp_path, vips=VIPS, katran=f'program = "{made}"') as world:
        spec = world.balancer.maps["ch_rings"].spec
        assert (spec.max_entries, world.balancer.maps.rings) == (33_554_944, 512)
        assert sent_to(world.send(udp("198.18.30.1", "198.18.10.2"))) == "198.18.20.13"


def test_a_program_of_any_name_if_it_is_the_only_one(tmp_path: Path) -> None:
    made = compile_object(tmp_path, FEW_RINGS, "OTHER_NAME")
    with open_world(tmp_path, vips=VIPS, katran=f'program = "{made}"') as world:
        assert world.balancer.program.full_name == "one_program"
        assert sent_to(world.send(udp("198.18.30.1", "198.18.10.2"))) == "198.18.20.13"


def test_what_lru_mapping_holds_may_be_left_open(tmp_path: Path) -> None:
    made = compile_object(tmp_path, FEW_RINGS, "NO_INNER")
    with open_world(tmp_path, vips=VIPS, katran=f'program = "{made}"') as world:
        world.send(udp("198.18.30.1", "198.18.10.2"))
        assert len(world.balancer.maps.lrus[world.cpu].lookup_all()[0]) == 1


def test_libbpf_pins_nothing_though_the_file_asks_for_it(tmp_path: Path) -> None:
    made = compile_object(tmp_path, FEW_RINGS, "PINNED")
    with open_world(tmp_path, vips=VIPS, katran=f'program = "{made}"') as world:
        assert sent_to(world.send(udp("198.18.30.1", "198.18.10.2"))) == "198.18.20.13"
        assert not Path("/sys/fs/bpf/vip_map").exists()


def test_nothing_stays_open(tmp_path: Path, few_rings: Path) -> None:
    with open_world(tmp_path, vips=VIPS, katran=f'program = "{few_rings}"'):
        pass  # what is loaded once stays: libbpf itself
    before = open_files()
    with open_world(tmp_path, vips=VIPS, katran=f'program = "{few_rings}"') as world:
        world.send(udp("198.18.30.1", "198.18.10.2"))
        assert open_files() > before
    assert open_files() == before


def test_reals_by_several_stations_are_refused(world: World) -> None:
    balancer = world.balancer
    first, *others = balancer.inventory.reals
    hops = {real: Hop(ip_address(f"198.18.2.{1 + (real != first)}")) for real in balancer.inventory.reals}
    macs = {hop: bytes([2, 0, 0x5E, 0, 2, number]) for number, hop in enumerate(dict.fromkeys(hops.values()))}
    device = DeviceFacts(Device("bench", 1), NO_MAC, hops=hops, macs=macs)
    sending = send_by(Sending(), Facts((device,), tuple(balancer.inventory.reals)))
    with pytest.raises(HostError, match=rf"but real {first} have another next hop: set katran_accel\.gateway_mac"):
        to_one_station(sending, require=True)
    assert any(str(first) in trouble for trouble in to_one_station(sending, require=False).troubles)
    assert others


REFUSED = [
    ("WIDE_REALS", "map reals: its value size is 32, published is 20"),
    ("LOOSE_RING", "map ch_rings: it has 1048593 entries, which are no whole rings of 65537"),
    ("SMALL_STATS", "map stats: it has 512 entries, published are 1024"),
    ("NO_RINGS", "has no map ch_rings"),
    ("WRONG_LRU", "map lru_mapping: of the maps in it its value size is 4, published is 16"),
    ("NO_PROGRAM", "has no XDP program balancer_ingress, and none that is the only one: it has none for XDP"),
    ("TWO_PROGRAMS", "and none that is the only one: it has one_program, another_program"),
    ("REFUSED", "invalid access to packet"),
]


@pytest.mark.parametrize(("choice", "reason"), REFUSED)
def test_an_object_that_cannot_be_used_is_refused_by_name(tmp_path: Path, choice: str, reason: str) -> None:
    made = compile_object(tmp_path, FEW_RINGS, choice)
    before = open_files()
    with (
        pytest.raises(HostError, match=f"katran_accel.program: .*{re.escape(str(made))}") as refused,
        open_world(tmp_path, vips=VIPS, katran=f'program = "{made}"'),
    ):
        pass
    assert reason in str(refused.value)
    refused.value.__traceback__ = None
    assert open_files() == before


def test_more_vips_than_the_object_has_rings_for(tmp_path: Path, few_rings: Path) -> None:
    vips = [vip_toml("198.18.20.11", address=f"198.18.10.{number + 1}") for number in range(17)]
    program = f'program = "{few_rings}"'
    with (
        pytest.raises(HostError, match="map ch_rings: it has 16 rings, and 17 are needed"),
        open_world(tmp_path, vips="".join(vips), katran=program),
    ):
        pass
    with open_world(tmp_path, vips="".join(vips[:16]), katran=program) as world:
        assert sent_to(world.send(tcp("198.18.30.1", "198.18.10.16"))) == "198.18.20.11"
        with pytest.raises(ConfigError, match=r"katran_accel\.vips: has 17 VIPs; 16 fit"):
            reconfigure(world, tmp_path, "".join(vips), program)


def test_prefixes_need_a_map_that_the_object_may_not_have(world: World, tmp_path: Path, few_rings: Path) -> None:
    vips = VIPS + vip_toml("198.18.20.11", address="198.18.12.0/24", port=0)
    with pytest.raises(ConfigError, match=r"katran_accel\.program: .* has no map vip_lpm_map, which 198\.18\.12"):
        reconfigure(world, tmp_path, vips, f'program = "{few_rings}"')
    with (
        pytest.raises(HostError, match=r"katran_accel\.program: .* has no map vip_lpm_map, which 198\.18\.12"),
        open_world(tmp_path, vips=vips, katran=f'program = "{few_rings}"'),
    ):
        pass
    assert sent_to(world.send(udp("198.18.30.1", "198.18.10.2"))) == "198.18.20.13"


def check(folder: Path, program: str, text: str = "") -> list[str]:
    """The problems that a TOML with this program has."""
    path = folder / "checked.toml"
    path.write_text(text or balancer_toml(folder, VIPS, "", katran=f'program = "{program}"'))
    try:
        load_config(path, PluginManager())
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_check_names_what_is_no_object(tmp_path: Path, few_rings: Path) -> None:
    (tmp_path / "text.o").write_text("no object")
    host = tmp_path / "host.o"
    host.write_bytes(Path("/bin/true").read_bytes())
    for program, reason in (
        (str(tmp_path / "none.o"), "which cannot be read: No such file or directory"),
        (str(tmp_path), "which is no file"),
        (str(tmp_path / "text.o"), "which is no ELF file"),
        (str(host), "which is an ELF file for another machine than BPF"),
        ("balancer.o", "should be the absolute path of a compiled object"),
    ):
        (problem,) = check(tmp_path, program)
        assert problem.startswith("katran_accel.program: is ")
        assert program in problem
        assert reason in problem
    assert check(tmp_path, str(few_rings)) == []


def test_one_interface_without_a_chain(tmp_path: Path, few_rings: Path) -> None:
    text = balancer_toml(tmp_path, VIPS, "", katran=f'program = "{few_rings}"')
    text = text.replace("plugins = [", 'plugins = ["flow_actions", ')
    text = text.replace('chain = ["katran_accel"]', 'chain = ["flow_actions", "katran_accel"]')
    text += '[flow_actions]\n[[interfaces]]\nname = "eth7"\nchain = ["flow_actions", "katran_accel"]\n'
    problems = "\n".join(check(tmp_path, "", text))
    assert "katran_accel.program: sends by one MAC address, that of one interface, but katran_accel is on" in problems
    assert "katran_accel.program: cannot be in a chain: leave flow_actions out of that of eth7" in problems


def test_a_daemon_with_a_nic_runs_it_without_marks(site: Site, tmp_path: Path) -> None:
    made = compile_object(tmp_path, FEW_RINGS, "SOURCES")
    katran = f'program = "{made}"\ndestination_mac = "any"\npin_dir = "{site.pins}"'
    config = site.config(katran=katran, vips=vip_toml(*REALS))
    assert "katran_accel.program" in succeed("doctor", str(config))
    with site.running(config) as daemon:
        log = site.daemons.logged()
        assert "katran_accel.program: knows no marks: [marking] and the rules of softnic on eth1 are not used" in log
        assert "katran_accel.destination_mac: is not used" in log
        answer = Ether(site.exchange(tcp("198.18.1.2", VIP, sport=40_000)))
        assert answer[IP].dst in REALS
        assert site.metric("nfcore_vip_packets_total") == 1
        assert site.metric("nfcore_marks_in_use") == 0
        assert site.flows() == []
        sources = ForeignMap.pinned(site.pins / "pckt_srcs")
        assert sources[0] == ip_address("198.18.2.2").packed.ljust(20, b"\0")
        sources.close()
        config.write_text(config.read_text().replace(vip_toml(*REALS), vip_toml("198.18.20.19")))
        succeed("reload", str(config))
        answer = Ether(site.exchange(tcp("198.18.1.2", VIP, sport=40_000)))
        assert answer[IP].dst == "198.18.20.19"
        assert daemon.poll() is None
    assert site.program() is None
    assert "removed pin" in succeed("cleanup", str(config))
    assert not site.pins.exists()


def test_what_an_object_cannot_is_not_blamed_on_the_vips(world: World) -> None:
    methods = world.context.services.methods
    with pytest.raises(HostError, match=r"the program reads no server ids: .*\.o has no map server_id_map"):
        asyncio.run(methods["katran_accel.server_ids.change"]({"add": [{"id": 9, "real": "198.18.20.11"}]}))
    with pytest.raises(HostError, match=r"the program reads no source routes: .*\.o has no map lpm_src_v4"):
        asyncio.run(
            methods["katran_accel.source_routes.change"]({"add": [{"prefix": "198.18.8.0/24", "real": "198.18.20.11"}]})
        )
    with pytest.raises(HostError, match=r"a compiled object \(katran_accel.program\) gives nfcore no samples"):
        methods["capture.start"]({})
