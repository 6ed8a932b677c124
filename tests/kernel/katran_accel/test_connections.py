# SPDX-License-Identifier: Apache-2.0
"""`connections.*` on real tables that the real program fills: what is found, what is removed, and that it stays so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfcore.api.hookspecs import hookimpl
from nfcore.api.json_rows import materialize
from nfcore.api.rules import Device, Outcome, Outcomes, RuleBatch
from nfcore.api.steps import run_steps
from nfcore.devices.null_backend import NullBackend
from nfcore.engine.flow_state import FlowState
from nfcore.engine.state import ACTIVE
from nfcore.errors import ConfigError
from nfcore.kernel import online_cpus
from nfcore.plugins.katran_accel.connections.removal import remove_selected
from nfcore.plugins.katran_accel.connections.selection import Selection

from .world import TWO_FAMILIES, World, open_world, sent_to, set_ring, tcp, udp

STRATEGIES = pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
VIPS = (
    TWO_FAMILIES
    + """
[[katran_accel.vips]]
address = "198.18.30.0/24"
port = 0
protocol = "tcp"
reals = [{ address = "198.18.20.15" }]
[[katran_accel.vips]]
address = "198.18.30.1"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.16" }]
[[katran_accel.vips]]
address = "c612:a05::"
port = 80
protocol = "tcp"
reals = [{ address = "2001:db8:20::17" }]
[[katran_accel.vips]]
address = "198.18.10.9"
port = 80
protocol = "tcp"
flags = ["lru_bypass"]
reals = [{ address = "198.18.20.11" }]
"""
)
TCP4, UDP4, TCP6, UDP6, PREFIX, WITHIN, LIKE_IPV4, BYPASS = range(8)
"""Numbers of the VIPs."""
WEB, DNS = "198.18.10.1:80/tcp", "198.18.10.2:53/udp"
FLOW = tcp("198.18.1.2", "198.18.10.1")
FLOW_TEXT = "198.18.1.2:40000 > 198.18.10.1:80/tcp"


def call(world: World, method: str, **parameters: Any) -> Any:
    """Call a method of the socket, as the server does."""

    async def result() -> Any:
        return await world.context.services.methods[f"connections.{method}"](parameters)

    return materialize(asyncio.run(result()))


def flows(world: World, **parameters: Any) -> set[str]:
    return {row["flow"] for row in call(world, "list", **parameters)["entries"]}


def other_real(world: World, vip: int, now: str) -> str:
    """Let the ring lead every new flow of a VIP to another real than `now`."""
    reals = [str(real.address) for real in world.balancer.inventory.vips[vip].reals]
    other = next(real for real in reals if real != now)
    numbers = world.balancer.inventory.real_numbers
    set_ring(world, vip, numbers[other])
    return other


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, dict[str, str]]]:
    """A world with connections to every VIP; the real of each flow, as the program has sent it."""
    frames = {}
    for number in range(20):
        port = 40_000 + number
        ends = f"198.18.{1 + number % 4}.2:{port}", f"[2001:db8:{1 + number % 4}::2]:{port}"
        for source, vip, make in (
            (ends[0], "198.18.10.1:80", tcp),
            (ends[0], "198.18.10.2:53", udp),
            (ends[1], "[2001:db8:10::1]:80", tcp),
            (ends[1], "[2001:db8:10::2]:53", udp),
            (ends[0], "198.18.30.1:80", tcp),
            (ends[0], "198.18.30.1:81", tcp),
            (ends[0], "198.18.30.2:80", tcp),
            (f"[c612:102::]:{port}", "[c612:a05::]:80", tcp),
        ):
            client, target = (end.rpartition(":")[0].strip("[]") for end in (source, vip))
            frame = make(client, target, sport=port, dport=int(vip.rpartition(":")[2]))
            frames[f"{source} > {vip}/{make.__name__}"] = frame
    with open_world(tmp_path_factory.mktemp("world"), vips=VIPS, offload="min_packets = 100") as world:
        yield world, {flow: sent_to(world.send(frame)) for flow, frame in frames.items()}


def test_each_flow_is_listed_with_its_vip_and_real(filled: tuple[World, dict[str, str]]) -> None:
    world, reals = filled
    answer = call(world, "list")
    assert {row["flow"]: row["real"] for row in answer["entries"]} == reals
    assert (answer["matching"], answer["total"], answer["next"]) == (len(reals), len(reals), None)
    for row in answer["entries"]:
        assert (row["table"], row["cpu"], row["in_hardware"], row["expired"]) == ("cpu", world.cpu, False, False)
        if row["proto"] == "udp":
            assert 0 <= row["idle_seconds"] < 30
        else:
            assert row["idle_seconds"] is None


@pytest.mark.parametrize(
    ("vip", "belongs"),
    [
        (WEB, lambda flow: "> 198.18.10.1:80/tcp" in flow),
        (DNS, lambda flow: "> 198.18.10.2:53/udp" in flow),
        ("[2001:db8:10::1]:80/tcp", lambda flow: "> [2001:db8:10::1]:80/tcp" in flow),
        ("2001:db8:10::2", lambda flow: "> [2001:db8:10::2]:53/udp" in flow),
        ("198.18.30.0/24", lambda flow: "> 198.18.30.1:81" in flow or "> 198.18.30.2" in flow),
        ("198.18.30.1:80", lambda flow: "> 198.18.30.1:80/tcp" in flow),
        ("[c612:a05::]:80", lambda flow: "> [c612:a05::]:80/tcp" in flow),
    ],
)
def test_connections_of_a_vip(filled: tuple[World, dict[str, str]], vip: str, belongs: Callable[[str], bool]) -> None:
    world, reals = filled
    wanted = {flow for flow in reals if belongs(flow)}
    assert flows(world, vip=vip) == wanted and len(wanted) >= 20
    some = next(reals[flow] for flow in wanted)
    assert flows(world, vip=vip, real=some) == {flow for flow in wanted if reals[flow] == some}


def test_connections_to_a_real_and_of_clients(filled: tuple[World, dict[str, str]]) -> None:
    world, reals = filled
    for real in set(reals.values()):
        assert flows(world, real=real) == {flow for flow, its in reals.items() if its == real}
    assert flows(world, client="198.18.3.0/24") == {flow for flow in reals if flow.startswith("198.18.3.2:")}
    assert flows(world, client="2001:db8:1::2") == {flow for flow in reals if flow.startswith("[2001:db8:1::2]")}
    # Both have the bytes c6 12 01 02 in front.
    assert flows(world, client="198.18.1.2") == {flow for flow in reals if flow.startswith("198.18.1.2:")}
    assert len(flows(world, client="c612:102::")) == 20
    none = call(world, "list", client="198.18.77.0/24", vip=WEB)
    assert (none["entries"], none["next"], none["matching"], none["total"]) == ([], None, 0, len(reals))


def test_an_entry_that_stays_is_on_exactly_one_page(tmp_path: Path) -> None:
    with open_world(tmp_path, offload="min_packets = 100") as world:
        stay = set()
        for port in range(40_000, 40_100):
            world.send(tcp("198.18.1.2", "198.18.10.1", sport=port))
            stay.add(f"198.18.1.2:{port} > {WEB}")
        seen: list[str] = []
        after, coming = -1, iter(range(50_000, 60_000))
        while after is not None:
            page = call(world, "list", vip=WEB, after=after, limit=7)
            assert page["entries"] and len(page["entries"]) <= 7
            seen += [row["flow"] for row in page["entries"] if row["flow"] in stay]
            after = page["next"]
            world.send(tcp("198.18.1.3", "198.18.10.1", sport=next(coming)))
        assert sorted(seen) == sorted(stay)


def test_a_table_that_other_cpus_share(tmp_path: Path) -> None:
    (other, *_) = [*(cpu for cpu in range(128) if cpu not in online_cpus()), 127]
    with open_world(tmp_path, katran=f"forwarding_cpus = [{other}]") as world:
        world.send(FLOW)
        world.send(FLOW)
        found = call(world, "find", flow=FLOW_TEXT)["entries"]
        assert [(row["table"], row["cpu"]) for row in found] == [("fallback", None)]
        tables = call(world, "fill")["tables"]
        assert [(row["table"], row["cpu"], row["entries"]) for row in tables[:2]] == [
            ("cpu", other, 0),
            ("fallback", None, 1),
        ]
        assert call(world, "delete", flow=FLOW_TEXT)["deleted"] == 1


def test_one_flow_and_where_the_ring_would_send_it(tmp_path: Path) -> None:
    with open_world(tmp_path, offload="min_packets = 100") as world:
        real = sent_to(world.send(FLOW))
        other = other_real(world, TCP4, real)
        found = call(world, "find", flow=FLOW_TEXT)
        assert (found["flow"], found["vip"], found["ring_real"]) == (FLOW_TEXT, WEB, other)
        assert [(row["real"], row["vip"]) for row in found["entries"]] == [(real, WEB)]
        unknown = call(world, "find", flow=FLOW_TEXT.replace("40000", "40001"))
        assert (unknown["entries"], unknown["ring_real"]) == ([], other)
        set_ring(world, TCP4, 0)
        assert call(world, "find", flow=FLOW_TEXT)["ring_real"] is None


def test_how_full_the_tables_are_and_how_old_their_entries(tmp_path: Path) -> None:
    with open_world(tmp_path, offload="min_packets = 1") as world:
        for port in range(40_000, 40_005):
            world.send(tcp("198.18.1.2", "198.18.10.1", sport=port))
            world.send(udp("198.18.1.2", "198.18.10.2", sport=port))
        table = world.balancer.maps.lrus[world.cpu]
        keys, values = table.lookup_all()
        old = (keys["proto"] == 17) & (keys["sport"] < 40_002)
        values["atime"][old] = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 45 * 10**9
        values["atime"][(keys["proto"] == 17) & (keys["sport"] == 40_002)] = 0
        table.update_batch(keys, values)
        world.engine.poll()
        fill = {(row["table"], row["cpu"]): row for row in call(world, "fill")["tables"]}
        mine = fill["cpu", world.cpu]
        assert (mine["entries"], mine["capacity"], mine["tcp"], mine["udp"]) == (10, 4096, 5, 5)
        # A time of 0 is that of an entry which the program takes for expired, too.
        assert mine["udp_expired"] == 3
        assert 0 <= mine["udp_idle_seconds"]["least"] < 30 and 45 <= mine["udp_idle_seconds"]["most"] < 75
        assert fill["fallback", None]["entries"] == 0
        assert fill["fallback", None]["udp_idle_seconds"] == {"least": None, "median": None, "most": None}
        assert fill["rules", None]["entries"] == 10
        expired = [row for row in call(world, "list", vip=DNS)["entries"] if row["expired"]]
        assert sorted(row["sport"] for row in expired) == [40_000, 40_001, 40_002]
        assert sorted(row["sport"] for row in call(world, "list", vip=DNS)["entries"] if row["in_hardware"]) == sorted(
            2 * [40_000, 40_001, 40_002, 40_003, 40_004]
        )


# Removing


@STRATEGIES
@pytest.mark.parametrize("offloaded", [False, True])
@pytest.mark.parametrize(
    "by", [{"vip": WEB}, {"real": None}, {"vip": "198.18.10.1", "real": None}, {"flow": FLOW_TEXT}]
)
def test_the_next_packet_of_a_removed_connection_goes_by_the_ring(
    tmp_path: Path, strategy: str, offloaded: bool, by: dict[str, str | None]
) -> None:
    packets = 1 if offloaded else 100
    with open_world(tmp_path, strategy=strategy, offload=f'min_packets = {packets}\ngrace = "10ms"') as world:
        real = sent_to(world.send(FLOW))
        world.engine.poll()
        other = other_real(world, TCP4, real)
        assert sent_to(world.send(FLOW)) == real
        wanted = {key: real if value is None else value for key, value in by.items()}
        removed = call(world, "delete" if "flow" in by else "purge", **wanted)
        assert removed == {"deleted": 1, "rules_ended": int(offloaded), "rules_left": 0, "notes": []}
        assert world.engine.table.count(FlowState.INSTALLED) == 0
        for _ in range(3):
            assert sent_to(world.send(FLOW)) == other
        assert {row["real"] for row in call(world, "find", flow=FLOW_TEXT)["entries"]} == {other}
        end_graces(world)
        if offloaded:
            for _ in range(8):  # a report that came during the grace period brought nothing
                world.send(FLOW)
            assert sent_to(world.send(FLOW, world.offload(FLOW))) == other


def end_graces(world: World) -> None:
    """Until no rule is on its way out."""
    deadline = time.monotonic() + 10
    while world.engine.table.count(FlowState.DRAINING):
        world.engine.tick()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@STRATEGIES
def test_all_others_stay(tmp_path: Path, strategy: str) -> None:
    ports = range(40_000, 40_040)
    with open_world(tmp_path, strategy=strategy) as world:
        frames = {port: tcp("198.18.1.2", "198.18.10.1", sport=port) for port in ports}
        frames |= {-port: udp("198.18.1.2", "198.18.10.2", sport=port) for port in ports}
        reals = {port: sent_to(world.send(frame)) for port, frame in frames.items()}
        world.engine.poll()
        gone = {port for port in ports if reals[port] == "198.18.20.11"}
        both = {port for port, real in reals.items() if real == "198.18.20.11"}
        assert gone < both
        others = [other_real(world, TCP4, "198.18.20.11"), other_real(world, UDP4, "198.18.20.11")]
        removed = call(world, "purge", vip=WEB, real="198.18.20.11")
        assert (removed["deleted"], removed["rules_ended"]) == (len(gone), len(gone))
        for port, frame in frames.items():
            assert sent_to(world.send(frame)) == (others[0] if port in gone else reals[port])
        removed = call(world, "purge", real="198.18.20.11")
        assert (removed["deleted"], removed["rules_ended"]) == (len(both - gone), len(both - gone))
        for port, frame in frames.items():
            assert sent_to(world.send(frame)) == (others[port < 0] if port in both else reals[port])


@STRATEGIES
def test_a_report_that_waits_brings_nothing_back(tmp_path: Path, strategy: str) -> None:
    with open_world(tmp_path, strategy=strategy) as world:
        real = sent_to(world.send(FLOW))
        other = other_real(world, TCP4, real)
        call(world, "purge", vip=WEB)
        assert len(world.balancer.maps["hw_accel_routes"].lookup_all()[0]) == 0
        assert world.engine.table.count(*ACTIVE) - world.engine.table.count(FlowState.DRAINING) == 0
        assert sent_to(world.send(FLOW)) == other


@STRATEGIES
def test_a_packet_that_used_the_route_meanwhile_brings_nothing_back(tmp_path: Path, strategy: str) -> None:
    """A waiting report gives its flow a route, and the next packet puts that into a connection table."""
    with open_world(tmp_path, strategy=strategy) as world:
        real = sent_to(world.send(FLOW))
        other = other_real(world, TCP4, real)
        take = world.context.services.take_reports

        def take_and_send() -> bool:
            done = take()
            stored.append(sent_to(world.send(FLOW)))
            return done

        stored: list[str] = []
        world.context.services.take_reports = take_and_send
        call(world, "purge", vip=WEB)
        assert stored[0] == real  # else nothing was tried
        assert sent_to(world.send(FLOW)) == other


class Stuck(NullBackend):
    """A NIC that removes no rules."""

    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        return Outcomes.all(Outcome.FAILED, len(rules), "stuck")


def test_rules_that_a_nic_keeps_are_told(tmp_path: Path) -> None:
    with open_world(tmp_path, backend=Stuck()) as world:
        world.offload(FLOW)
        removed = run_steps(remove_selected(world.balancer, world.context.services, Selection(vip=TCP4), patience=0.0))
        assert (removed.deleted, removed.rules_ended, removed.rules_left) == (1, 1, 1)


def test_a_vip_that_stores_nothing_is_told(tmp_path: Path) -> None:
    with open_world(tmp_path, vips=VIPS) as world:
        world.send(tcp("198.18.1.2", "198.18.10.9"))
        for method in ("list", "purge"):
            answer = call(world, method, vip="198.18.10.9:80/tcp")
            assert answer["notes"] == [
                "198.18.10.9:80/tcp has the flag lru_bypass: nothing is stored for its connections"
            ]
        assert call(world, "list", vip="198.18.10.9")["matching"] == 0


def test_reading_is_for_readers_and_removing_for_root(filled: tuple[World, dict[str, str]]) -> None:
    services = filled[0].context.services
    mine = {name for name in services.methods if name.startswith("connections.")}
    assert mine & services.read_methods == {f"connections.{name}" for name in ("list", "find", "fill")}
    assert mine - services.read_methods == {"connections.delete", "connections.purge"}
    assert not mine & services.order_methods


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("list", {"vips": WEB}, "connections.list: vips: is no parameter; there are: vip, real, client, after, limit"),
        ("list", {"limit": 0}, "connections.list: limit: is 0; should be a number from 1 to 50,000"),
        ("list", {"after": "x"}, "connections.list: after: is 'x'; should be a number from -1"),
        ("list", {"client": "198.18.1.1/24"}, "which has host bits; should be '198.18.1.0/24'"),
        ("list", {"client": 7}, "client: is 7; should be an address or a prefix of clients such as '198.18.1.0/24'"),
        ("purge", {}, "connections.purge: should name what to remove: vip, real, or both"),
        ("purge", {"vip": "198.18.10.7"}, "is '198.18.10.7'; there is no such VIP; there are: 198.18.10.1:80/tcp, "),
        ("purge", {"real": "198.18.20.99"}, "is '198.18.20.99'; there is no such real; there are: 198.18.20.11, "),
        ("find", {}, "connections.find: flow: 'None' is not a flow; write it as '198.18.1.2:40000 > "),
        ("delete", {"flow": "198.18.1.2:1 > 198.18.10.1:70/tcp"}, "goes to no VIP; there are: 198.18.10.1:80/tcp, "),
        ("delete", {"flow": "198.18.1.0/24:* > 198.18.10.1:80/tcp"}, "should be one flow; connections.list finds many"),
        ("fill", {"vip": WEB}, "connections.fill: vip: is no parameter; there are none"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    filled: tuple[World, dict[str, str]], method: str, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        call(filled[0], method, **parameters)
    assert message in str(refused.value)
