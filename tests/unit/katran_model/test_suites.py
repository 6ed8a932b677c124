# SPDX-License-Identifier: Apache-2.0
"""The published packets on the model: verdict, bytes and every counter, in the published order."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from tests.katran_model.features import KATRAN, Quirks
from tests.katran_model.hashing import flow_slot
from tests.katran_model.maglev import build_ring
from tests.katran_model.maps import VipKey, padded
from tests.katran_model.replay import replay
from tests.katran_model.suites import PROTOCOLS, maps_of, published
from tests.paths import DATA

DEMANDED = Quirks(gue_checksum=True, decap_drops_all_unfit=True)
"""What the published packets show of Katran's mistakes."""


@pytest.mark.parametrize("quirks", [KATRAN, DEMANDED], ids=["all of Katran's mistakes", "only what is demanded"])
@pytest.mark.parametrize("name", published().suites)
def test_every_packet_comes_out_as_published(name: str, quirks: Quirks) -> None:
    suite = published().suites[name]
    for case, came, wanted in replay(suite, replace(suite.features, quirks=quirks)):
        assert (case.name, came) == (case.name, wanted)


def test_what_is_right_differs_from_three_published_packets() -> None:
    differing = [
        (suite.name, case.name)
        for suite in published().suites.values()
        for case, came, wanted in replay(suite, replace(suite.features, quirks=Quirks()))
        if came != wanted
    ]
    assert differing == [
        ("gue", "ICMP error v4: fragmentation needed"),
        ("decap-ipip", "IPv4 fragment"),
        ("decap-gue", "IPv4 fragment"),
    ]


def test_all_packets_are_there() -> None:
    suites = published().suites.values()
    assert (len(suites), sum(len(suite.cases) for suite in suites)) == (19, 133)


RINGS = json.loads((DATA / "maglev_rings.json").read_text())["rings"]


@pytest.mark.parametrize("ring", RINGS, ids=lambda ring: f"{ring['name']}, version {ring['version']}")
def test_rings_are_as_published(ring: dict[str, object]) -> None:
    reals = {number: (address, weight) for number, address, weight in ring["endpoints"]}  # type: ignore[attr-defined]
    slots = build_ring(reals, ring["version"])  # type: ignore[arg-type]
    packed = b"".join(number.to_bytes(4, "little") for number in slots)
    assert hashlib.sha256(packed).hexdigest() == ring["sha256"]


def test_flows_go_to_the_reals_that_the_control_plane_tells() -> None:
    facts = published().suites["ipip"].state
    maps = maps_of(facts, published().settings)
    for flow in published().flows:
        vip = maps.vips.get(VipKey(padded(flow.dst), flow.dport, PROTOCOLS[flow.protocol]))
        slot = flow_slot(4 if "." in flow.src else 6, padded(flow.src), flow.sport, flow.dport)
        real = facts.reals[maps.rings[vip.number][slot]] if vip and vip.number in maps.rings else ""
        assert (flow, real) == (flow, flow.real)
