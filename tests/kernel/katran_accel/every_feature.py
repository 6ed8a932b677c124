# SPDX-License-Identifier: Apache-2.0
"""A TOML that asks for every feature of Katran's, and a world with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .world import World, open_world

KEYS = """
encapsulation = "gue"
source_v4 = "198.18.30.1"
source_v6 = "2001:db8:30::1"
too_big = "answer"
fragments = "hash-addresses"
tcp_server_ids = true
server_id_map = "hash"
"""
TCP_VIP, QUIC_VIP, STABLE_VIP = "198.18.10.1:80/tcp", "198.18.10.2:443/udp", "198.18.10.3:53/udp"
TABLES = """
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
flags = ["src_routing", "local", "global_lru"]
reals = [{ address = "198.18.20.11", local = true }, { address = "198.18.20.12" }]
[[katran_accel.vips]]
address = "198.18.10.2"
port = 443
protocol = "udp"
flags = ["quic"]
reals = [{ address = "198.18.20.11", local = true }, { address = "198.18.20.12" }]
[[katran_accel.vips]]
address = "198.18.10.3"
port = 53
protocol = "udp"
flags = ["udp_stable_routing", "udp_flow_migration", "hash_no_src_port"]
reals = [{ address = "198.18.20.11", local = true, down = true }, { address = "198.18.20.12" }]
[katran_accel.decap]
ipip = true
gue = true
strict = true
addresses = [{ address = "198.18.30.1" }, { address = "2001:db8:30::1", egress = true }]
[[katran_accel.server_ids]]
id = 7
real = "198.18.20.11"
[[katran_accel.source_routes]]
prefix = "198.18.99.0/24"
real = "198.18.20.12"
"""


@contextmanager
def open_full_world(folder: Path) -> Iterator[World]:
    """Open a world with every feature; no flow is reported."""
    with open_world(folder, vips=TABLES, katran=KEYS, offload="min_packets = 32767") as world:
        yield world
