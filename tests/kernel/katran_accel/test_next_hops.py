# SPDX-License-Identifier: Apache-2.0
"""Where packets go next, as the kernel would send them, and what happens when that changes under a running daemon."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.site import nfcore, vip_toml

from .routers import CLIENT, VIP, Routers, eventually, open_routers
from .world import tcp

pytestmark = pytest.mark.slow
REAL, OTHER_REAL, NEAR = "198.18.20.11", "198.18.21.11", "198.18.2.77"
SIX, SIX_VIP = "2001:db8:20::11", "2001:db8:10::1"
VIPS = (
    vip_toml(REAL)
    + vip_toml(OTHER_REAL, address="198.18.10.2")
    + vip_toml(SIX, address=SIX_VIP)
    + vip_toml(NEAR, address="198.18.10.3")
)
FRAME = tcp(CLIENT, VIP)
TO_OTHER, TO_NEAR = tcp(CLIENT, "198.18.10.2"), tcp(CLIENT, "198.18.10.3")
TO_SIX = tcp("2001:db8:1::2", SIX_VIP)
STATION = "02:00:5e:00:02:99"
"""Some other station on the link, which exists as a permanent neighbour only."""
ROUTES = ("default via 198.18.2.1 dev eth1", "default via 2001:db8:2::1 dev eth1")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routers]:
    """One daemon on eth1 for all tests that leave it as it was."""
    with open_routers(tmp_path_factory.mktemp("routers")) as routers:
        for route in ROUTES:
            routers.ip(f"route add {route}")
        routers.ip(f"neighbour add {NEAR} lladdr {STATION} dev eth1")
        with routers.daemons.running(routers.config(VIPS)):
            yield routers


@pytest.fixture
def routers(running: Routers) -> Iterator[Routers]:
    """The shared daemon, with its routes and all well; whatever a test does to them is undone."""
    mac = running.mac()
    assert running.goes_to(mac, FRAME, TO_OTHER, TO_SIX)
    yield running
    running.router(f"link set net1 address {mac}")
    for address in ("198.18.2.1", "2001:db8:2::1"):
        running.ip(f"neighbour replace {address} lladdr {mac} nud reachable dev eth1")
    for route in ROUTES:
        running.ip(f"route replace {route}")
    assert running.goes_to(mac, FRAME, TO_OTHER, TO_SIX)
    assert eventually(lambda: running.troubles() == [])


def test_each_real_has_the_next_hop_that_the_kernel_has(routers: Routers) -> None:
    assert routers.goes_to(STATION, TO_NEAR)
    sent = routers.send(FRAME)
    assert sent is not None and (sent.real, sent.source) == (REAL, routers.own_mac())
    status, words = routers.doctor(routers.folder / "nf.toml")["katran_accel: gateway"]
    assert status == "ok" and routers.mac() in words and STATION in words


def test_a_router_with_another_mac_is_followed(routers: Routers) -> None:
    routers.router(f"link set net1 address {STATION}")
    routers.router("neighbour flush dev net1")
    # As a router does that takes over: here the neighbour table hears of it.
    routers.ip(f"neighbour replace 198.18.2.1 lladdr {STATION} nud reachable dev eth1")
    assert routers.goes_to(STATION, FRAME, TO_OTHER)
    assert eventually(lambda: STATION in routers.daemons.logged())


def test_a_router_that_is_replaced_without_a_word_is_found(routers: Routers) -> None:
    assert "REACHABLE" in routers.ip("neighbour show 198.18.2.1 dev eth1")
    routers.router(f"link set net1 address {STATION}")
    assert routers.goes_to(STATION, FRAME, TO_OTHER)


def test_a_router_that_has_gone_is_said_and_its_successor_found(routers: Routers) -> None:
    mac = routers.mac()
    routers.router("address del 198.18.2.1/24 dev net1")
    routers.ip("neighbour replace 198.18.2.1 nud failed dev eth1")
    assert eventually(lambda: any("198.18.2.1 does not answer" in each for each in routers.troubles()))
    status, text = routers.healthz()
    assert status == 503 and "198.18.2.1" in text
    assert routers.goes_to(mac, FRAME)  # the last known one
    assert routers.doctor(routers.folder / "nf.toml")["katran_accel: gateway"][0] == "fault"
    routers.router(f"link set net1 address {STATION}")
    routers.router("address add 198.18.2.1/24 dev net1")
    assert routers.goes_to(STATION, FRAME, TO_OTHER)
    assert eventually(lambda: routers.healthz()[0] == 200)


def test_another_gateway_is_followed_and_a_lost_route_is_said(routers: Routers) -> None:
    mac = routers.mac()
    routers.ip(f"neighbour replace 198.18.2.9 lladdr {STATION} dev eth1")
    routers.ip("route replace default via 198.18.2.9 dev eth1")
    assert routers.goes_to(STATION, FRAME, TO_OTHER)
    assert routers.goes_to(mac, TO_SIX)
    routers.ip("route del default via 198.18.2.9 dev eth1")
    assert eventually(lambda: any(f"no route to reals {REAL}" in each for each in routers.troubles()))
    assert routers.goes_to(STATION, FRAME)
    routers.ip("route add default via 198.18.2.1 dev eth1")
    assert routers.goes_to(mac, FRAME, TO_OTHER)
    assert eventually(lambda: routers.troubles() == [])


@pytest.mark.parametrize(
    ("ways", "there"),
    [
        (("route add 198.18.21.0/24 via 198.18.2.9",), "198.18.2.9"),
        (("nexthop add id 9 via 198.18.2.9 dev eth1", "route add 198.18.21.0/24 nhid 9"), "198.18.2.9"),
        (("route add 198.18.21.0/24 via inet6 2001:db8:2::9 dev eth1",), "2001:db8:2::9"),
        (("route add 198.18.21.0/24 nexthop via 198.18.2.9 nexthop via 198.18.2.9 onlink dev eth1",), "198.18.2.9"),
        (("route add default via 198.18.2.9 table 99", "rule add to 198.18.21.0/24 table 99"), "198.18.2.9"),
        (("route add 198.18.21.0/24 dev eth1",), OTHER_REAL),
    ],
    ids=["prefix", "next-hop object", "IPv4 by IPv6", "several next hops", "rule", "on the link"],
)
def test_whatever_leads_there_is_followed_and_its_end(routers: Routers, ways: tuple[str, ...], there: str) -> None:
    mac = routers.mac()
    routers.ip(f"neighbour replace {there} lladdr {STATION} dev eth1")
    for way in ways:
        routers.ip(way)
    try:
        assert routers.goes_to(STATION, TO_OTHER)
        assert routers.goes_to(mac, FRAME)
    finally:
        for way in reversed(ways):
            routers.ip(
                way.replace(" add ", " del ").partition(" via ")[0]
                if "nexthop add" in way
                else way.replace(" add ", " del ")
            )
        routers.ip(f"neighbour del {there} dev eth1")
    assert routers.goes_to(mac, TO_OTHER, FRAME)


def test_both_ways_of_a_route_with_several_are_taken(routers: Routers) -> None:
    macs = {"198.18.2.8": "02:00:5e:00:02:08", "198.18.2.9": "02:00:5e:00:02:09"}
    for address, mac in macs.items():
        routers.ip(f"neighbour replace {address} lladdr {mac} dev eth1")
    routers.ip("route replace default nexthop via 198.18.2.8 dev eth1 nexthop via 198.18.2.9 dev eth1")
    for frame, real in ((FRAME, REAL), (TO_OTHER, OTHER_REAL)):
        chosen = next(mac for address, mac in macs.items() if address in routers.ip(f"route get {real}"))
        assert routers.goes_to(chosen, frame)


def test_a_link_that_goes_down_takes_its_routes_and_gets_them_back(routers: Routers) -> None:
    mac = routers.mac()
    routers.ip("link set eth1 down")
    assert eventually(lambda: any("no route to reals" in each for each in routers.troubles()))
    assert routers.doctor(routers.folder / "nf.toml")["katran_accel: gateway"][0] == "fault"
    routers.ip("link set eth1 up")
    routers.ip("address replace 2001:db8:2::2/64 dev eth1 nodad")
    for route in ROUTES:
        routers.ip(f"route replace {route}")
    assert eventually(lambda: routers.troubles() == [])
    assert routers.goes_to(mac, FRAME, TO_SIX)


def test_its_own_address_is_followed(routers: Routers) -> None:
    before = routers.own_mac()
    routers.ip("link set eth1 address 02:00:5e:00:02:42")
    try:
        # To the old address nothing is answered any more; send() takes the present one.
        assert eventually(lambda: (sent := routers.send(FRAME)) is not None and sent.source == "02:00:5e:00:02:42")
        assert routers.send(FRAME, to=before) is None
    finally:
        routers.ip(f"link set eth1 address {before}")
    assert eventually(lambda: (sent := routers.send(FRAME)) is not None and sent.source == before)


def test_a_reload_looks_anew_and_changes_between_auto_and_a_mac(routers: Routers) -> None:
    mac, config = routers.mac(), routers.folder / "nf.toml"
    try:
        routers.config(f'gateway_mac = "{STATION}"\n{VIPS}')
        assert nfcore("reload", str(config)).returncode == 0
        assert routers.goes_to(STATION, FRAME, TO_OTHER, TO_SIX)
        assert STATION in routers.doctor(config)["katran_accel: gateway"][1]
    finally:
        routers.config(VIPS)
        done = nfcore("reload", str(config))
    assert done.returncode == 0, done.stderr
    assert routers.goes_to(mac, FRAME, TO_OTHER, TO_SIX)


def test_doctor_names_the_address_of_vrrp_until_it_is_listed(routers: Routers) -> None:
    what, mac = "katran_accel: other MAC addresses of eth1", "00:00:5e:00:01:0a"
    routers.ip(f"link add vrrp.10 link eth1 address {mac} type macvlan mode private")
    config = routers.folder / "nf.toml"
    try:
        status, words = routers.doctor(config)[what]
        listed = f'destination_mac = ["own", "{mac}"]'
        assert status == "warning" and f"{mac} (vrrp.10)" in words and listed in words
        routers.config(f"{listed}\n{VIPS}")
        assert what not in routers.doctor(config)
    finally:
        routers.ip("link del vrrp.10")
        routers.config(VIPS)
    assert what not in routers.doctor(config)


def test_frames_for_others_are_left_alone(routers: Routers) -> None:
    counted = routers.daemons.metric("nfcore_packets_total", path="slow")
    for foreign in ("ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01", "02:00:5e:00:77:77"):
        assert routers.send(FRAME, to=foreign) is None, foreign
    assert routers.daemons.metric("nfcore_packets_total", path="slow") == counted
