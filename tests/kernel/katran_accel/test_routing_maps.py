# SPDX-License-Identifier: Apache-2.0
"""Server ids, source routes, down reals and tunnels' ends in pinned maps, read by the published layouts alone."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

import numpy as np
import pytest

from nfcore.api.config import Config
from nfcore.api.context import Context
from nfcore.api.marks import MarkAllocator
from nfcore.api.state_file import StateFile
from nfcore.api.steps import run_steps
from nfcore.config.loader import load_config
from nfcore.errors import HostError
from nfcore.hooks.manager import PluginManager
from nfcore.plugins.katran_accel import layouts as lay
from nfcore.plugins.katran_accel.balancer import Balancer
from nfcore.plugins.katran_accel.config import NAME, KatranTable
from nfcore.plugins.katran_accel.entries import Entries
from nfcore.plugins.katran_accel.routing import Routing

from .foreign_reader import ARRAY, HASH, LPM_TRIE
from .pinned_routing import PinnedRouting, open_routing
from .world import balancer_toml

HASH_OF_MAPS = 13
A, B, C, SIX = "198.18.20.11", "198.18.20.12", "198.18.20.13", "2001:db8:20::11"
VIP = """
[[katran_accel.vips]]
address = "198.18.10.1"
port = 443
protocol = "udp"
flags = ["quic", "src_routing", "udp_flow_migration"]
reals = [{ address = "198.18.20.11" }, { address = "198.18.20.12"DOWN }]
"""
IDS = f'server_ids = [{{ id = 7, real = "{A}" }}, {{ id = 9, real = "{C}" }}]\n'
ROUTES = f"""
source_routes = [{{ prefix = "198.18.7.0/24", real = "{C}" }}, {{ prefix = "2001:db8::/32", real = "{SIX}" }}]
"""


@dataclass
class Pinned:
    """A balancer with pins."""

    balancer: Balancer
    folder: Path
    found: PinnedRouting

    def reload(self, katran: str, down: bool = False) -> None:
        config, table = read(self.folder, katran, down)
        self.balancer.reconfigure(config, table)

    def change(self, change: Callable[[Routing], Routing]) -> None:
        """Let other entries be in effect."""
        run_steps(self.balancer.change_routing(change))


def read(folder: Path, katran: str, down: bool) -> tuple[Config, KatranTable]:
    vip = VIP.replace("DOWN", ", down = true" * down)
    pins = f'pin_dir = "{folder / "pins"}"\n'
    (folder / "nf.toml").write_text(balancer_toml(folder, vip, "", "", pins + katran))
    config = load_config(folder / "nf.toml", PluginManager())
    table = config.sections[NAME]
    assert isinstance(table, KatranTable)
    return config, table


@contextmanager
def pinned(folder: Path, katran: str, down: bool = False) -> Iterator[Pinned]:
    config, table = read(folder, katran, down)
    balancer = Balancer(config, table, None)
    context = Context(config, [], None, MarkAllocator(16, 0.0), state_file=StateFile(folder / "notes.state"))
    with closing(balancer), context.locks, ExitStack() as opened:
        balancer.open(context)
        yield Pinned(balancer, folder, opened.enter_context(open_routing(folder / "pins")))


def ids_of(pairs: dict[int, str]) -> Entries:
    return Entries.of_server_ids((number, ip_address(real)) for number, real in pairs.items())


def test_types_and_sizes_as_published(tmp_path: Path) -> None:
    katran = 'encapsulation = "gue"\nsource_v4 = "198.18.2.2"\nsource_v6 = "2001:db8:2::2"\n'
    ends = '{ address = "198.18.2.3" }, { address = "2001:db8:2::3", egress = true }'
    katran += f"decap = {{ gue = true, addresses = [{ends}] }}\n"
    with pinned(tmp_path, katran) as maps:
        for name, wanted in {
            "server_id_map": (ARRAY, 4, 4, 16_777_214),
            "lpm_src_v4": (LPM_TRIE, 8, 4, 3_000_000),
            "lpm_src_v6": (LPM_TRIE, 20, 4, 3_000_000),
            "vip_to_down_reals_map": (HASH_OF_MAPS, 20, 4, 512),
            "decap_dst": (HASH, 16, 4, 512),
            "pckt_srcs": (ARRAY, 4, 20, 2),
        }.items():
            found = maps.found[name]
            assert (found.kind, found.key_size, found.value_size, found.entries) == wanted, name
        sources = [struct.unpack("=16sB3x", maps.found["pckt_srcs"][number]) for number in (0, 1)]
        assert sources[0] == (ip_address("198.18.2.2").packed.ljust(16, b"\0"), 0)
        assert sources[1] == (ip_address("2001:db8:2::2").packed, 1)
        flags = {key: int.from_bytes(maps.found["decap_dst"][key], "little") & 0xFF for key in maps.found["decap_dst"]}
        assert flags == {
            ip_address("198.18.2.3").packed.ljust(16, b"\0"): 0,
            ip_address("2001:db8:2::3").packed: 2,
        }


@pytest.mark.parametrize("kind", ["array", "hash"])
def test_ids_and_routes_follow_a_reload(tmp_path: Path, kind: str) -> None:
    katran = f'server_id_map = "{kind}"\n'
    with pinned(tmp_path, katran + IDS + ROUTES) as maps:
        assert maps.found.server_ids(7, 9) == {7: A, 9: C}
        assert maps.found.routes() == {"198.18.7.0/24": C, "2001:db8::/32": SIX}
        files = f'server_ids_file = "{tmp_path}/ids"\nsource_routes_file = "{tmp_path}/routes"\n'
        (tmp_path / "ids").write_text(f"9,{B}\n8,{A}\n")
        (tmp_path / "routes").write_text(f"198.18.7.0/25,{A}\n2001:db8::/32,{B}\n")
        with pytest.raises(Exception, match="cannot lead to"):
            maps.reload(katran + files)
        (tmp_path / "routes").write_text(f"198.18.7.0/25,{A}\n2001:db8::/32,{SIX}\n")
        maps.reload(katran + files)
        assert maps.found.server_ids(8, 9) == {8: A, 9: B}
        assert maps.found.routes() == {"198.18.7.0/25": A, "2001:db8::/32": SIX}
        (tmp_path / "ids").write_text("")
        (tmp_path / "routes").write_text("# none")
        maps.reload(katran + files)
        assert maps.found.routes() == {}
        assert not any(maps.found.server_ids(7, 8, 9).values())


@pytest.mark.parametrize("kind", ["array", "hash"])
def test_a_start_removes_what_an_earlier_run_has_left(tmp_path: Path, kind: str) -> None:
    katran = f'server_id_map = "{kind}"\n'
    with pinned(tmp_path, katran + IDS + ROUTES):
        pass
    with pinned(tmp_path, katran + f'server_ids = [{{ id = 8, real = "{B}" }}]\n') as maps:
        assert maps.found.routes() == {}
        assert maps.found.server_ids(7, 8, 9) == ({8: B} if kind == "hash" else {7: "", 8: B, 9: ""})


@pytest.mark.parametrize("kind", ["array", "hash"])
def test_an_invalid_id_leads_nowhere_and_its_real_keeps_its_number(tmp_path: Path, kind: str) -> None:
    katran = f'server_id_map = "{kind}"\n' + IDS
    with pinned(tmp_path, katran) as maps:
        number = maps.balancer.inventory.reals[ip_address(C)]
        maps.change(lambda routing: routing.with_invalid(np.array([9], np.uint32)))
        assert maps.found.server_ids(7, 9) == {7: A, 9: ""}
        assert maps.found.real_of(number) == C
        # A reload knows nothing of why.
        maps.reload(katran + ROUTES)
        assert maps.found.server_ids(7, 9) == {7: A, 9: ""}
        maps.change(lambda routing: routing.with_invalid(np.array([], np.uint32)))
        assert maps.found.server_ids(7, 9) == {7: A, 9: C}
        assert maps.balancer.inventory.reals[ip_address(C)] == number


def test_ids_at_run_time_may_name_new_reals(tmp_path: Path) -> None:
    new = "198.18.20.99"

    def with_new(routing: Routing) -> Routing:
        more = ids_of({8: new})
        return Routing(routing.server_ids.joined(more), routing.source_routes, np.zeros(3, dtype=bool))

    with pinned(tmp_path, IDS + ROUTES) as maps:
        maps.change(with_new)
        assert maps.found.server_ids(7, 8, 9) == {7: A, 8: new, 9: C}
        number = maps.balancer.inventory.reals[ip_address(new)]
        maps.reload(IDS)
        assert maps.found.server_ids(7, 8, 9) == {7: A, 8: "", 9: C}
        # Nothing is sent to it any more, and its number rests.
        assert maps.found["reals"][number][16] & 0x80
        assert number in maps.balancer.numbering.reals.resting


def test_routes_change_at_run_time(tmp_path: Path) -> None:
    def other(routing: Routing) -> Routing:
        routes = Entries.of_routes(
            (ip_network(prefix), ip_address(real)) for prefix, real in {"198.18.7.0/24": A, "198.18.8.0/24": C}.items()
        )
        return Routing(routing.server_ids, routes.joined(routing.source_routes), routing.invalid)

    with pinned(tmp_path, ROUTES) as maps:
        maps.change(other)
        assert maps.found.routes() == {"198.18.7.0/24": A, "198.18.8.0/24": C, "2001:db8::/32": SIX}


def test_what_the_kernel_refuses_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lay, "MAX_SERVER_IDS", 3)
    with pinned(tmp_path, 'server_id_map = "hash"\n' + IDS) as maps:
        # With the same reals, and without C.
        for real in (C, A):
            more = ids_of({5: A, 6: A, 8: A, 9: real})
            with pytest.raises(HostError, match="cannot set key 6 of map server_id_map"):
                maps.change(lambda routing, more=more: Routing(more, routing.source_routes, np.zeros(4, bool)))  # type: ignore[misc]
            assert maps.found.server_ids() == {7: A, 9: C}
            assert maps.balancer.inventory.routing.server_ids == ids_of({7: A, 9: C})


def test_reals_that_are_down(tmp_path: Path) -> None:
    with pinned(tmp_path, "") as maps:
        assert maps.found.down() == {}
        maps.reload("", down=True)
        assert maps.found.down() == {("198.18.10.1", 443, 17): {B}}
        maps.reload("")
        assert maps.found.down() == {}


@pytest.mark.slow
def test_hundreds_of_thousands_of_routes(tmp_path: Path) -> None:
    numbers = np.random.default_rng(7).permutation(1 << 17)
    lines = [f"{ip_network((0xC6120000 + n, 32))},{(A, B, C)[n % 3]}" for n in numbers.tolist()]
    lines += [f"2001:db8:1:{n:x}::/64,{SIX}" for n in range(0x1000, 0x2000)]
    path = tmp_path / "routes"
    path.write_text("\n".join(lines))
    with pinned(tmp_path, f'source_routes_file = "{path}"\n') as maps:
        wanted = dict(line.split(",") for line in lines)
        assert {prefix.removesuffix("/32"): real for prefix, real in maps.found.routes().items()} == {
            prefix.removesuffix("/32"): real for prefix, real in wanted.items()
        }
        path.write_text("\n".join(lines[1:-1]))
        maps.reload(f'source_routes_file = "{path}"\n')
        assert len(maps.balancer.inventory.routing.source_routes) == len(lines) - 2
        assert sum(1 for name in ("lpm_src_v4", "lpm_src_v6") for _ in maps.found[name]) == len(lines) - 2
