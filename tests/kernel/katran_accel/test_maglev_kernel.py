# SPDX-License-Identifier: Apache-2.0
"""Rings that the kernel fills are those that numpy fills, and upstream's."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import resource
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfcore.api.context import Context
from nfcore.api.marks import MarkAllocator, MarkMeaning
from nfcore.api.state_file import StateFile
from nfcore.config.loader import load_config
from nfcore.errors import NfcoreError
from nfcore.hooks.manager import PluginManager
from nfcore.kernel import CompileError, Map, MapFlags, compile_program
from nfcore.plugins.katran_accel.balancer import Balancer
from nfcore.plugins.katran_accel.config import NAME, KatranTable
from nfcore.plugins.katran_accel.hashing import RING_SIZE
from nfcore.plugins.katran_accel.layouts import MAX_REALS
from nfcore.plugins.katran_accel.maglev import Endpoint, WeightedReals, build_ring
from nfcore.plugins.katran_accel.maglev_kernel import REAL, WORK, KernelRings, RingBuilder
from nfcore.plugins.katran_accel.maps import BalancerMaps, Sizes, map_specs, remove_pins
from tests.paths import DATA

from .world import balancer_toml

RINGS = json.loads((DATA / "maglev_rings.json").read_text())["rings"]
U32_MAX = 0xFFFFFFFF

# One of the rare addresses whose skip is 65,536, so that offset + n × skip exceeds u32.
WRAPPING = IPv4Address("198.18.17.62")
WEIGHTS = st.one_of(st.integers(0, 3), st.integers(0, 100), st.integers(0, U32_MAX))
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@pytest.fixture(scope="module")
def rings() -> Iterator[KernelRings]:
    with KernelRings() as opened:
        yield opened


@st.composite
def some_reals(draw: st.DrawFn) -> list[Endpoint]:
    """Up to 40 reals, with and without weight."""
    chosen = draw(st.lists(ADDRESSES, max_size=40, unique=True))
    numbers = draw(st.permutations(range(1, len(chosen) + 1)))
    return [Endpoint(number, address, draw(WEIGHTS)) for number, address in zip(numbers, chosen, strict=True)]


def random_reals(count: int, largest: int) -> list[Endpoint]:
    chance = random.Random(count)
    hosts = chance.sample(range(int(IPv4Address("198.18.0.0")), int(IPv4Address("198.20.0.0"))), count)
    return [
        Endpoint(
            number,
            IPv6Address((0x20010DB8 << 96) + host) if chance.random() < 0.3 else IPv4Address(host),
            chance.randint(0, largest),
        )
        for number, host in enumerate(hosts, start=1)
    ]


@pytest.mark.parametrize("case", RINGS, ids=lambda case: f"{case['name']}, version {case['version']}")
def test_ring_is_upstreams(rings: KernelRings, case: dict[str, Any]) -> None:
    reals = [
        Endpoint(num, (IPv6Address if ":" in address else IPv4Address)(address), weight)
        for num, address, weight in case["endpoints"]
    ]
    ring = rings.build(reals, version=case["version"])
    assert ring.dtype == np.dtype("<u4")
    assert ring.shape == (RING_SIZE,)
    assert hashlib.sha256(ring.tobytes()).hexdigest() == case["sha256"]


@settings(deadline=None, max_examples=60)
@given(some_reals(), st.sampled_from([1, 2]))
def test_ring_is_numpys(rings: KernelRings, reals: list[Endpoint], version: int) -> None:
    assert (rings.build(reals, version=version) == build_ring(reals, version=version)).all()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("count", "largest"),
    [(1, 9), (2, 1), (2, 1000), (3, 9), (100, 100), (100, 65_535), (1000, 1), (4095, 100), (4095, U32_MAX)],
)
def test_ring_of_so_many_reals_is_numpys(rings: KernelRings, count: int, largest: int, version: int) -> None:
    reals = random_reals(count, largest)
    reals[0] = replace(reals[0], weight=largest)
    assert (rings.build(reals, version=version) == build_ring(reals, version=version)).all()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("light", [0, 1])
def test_one_real_outweighs_all_others(rings: KernelRings, light: int, version: int) -> None:
    reals = [replace(real, weight=light) for real in random_reals(100, 1)]
    reals[50] = replace(reals[50], weight=U32_MAX)
    ring = rings.build(reals, version=version)
    assert (ring == build_ring(reals, version=version)).all()
    assert np.count_nonzero(ring == reals[50].num) > RING_SIZE - 100


@pytest.mark.parametrize("version", [1, 2])
def test_a_walk_that_wraps_at_u32(rings: KernelRings, version: int) -> None:
    reals = [Endpoint(1, WRAPPING, 400), *(replace(real, num=real.num + 1) for real in random_reals(3, 9))]
    assert WeightedReals.of(reals, RING_SIZE).wraps(RING_SIZE)
    assert (rings.build(reals, version=version) == build_ring(reals, version=version)).all()


def test_more_reals_than_the_map_has_room_for(rings: KernelRings) -> None:
    reals = [replace(real, weight=1) for real in random_reals(MAX_REALS + 1, 1)]
    assert (rings.build(reals) == build_ring(reals)).all()


@pytest.mark.parametrize(
    ("reals", "version"),
    [
        ([Endpoint(1, IPv4Address("198.18.0.1"), 1)], 3),
        ([Endpoint(1, IPv4Address("198.18.0.1"), -1)], 2),
        ([Endpoint(1, IPv4Address("198.18.0.1"), 1), Endpoint(2, IPv4Address("198.18.0.1"), 1)], 2),
    ],
)
def test_the_same_is_refused(rings: KernelRings, reals: list[Endpoint], version: int) -> None:
    with pytest.raises(NfcoreError) as wanted:
        build_ring(reals, version=version)
    with pytest.raises(NfcoreError) as refused:
        rings.build(reals, version=version)
    assert str(refused.value) == str(wanted.value)


def check_layouts(folder: Path, structs: dict[str, np.dtype[Any]]) -> None:
    checks = "".join(
        f'_Static_assert(sizeof(struct {name}) == {dtype.itemsize}, "{name}");'
        + "".join(
            f'_Static_assert(__builtin_offsetof(struct {name}, {field}) == {offset}, "{name}.{field}");'
            for field, (_, offset, *_) in (dtype.fields or {}).items()
        )
        for name, dtype in structs.items()
    )
    source = folder / "layouts.c"
    source.write_text(
        '#include <linux/bpf.h>\n#include "balancer/maglev.h"\n'
        f"{checks}\nint check(struct xdp_md *ctx) {{ return 2; }}\n"
    )
    compile_program(source, "check", defines={}, maps={}).close()


def test_dtypes_equal_the_structs(tmp_path: Path) -> None:
    check_layouts(tmp_path, {"maglev": WORK, "maglev_real": REAL})
    with pytest.raises(CompileError, match="maglev_real"):
        check_layouts(tmp_path, {"maglev_real": np.dtype([("skip", "<u4"), ("position", "<u4"), ("rest", "<u8")])})


def test_without_the_kernel_numpy_builds(caplog: pytest.LogCaptureFixture) -> None:
    reals, desk = random_reals(100, 9), RingBuilder()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # No descriptor is left for a map.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with caplog.at_level(logging.DEBUG):
            desk.prepare(100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    desk.prepare(100)
    assert (desk.build(reals) == build_ring(reals)).all()
    desk.close()
    said = [record.getMessage() for record in caplog.records if "Maglev" in record.getMessage()]
    assert len(said) == 1
    assert "without the kernel: cannot create map maglev_work" in said[0]


def read(folder: Path, vips: list[list[Endpoint]], pin_dir: Path) -> tuple[Any, KatranTable]:
    text = balancer_toml(folder, "", 'strategy = "dest-id"', katran=f'pin_dir = "{pin_dir}"')
    for number, reals in enumerate(vips, start=1):
        listed = ", ".join(f'{{ address = "{real.address}", weight = {real.weight} }}' for real in reals)
        text += f'[[katran_accel.vips]]\naddress = "198.18.10.{number}"\nport = 80\nprotocol = "tcp"\n'
        text += f"reals = [{listed}]\n"
    (folder / "many.toml").write_text(text)
    config = load_config(folder / "many.toml", PluginManager())
    table = config.sections[NAME]
    assert isinstance(table, KatranTable)
    return config, table


def test_rings_in_the_balancers_map(tmp_path: Path) -> None:
    reals = [replace(real, address=IPv4Address(f"198.19.0.{real.num}")) for real in random_reals(100, 9)]
    config, table = read(tmp_path, [reals[:3], reals], Path("/unused"))
    balancer = Balancer(config, table, MarkMeaning.TARGET)
    try:
        balancer.open(Context(config, [], None, MarkAllocator(16, 0.0), tracing=True, state_file=StateFile(None)))
        held = balancer.maps["ch_rings"]
        for vips in ([reals[:3], reals], [reals[1:4], reals], [reals[1:4], reals[:70]]):
            balancer.reconfigure(*read(tmp_path, vips, Path("/unused")))
            for number, mine in enumerate(vips):
                numbered = [replace(real, num=balancer.inventory.reals[real.address]) for real in mine]
                assert (held.read_slice(number * RING_SIZE, RING_SIZE) == build_ring(numbered)).all()
        assert not held.read_slice(2 * RING_SIZE, RING_SIZE).any()
    finally:
        balancer.close()


def test_pinned_rings_of_a_version_that_did_not_map_them_are_made_anew() -> None:
    folder = Path("/sys/fs/bpf/nfcore-test-rings")
    sizes = Sizes(vips=2, lru_entries=128, mark_width=4, meaning=None, events="ringbuf")
    try:
        maps = BalancerMaps.open(sizes, [], folder)
        reals, rings = maps["reals"].id, maps["ch_rings"].id
        maps.close()
        maps = BalancerMaps.open(sizes, [], folder)
        assert (maps["reals"].id, maps["ch_rings"].id) == (reals, rings)
        maps.close()
        (folder / "ch_rings").unlink()
        with Map.create(replace(map_specs(sizes)["ch_rings"], flags=0)) as old:
            old.pin(folder / "ch_rings")
        maps = BalancerMaps.open(sizes, [], folder)
        assert maps["reals"].id == reals
        assert maps.rings == 16
        assert maps["ch_rings"].spec.flags == MapFlags.MMAPABLE
        written = {number: np.arange(RING_SIZE, dtype="<u4") + np.uint32(number) for number in (0, 1, 15)}
        for number, ring in written.items():
            maps.write_ring(number, ring)
        held = maps["ch_rings"].read_array().reshape(16, RING_SIZE)
        for number in range(16):
            assert (held[number] == written.get(number, 0)).all()
        maps.close()
    finally:
        list(remove_pins(folder))
