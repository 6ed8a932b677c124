# SPDX-License-Identifier: Apache-2.0
"""A compiled object that routes by more than rings: server ids, sources, reals that are down, ends of tunnels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from nfcore.config.loader import load_config
from nfcore.errors import ConfigError, HostError
from nfcore.hooks.manager import PluginManager
from nfcore.plugins.katran_accel import katran_object
from nfcore.plugins.katran_accel.config import KatranTable
from nfcore.plugins.katran_accel.metrics import BalancerMetrics

from .objects import FEW_RINGS, compile_object
from .world import CLIENT, NIC, World, balancer_toml, open_world, sent_to, tcp, udp

VIPS = """
[[katran_accel.vips]]
address = "198.18.10.1"
port = 443
protocol = "udp"
flags = ["quic"]
reals = [{ address = "198.18.20.11" }]
[[katran_accel.vips]]
address = "198.18.10.2"
port = 80
protocol = "tcp"
flags = ["src_routing"]
reals = [{ address = "198.18.20.12" }]
[[katran_accel.vips]]
address = "198.18.10.3"
port = 53
protocol = "udp"
flags = ["udp_flow_migration"]
reals = [{ address = "198.18.20.13" }, { address = "198.18.20.14" }]
"""
IDS = 'server_ids = [{ id = 1022, real = "198.18.20.21" }, { id = 1023, real = "198.18.20.22" }]'
SOURCES = 'source_routes = [{ prefix = "198.18.40.0/24", real = "198.18.20.31" }]'
DECAP = '[katran_accel.decap]\naddresses = [{ address = "198.18.50.1" }]'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_object(tmp_path_factory.mktemp("object"), FEW_RINGS, "ROUTING")


@pytest.fixture
def world(tmp_path: Path, made: Path) -> Iterator[World]:
    katran = f'program = "{made}"\n{IDS}\n{SOURCES}'
    with open_world(tmp_path, vips=VIPS + DECAP, katran=katran) as opened:
        yield opened


def quic(server: int, sport: int = 40_000) -> bytes:
    """A packet with a short header whose connection id, of version 1, names a server."""
    cid = bytes([0x40 | server >> 10, server >> 2 & 0xFF, server << 6 & 0xFF, 0, 0, 0, 0, 0])
    packet = IP(src="198.18.30.1", dst="198.18.10.1") / UDP(sport=sport, dport=443) / Raw(b"\x40" + cid + bytes(20))
    return bytes(Ether(src=CLIENT, dst=NIC) / packet)


def reload(world: World, folder: Path, vips: str, katran: str) -> None:
    path = folder / "changed.toml"
    path.write_text(balancer_toml(folder, vips, 'strategy = "dest-id"', katran=katran))
    config = load_config(path, PluginManager())
    table = config.sections["katran_accel"]
    assert isinstance(table, KatranTable)
    world.balancer.reconfigure(config, table)


def test_server_ids(world: World, tmp_path: Path, made: Path) -> None:
    follow_server_ids(world, tmp_path, made)


@pytest.mark.slow
def test_server_ids_in_a_map_of_somebody_else(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(katran_object, "IN_SHARED_MEMORY", ())
    katran = f'program = "{made}"\n{IDS}\n{SOURCES}'
    with open_world(tmp_path, vips=VIPS + DECAP, katran=katran) as world:
        assert world.balancer.maps["server_id_map"].spec.flags == 0
        follow_server_ids(world, tmp_path, made)


def follow_server_ids(world: World, tmp_path: Path, made: Path) -> None:
    assert [sent_to(world.send(quic(server))) for server in (1022, 1023)] == ["198.18.20.21", "198.18.20.22"]
    assert sent_to(world.send(quic(1021, sport=41_000))) == "198.18.20.11"
    other = 'server_ids = [{ id = 1023, real = "198.18.20.23" }, { id = 7, real = "198.18.20.22" }]'
    reload(world, tmp_path, VIPS + DECAP, f'program = "{made}"\n{other}\n{SOURCES}')
    sent = [sent_to(world.send(quic(server, 42_000 + server))) for server in (1022, 1023, 7)]
    assert sent == ["198.18.20.11", "198.18.20.23", "198.18.20.22"]
    elements = world.balancer.maps["server_id_map"].read_array()
    assert np.flatnonzero(elements).tolist() == [7, 1023]


def test_source_routes(world: World, tmp_path: Path, made: Path) -> None:
    assert sent_to(world.send(tcp("198.18.40.7", "198.18.10.2"))) == "198.18.20.31"
    assert sent_to(world.send(tcp("198.18.41.7", "198.18.10.2"))) == "198.18.20.12"
    other = 'source_routes = [{ prefix = "198.18.41.0/24", real = "198.18.20.32" }]'
    reload(world, tmp_path, VIPS + DECAP, f'program = "{made}"\n{IDS}\n{other}')
    assert sent_to(world.send(tcp("198.18.41.7", "198.18.10.2", 41_000))) == "198.18.20.32"
    assert sent_to(world.send(tcp("198.18.40.7", "198.18.10.2", 41_000))) == "198.18.20.12"


def test_udp_flows_leave_a_real_that_is_down(world: World, tmp_path: Path, made: Path) -> None:
    frames = [udp("198.18.30.1", "198.18.10.3", 40_000 + number) for number in range(30)]
    assert {sent_to(world.send(frame)) for frame in frames} == {"198.18.20.13", "198.18.20.14"}
    down = VIPS.replace('{ address = "198.18.20.13" }', '{ address = "198.18.20.13", down = true }')
    reload(world, tmp_path, down + DECAP, f'program = "{made}"\n{IDS}\n{SOURCES}')
    assert {sent_to(world.send(frame)) for frame in frames} == {"198.18.20.14"}


def test_tunnels_end_at_the_addresses_of_the_toml_alone(world: World) -> None:
    inner = tcp("198.18.41.7", "198.18.10.2")[14:]
    for address, verdict in (("198.18.50.1", "XDP_TX"), ("198.18.50.2", "XDP_PASS")):
        outside = IP(src="198.18.60.1", dst=address, proto=4) / Raw(inner)
        run = world.send(bytes(Ether(src=CLIENT, dst=NIC) / outside))
        assert run.verdict.name == verdict
    families = {family.name: family for family in BalancerMetrics(world.balancer).families()}
    (counted,) = families["nfcore_decap_addressed_total"].everything()
    assert counted.value == 1
    keys, flags = world.balancer.maps["decap_dst"].lookup_all()
    assert keys["addr"][:, :4].tolist() == [[198, 18, 50, 1]]
    assert flags.tolist() == [0]


@pytest.mark.parametrize(
    ("katran", "tail", "reason"),
    [
        (IDS, "", "has no map server_id_map, which katran_accel.server_ids needs"),
        (SOURCES, "", "has no map lpm_src_v4, which katran_accel.source_routes needs"),
        ('source_v4 = "198.18.2.2"', "", "has no map pckt_srcs, which katran_accel.source_v4 or source_v6 needs"),
        ("", DECAP, "has no map decap_dst, which katran_accel.decap.addresses needs"),
    ],
)
def test_what_an_object_has_no_map_for_is_refused(tmp_path: Path, katran: str, tail: str, reason: str) -> None:
    plain = compile_object(tmp_path, FEW_RINGS)
    program = f'program = "{plain}"'
    with (
        pytest.raises(HostError, match=f"katran_accel.program: .*{reason}"),
        open_world(tmp_path, vips=VIPS + tail, katran=f"{program}\n{katran}"),
    ):
        pass
    with open_world(tmp_path, vips=VIPS, katran=program) as world:
        with pytest.raises(ConfigError, match=f"katran_accel.program: .*{reason}"):
            reload(world, tmp_path, VIPS + tail, f"{program}\n{katran}")
        assert sent_to(world.send(tcp("198.18.41.7", "198.18.10.2"))) == "198.18.20.12"
