# SPDX-License-Identifier: Apache-2.0
"""Each action on real frames: with the emulated NIC and either strategy, and without; IPv4 and IPv6.

The verdict is the same everywhere. What differs is who counts: the NIC drops before XDP sees the frame, and marks what
XDP then handles without a look-up.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from nfcore.errors import HostError
from tests.kernel.site import eventually, succeed

from .chained_site import ChainedSite, exact, frame, make_out, masked, open_chained_site, run

FAMILIES = pytest.mark.parametrize("family", [4, 6])
MODES = ("dest-id", "flow-id", "none")
SHAPES = pytest.mark.parametrize("entry", [exact, masked])


@pytest.fixture(scope="module", params=MODES)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChainedSite]:
    """A site with a running daemon; `site.mode` says which strategy, or that there is no NIC."""
    mode = str(request.param)
    with open_chained_site(tmp_path_factory.mktemp("site")) as site:
        nic = mode != "none"
        site.mode = mode  # type: ignore[attr-defined]
        with site.running(site.chain_config(strategy=mode if nic else "dest-id", nic=nic)):
            yield site


@pytest.fixture
def site(running: ChainedSite) -> Iterator[ChainedSite]:
    yield running
    running.request("flow.clear")


def accelerated(site: ChainedSite) -> bool:
    return bool(site.mode != "none")  # type: ignore[attr-defined]


def add(site: ChainedSite, entry: dict[str, Any]) -> None:
    """Add an entry, and wait for its rule if there is a NIC."""
    site.change(entry)
    if accelerated(site):
        assert site.ready(entry["name"]), site.entry(entry["name"])


@FAMILIES
@SHAPES
def test_drop(site: ChainedSite, family: int, entry: Any) -> None:
    before, seen = site.actions("drop"), int(site.metric("nfcore_softnic_packets_total", kind="dropped"))
    add(site, entry("bad", family, action="drop"))
    site.send(*[frame(family)] * 5)
    assert site.counted("bad", 5)
    assert site.entry("bad")["bytes"] == 5 * len(frame(family))
    by_mark, by_look_up = (now - then for now, then in zip(site.actions("drop"), before, strict=True))
    if accelerated(site):
        assert (by_mark, by_look_up) == (0, 0)
        assert site.metric("nfcore_softnic_packets_total", kind="dropped") - seen == 5
    else:
        assert (by_mark, by_look_up) == (0, 5)
    site.change(delete=("bad",))
    assert site.balanced(frame(family)) == frame(family)[14:]


@FAMILIES
@SHAPES
def test_set_dscp_goes_on_to_the_balancer(site: ChainedSite, family: int, entry: Any) -> None:
    add(site, entry("gold", family, action="set_dscp", dscp=46))
    # The bits of ECN stay.
    assert site.balanced(frame(family, tos=1)) == frame(family, tos=46 << 2 | 1)[14:]
    assert site.counted("gold", 1)
    assert site.balanced(frame(family, src="198.18.7.7" if family == 4 else "2001:db8:7::7")) is not None


@FAMILIES
@SHAPES
def test_redirect(site: ChainedSite, family: int, entry: Any) -> None:
    add(site, entry("away", family, action="redirect", interface="out0"))
    site.send(frame(family))
    assert site.redirected() == frame(family)
    assert site.counted("away", 1)


@FAMILIES
@SHAPES
def test_count_changes_nothing(site: ChainedSite, family: int, entry: Any) -> None:
    add(site, entry("seen", family, action="count"))
    for _ in range(3):
        assert site.balanced(frame(family)) == frame(family)[14:]
    assert site.counted("seen", 3)
    fast, slow = site.actions("count")
    assert (fast > 0) == accelerated(site) or slow > 0


@FAMILIES
@SHAPES
def test_pass_keeps_a_packet_from_the_balancer(site: ChainedSite, family: int, entry: Any) -> None:
    add(site, entry("mine", family, action="pass"))
    before = site.metric("nfcore_vip_packets_total")
    site.send(*[frame(family)] * 3)
    assert site.counted("mine", 3)
    assert site.metric("nfcore_vip_packets_total") == before


@FAMILIES
@SHAPES
def test_police_drops_what_exceeds_the_rate(site: ChainedSite, family: int, entry: Any) -> None:
    before, sent = site.others("policed"), site.metric("nfcore_vip_packets_total")
    # The next packet after the burst may pass in an hour.
    add(site, entry("slow", family, action="police", bytes_per_second=16, burst=3 * len(frame(family))))
    site.send(*[frame(family)] * 10)
    assert site.counted("slow", 10)
    assert eventually(lambda: site.others("policed") - before == 7)
    assert site.metric("nfcore_vip_packets_total") - sent == 3


@FAMILIES
def test_cpu_hands_packets_over(site: ChainedSite, family: int) -> None:
    missing = site.others("cpu_missing")
    add(site, exact("other", family, action="cpu", cpu=1))
    site.send(*[frame(family)] * 4)
    assert site.counted("other", 4)
    assert sum(site.actions("cpu")) >= 4
    assert site.others("cpu_missing") == missing


def test_the_more_specific_entry_wins_whatever_is_in_hardware(site: ChainedSite) -> None:
    add(site, masked("network", action="drop"))
    site.change(exact("one", action="count"))
    assert site.balanced(frame()) == frame()[14:]
    site.send(frame(sport=4001))
    assert site.counted("network", 1) and site.counted("one", 1)
    assert not site.entry("network")["in_hardware"]
    if accelerated(site):
        assert "'one'" in site.entry("network")["why"]
    site.change(delete=("one",))
    if accelerated(site):
        assert site.ready("network")
    site.send(frame())
    assert site.counted("network", 2)


def test_an_entry_takes_a_flow_from_the_balancers_rule(site: ChainedSite) -> None:
    flow = "198.18.1.2:4000 > 198.18.10.1:80/tcp"
    site.balanced(frame())
    while accelerated(site) and flow not in site.in_hardware():
        site.balanced(frame())
    site.change(exact("mine", action="drop"))
    received = site.metric("nfcore_vip_packets_total")
    site.send(*[frame()] * 3)
    assert site.counted("mine", 3)
    assert site.metric("nfcore_vip_packets_total") == received
    # And the balancer gets no mark for it as long as the entry is there.
    assert flow not in {row["flow"] for row in site.request("flows", states=["installed"], match="katran")["flows"]}


def test_explain_names_the_entry(site: ChainedSite) -> None:
    add(site, masked("network", action="drop"))
    flow = "198.18.1.77:1 > 198.18.10.1:80/tcp"
    told = site.request("explain", flow=flow)
    assert told["functions"] == {"flow_actions": "entry 'network': drop" + ("" if accelerated(site) else NO_NIC)}
    assert told["in_hardware"] == accelerated(site)
    text = succeed("explain", flow, "--socket", str(site.socket))
    assert ("; ordered\n" in text) == accelerated(site)
    assert "taken over" not in text


NO_NIC = "; not in hardware: no interface with flow_actions in its chain has an offload backend"


def test_a_lifetime_ends(site: ChainedSite) -> None:
    site.change(exact("short", action="drop", ttl="300ms"))
    assert eventually(lambda: not site.request("flow.list", match="short")["entries"])
    assert site.balanced(frame()) == frame()[14:]


def test_an_interface_that_vanishes_and_returns(site: ChainedSite) -> None:
    site.change(exact("away", action="redirect", interface="out0", offload=False))
    run("ip", "link", "del", "out0")
    before = site.others("interface_missing")
    site.send(*[frame()] * 2)
    assert eventually(lambda: site.others("interface_missing") - before == 2)
    assert eventually(lambda: site.metric("nfcore_flow_actions_missing_interfaces") == 1)
    make_out()
    site.out.bind(("out1", 3))
    site.out.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # that the old link went down
    assert eventually(lambda: site.metric("nfcore_flow_actions_missing_interfaces") == 0)
    site.send(frame(sport=4000))
    while site.redirected() != frame():
        pass


def test_an_interface_that_is_down_is_told_everywhere(site: ChainedSite) -> None:
    site.change(exact("away", action="redirect", interface="out0", offload=False))
    run("ip", "link", "set", "out0", "down")
    warning = "flow_actions: packets cannot be redirected: out0 is down"
    assert eventually(lambda: site.request("health")["warnings"] == [warning])
    before = site.others("interface_missing")
    site.send(*[frame()] * 2)
    assert eventually(lambda: site.others("interface_missing") - before == 2)
    run("ip", "link", "set", "out0", "up")
    assert eventually(lambda: not site.request("health")["warnings"])
    site.out.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    site.send(frame())
    while site.redirected() != frame():
        pass


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"action": "redirect", "interface": "nowhere"}, "no interface 'nowhere'"),
        ({"action": "redirect", "interface": "lo"}, "entry 'bad': lo takes no frames from XDP programs"),
        ({"action": "cpu", "cpu": 4095}, "CPU 4095 is not online"),
        ({"action": "block"}, "block"),
    ],
)
def test_what_cannot_be_done_is_said_when_it_is_asked_for(site: ChainedSite, entry: dict[str, Any], words: str) -> None:
    with pytest.raises(HostError, match=words):
        site.change(exact("good", action="drop"), exact("bad", sport=4001, **entry))
    assert site.request("flow.list")["total"] == 0
