# SPDX-License-Identifier: Apache-2.0
"""Tools of others find their way in the pinned maps: names, types, sizes and contents are as published."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from nfcore.api.context import Context
from nfcore.api.marks import MarkAllocator, MarkMeaning
from nfcore.api.state_file import StateFile
from nfcore.config.loader import load_config
from nfcore.hooks.manager import PluginManager
from nfcore.plugins.katran_accel.balancer import Balancer
from nfcore.plugins.katran_accel.config import NAME, KatranTable
from tests.isolation import on_one_cpu
from tests.katran_model.maglev import build_ring

from .foreign_reader import (
    ARRAY,
    ARRAY_OF_MAPS,
    HASH,
    LPM_TRIE,
    LRU_HASH,
    PERCPU_ARRAY,
    PERF_EVENT_ARRAY,
    ForeignMap,
)
from .world import GATEWAY, balancer_toml, sent_to, tcp, udp

RING_SLOTS = 65_537
PUBLISHED = {
    "vip_map": (HASH, 20, 8, 512),
    "vip_lpm_map": (LPM_TRIE, 24, 8, 256),
    "reals": (ARRAY, 4, 20, 4096),
    "lru_mapping": (ARRAY_OF_MAPS, 4, 4, 128),
    "fallback_cache": (LRU_HASH, 40, 16, 1000),
    "stats": (PERCPU_ARRAY, 4, 16, 1024),
    "reals_stats": (PERCPU_ARRAY, 4, 16, 4096),
    "ctl_array": (ARRAY, 4, 8, 16),
    "event_pipe": (PERF_EVENT_ARRAY, 4, 4, 128),
}
"""Map → type, sizes of key and value, entries. `ch_rings` has rings for the VIPs that exist, and some to spare."""
FLAGS = (1 << 10) - 1
"""Published flags of VIPs. Bits above them are nfcore's own."""
VIPS = """
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.11" }, { address = "198.18.20.12", weight = 3 }]
[[katran_accel.vips]]
address = "2001:db8:10::1"
port = 53
protocol = "udp"
flags = ["hash_no_src_port"]
reals = [{ address = "2001:db8:20::11" }, { address = "2001:db8:20::12" }]
[[katran_accel.vips]]
address = "2001:db8:30::/48"
port = 0
protocol = "tcp"
reals = [{ address = "2001:db8:20::11" }]
"""
REALS = ["198.18.20.11", "198.18.20.12", "2001:db8:20::11", "2001:db8:20::12"]


@dataclass
class Pinned:
    """A balancer with pins."""

    balancer: Balancer
    folder: Path
    cpu: int
    open: ExitStack

    def __getitem__(self, name: str) -> ForeignMap:
        found = ForeignMap.pinned(self.folder / name)
        self.open.callback(found.close)
        return found


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pinned]:
    folder = tmp_path_factory.mktemp("pinned")
    katran = f'pin_dir = "{folder / "pins"}"\nmaglev = 2\nintrospection = true'
    text = balancer_toml(folder, VIPS, 'strategy = "dest-id"', katran=katran)
    (folder / "nf.toml").write_text(text)
    config = load_config(folder / "nf.toml", PluginManager())
    table = config.sections[NAME]
    assert isinstance(table, KatranTable)
    balancer = Balancer(config, table, MarkMeaning.TARGET)
    context = Context(config, [], None, MarkAllocator(16, 0.0), state_file=StateFile(folder / "notes.state"))
    with on_one_cpu() as cpu, closing(balancer), context.locks, ExitStack() as opened:
        balancer.open(context)
        yield Pinned(balancer, folder / "pins", cpu, opened)


def packed(address: str) -> bytes:
    return ip_address(address).packed.ljust(16, b"\0")


@pytest.mark.parametrize("name", PUBLISHED)
def test_types_and_sizes(pinned: Pinned, name: str) -> None:
    found = pinned[name]
    assert (found.kind, found.key_size, found.value_size, found.entries) == PUBLISHED[name]


def test_vips(pinned: Pinned) -> None:
    exact, prefixes = pinned["vip_map"], pinned["vip_lpm_map"]
    found = {}
    for key in exact:
        address, port, protocol, _ = struct.unpack(">16sHBB", key)
        flags, number = struct.unpack("=II", exact[key])
        found[address, port, protocol] = flags & FLAGS, number
    assert found == {(packed("198.18.10.1"), 80, 6): (0, 0), (packed("2001:db8:10::1"), 53, 17): (1, 1)}
    (key,) = prefixes
    bits, port, protocol, address = struct.unpack("=I", key[:4]) + struct.unpack(">HBx16s", key[4:])
    assert (bits, port, protocol, address) == (32 + 48, 0, 6, packed("2001:db8:30::"))
    assert struct.unpack("=II", prefixes[key])[1] == 2


def test_reals_rings_and_gateway(pinned: Pinned) -> None:
    reals, rings = pinned["reals"], pinned["ch_rings"]
    for number, address in enumerate(REALS, 1):
        assert struct.unpack("=16sB3x", reals[number]) == (packed(address), int(":" in address))
    wanted = build_ring({1: (REALS[0], 1), 2: (REALS[1], 3)}, version=2)
    slots = range(0, RING_SLOTS, 97)
    assert [int.from_bytes(rings[slot], "little") for slot in slots] == [wanted[slot] for slot in slots]
    assert int.from_bytes(rings[2 * RING_SLOTS + 5], "little") == 3
    assert (rings.kind, rings.key_size, rings.value_size, rings.entries % RING_SLOTS) == (ARRAY, 4, 4, 0)
    assert pinned["ctl_array"][0][:6] == bytes.fromhex(GATEWAY.replace(":", ""))
    assert int.from_bytes(pinned["ctl_array"][5], "little") == 1


def test_connections_and_counters(pinned: Pinned) -> None:
    stats, real_stats = pinned["stats"], pinned["reals_stats"]
    before = [stats.sums(slot) for slot in (0, 1, 512, 528)]
    frames = [tcp("198.18.1.2", "198.18.10.1", sport=40_000), udp("2001:db8:1::2", "2001:db8:10::1", sport=40_001)]
    numbers = []
    for frame in [*frames, *frames]:
        numbers.append(1 + REALS.index(sent_to(pinned.balancer.program.test_run(frame))))
    lru = pinned["lru_mapping"].inner(pinned.cpu)
    assert (lru.kind, lru.key_size, lru.value_size) == (LRU_HASH, 40, 16)
    found = {}
    for key in lru:
        src, dst, sport, dport, protocol = struct.unpack(">16s16sHHB3x", key)
        found[src, dst, sport, dport, protocol] = int.from_bytes(lru[key][:4], "little")
    lru.close()
    assert found == {
        (packed("198.18.1.2"), packed("198.18.10.1"), 40_000, 80, 6): numbers[0],
        (packed("2001:db8:1::2"), packed("2001:db8:10::1"), 40_001, 53, 17): numbers[1],
    }
    gained = [
        [now - then for now, then in zip(stats.sums(slot), old, strict=True)]
        for slot, old in zip((0, 1, 512, 528), before, strict=True)
    ]
    # IPv4: the whole packet; IPv6: its payload.
    sizes = len(frames[0]) - 14, len(frames[1]) - 54
    assert gained == [[2, 2 * sizes[0]], [2, 2 * sizes[1]], [4, 2], [4, 2 * sum(map(len, frames))]]
    assert [real_stats.sums(number) for number in numbers[:2]] == [[2, 2 * sizes[0]], [2, 2 * sizes[1]]]
