# SPDX-License-Identifier: Apache-2.0
"""Actions for flows in front of the balancer, over real flower: what the NIC drops and marks, and what XDP does then.

in software     network: port0 ── egress: flower ─► skbedit mark, drop ══ eth1: flow_actions ─► balancer
in hardware     network: sim0w ══ sim0: table ─► drop, or mark in metadata ─► flow_actions ─► balancer

Each class has one daemon per strategy; all of its tests use entries and flows of their own.
"""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nfcore.bench.testbed import HOST, NIC_MAC, PORT, Daemons
from nfcore.kernel import XdpMode, attach_xdp, interface_index
from tests.guest.inside.programs import pass_everything, write_chain
from tests.kernel.flow_actions.chain import PORT as PORTS
from tests.kernel.flow_actions.chain import Chain, exact, frame, masked
from tests.kernel.flow_actions.frames import DST, SRC
from tests.waiting import eventually

from .conftest import run

if TYPE_CHECKING:
    from tests.guest.simnic.nic import SimNic

ACTIONS: dict[str, dict[str, Any]] = {
    "drop": {},
    "pass": {},
    "count": {},
    "redirect": {"interface": "out0"},
    "set_dscp": {"dscp": 46},
    "police": {"bytes_per_second": 16},
    "cpu": {"cpu": 0},
}
SENT = 5
"""Frames of each entry."""
TO_BALANCER = {"count": SENT, "set_dscp": SENT, "police": 3}
"""How many of them go on."""


@dataclass(frozen=True)
class Case:
    """An entry, and the flow that a test sends for it."""

    entry: dict[str, Any]
    flow: dict[str, Any]
    keys: dict[str, Any]
    """Some of what its filter matches, as tc shows it."""

    @property
    def name(self) -> str:
        return str(self.entry["name"])

    def frame(self, tos: int = 0) -> bytes:
        return frame(**self.flow, tos=tos)

    def match(self) -> str:
        """The flow of the frame, as people write it."""
        family, port = self.flow["family"], self.flow.get("sport", 4000)
        src = self.flow.get("src", SRC[family])
        if family == 4:
            return f"{src}:{port} > {DST[4]}:{PORTS[4]}/tcp"
        return f"[{src}]:{port} > [{DST[6]}]:{PORTS[6]}/udp"


def cases(number: int, **action: Any) -> list[Case]:
    """An exact and a masked entry of each family, with flows that have this number."""
    found = []
    for family, net in ((4, f"198.18.{100 + number}."), (6, f"2001:db8:{100 + number}::")):
        if action["action"] == "police":
            action["burst"] = 3 * len(frame(family))
        port, prefix = 4000 + number, f"{net}0/24" if family == 4 else f"{net}/48"
        one = exact(f"exact-{family}-{number}", family, port, **action)
        every = masked(f"masked-{family}-{number}", family, src=prefix, **action)
        found.append(Case(one, {"family": family, "sport": port}, {"eth_type": f"ipv{family}", "src_port": port}))
        found.append(Case(every, {"family": family, "src": f"{net}9"}, {"src_ip": prefix}))
    return found


ALL = {
    action: cases(number, action=action, **parameters)
    for number, (action, parameters) in enumerate(ACTIONS.items(), start=1)
}
"""The entries that stand from the start."""
DELETED, FULL, REFUSED, TAKEN, DROPPED, COUNTED = range(20, 26)
"""Numbers of the other tests' flows."""


@dataclass
class GuestSite(Chain):
    """A device with flower in front of it, and the daemons that serve it."""

    PATIENCE = 60.0
    folder: Path
    strategy: str
    interface: str
    wire: str
    place: tuple[str, str]
    """Device and direction of the filters."""
    carrier: str
    nic: SimNic | None = None
    """None: the kernel evaluates the rules."""
    daemons: Daemons = field(init=False)

    def __post_init__(self) -> None:
        self.daemons = Daemons(self.folder / "nf.sock")
        self.request, self.metric = self.daemons.request, self.daemons.metric

    @property
    def in_hardware(self) -> bool:
        """Whether rules are in hardware alone."""
        return self.nic is not None

    def config(self) -> Path:
        device, direction = self.place
        settings = f'[tc_offload.devices.{self.interface}]\nfilter_on = "{device}"\ndirection = "{direction}"'
        if self.in_hardware:
            settings = '[tc_offload]\nskip_sw = "on"'
        flows = "\n".join(map(toml_of, (case.entry for each in ALL.values() for case in each)))
        actions = f'pin_dir = "{self.folder}/pins"\n{flows}'
        return write_chain(self.folder, self.interface, self.strategy, self.carrier, nic=settings, actions=actions)

    @contextmanager
    def open(self) -> Iterator[GuestSite]:
        """Start a daemon; wait until the NIC has every entry."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as self.network, self.redirecting():
            self.network.bind((self.wire, 3))
            self.network.settimeout(self.PATIENCE)
            try:
                self.daemons.start(self.config())
                everything = [case.name for each in ALL.values() for case in each]
                assert [name for name in everything if not self.ready(name)] == []
                yield self
                daemon = self.daemons.started[-1]
                daemon.terminate()
                assert daemon.wait(self.PATIENCE) == 0, self.daemons.logged()
                assert "clsact" not in run("tc", "qdisc", "show", "dev", self.place[0])
            finally:
                self.daemons.kill_all()

    def send(self, *frames: bytes) -> None:
        for each in frames:
            try:
                self.network.send(each)
            except OSError as error:
                # The filter on the sender's own egress has dropped it.
                assert (error.errno, self.in_hardware) == (errno.ENOBUFS, False)

    def filters(self, keys: dict[str, Any]) -> list[dict[str, Any]]:
        """The filters that match this, as `tc -s -j` shows them."""
        device, direction = self.place
        shown = json.loads(run("tc", "-j", "-s", "filter", "show", "dev", device, direction))
        every = (each["options"] for each in shown if "keys" in each.get("options", {}))
        return [options for options in every if keys.items() <= options["keys"].items()]

    def seen_by_tc(self, case: Case) -> tuple[str, int]:
        """Which action the only filter of an entry has, and how many packets `tc` shows for it."""
        (options,) = self.filters(case.keys)
        assert (options.get("in_hw"), options.get("skip_sw")) == ((True, True) if self.in_hardware else (None, None))
        stats = options["actions"][0]["stats"]
        kind = str(options["actions"][0]["kind"])
        # tc leaves out what is zero.
        return kind, int(stats.get("hw_packets", 0) if self.in_hardware else stats["packets"])

    def order(self, *wanted: Case) -> None:
        """Add entries, and wait for their rules."""
        self.change(*(case.entry for case in wanted))
        for case in wanted:
            assert self.ready(case.name), self.entry(case.name)


def toml_of(entry: dict[str, Any]) -> str:
    """Write an entry as TOML, whose strings and numbers are those of JSON."""
    return "\n".join(["[[flow_actions.flows]]", *(f"{key} = {json.dumps(value)}" for key, value in entry.items())])


class Actions:
    """The tests. A subclass says what is in front of XDP."""

    @pytest.fixture(scope="class", params=["dest-id", "flow-id"])
    def strategy(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def test_dropped_packets_are_counted_by_tc_and_not_seen_by_xdp(self, site: GuestSite) -> None:
        before = site.actions("drop")
        for case in ALL["drop"]:
            site.send(*[case.frame()] * SENT)
        for case in ALL["drop"]:
            assert site.counted(case.name, SENT)
            assert site.entry(case.name)["bytes"] == SENT * len(case.frame())
            assert site.seen_by_tc(case) == ("gact", SENT)
        assert site.actions("drop") == before

    @pytest.mark.parametrize("action", [action for action in ACTIONS if action != "drop"])
    def test_marked_packets_have_their_action(self, site: GuestSite, action: str) -> None:
        others = {kind: site.others(kind) for kind in ("policed", "cpu_missing", "mark_mismatch")}
        by_mark, by_look_up = site.actions(action)
        balanced = site.metric("nfcore_vip_packets_total")
        for case in ALL[action]:
            for _ in range(SENT):
                if action in ("count", "set_dscp"):
                    # The bits of ECN stay.
                    tos = 46 << 2 | 1 if action == "set_dscp" else 1
                    assert site.balanced(case.frame(tos=1)) == case.frame(tos=tos)[14:]
                else:
                    site.send(case.frame())
            if action == "redirect":
                assert [site.redirected() for _ in range(SENT)] == [case.frame()] * SENT
        for case in ALL[action]:
            assert site.counted(case.name, SENT)
            assert site.seen_by_tc(case) == ("skbedit", SENT)
        went_on = TO_BALANCER.get(action, 0) * len(ALL[action])
        assert site.metric("nfcore_vip_packets_total") - balanced == went_on
        assert site.actions(action) == (by_mark + SENT * len(ALL[action]), by_look_up)
        others["policed"] += 2 * len(ALL[action]) if action == "police" else 0
        assert {kind: site.others(kind) for kind in others} == others

    def test_a_deleted_entry_has_no_rule(self, site: GuestSite) -> None:
        gone = cases(DELETED, action="drop")
        site.order(*gone)
        assert [len(site.filters(case.keys)) for case in gone] == [1] * len(gone)
        site.change(delete=tuple(case.name for case in gone))
        # When the change is answered, no packet meets the rule any more.
        for case in gone:
            assert site.balanced(case.frame()) == case.frame()[14:]
        assert [site.filters(case.keys) for case in gone] == [[]] * len(gone)

    def test_an_entry_takes_a_flow_from_the_balancers_rule(self, site: GuestSite) -> None:
        case = cases(TAKEN, action="drop")[0]
        while not site.filters(case.keys):
            assert site.balanced(case.frame()) == case.frame()[14:]
        assert site.seen_by_tc(case)[0] == "skbedit"
        site.order(case)
        site.send(*[case.frame()] * SENT)
        assert site.counted(case.name, SENT)
        assert site.seen_by_tc(case) == ("gact", SENT)


class TestInSoftware(Actions):
    """Rules that the kernel evaluates on the egress of the peer; marks of socket buffers."""

    @pytest.fixture(scope="class")
    def site(self, strategy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestSite]:
        run("ip", "link", "add", PORT, "type", "veth", "peer", "name", HOST, "address", NIC_MAC)
        for name in (PORT, HOST):
            run("ip", "link", "set", name, "addrgenmode", "none", "up")
        # This kernel gives what XDP sends back only to a peer with a program.
        with pass_everything() as program:
            attach_xdp(interface_index(PORT), program, mode=XdpMode.NATIVE)
        made = GuestSite(tmp_path_factory.mktemp("site"), strategy, HOST, PORT, (PORT, "egress"), "skb-mark")
        with made.open():
            yield made
        run("ip", "link", "del", PORT)


class TestInHardware(Actions):
    """Rules in a NIC alone; marks in metadata."""

    @pytest.fixture(scope="class")
    def simnic(self, strategy: str) -> Iterator[SimNic]:
        """A new one for each strategy."""
        from tests.guest.simnic.nic import open_simnic

        with open_simnic() as nic:
            yield nic

    @pytest.fixture(scope="class")
    def site(self, simnic: SimNic, strategy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestSite]:
        place, folder = (simnic.name, "ingress"), tmp_path_factory.mktemp("site")
        made = GuestSite(folder, strategy, simnic.name, simnic.wire, place, "metadata", simnic)
        with made.open():
            yield made

    def test_what_finds_no_room_is_done_by_xdp(self, site: GuestSite, simnic: SimNic) -> None:
        full = cases(FULL, action="drop")
        simnic.set(table_size=len(site.filters({})))
        try:
            site.change(*(case.entry for case in full))
            check_by_xdp(site, full, "table is full")
        finally:
            simnic.set(table_size=65536)
        check_whole(site, full)

    def test_what_the_nic_refuses_is_done_by_xdp(self, site: GuestSite, simnic: SimNic) -> None:
        refused = cases(REFUSED, action="drop")
        simnic.set(masks=0, drops=0)
        try:
            site.change(*(case.entry for case in refused))
            check_by_xdp(site, refused, "does not support such rules")
        finally:
            simnic.set(masks=1, drops=1)
        # After a change of the link it is asked what it can do.
        run("ip", "link", "set", simnic.name, "down")
        run("ip", "link", "set", simnic.name, "up")
        check_whole(site, refused)

    @pytest.mark.parametrize("strategy", ["flow-id"], indirect=True, scope="class")
    def test_a_killed_daemon_is_not_missed(self, site: GuestSite) -> None:
        dropped, counted = cases(DROPPED, action="drop"), cases(COUNTED, action="count")
        site.order(*dropped, *counted)
        for daemon in site.daemons.started:
            daemon.kill()
            daemon.wait()
        for case in dropped:
            site.send(*[case.frame()] * SENT)
        for case in counted:
            assert site.balanced(case.frame()) == case.frame()[14:]
        site.daemons.start(site.config())
        for case in (*dropped, *counted):
            assert site.ready(case.name), site.entry(case.name)
        assert site.metric("nfcore_adopted_total") >= len(dropped) + len(counted), site.daemons.logged()
        for case in counted:
            assert site.balanced(case.frame()) == case.frame()[14:]
        check_whole(site, dropped, before=SENT)
        for case in counted:
            assert site.counted(case.name, 2)
            assert site.seen_by_tc(case) == ("skbedit", 2)


def explained(site: GuestSite, match: str) -> str:
    """Why the one flow that covers a match is not in hardware."""
    (row,) = site.request("explain", flow=match)["found"]
    return str(row["why"])


def check_by_xdp(site: GuestSite, refused: list[Case], why: str) -> None:
    """See that XDP drops packets of entries without a rule, and that people are told why."""
    by_mark, by_look_up = site.actions("drop")
    for case in refused:
        site.send(*[case.frame()] * SENT)
    for case in refused:
        assert site.counted(case.name, SENT)
        # While the NIC is asked again whether it has room, a rule is on its way for a moment.
        assert eventually(lambda name=case.name: why in site.entry(name)["why"], site.PATIENCE)
        match = case.match()
        told = site.request("explain", flow=match)
        assert told["functions"] == {"flow_actions": f"entry {case.name!r}: drop"}
        assert eventually(lambda match=match: why in explained(site, match), site.PATIENCE)
        assert site.filters(case.keys) == []
    assert site.actions("drop") == (by_mark, by_look_up + SENT * len(refused))


def check_whole(site: GuestSite, dropped: list[Case], before: int = 0) -> None:
    """See that entries have rules, and that no packet is counted twice or never. before: what tc has counted."""
    for case in dropped:
        assert site.ready(case.name), site.entry(case.name)
        site.send(*[case.frame()] * SENT)
    for case in dropped:
        assert site.counted(case.name, 2 * SENT)
        assert site.seen_by_tc(case) == ("gact", before + SENT)
