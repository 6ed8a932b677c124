# SPDX-License-Identifier: Apache-2.0
"""Health checks through the tunnel: a checker's real sockets, a real daemon, reals that decapsulate.

The checker runs beside the balancer. The mark of its socket says which real answers.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from demo.lab import VIP4, VIP6, Lab
from nfcore.bench.testbed import Daemons, config_text
from nfcore.control.client import request
from nfcore.errors import HostError
from nfcore.kernel import (
    Ownership,
    XdpMode,
    attach_egress,
    attach_xdp,
    cls_bpf,
    detach_egress,
    egress_programs,
    interface_index,
)
from nfcore.plugins.katran_accel.decap.program import DecapOptions, Decapsulation
from nfcore.plugins.katran_accel.healthcheck import presence
from nfcore.plugins.katran_accel.healthcheck.path import ProbePath
from nfcore.plugins.katran_accel.healthcheck.program import FILTER_PRIORITY, KIND, ProbeProgram, find_attached
from nfcore.plugins.katran_accel.healthcheck.service import Healthcheck
from tests.kernel.network import enter, ip
from tests.kernel.site import PATIENCE, command_line, eventually, succeed

GUE = 6080
ETH_P_ALL = 0x0003


@dataclass
class World:
    """The lab without an emulated NIC: real1 and real2 answer with their name."""

    lab: Lab
    folder: Path
    daemons: Daemons
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def balancer(self) -> str:
        return self.lab.namespace("lb")

    def config(self, healthcheck: str = "", *, reals: int = 2, vips: int = 2) -> Path:
        services = [(VIP4, [real.v4 for real in self.lab.reals]), (VIP6, [real.v6 for real in self.lab.reals])]
        tables = ["[katran_accel]", "lru_size = 1024", f"[katran_accel.healthcheck]\n{healthcheck}"]
        for vip, addresses in services[:vips]:
            listed = ", ".join(f'{{ address = "{address}" }}' for address in addresses[:reals])
            tables.append(f'[[katran_accel.vips]]\naddress = "{vip}"\nport = 80\nprotocol = "tcp"\nreals = [{listed}]')
        path = self.folder / "nf.toml"
        path.write_text(config_text(self.folder, "katran_accel", "none", *tables))
        return path

    def report(self) -> dict[str, Any]:
        return dict(request(self.daemons.socket, "healthcheck"))

    def marks(self) -> dict[str, int]:
        return {row["real"]: row["mark"] for row in self.report()["marks"]}

    def programs(self, interface: str = "eth1") -> list[int]:
        with enter(self.balancer):
            return egress_programs(interface_index(interface), FILTER_PRIORITY)

    def serve(self, role: str, address: str) -> None:
        """Tell each client of a VIP the real's name, in a thread."""
        with enter(self.lab.namespace(role)):
            server = socket.create_server((address, 80), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        server.settimeout(0.2)

        def accept() -> None:
            with server:
                while not self.stopping.is_set():
                    try:
                        client, _ = server.accept()
                    except TimeoutError:
                        continue
                    with client:
                        client.sendall(role.encode())

        threading.Thread(target=accept, daemon=True).start()

    def check(self, vip: str, mark: int, patience: float = PATIENCE) -> str:
        """Connect from beside the balancer, with a marked socket: the name of the real that answers."""
        with enter(self.balancer):
            checker = socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET)
        with checker:
            checker.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            checker.settimeout(patience)
            checker.connect((vip, 80))
            return checker.recv(100).decode()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("healthchecks")
    with Lab("nfhc-", reals=2, nic=False) as lab:
        made = World(lab, folder, Daemons(folder / "nf.sock", lab.enter("lb", [])))
        with Decapsulation(DecapOptions(gue_port=GUE)) as decapsulation:
            for real in lab.reals:
                with enter(lab.namespace(real.name)):
                    attach_xdp(interface_index("eth0"), decapsulation.program, mode=XdpMode.NATIVE)
                for vip in (VIP4, VIP6):
                    made.serve(real.name, vip)
            yield made
        made.stopping.set()
        made.daemons.kill_all()


@contextmanager
def running(world: World, config: Path) -> Iterator[None]:
    with world.daemons.running(config):
        yield
    assert world.programs() == []


@pytest.mark.parametrize("encapsulation", ["ipip", "gue"])
def test_each_mark_reaches_its_real_and_gets_its_answer(world: World, encapsulation: str) -> None:
    gateway = "" if encapsulation == "ipip" else f'gateway_mac = "{world.lab.end("gw", "net0").mac}"'
    with running(world, world.config(f'encapsulation = "{encapsulation}"\n{gateway}')):
        marks = world.marks()
        assert marks.keys() == {address for real in world.lab.reals for address in (real.v4, real.v6)}
        assert sorted(marks.values()) == [1_000_001, 1_000_002, 1_000_003, 1_000_004]
        for real in world.lab.reals:
            for _ in range(3):
                assert world.check(VIP4, marks[real.v4]) == real.name
                assert world.check(VIP6, marks[real.v6]) == real.name
                # The version of the tunnel is the real's, that of the probe its own.
                assert world.check(VIP4, marks[real.v6]) == real.name
                assert world.check(VIP6, marks[real.v4]) == real.name
        report = world.report()
        assert report["packets"]["dropped"] == 0
        assert report["packets"]["processed"] == sum(row["packets"] for row in report["probes"]) >= 24 * 3
        assert all(row["packets"] >= 12 * 3 for row in report["probes"])
        assert world.daemons.metric("nfcore_healthcheck_attached", interface="eth1") == 1
        assert world.daemons.metric("nfcore_healthcheck_packets_total", result="processed") >= 24 * 3
        shown = succeed("healthcheck", "--socket", str(world.daemons.socket))
        assert f"│ {world.lab.reals[0].v4} " in shown and f"encapsulated by {encapsulation}, 0 dropped" in shown


def test_a_filter_does_the_same_where_the_kernel_has_no_better_way(world: World) -> None:
    real = world.lab.reals[0]
    gateway, own = world.lab.end("gw", "net0").mac, world.lab.end("lb", "eth1").mac
    macs = [bytes.fromhex(mac.replace(":", "")) for mac in (own, gateway)]
    with enter(world.balancer):
        index = interface_index("eth1")
        path = ProbePath("eth1", index, "eth1", index, *macs, {4: ip_address("198.18.2.2")})
        with ProbeProgram(path, None) as program:
            program.write_marks({7: ip_address(real.v4)})
            cls_bpf.attach_filter(index, program.program, FILTER_PRIORITY)
            assert (world.check(VIP4, 7), world.check(VIP6, 7)) == (real.name, real.name)
            assert program.packets()["dropped"] == 0
            assert cls_bpf.detach_filter(index, program.program.id, FILTER_PRIORITY)


def test_sockets_without_a_mark_of_a_real_are_left_alone(world: World) -> None:
    with running(world, world.config()):
        # They go the way of any client's packets: by the router to the balancer, and to some real.
        assert world.check(VIP4, 0) in ("real1", "real2")
        assert world.check(VIP6, 1_000_000) in ("real1", "real2")
        assert world.report()["packets"]["processed"] == 0
        assert world.report()["packets"]["skipped"] > 0


def test_reload_gives_and_takes_marks(world: World) -> None:
    config = world.config()
    with running(world, config):
        first, second = world.lab.reals
        before = world.marks()
        assert world.check(VIP4, before[second.v4]) == second.name
        world.config(reals=1)
        succeed("reload", str(config))
        assert world.marks().keys() == {first.v4, first.v6}
        counted = world.report()["packets"]["processed"]
        # As a client's: the only real of the VIP answers.
        assert world.check(VIP4, before[second.v4]) == first.name
        assert world.report()["packets"]["processed"] == counted
        assert world.check(VIP4, before[first.v4]) == first.name
        assert world.report()["packets"]["processed"] > counted
        # Keys of the table itself are read at the start only, and nothing changes before that is said.
        world.config("base_mark = 5")
        with pytest.raises(AssertionError, match=r"katran_accel\.healthcheck: is .* a change needs a restart"):
            succeed("reload", str(config))
        assert world.marks().keys() == {first.v4, first.v6}


def test_a_reload_with_the_first_ipv6_real_finds_a_source_for_it(world: World) -> None:
    config = world.config(vips=1)
    with running(world, config):
        assert len(world.marks()) == 2
        world.config("")
        succeed("reload", str(config))
        second = world.lab.reals[1]
        assert world.check(VIP6, world.marks()[second.v6]) == second.name


def test_routes_and_routers_may_change_while_it_runs(world: World) -> None:
    """The kernel finds the next hop of each probe: another way to a real counts, and a router with another address."""
    first, second = world.lab.reals
    with running(world, world.config()):
        marks = world.marks()
        assert world.check(VIP4, marks[first.v4]) == first.name
        ip(world.balancer, "route", "add", "unreachable", second.v4)
        try:
            with pytest.raises(OSError):
                world.check(VIP4, marks[second.v4], patience=0.5)
            assert world.check(VIP4, marks[first.v4]) == first.name
        finally:
            ip(world.balancer, "route", "del", "unreachable", second.v4)
        assert world.check(VIP4, marks[second.v4]) == second.name
        old = world.lab.end("gw", "net0").mac
        try:
            replace_router(world, "02:00:5e:77:00:01")
            assert world.check(VIP4, marks[second.v4]) == second.name
            assert world.check(VIP6, marks[first.v6]) == first.name
        finally:
            replace_router(world, old)


def test_the_source_is_what_the_kernel_uses_now(world: World) -> None:
    first = world.lab.reals[0]
    default = ["default", "via", "198.18.2.1", "dev", "eth1", "onlink"]
    with running(world, world.config()):
        assert world.check(VIP4, world.marks()[first.v4]) == first.name
        ip(world.balancer, "address", "add", "198.18.2.9/24", "dev", "eth1")
        try:
            ip(world.balancer, "route", "replace", *default, "src", "198.18.2.9")
            said = "health checks: probes have the source 198.18.2.9 or 2001:db8:2::2 now"
            assert eventually(lambda: said in world.daemons.logged())
            assert world.check(VIP4, world.marks()[first.v4]) == first.name
        finally:
            ip(world.balancer, "route", "replace", *default)
            ip(world.balancer, "address", "del", "198.18.2.9/24", "dev", "eth1")


def test_frames_have_the_mac_address_that_the_interface_has_now(world: World) -> None:
    """Also those to a MAC address of the TOML, whose Ethernet header the program writes."""
    first, gateway = world.lab.reals[0], world.lab.namespace("gw")
    own, router = world.lab.end("lb", "eth1").mac, world.lab.end("gw", "net0").mac
    with running(world, world.config(f'gateway_mac = "{router}"')):
        with enter(gateway):
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        sniffer.bind(("net0", 0))
        try:
            replace_own_mac(world, "02:00:5e:77:00:02")
            assert eventually(lambda: "and the MAC address 02:00:5e:77:00:02" in world.daemons.logged())
            assert world.check(VIP4, world.marks()[first.v4]) == first.name
            frames = []
            while select.select([sniffer], [], [], 0)[0]:
                frames.append(Ether(sniffer.recv(2048)))
        finally:
            replace_own_mac(world, own)
            sniffer.close()
        assert {frame.src for frame in frames if IP in frame and frame[IP].dst == first.v4} == {"02:00:5e:77:00:02"}


def replace_own_mac(world: World, mac: str) -> None:
    """Give the balancer's interface another address, which the router knows; neighbours there are forgotten."""
    router = world.lab.end("gw", "net0").mac
    ip(world.balancer, "link", "set", "eth1", "address", mac)
    for version in ("198.18.2.", "2001:db8:2::"):
        ip(world.lab.namespace("gw"), "neighbour", "replace", f"{version}2", "lladdr", mac, "dev", "net0")
        ip(world.balancer, "neighbour", "replace", f"{version}1", "lladdr", router, "nud", "permanent", "dev", "eth1")


def replace_router(world: World, mac: str) -> None:
    """Give the router another address on the balancer's link. The kernel forgets its neighbours there."""
    gateway, own = world.lab.namespace("gw"), world.lab.end("lb", "eth1").mac
    ip(gateway, "link", "set", "net0", "address", mac)
    for version in ("198.18.2.", "2001:db8:2::"):
        ip(gateway, "neighbour", "replace", f"{version}2", "lladdr", own, "nud", "permanent", "dev", "net0")
        ip(world.balancer, "neighbour", "replace", f"{version}1", "lladdr", mac, "nud", "permanent", "dev", "eth1")


def test_a_killed_daemon_leaves_it_working_and_the_next_one_takes_it_over(world: World) -> None:
    config = world.config("base_mark = 70_000")
    first, second = world.lab.reals
    daemon = world.daemons.start(config)
    marks = world.marks()
    assert world.check(VIP4, marks[first.v4]) == first.name
    (left,) = world.programs()
    daemon.kill()
    daemon.wait()
    assert world.programs() == [left]
    assert world.check(VIP6, marks[second.v6]) == second.name
    counted = None
    with running(world, config):
        assert world.programs() != [left] and len(world.programs()) == 1
        counted = world.report()["packets"]["processed"]
        assert counted >= 6
        assert world.check(VIP4, world.marks()[first.v4]) == first.name


def test_cleanup_removes_what_a_killed_daemon_left_although_the_toml_has_changed(world: World) -> None:
    config = world.config()
    daemon = world.daemons.start(config)
    (left,) = world.programs()
    daemon.kill()
    daemon.wait()
    config.write_text(config.read_text().replace("[katran_accel.healthcheck]", ""))
    done = world.lab.run("lb", command_line("cleanup", str(config), "--json"))
    assert f"katran_accel: detached program {left} from the egress of eth1" in json.loads(done.stdout)["removed"]
    assert world.programs() == []


def test_what_the_kernel_does_not_let_one_look_at_is_named_and_not_passed_over(world: World) -> None:
    config = world.config()
    daemon = world.daemons.start(config)
    (left,) = world.programs()
    daemon.kill()
    daemon.wait()
    less = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    for command in ("run", "cleanup"):
        done = world.lab.run("lb", [*less, *command_line(command, str(config))], check=False)
        assert done.returncode == 1 and world.programs() == [left]
        assert "eth1" in done.stderr and "CAP_SYS_ADMIN" in done.stderr, done.stderr
    world.lab.run("lb", command_line("cleanup", str(config)))
    assert world.programs() == []


def test_what_cannot_be_detached_is_nobodys_afterwards(world: World) -> None:
    """So that the next daemon takes it over: it waits for no living one."""
    own = bytes.fromhex(world.lab.end("lb", "eth1").mac.replace(":", ""))
    with enter(world.balancer):
        index = interface_index("eth1")
        held = Healthcheck.__new__(Healthcheck)
        held._path = ProbePath("eth1", index, "eth1", index, own, own, {4: ip_address("198.18.2.2")})
        held._program, held._ownership = ProbeProgram(held._path, None), Ownership(KIND, "/run/gone.sock")
        held._presence = None
        program = held._program.program
        held._ownership.claim(program)
        attach_egress(index, program, FILTER_PRIORITY)
        with no_more_files(), pytest.raises(HostError, match="open files"):
            held.close()
        there = find_attached(index)
        assert there is not None and not there.owner.lives
        assert detach_egress(index, there.id, FILTER_PRIORITY)


def test_a_program_that_something_detached_is_told(world: World) -> None:
    with world.daemons.running(world.config()):
        (program,) = world.programs()
        with enter(world.balancer):
            assert detach_egress(interface_index("eth1"), program, FILTER_PRIORITY)
        assert eventually(lambda: not world.report()["attached"])
        assert "eth1: the program of health checks is no longer at the egress" in world.daemons.logged()
        (trouble,) = request(world.daemons.socket, "top")["troubles"]
        assert trouble.startswith("eth1: the program of health checks is no longer at the egress")
        assert world.daemons.metric("nfcore_healthcheck_attached", interface="eth1") == 0
        assert "restart nfcore" in succeed("healthcheck", "--socket", str(world.daemons.socket))


def test_doctor_tells_how_probes_leave(world: World) -> None:
    def finding(config: Path) -> tuple[str, str]:
        done = world.lab.run("lb", command_line("doctor", str(config), "--json"), check=False)
        found = [row for row in json.loads(done.stdout)["findings"] if row["what"] == "katran_accel: health checks"]
        return found[0]["status"], found[0]["found"]

    status, text = finding(world.config('encapsulation = "gue"'))
    assert (status, text.count("eth1")) == ("ok", 2) and "from 198.18.2.2, 2001:db8:2::2" in text
    status, text = finding(world.config('out_interface = "lo"'))
    assert status == "fault" and "interface lo has no Ethernet address" in text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('interface = "eth7"', r"\.interface: there is no interface 'eth7' \(there are: eth1, lo\)"),
        ('out_interface = "lo"', r": interface lo has no Ethernet address; probes can leave by Ethernet only"),
    ],
)
def test_what_does_not_fit_the_machine_is_named_and_nothing_is_left(world: World, keys: str, message: str) -> None:
    with pytest.raises(HostError, match=rf"katran_accel\.healthcheck{message}"):
        world.daemons.start(world.config(keys))
    assert world.programs() == []
    assert "xdp" not in ip(world.balancer, "link", "show", "eth1")


def test_a_look_that_fails_says_nothing_of_the_program_and_the_next_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "PERIOD", 0.01)
    with presence.Presence("lo", interface_index("lo"), program=0xFFFF_FFFF) as watched:
        with no_more_files():
            # A look that began before the limit may have told already.
            watched.attached = True
            failed = eventually(lambda: any("open files" in line for line in watched.warnings()))
            kept = watched.attached
        assert failed and kept
        assert eventually(lambda: any("no longer at the egress" in line for line in watched.warnings()))
        assert not watched.attached


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open nothing."""
    lowest = os.dup(0)
    os.close(lowest)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
