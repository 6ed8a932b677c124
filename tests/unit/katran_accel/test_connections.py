# SPDX-License-Identifier: Apache-2.0
"""Which entries of the connection tables are meant by a VIP, a real, clients: without the kernel."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from nfcore.api.flows import FLOW_KEY, FlowMatch
from nfcore.errors import ConfigError
from nfcore.plugins.katran_accel import connection_table
from nfcore.plugins.katran_accel.config import KatranTable
from nfcore.plugins.katran_accel.connection_table import VipFinder, entry_keys, families_of_entries, flow_keys
from nfcore.plugins.katran_accel.connections.entries import Entries
from nfcore.plugins.katran_accel.connections.names import find_clients, find_flow, find_real, find_vip
from nfcore.plugins.katran_accel.connections.search import PLACES, places_of
from nfcore.plugins.katran_accel.connections.selection import Selection
from nfcore.plugins.katran_accel.inventory import Inventory, Numbering

VIPS = [
    ("198.18.10.1", 80, "tcp", ["198.18.20.11", "198.18.20.12"]),
    ("198.18.10.1", 80, "udp", ["198.18.20.11"]),
    ("198.18.10.1", 443, "tcp", ["198.18.20.13"]),
    ("198.18.10.0/24", 0, "tcp", ["198.18.20.11"]),
    ("198.18.0.0/16", 80, "tcp", ["198.18.20.14"]),
    ("c612:a01::", 81, "tcp", ["2001:db8:20::11"]),
    ("2001:db8:10::/48", 0, "udp", ["2001:db8:20::11"]),
    ("2001:db8:10::1", 53, "udp", ["2001:db8:20::12"]),
]
EIGHT = [(f"198.18.40.{number}", 80, "tcp", ["198.18.20.11"]) for number in range(1, 6)]


def inventory_of(vips: list[tuple[str, int, str, list[str]]]) -> Inventory:
    tables = [
        {"address": address, "port": port, "protocol": protocol, "reals": [{"address": real} for real in reals]}
        for address, port, protocol, reals in vips
    ]
    return Numbering(1.0).plan(KatranTable.model_validate({"vips": tables}))


@pytest.fixture(scope="module")
def inventory() -> Inventory:
    return inventory_of(VIPS + EIGHT)


@pytest.fixture(scope="module")
def keys() -> NDArray[np.void]:
    """Connections with few different addresses and ports, so that many go to each VIP."""
    chance = random.Random(7)
    clients = ["198.18.1.2", "198.18.1.3", "198.18.200.1", "c612:102::", "2001:db8:1::2"]
    targets = ["198.18.10.1", "198.18.10.2", "198.18.77.1", "c612:a01::", "2001:db8:10::1", "2001:db8:10:1::"]
    keys, families = np.zeros(3000, dtype=FLOW_KEY), np.zeros(3000, dtype=np.int64)
    for number in range(len(keys)):
        dst = ipaddress.ip_address(chance.choice(targets))
        src = ipaddress.ip_address(
            chance.choice([each for each in clients if ipaddress.ip_address(each).version == dst.version])
        )
        ports = chance.randrange(1 << 16), chance.choice([53, 80, 81, 443])
        keys[number] = FlowMatch(src, dst, chance.choice([6, 17]), *ports).to_key()
        families[number] = dst.version
    return entry_keys(keys, families)


def naive_vip(inventory: Inventory, flow: FlowMatch) -> int | None:
    """The VIP of a flow: a port before port 0, one address before prefixes, the longer prefix."""
    fits = [
        (vip.port != 0, vip.address.prefixlen, number)
        for number, vip in inventory.vips.items()
        if flow.dst in vip.address and vip.port in (0, flow.dport) and vip.proto == flow.proto
    ]
    return max(fits)[2] if fits else None


@pytest.mark.parametrize("collisions", [False, True])
def test_connections_of_each_vip(
    inventory: Inventory, keys: NDArray[np.void], collisions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if collisions:
        monkeypatch.setattr(connection_table, "_FACTORS", np.zeros(3, dtype=np.uint64))
    finder, families = VipFinder(inventory), families_of_entries(keys)
    flows = [FlowMatch.from_key(key, family) for key, family in zip(flow_keys(keys), families.tolist(), strict=True)]
    wanted = [naive_vip(inventory, flow) for flow in flows]
    assert finder.owners_of_entries(keys).tolist() == [-1 if number is None else number for number in wanted]
    assert set(wanted) >= set(range(len(VIPS)))
    for vip in inventory.vips:
        assert finder.are_of(vip, keys).tolist() == [number == vip for number in wanted]


def test_nothing_is_found_in_an_empty_table(inventory: Inventory) -> None:
    none, finder = np.zeros(0, dtype=FLOW_KEY), VipFinder(inventory)
    assert finder.owners_of_entries(none).tolist() == []
    for vip in inventory.vips:
        assert finder.are_of(vip, none).tolist() == []
    assert places_of(none).tolist() == []


def test_all_that_is_named_must_fit(inventory: Inventory, keys: NDArray[np.void]) -> None:
    finder = VipFinder(inventory)
    reals = (np.arange(len(keys)) % 3 + 1).astype(np.uint32)
    entries = Entries(keys, reals, np.zeros(len(keys), dtype=np.uint64))
    client = ipaddress.ip_network("198.18.1.0/24")
    of_vip = finder.are_of(0, keys)
    from_there = (keys["src"][:, :3] == [198, 18, 1]).all(axis=1) & (families_of_entries(keys) == 4)
    found = Selection(vip=0, real=2, client=client).find(entries, finder)
    assert found.tolist() == np.flatnonzero(of_vip & (reals == 2) & from_there).tolist() and len(found)
    assert Selection().find(entries, finder).tolist() == list(range(len(keys)))
    assert Selection(client=ipaddress.ip_network("::/0")).find(entries, finder).tolist() == (
        np.flatnonzero(families_of_entries(keys) == 6).tolist()
    )


def test_targets_of_a_selection(inventory: Inventory) -> None:
    number = inventory.reals[ipaddress.ip_address("198.18.20.11")]
    by_real = [vip for vip, real in inventory.pairs() if real == number]
    assert [target >> 32 for target in Selection(real=number).targets(inventory).tolist()] == by_real
    assert Selection(vip=0, real=number).targets(inventory).tolist() == [number]
    assert len(Selection(vip=0).targets(inventory)) == 2


def test_places_differ_and_fit_into_json(keys: NDArray[np.void]) -> None:
    places = places_of(keys)
    assert len(np.unique(places)) == len({key.tobytes() for key in keys})
    assert places.min() >= 0 and places.max() < PLACES
    # Keys that differ in one place only, as those of one client do.
    alike = np.repeat(keys[:1], 60_000)
    alike["sport"] = np.arange(60_000)
    assert len(np.unique(places_of(alike))) == 60_000


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("198.18.10.1:80/tcp", 0),
        ("198.18.10.1:80/udp", 1),
        ("198.18.10.1:443", 2),
        ("198.18.10.1/udp", 1),
        ("198.18.10.0/24", 3),
        ("198.18.10.0/24:0/tcp", 3),
        ("198.18.0.0/16/tcp", 4),
        ("[c612:a01::]:81/tcp", 5),
        ("C612:0A01:0:0::", 5),
        ("[2001:db8:10::/48]:0/udp", 6),
        ("2001:db8:10::/48", 6),
        ("[2001:db8:10::1]", 7),
    ],
)
def test_a_vip_by_its_name_or_less(inventory: Inventory, text: str, number: int) -> None:
    assert find_vip("m", inventory, text) == number


def test_each_name_of_a_vip_means_it(inventory: Inventory) -> None:
    assert [find_vip("m", inventory, vip.name) for vip in inventory.vips.values()] == list(inventory.vips)


@pytest.mark.parametrize(
    ("find", "message"),
    [
        (
            lambda known: find_vip("m", known, "198.18.10.1"),
            "m: vip: is '198.18.10.1', which may be 198.18.10.1:80/tcp, 198.18.10.1:80/udp, 198.18.10.1:443/tcp: name "
            "one of them",
        ),
        (lambda known: find_vip("m", known, "198.18.10.1:80"), "80/tcp, 198.18.10.1:80/udp: name one of them"),
        (
            lambda known: find_vip("m", known, "web"),
            "is 'web'; should be a VIP such as '198.18.10.1:80/tcp'; there are",
        ),
        (lambda known: find_vip("m", known, ["x"]), "is ['x']; should be a VIP"),
        (lambda known: find_vip("m", known, ""), "is ''; should be a VIP"),
        (lambda known: find_vip("m", known, "198.18.10.1:99999"), "there is no such VIP"),
        (lambda known: find_vip("m", known, "198.18.9.9"), "198.18.10.1:80/tcp, 198.18.10.1:80/udp, "),
        (lambda known: find_vip("m", known, "198.18.9.9"), "[2001:db8:10::1]:53/udp, and 5 more"),
        (lambda known: find_real("m", known, "real1"), "should be the address of a real such as '198.18.20.11'"),
        (lambda known: find_real("m", known, 11), "m: real: is 11; should be the address of a real"),
        (lambda known: find_real("m", known, "198.18.20.99"), "there is no such real; there are: 198.18.20.11, "),
        (
            lambda known: find_real("m", known, "198.18.20.13", 0),
            "is no real of 198.18.10.1:80/tcp; there are: 198.18.20.11, 198.18.20.12",
        ),
        (lambda known: find_clients("m", "198.18.1.7/24"), "has host bits; should be '198.18.1.0/24'"),
        (lambda known: find_clients("m", "me"), "should be an address or a prefix of clients"),
        (lambda known: find_flow("m", "198.18.1.2 > 198.18.10.1"), "is not a flow; write it as '198.18.1.2:40000 > "),
        (lambda known: find_flow("m", "198.18.1.2:* > 198.18.10.1:80/tcp"), "should be one flow; connections.list"),
    ],
)
def test_what_means_nothing_is_refused_by_name(
    inventory: Inventory, find: Callable[[Inventory], object], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        find(inventory)
    assert message in str(refused.value)


def test_a_real_by_any_spelling(inventory: Inventory) -> None:
    number = inventory.reals[ipaddress.ip_address("2001:db8:20::11")]
    assert find_real("m", inventory, "2001:0DB8:20:0::11") == number
    assert find_real("m", inventory, "2001:db8:20::11", 5) == number
