# SPDX-License-Identifier: Apache-2.0
"""A compiled object on pinned maps: its own of an earlier run, and those of a Katran server that runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest

from nfcore.api.context import Context
from nfcore.api.marks import MarkAllocator
from nfcore.api.rules import Device
from nfcore.api.state_file import StateFile
from nfcore.config.loader import load_config
from nfcore.errors import HostError
from nfcore.hooks.manager import PluginManager
from nfcore.kernel import Map, MapSpec, MapType, ObjectFile, Program, ensure_bpffs, remove_bpffs
from nfcore.plugins.katran_accel import layouts as lay
from nfcore.plugins.katran_accel.balancer import Balancer
from nfcore.plugins.katran_accel.config import NAME, KatranTable
from nfcore.plugins.katran_accel.maps import Sizes, map_specs, remove_pins
from tests.isolation import on_one_cpu

from .objects import FEW_RINGS, compile_object
from .world import GATEWAY, balancer_toml, sent_to, tcp

VIPS = """
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.11" }, { address = "198.18.20.12" }]
"""
REALS = ("198.18.20.11", "198.18.20.12")
FLOWS = [tcp("198.18.30.1", "198.18.10.1", 40_000 + number) for number in range(30)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_object(tmp_path_factory.mktemp("object"), FEW_RINGS)


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    """A folder for pins, which is removed with all that is pinned there."""
    folder = tmp_path / "pins"
    yield folder
    list(remove_pins(folder))
    for pin in folder.iterdir() if folder.exists() else ():
        if "." not in pin.name:
            pin.unlink()
    remove_bpffs(folder)
    assert not folder.exists()


@contextmanager
def opened(folder: Path, program: Path | None, vips: str = VIPS, lru_size: int = 4096) -> Iterator[Balancer]:
    """Run a balancer with pins in `folder`/pins, attached to nothing."""
    katran = f'pin_dir = "{folder / "pins"}"' + (f'\nprogram = "{program}"' if program else "")
    path = folder / "nf.toml"
    path.write_text(balancer_toml(folder, vips, "", katran=katran, lru_size=lru_size))
    config = load_config(path, PluginManager())
    table = config.sections[NAME]
    assert isinstance(table, KatranTable)
    balancer = Balancer(config, table, None)
    context = Context(config, [], None, MarkAllocator(16, 0.0), state_file=StateFile(folder / "notes.state"))
    with closing(balancer), context.locks:
        balancer.open(context)
        balancer.attached(Device("none", 1))
        yield balancer


@dataclass
class Server:
    """What a Katran server has in the kernel: the program, and its maps by their names."""

    program: Program
    maps: dict[str, Map]
    tables: dict[int, Map]


@contextmanager
def katran_server(made: Path, folder: Path, cpu: int) -> Iterator[Server]:
    """Load the object as a server does: VIP number 7, reals 30 and 31 in turn; and another VIP. All is pinned."""
    ensure_bpffs(folder)
    specs = map_specs(Sizes(1, 4096, 16, None, "ringbuf"))
    with ExitStack() as stack, ObjectFile.open(made) as loaded:
        loaded.load("balancer_ingress")
        server = Server(stack.enter_context(loaded.take_program("balancer_ingress")), {}, {})
        for name, found in loaded.maps.items():
            spec = specs.get(name, found)
            entries = MapSpec(name, spec.type, spec.key, spec.value, found.max_entries, found.flags, spec.inner)
            server.maps[name] = stack.enter_context(loaded.take_map(name, entries))
            server.maps[name].pin(folder / name)
        inner = specs["lru_mapping"].inner
        assert inner is not None
        server.tables[cpu] = stack.enter_context(Map.create(inner))
        server.maps["lru_mapping"].update(cpu, server.tables[cpu])
        fill(server)
        yield server


def fill(server: Server) -> None:
    """Write what this server's clients have ordered."""
    keys, metas = np.zeros(2, lay.VIP_DEFINITION), np.zeros(2, lay.VIP_META)
    for key, meta, (address, number) in zip(keys, metas, (("198.18.10.1", 7), ("198.18.10.8", 3)), strict=True):
        key["addr"][:4], key["port"], key["proto"] = list(ip_address(address).packed), 80, 6
        meta["vip_num"] = number
    server.maps["vip_map"].update_batch(keys, metas)
    for number, address in ((30, REALS[0]), (31, REALS[1]), (29, "198.18.20.99")):
        real = np.zeros((), lay.REAL_DEFINITION)
        real["addr"][:4] = list(ip_address(address).packed)
        server.maps["reals"].update(number, real)
    ring = 30 + np.arange(lay.RING_SLOTS, dtype=np.uint32) % 2
    server.maps["ch_rings"].write_array(7 * lay.RING_SLOTS, ring)
    server.maps["ch_rings"].write_array(3 * lay.RING_SLOTS, np.full(lay.RING_SLOTS, 29, np.uint32))
    mac = np.zeros((), lay.CTL_VALUE)
    mac["mac"] = list(bytes.fromhex(GATEWAY.replace(":", "")))
    server.maps["ctl_array"].update(0, mac)


def frames_seen(server: Server) -> int:
    """How many frames have been counted in the map that nfcore does not know."""
    return int.from_bytes(server.maps["frames_seen"].read_array()[0].tobytes(), "little")


def test_the_next_run_goes_on_with_the_same_maps(tmp_path: Path, pins: Path, made: Path) -> None:
    with on_one_cpu():
        with opened(tmp_path, made) as first:
            before = [sent_to(first.program.test_run(frame)) for frame in FLOWS]
            ids = {name: each.id for name, each in first.maps.maps.items()}
            assert set(before) == set(REALS)
        assert {pin.name for pin in pins.iterdir()} >= {"vip_map", "ch_rings", "balancer_ingress", "subprograms"}
        # Only the connections know the first real now.
        alone = VIPS.replace('{ address = "198.18.20.11" }', '{ address = "198.18.20.11", weight = 0 }')
        with opened(tmp_path, made, alone) as second:
            assert {name: each.id for name, each in second.maps.maps.items()} == ids
            assert [sent_to(second.program.test_run(frame)) for frame in FLOWS] == before


def test_pins_of_an_object_are_removed(tmp_path: Path, pins: Path, made: Path) -> None:
    with opened(tmp_path, made):
        assert pins.is_mount()
    assert list(remove_pins(pins))
    assert not pins.exists()


def test_maps_of_a_running_server_are_adopted(tmp_path: Path, pins: Path, made: Path) -> None:
    with on_one_cpu() as cpu, katran_server(made, pins, cpu) as server:
        before = [sent_to(server.program.test_run(frame)) for frame in FLOWS]
        assert set(before) == set(REALS)
        other = tcp("198.18.30.1", "198.18.10.8")
        assert sent_to(server.program.test_run(other)) == "198.18.20.99"
        with opened(tmp_path, made) as balancer:
            assert balancer.maps["reals"].id == server.maps["reals"].id
            assert balancer.maps["ch_rings"].spec.flags == 0
            assert balancer.maps.lrus[cpu].id == server.tables[cpu].id
            assert list(balancer.inventory.vips) == [7]
            assert {str(real): number for real, number in balancer.inventory.reals.items()} == {
                REALS[0]: 30,
                REALS[1]: 31,
            }
            # Connections keep their reals by either program: the maps are the same, also one unknown to nfcore.
            frames = frames_seen(server)
            for program in (server.program, balancer.program):
                assert [sent_to(program.test_run(frame)) for frame in FLOWS] == before
            assert frames_seen(server) == frames + 2 * len(FLOWS)
            # What the TOML does not have is gone, with its connections, and its number is not given to others at once.
            assert server.program.test_run(other).verdict.name == "XDP_PASS"
            assert 29 not in server.tables[cpu].lookup_all()[1]["pos"]
            assert balancer.numbering.vips.resting == [3]
            assert balancer.numbering.reals.resting == [29]


def test_nfcores_own_program_takes_over_from_a_server(tmp_path: Path, pins: Path, made: Path) -> None:
    with on_one_cpu() as cpu, katran_server(made, pins, cpu) as server:
        before = [sent_to(server.program.test_run(frame)) for frame in FLOWS]
        with opened(tmp_path, None) as balancer:
            assert list(balancer.inventory.vips) == [7]
            assert balancer.maps.lrus[cpu].id == server.tables[cpu].id
            # Also the server's program, by its own rings: packets reach it until nfcore's is attached.
            for program in (server.program, balancer.program):
                assert [sent_to(program.test_run(frame)) for frame in FLOWS] == before
            new = tcp("198.18.30.2", "198.18.10.1")
            assert sent_to(server.program.test_run(new)) in REALS
        alone = VIPS.replace('{ address = "198.18.20.11" }', '{ address = "198.18.20.11", weight = 0 }')
        with opened(tmp_path, None, alone) as balancer:
            assert list(balancer.inventory.vips) == [7]
            assert [sent_to(balancer.program.test_run(frame)) for frame in FLOWS] == before


def test_a_server_goes_on_when_its_maps_are_refused(tmp_path: Path, pins: Path, made: Path) -> None:
    with on_one_cpu() as cpu, katran_server(made, pins, cpu) as server:
        before = [sent_to(server.program.test_run(frame)) for frame in FLOWS]
        names = {pin.name for pin in pins.iterdir()}
        for program in (made, None):
            with (
                pytest.raises(HostError, match=rf"does not fit the map lru_{cpu}: max_entries is 4096, expected 1024"),
                opened(tmp_path, program, lru_size=1024),
            ):
                pass
            assert {pin.name for pin in pins.iterdir()} == names
            assert [sent_to(server.program.test_run(frame)) for frame in FLOWS] == before
            assert server.tables[cpu].id == server.maps["lru_mapping"].lookup(cpu)
        with opened(tmp_path, None) as balancer:
            assert [sent_to(balancer.program.test_run(frame)) for frame in FLOWS] == before


def test_new_flows_go_by_the_toml_once_maps_are_adopted(tmp_path: Path, pins: Path, made: Path) -> None:
    with on_one_cpu() as cpu, katran_server(made, pins, cpu) as server:
        known = sent_to(server.program.test_run(FLOWS[0]))
        alone = VIPS.replace('{ address = "198.18.20.11" }', '{ address = "198.18.20.77" }')
        with opened(tmp_path, made, alone) as balancer:
            assert balancer.inventory.reals[ip_address("198.18.20.12")] == 31
            assert balancer.inventory.reals[ip_address("198.18.20.77")] not in (29, 30, 31)
            to = {sent_to(server.program.test_run(frame)) for frame in FLOWS}
            assert to == {"198.18.20.12", "198.18.20.77"}
            if known == REALS[1]:
                assert sent_to(balancer.program.test_run(FLOWS[0])) == REALS[1]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("reals", {"value": np.dtype("V24")}, "value size is 24, expected 20"),
        ("stats", {"max_entries": 512}, "max_entries is 512, expected 1024"),
        ("fallback_cache", {"type": MapType.HASH}, "type is HASH, expected LRU_HASH"),
        ("frames_seen", {"max_entries": 2}, "max_entries is 2, expected 1"),
    ],
)
def test_pins_of_another_shape_are_refused_by_name(
    tmp_path: Path, pins: Path, made: Path, name: str, change: dict[str, object], reason: str
) -> None:
    with ObjectFile.open(made) as file:
        spec = file.maps[name]
    fields = {"type": spec.type, "key": spec.key, "value": spec.value, "max_entries": spec.max_entries, **change}
    ensure_bpffs(pins)
    with Map.create(MapSpec(name, **fields)) as wrong:  # type: ignore[arg-type]
        wrong.pin(pins / name)
        with pytest.raises(HostError) as refused, opened(tmp_path, made):
            pass
    for part in ("katran_accel.program", f"{pins / name} does not fit the map {name}: {reason}"):
        assert part in str(refused.value)
    assert {pin.name for pin in pins.iterdir() if "." not in pin.name} == {name}


def test_pins_of_nfcores_own_program_are_taken_over_or_refused_by_name(tmp_path: Path, pins: Path, made: Path) -> None:
    with on_one_cpu():
        with opened(tmp_path, None) as own:
            before = [sent_to(own.program.test_run(frame)) for frame in FLOWS]
        alone = VIPS.replace('{ address = "198.18.20.11" }', '{ address = "198.18.20.11", weight = 0 }')
        # The object goes on where nfcore's program was, and the other way round.
        for program in (made, None):
            with opened(tmp_path, program, alone) as balancer:
                assert [sent_to(balancer.program.test_run(frame)) for frame in FLOWS] == before
    (pins / "ch_rings").unlink()
    with (
        Map.create(MapSpec("ch_rings", MapType.ARRAY, "u4", "u4", lay.RING_SLOTS)) as small,  # type: ignore[arg-type]
        pytest.raises(HostError, match=r"ch_rings: max_entries is 65537, expected 1048592.* run nfcore cleanup"),
    ):
        small.pin(pins / "ch_rings")
        with opened(tmp_path, made):
            pass
