# SPDX-License-Identifier: Apache-2.0
"""The advice about the MTU: bytes by the family of the VIP and of its reals, and whose MSS it is. And about tags."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nfcore.api.findings import Status
from nfcore.kernel.ethtool import LinkFacts, Peer
from nfcore.plugins.katran_accel.config import KatranTable
from nfcore.plugins.katran_accel.diagnosis import examine_mtu, examine_tags

V4, V6 = "198.18.20.11", "2001:db8:20::11"


def table(*vips: tuple[str, str, list[str]], **keys: Any) -> KatranTable:
    """VIPs by address, protocol and reals."""
    tables: list[dict[str, Any]] = [
        {"address": address, "port": 80, "protocol": protocol, "reals": [{"address": real} for real in reals]}
        for address, protocol, reals in vips
    ]
    return KatranTable.model_validate({"vips": tables} | keys)


IPV4, IPV6 = "ip route change $(ip route show default) advmss", "ip -6 route change $(ip -6 route show default) advmss"


@pytest.mark.parametrize(
    ("vips", "mtu", "wanted", "commands"),
    [
        # MTU − outer header − inner header − TCP header
        ([("198.18.10.1", "tcp", [V4])], 1500, 1520, [f"{IPV4} 1440"]),
        ([("198.18.10.1", "tcp", [V6])], 1500, 1540, [f"{IPV4} 1420"]),
        ([("198.18.10.1", "tcp", [V4, V6])], 1500, 1540, [f"{IPV4} 1420"]),
        ([("2001:db8:10::1", "tcp", [V6])], 1500, 1540, [f"{IPV6} 1400"]),
        ([("198.18.10.1", "tcp", [V4]), ("2001:db8:10::1", "tcp", [V6])], 1500, 1540, [f"{IPV4} 1440", f"{IPV6} 1400"]),
        ([("198.18.10.1", "tcp", [V4])], 1400, 1520, [f"{IPV4} 1340"]),
        ([("198.18.10.1", "udp", [V4])], 1500, 1520, []),
        ([("198.18.10.1", "udp", [V4]), ("2001:db8:10::1", "tcp", [V6])], 1500, 1540, [f"{IPV6} 1400"]),
        ([("198.18.10.1", "tcp", [])], 1500, 1520, [f"{IPV4} 1440"]),
    ],
)
def test_the_mss_is_that_of_the_reals_in_the_family_of_the_vip(
    vips: list[tuple[str, str, list[str]]], mtu: int, wanted: int, commands: list[str]
) -> None:
    finding = examine_mtu(table(*vips), "eth1", mtu)
    assert finding.status is Status.WARNING
    mtu_advice, icmp_advice, *mss_advice = finding.advice.split("; or ")
    assert mtu_advice == f"an MTU of {wanted} from here to the reals"
    right = mtu - (wanted - 1500)
    assert icmp_advice == f'katran_accel.mtu = {right} and katran_accel.too_big = "answer": clients are told, by ICMP'
    said = "have the reals announce a smaller MSS to clients, by their route there: "
    assert mss_advice == ([said + "; ".join(commands)] if commands else [])


def test_with_room_there_is_no_advice() -> None:
    assert examine_mtu(table(("198.18.10.1", "tcp", [V4])), "eth1", 1520).status is Status.OK
    assert examine_mtu(table(("2001:db8:10::1", "tcp", [V6])), "eth1", 1539).status is Status.WARNING
    assert examine_mtu(table(("2001:db8:10::1", "tcp", [V6])), "eth1", 1540).status is Status.OK


@pytest.mark.parametrize(
    ("encapsulation", "real", "mtu", "fits"),
    [("ipip", V4, 1400, 1420), ("ipip", V6, 1400, 1440), ("gue", V4, 1500, 1528), ("gue", V6, 9000, 9048)],
)
def test_the_longest_packet_that_is_balanced_has_to_fit(encapsulation: str, real: str, mtu: int, fits: int) -> None:
    keys = {"encapsulation": encapsulation, "mtu": mtu, "too_big": "answer"}
    given = table(("198.18.10.1", "udp", [real]), **keys)
    assert examine_mtu(given, "eth1", fits).status is Status.OK
    finding = examine_mtu(given, "eth1", fits - 1)
    assert finding.status is Status.WARNING
    advice = f"an MTU of {fits} from here to the reals; or katran_accel.mtu = {mtu - 1}: clients are told, by ICMP"
    assert finding.advice == advice


def test_reals_of_server_ids_count_too_and_no_mtu_is_too_small_to_be_a_key() -> None:
    given = table(("198.18.10.1", "udp", [V4]), server_ids=[{"id": 1, "real": V6}])
    assert examine_mtu(given, "eth1", 1539).status is Status.WARNING
    assert examine_mtu(given, "eth1", 1540).status is Status.OK
    assert "katran_accel.mtu = 576 " in examine_mtu(given, "eth1", 616).advice
    assert "katran_accel.mtu" not in examine_mtu(given, "eth1", 615).advice


def test_tags_that_a_nic_takes_off_are_told() -> None:
    facts = LinkFacts(up=True, mtu=1500, driver="", features={"rx-vlan-hw-parse": True}, fixed=frozenset())
    (found,) = examine_tags("eth1", facts)
    assert (found.status, found.advice) == (Status.WARNING, "ethtool -K eth1 rxvlan off")
    (found,) = examine_tags("eth1", replace(facts, features={"rx-vlan-hw-parse": False}))
    assert (found.status, found.advice) == (Status.OK, "")


def test_tags_that_a_peer_leaves_beside_its_frames_are_told() -> None:
    features = {"tx-vlan-hw-insert": True, "tx-vlan-stag-hw-insert": True}
    peer = Peer("wire0", "network", features, has_program=True)
    # What the veth itself has makes no difference.
    facts = LinkFacts(True, 1500, "veth", {"rx-vlan-hw-parse": True}, frozenset(), peer)
    (found,) = examine_tags("eth1", facts)
    assert found.status is Status.WARNING
    assert found.advice == "ip netns exec network ethtool -K wire0 txvlan off tx-vlan-stag-hw-insert off"
    (found,) = examine_tags("eth1", replace(facts, peer=replace(peer, features={"tx-vlan-hw-insert": False})))
    assert found.status is Status.OK
    assert not list(examine_tags("eth1", replace(facts, peer=None)))
