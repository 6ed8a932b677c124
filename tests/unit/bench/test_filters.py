# SPDX-License-Identifier: Apache-2.0
"""The bench of flow_actions, the pure part: entries that match no packet, targets."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from numpy.typing import NDArray

from nfcore.api.flows import Anything, FlowMatch
from nfcore.bench.datapath import Row
from nfcore.bench.traffic import SCATTERED_SOURCES, Family, flow_keys, make_services
from nfcore.plugins.flow_actions.benchmark import ENTRIES, MANY, FlowActionsWorkload, shape_keys, source_keys


def service(family: Family) -> NDArray[np.void]:
    return make_services([(ipaddress.ip_address("198.18.10.1" if family == 4 else "2001:db8:30::1"), 80)])


def row(name: str, entries: int, net: float, family: int = 4) -> Row:
    return Row(name, family, entries, 30 + net, 30, net, net, net, 1, 0, 0.0, None)


@pytest.mark.parametrize("family", [4, 6])
def test_scattered_flows_have_sources_of_their_own(family: Family) -> None:
    services = make_services([(ipaddress.ip_address("198.18.10.1"), 80)])
    keys = flow_keys(np.arange(SCATTERED_SOURCES + 1), services, family, scattered=True)
    assert len(np.unique(keys["src"][:-1], axis=0)) == SCATTERED_SOURCES
    assert keys["src"][-1].tobytes() == keys["src"][0].tobytes()
    assert (keys["sport"][0], keys["sport"][-1]) == (1024, 1025)
    if family == 4:
        assert str(FlowMatch.from_key(keys[1], 4)) == "198.19.60.111:1024 > 198.18.10.1:80/tcp"
        # A few neighbouring numbers are in as many networks.
        assert len(np.unique(keys["src"][:100, :3], axis=0)) > 90


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("shapes", [16, 64])
def test_shapes_are_different_and_their_entries_too(family: Family, shapes: int) -> None:
    keys = shape_keys(MANY, shapes, family)
    assert len(np.unique(keys["wild"], axis=0)) == shapes
    assert len(np.unique(keys)) == len(keys) == MANY // shapes * shapes
    packets = flow_keys(np.arange(2_000), service(family), family, scattered=True)
    last = 4 if family == 4 else 16
    for wild in np.unique(keys["wild"], axis=0):
        entries = keys[(keys["wild"] == wild).all(axis=1)]
        masked = packets.copy()
        for field, count in (("src", wild[0]), ("dst", wild[1])):
            words = np.ascontiguousarray(masked[field][:, last - 4 : last]).view(">u4")[:, 0] >> count << count
            masked[field][:, last - 4 : last] = words.astype(">u4").view(np.uint8).reshape(-1, 4)
        masked["sport"], masked["wild"] = 0, wild
        masked["dport"] = 0 if wild[2] & Anything.DPORT else masked["dport"]
        masked["proto"] = 0 if wild[2] & Anything.PROTO else masked["proto"]
        assert not np.isin(masked, entries).any()
        # Neither field alone tells it.
        for field in ("src", "dst"):
            assert set(map(bytes, masked[field])) & set(map(bytes, entries[field]))


def test_a_source_is_an_address_alone() -> None:
    services = make_services([(ipaddress.ip_address("198.18.10.1"), 80)])
    match = FlowMatch.from_key(source_keys(flow_keys(np.arange(1), services, 4, scattered=True), 4)[0], 4)
    assert str(match.src) == "198.18.0.0"
    assert (match.wild.src, match.wild.dst) == (0, 32)


def test_setups_are_numbers_of_entries() -> None:
    workload = FlowActionsWorkload()
    assert workload.setups((100, 1_000_000)) == [(count,) for count in ENTRIES]
    assert workload.setups((100,)) == [(10,), (100,)]


def test_targets() -> None:
    rows = [row("pass-exact", 100, 12), row("pass-next", 100, 16), row("pass-exact", MANY, 20)]
    rows += [row("xdp-filter-drop", MANY, 100), row("drop-exact", MANY, 40), row("drop-source", MANY, 110)]
    found = {target.name: (target.value, target.met, target.about) for target in FlowActionsWorkload().judge(rows)}
    assert found == {
        "pass-exact, IPv4, 100 entries, net": (12, True, None),
        "pass-exact, IPv4, 100,000 entries, net": (20, True, None),
        "step to the next function, IPv4": (4, False, ("pass-next", 4, 100)),
        "drop-exact, IPv4, 100,000 entries, net to xdp-filter's": (0.4, True, None),
        "drop-source, IPv4, 100,000 entries, net to xdp-filter's": (1.1, False, ("drop-source", 4, MANY)),
    }
