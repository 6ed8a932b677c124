# SPDX-License-Identifier: Apache-2.0
"""Server ids and source routes of a running daemon: its methods, its commands, and what a reload makes of changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfcore.control.client import RefusedError
from nfcore.errors import HostError
from tests.kernel.site import Site, nfcore, open_site, succeed

from .pinned_routing import PinnedRouting, open_routing
from .world import open_world

A, B, NEW, SIX = "198.18.20.11", "198.18.20.12", "198.18.20.99", "2001:db8:20::11"
IDS, ROUTES = {7: A, 9: B}, {"198.18.7.0/24": B}
VIP = f"""
[[katran_accel.vips]]
address = "198.18.10.1"
port = 443
protocol = "udp"
flags = ["quic", "src_routing"]
reals = [{{ address = "{A}" }}, {{ address = "{B}" }}, {{ address = "{SIX}" }}]
"""


class Daemon:
    """A running daemon and its pinned maps."""

    def __init__(self, site: Site, maps: PinnedRouting) -> None:
        self.site, self.maps = site, maps
        self.ids_file, self.routes_file = (site.folder / name for name in ("ids.csv", "routes.csv"))

    def reset(self) -> None:
        """Have the TOML's entries in effect, all of them valid."""
        self.write()
        self.reload()
        invalid = [row["id"] for row in self.list("server_ids") if not row["valid"]]
        self.change("server_ids", restore=invalid)

    def write(self, ids: str = "9,198.18.20.12\n", vips: str = VIP) -> Path:
        self.ids_file.write_text(ids)
        katran = f'pin_dir = "{self.site.pins}"\nserver_ids = [{{ id = 7, real = "{A}" }}]\n'
        katran += f'server_ids_file = "{self.ids_file}"\n'
        katran += f'source_routes = [{{ prefix = "198.18.7.0/24", real = "{B}" }}]\n'
        return self.site.config(katran=katran, vips=vips)

    def reload(self) -> Any:
        return self.site.request("reload")

    def change(self, kind: str, **parameters: Any) -> Any:
        return self.site.request(f"katran_accel.{kind}.change", **parameters)

    def list(self, kind: str, **parameters: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.site.request(f"katran_accel.{kind}.list", **parameters)[kind]
        return rows

    def refused(self, kind: str, **parameters: Any) -> str:
        """Why a change is refused."""
        with pytest.raises(RefusedError) as refused:
            self.change(kind, **parameters)
        assert refused.value.exit_status == 2
        return str(refused.value)

    def ids(self) -> dict[int, str]:
        """Of the ids that the tests use, those that lead somewhere."""
        return {number: real for number, real in self.maps.server_ids(*range(1, 20), 65_000).items() if real}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with open_site(tmp_path_factory.mktemp("site")) as site, open_routing(site.pins) as maps:
        daemon = Daemon(site, maps)
        with site.running(daemon.write()):
            yield daemon


@pytest.fixture
def daemon(running: Daemon) -> Daemon:
    running.reset()
    assert (running.ids(), running.maps.routes()) == (IDS, ROUTES)
    return running


def test_ids_are_added_and_removed(daemon: Daemon) -> None:
    added = [{"id": number, "real": real} for number, real in {1: A, 2: B, 3: NEW, 9: B}.items()]
    assert daemon.change("server_ids", add=added, remove=[7]) == {
        "added": 3,
        "removed": 1,
        "invalidated": 0,
        "restored": 0,
    }
    assert daemon.ids() == {1: A, 2: B, 3: NEW, 9: B}
    assert daemon.list("server_ids") == [
        {"id": 1, "real": A, "owner": "run time", "valid": True},
        {"id": 2, "real": B, "owner": "run time", "valid": True},
        {"id": 3, "real": NEW, "owner": "run time", "valid": True},
        {"id": 9, "real": B, "owner": "toml", "valid": True},
    ]
    # In one change an id moves to another real.
    daemon.change("server_ids", remove=[1], add=[{"id": 1, "real": SIX}])
    assert daemon.ids()[1] == SIX


def test_a_new_real_is_sent_to_and_numbered_like_those_of_the_toml(daemon: Daemon) -> None:
    daemon.change("server_ids", add=[{"id": 3, "real": NEW}])
    hops = daemon.site.request("katran_accel.next_hops")
    assert sum(NEW in row["reals"] for row in hops) == 1
    daemon.change("server_ids", remove=[3])
    assert not any(NEW in row["reals"] for row in daemon.site.request("katran_accel.next_hops"))


def test_an_id_is_invalid_until_it_is_restored(daemon: Daemon) -> None:
    daemon.change("server_ids", add=[{"id": 3, "real": NEW}])
    number = int.from_bytes(daemon.maps["server_id_map"][3], "little")
    assert daemon.change("server_ids", invalidate=[3, 7])["invalidated"] == 2
    assert daemon.ids() == {9: B}
    assert [row["id"] for row in daemon.list("server_ids") if not row["valid"]] == [3, 7]
    assert daemon.change("server_ids", invalidate=[7])["invalidated"] == 0
    assert daemon.maps.real_of(number) == NEW
    assert daemon.change("server_ids", restore=[3, 9])["restored"] == 1
    assert int.from_bytes(daemon.maps["server_id_map"][3], "little") == number
    assert daemon.ids() == {3: NEW, 9: B}
    assert daemon.reload()["changed"] == ["katran_accel"]
    assert daemon.ids() == {9: B}
    assert daemon.change("server_ids", restore=[7])["restored"] == 1
    assert daemon.ids() == IDS
    assert daemon.reload()["changed"] == []


def test_routes_are_added_and_removed(daemon: Daemon) -> None:
    added = [{"prefix": prefix, "real": real} for prefix, real in {"198.18.8.1": A, "2001:db8:7::/48": SIX}.items()]
    assert daemon.change("source_routes", add=added, remove=["198.18.7.0/24"]) == {"added": 2, "removed": 1}
    assert daemon.maps.routes() == {"198.18.8.1/32": A, "2001:db8:7::/48": SIX}
    assert daemon.list("source_routes") == [
        {"prefix": "198.18.8.1", "real": A, "owner": "run time"},
        {"prefix": "2001:db8:7::/48", "real": SIX, "owner": "run time"},
    ]
    assert daemon.reload()["changed"] == ["katran_accel"]
    assert daemon.maps.routes() == ROUTES


def test_a_reload_reads_the_files_again(daemon: Daemon) -> None:
    daemon.write(f"9,{A}\n11,{A}\n")
    assert daemon.reload()["changed"] == ["katran_accel"]
    assert daemon.ids() == {7: A, 9: A, 11: A}
    daemon.write("odd\n")
    with pytest.raises(RefusedError, match=r"server_ids_file: .*ids.csv, line 1: 'odd' is no server id"):
        daemon.reload()
    assert daemon.ids() == {7: A, 9: A, 11: A}


@pytest.mark.parametrize(
    ("kind", "parameters", "said"),
    [
        (
            "server_ids",
            {"add": [{"id": 9, "real": A}]},
            "add[0]: '9' leads to '198.18.20.12' already: remove it in",
        ),
        ("server_ids", {"add": [{"id": 0, "real": A}]}, "add[0].id: is 0; Input should be greater than or equal to 1"),
        ("server_ids", {"add": [{"id": 1}]}, "add[0].real: is missing"),
        (
            "server_ids",
            {"add": [{"id": 1, "real": "::1"}]},
            "add[0].real: is '::1'; should be the address of one",
        ),
        ("server_ids", {"add": [{"id": 1 << 24, "real": A}]}, 'set katran_accel.server_id_map = "hash"'),
        (
            "server_ids",
            {"add": [{"id": 1, "real": A}, {"id": 1, "real": B}]},
            "add[1]: '1' is already add[0], with",
        ),
        ("server_ids", {"add": 5}, "add: is 5; should be a list of objects"),
        ("server_ids", {"remove": [7, 8]}, "remove[1]: '8' is no server id; there are those of nfcore server-ids list"),
        (
            "server_ids",
            {"invalidate": ["7"]},
            "invalidate[0]: is '7', which is no server id; there are those of",
        ),
        (
            "server_ids",
            {"invalidate": [7], "restore": [7]},
            "restore: has 7, which invalidate has, too: name it in",
        ),
        (
            "server_ids",
            {"delete": [7]},
            "delete: is no parameter; there are: add, add_file, replace, remove,",
        ),
        ("source_routes", {"invalidate": []}, "invalidate: is no parameter; there are: add, add_file, replace, remove"),
        ("source_routes", {"replace": 1}, "replace: is 1; should be true or false"),
        ("source_routes", {"add_file": "x"}, "add_file: is 'x'; should be the absolute path of a file"),
        ("source_routes", {"add_file": "/"}, "add_file: is '/'; is no regular file"),
        ("source_routes", {"remove": ["198.18.9.0/24"]}, "remove[0]: '198.18.9.0/24' is no source route; there are"),
        (
            "source_routes",
            {"add": [{"prefix": "2001:db8::/32", "real": A}]},
            "add[0]: '2001:db8::/32' cannot lead to '198.18.20.11': by IPIP, IPv6 is encapsulated in IPv6 only",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    daemon: Daemon, kind: str, parameters: dict[str, Any], said: str
) -> None:
    assert said in daemon.refused(kind, **parameters)
    assert (daemon.ids(), daemon.maps.routes()) == (IDS, ROUTES)


def test_a_change_with_one_mistake_is_not_made(daemon: Daemon) -> None:
    daemon.refused("server_ids", add=[{"id": 1, "real": A}], remove=[8])
    assert daemon.ids() == IDS
    assert daemon.reload()["changed"] == []


def test_pages(daemon: Daemon) -> None:
    routes = {f"198.18.{number}.0/24": (A, B)[number % 2] for number in range(50, 100)}
    daemon.change("source_routes", add=[{"prefix": prefix, "real": real} for prefix, real in routes.items()])
    method, seen, after = "katran_accel.source_routes.list", [], None
    while True:
        page = daemon.site.request(method, real=A, limit=7, after=after)
        assert (page["matching"], page["total"]) == (25, 51)
        seen += [row["prefix"] for row in page["source_routes"]]
        if (after := page["next"]) is None:
            break
    assert seen == [prefix for prefix, real in routes.items() if real == A]
    for wrong in ({"limit": 0}, {"limit": True}, {"after": 5}, {"real": "x"}, {"odd": 1}):
        with pytest.raises(RefusedError, match=f"{next(iter(wrong))}: "):
            daemon.site.request(method, **wrong)


def test_commands(daemon: Daemon) -> None:
    config = str(daemon.site.folder / "nf.toml")
    assert succeed("server-ids", "add", f"1={A}", f"2={NEW}", config) == (
        "added 2, removed 0, invalidated 0, restored 0\n"
    )
    assert succeed("server-ids", "invalidate", "1", "7", config).startswith("added 0, removed 0, invalidated 2")
    assert daemon.ids() == {2: NEW, 9: B}
    listed = json.loads(succeed("server-ids", "list", config, "--json"))
    assert [(row["id"], row["valid"]) for row in listed["server_ids"]] == [(1, False), (2, True), (7, False), (9, True)]
    assert "1 listed of 1, 4 in all" in succeed("server-ids", "list", config, "--real", NEW)
    assert "restored 2" in succeed("server-ids", "restore", "1", "7", config)
    assert json.loads(succeed("server-ids", "remove", "1", "2", "-c", config, "--json"))["removed"] == 2
    assert daemon.ids() == IDS
    succeed("source-routes", "add", f"2001:db8:7::/48={SIX}", config)
    assert daemon.maps.routes() == {**ROUTES, "2001:db8:7::/48": SIX}
    assert succeed("source-routes", "remove", "2001:db8:7::/48", config) == "added 0, removed 1\n"
    for arguments, said in (
        (("server-ids", "add", "1"), "server-ids add: is '1'; should be KEY=REAL"),
        (("server-ids", "remove", "x"), "server-ids remove: 'x' is no server id"),
        (("source-routes", "remove"), "source-routes remove: names nothing"),
    ):
        done = nfcore(*arguments, config)
        assert done.returncode == 2 and said in done.stderr


def test_hundreds_of_thousands_of_routes_from_a_file(daemon: Daemon) -> None:
    config, count = str(daemon.site.folder / "nf.toml"), 1 << 18
    lines = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255},{(A, B)[n % 2]}" for n in range(count)]
    daemon.routes_file.write_text("\n".join(lines))
    loaded = succeed("source-routes", "load", str(daemon.routes_file), config)
    assert loaded == f"added {count:,}, removed 0\n"
    assert daemon.site.request("katran_accel.source_routes.list", limit=1)["total"] == count + 1
    daemon.routes_file.write_text("\n".join(lines[1:]) + f"\n10.0.0.1,{A}")
    path = daemon.routes_file
    refused = nfcore("source-routes", "load", str(path), config).stderr
    assert f"add_file: {path}, line 262144: '10.0.0.1' is already {path}, line 1, with the real" in refused
    daemon.routes_file.write_text(f"10.0.0.1,{A}\n" + "\n".join(lines[2:]))
    loaded = succeed("source-routes", "load", str(daemon.routes_file), config, "--replace")
    # One is gone, that of the TOML too, and one leads elsewhere.
    assert loaded == "added 1, removed 3\n"
    found = daemon.maps["lpm_src_v4"]
    assert sum(1 for _ in found) == count - 1
    daemon.reload()
    assert daemon.maps.routes() == ROUTES


def test_a_program_that_reads_neither_says_so(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        methods = world.context.services.methods
        for kind, said in (("server_ids", "no VIP has the flag 'quic'"), ("source_routes", "the flag 'src_routing'")):
            with pytest.raises(HostError, match=said):
                asyncio.run(methods[f"katran_accel.{kind}.change"]({}))
            assert methods[f"katran_accel.{kind}.list"]({})["total"] == 0
