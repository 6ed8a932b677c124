# SPDX-License-Identifier: Apache-2.0
"""What `nfcore run` refuses, `nfcore doctor` reports, and the other way round; and what the advice of both is worth."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from nfcore.api.findings import Status
from nfcore.api.locks import FOLDER as LOCKS
from nfcore.bench.testbed import Daemons, run
from nfcore.cli.link_diagnosis import examine_merging
from nfcore.kernel import (
    BPF_SOURCES,
    Map,
    MapSpec,
    MapType,
    Program,
    XdpMode,
    attach_xdp,
    compile_program,
    interface_index,
    obj_pin,
)
from nfcore.kernel.ethtool import LinkFacts
from nfcore.kernel.syscall import bpf
from tests.kernel.network import enter, namespaces
from tests.kernel.site import eventually

from .obstacles import LINK, PEER, Place, advised, call, follow, interface, mounted

LINK_CREATE, BPF_XDP = 28, 37


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with interface():
        place = Place(tmp_path)
        yield place
        place.daemons.kill_all()


@contextmanager
def foreign() -> Iterator[Program]:
    """A program of somebody else."""
    with compile_program(BPF_SOURCES / "pass.c", "pass", defines={}, maps={}) as program:
        yield program


@contextmanager
def by_netlink(mode: XdpMode) -> Iterator[None]:
    with foreign() as program:
        attach_xdp(interface_index(LINK), program, mode=mode)
    yield
    for word in ("xdp", "xdpgeneric"):
        call("ip", "link", "set", "dev", LINK, word, "off")


def create_link(program: Program, flags: int = 0) -> int:
    return bpf(LINK_CREATE, bytearray(struct.pack("=IIII", program.fd, interface_index(LINK), BPF_XDP, flags)))  # type: ignore[arg-type]


@contextmanager
def by_link(flags: int = 0) -> Iterator[None]:
    """Attached by a BPF link that this process holds."""
    with foreign() as program:
        link = create_link(program, flags)
    yield
    os.close(link)


@contextmanager
def by_pinned_link(folder: Path) -> Iterator[None]:
    with mounted(folder, kind="bpf"):
        with foreign() as program:
            link = create_link(program)
        obj_pin(link, folder / "link")
        os.close(link)
        yield
        (folder / "link").unlink(missing_ok=True)


ATTACHED: dict[str, Callable[[Path], AbstractContextManager[None]]] = {
    "native": lambda folder: by_netlink(XdpMode.NATIVE),
    "generic": lambda folder: by_netlink(XdpMode.GENERIC),
    "a link": lambda folder: by_link(),
    "a generic link": lambda folder: by_link(2),
    "a pinned link": lambda folder: by_pinned_link(folder / "bpf"),
}


@pytest.mark.parametrize("how", ATTACHED)
def test_a_foreign_program_is_removed_by_the_advice(place: Place, how: str) -> None:
    with ATTACHED[how](place.folder):
        refused = place("run").stderr
        status, found = place.findings()
        assert status == 1
        assert found[f"{LINK}: XDP"]["status"] == "fault"
        assert found[f"{LINK}: XDP"]["found"] == refused.removeprefix("error: ").strip()
        if "link" in how:
            assert "ip link set" not in refused
        if how == "a link":
            assert f"process {os.getpid()} (" in refused
        if how == "a pinned link":
            assert f"the pin {place.folder}/bpf/link" in refused
        follow(refused)
        assert place.attached() is None
        assert place.findings()[0] == 0


# -- the list


def pins(place: Place) -> Path:
    return place.folder / "pins"


@contextmanager
def other_pins(place: Place) -> Iterator[None]:
    """Connection tables of another size are pinned."""
    place.write(("lru_size = 4096", f'lru_size = 8192\npin_dir = "{pins(place)}"'))
    with mounted(pins(place), kind="bpf"):
        place.runs()
        place.write(("lru_size = 4096", f'lru_size = 4096\npin_dir = "{pins(place)}"'))
        yield


@contextmanager
def foreign_pins(place: Place) -> Iterator[None]:
    """Something else is pinned under the name of a map."""
    place.write(("lru_size = 4096", f'lru_size = 4096\npin_dir = "{pins(place)}"'))
    with mounted(pins(place), kind="bpf"):
        with Map.create(MapSpec("reals", MapType.ARRAY, "<u4", "<u4", 1)) as odd:  # type: ignore[arg-type]
            odd.pin(pins(place) / "reals")
        yield


@contextmanager
def foreign_folder(place: Place) -> Iterator[None]:
    """The folder for pins has other files."""
    place.write(("lru_size = 4096", f'lru_size = 4096\npin_dir = "{pins(place)}"'))
    pins(place).mkdir()
    (pins(place) / "letter").write_text("mine")
    yield


@contextmanager
def other_daemon(place: Place) -> Iterator[None]:
    """Another nfcore, with another socket, on the same interface."""
    other = place.folder / "other.toml"
    other.write_text(place.path.read_text().replace("/nf.sock", "/other.sock"))
    daemons = Daemons(place.folder / "other.sock")
    with daemons.running(other):
        yield


@contextmanager
def beside(place: Place) -> Iterator[None]:
    """Another nfcore runs by the same TOML, but on eth2 and with its own socket; eth3 is nobody's."""
    links = ("eth2", "eth3")
    for link in links:
        run("ip", "link", "add", link, "type", "veth", "peer", f"net{link[-1]}")
        run("ip", "link", "set", link, "up")
    try:
        other = place.folder / "other.toml"
        other.write_text(place.path.read_text().replace("/nf.sock", "/other.sock").replace("eth1", "eth2"))
        with Daemons(place.folder / "other.sock").running(other):
            yield
    finally:
        for link in links:
            run("ip", "link", "del", link)


@contextmanager
def same_pins(place: Place) -> Iterator[None]:
    """Another nfcore, on another interface, has the folder of pins."""
    place.write(("lru_size = 4096", f'lru_size = 4096\npin_dir = "{pins(place)}"'))
    with mounted(pins(place), kind="bpf"), beside(place):
        yield


@contextmanager
def same_nic(place: Place) -> Iterator[None]:
    """Another nfcore waits for the NIC with the same pins."""
    place.write(
        ACCELERATED[0],
        ('offload = ["none"]', 'offload = ["softnic", "none"]'),
        more=f'[softnic.pins]\neth1 = "{pins(place)}"\n',
    )
    with beside(place):
        yield


@contextmanager
def same_filters(place: Place) -> Iterator[None]:
    """The filters are to be on another nfcore's interface."""
    with beside(place):
        place.write(
            ('"flow_actions"]', '"marking", "tc_offload"]'),
            ('offload = ["none"]', 'offload = ["tc_offload", "none"]'),
            more='[tc_offload.devices.eth1]\nfilter_on = "eth2"\n',
        )
        yield


def probed_by(interface: str) -> str:
    return f'[katran_accel.healthcheck]\ninterface = "{interface}"\nsource_v4 = "198.18.1.1"\n'


@contextmanager
def probes_of_another(place: Place) -> Iterator[None]:
    """Health checks are to pass another nfcore's interface."""
    with beside(place):
        place.write(more=probed_by("eth2"))
        yield


@contextmanager
def same_egress(place: Place) -> Iterator[None]:
    """Another nfcore, whose locks are lost, has its health checks there."""
    place.write(more=probed_by("eth3"))
    with beside(place):
        shutil.rmtree(LOCKS)
        yield


@contextmanager
def left_in_another_mode(place: Place) -> Iterator[None]:
    place.write(('offload = ["none"]', 'offload = ["none"]\nxdp_mode = "generic"'))
    place.kill_one()
    place.write()
    yield


@contextmanager
def no_group(place: Place) -> Iterator[None]:
    place.write(("[[interfaces]]", 'socket_group = "nosuchgroup"\n[[interfaces]]'))
    yield


@contextmanager
def file_for_socket(place: Place) -> Iterator[None]:
    (place.folder / "nf.sock").write_text("no socket")
    yield


@contextmanager
def full_folder(place: Place) -> Iterator[None]:
    folder = place.folder / "sockets"
    with mounted(folder, "-o", "size=4k"):
        (folder / "much").write_bytes(bytes(4096))
        place.write(("/nf.sock", "/sockets/nf.sock"))
        yield


@contextmanager
def no_interface(place: Place) -> Iterator[None]:
    place.write(('name = "eth1"', 'name = "eth9"'))
    yield


@contextmanager
def large_mtu(place: Place) -> Iterator[None]:
    for link in (PEER, LINK):
        run("ip", "link", "set", link, "mtu", "9000")
    yield


@contextmanager
def no_chains(place: Place) -> Iterator[None]:
    place.write(('chain = ["katran_accel"]', 'chain = ["flow_actions", "katran_accel"]'))
    (place.folder / "nf.sock.chain").mkdir()
    (place.folder / "nf.sock.chain" / "letter").write_text("mine")
    yield


ACCELERATED = (
    ('"flow_actions"]', '"marking", "softnic"]'),
    ('offload = ["none"]', 'offload = ["softnic"]'),
)


@contextmanager
def no_nic(place: Place) -> Iterator[None]:
    place.write(*ACCELERATED)
    yield


@contextmanager
def spread_queues(place: Place) -> Iterator[None]:
    place.write(*ACCELERATED, more='[marking]\ncarrier = "rx-queue"\nwidth = 1\n')
    run("ip", "link", "del", LINK)
    queues = ("numtxqueues", "2", "numrxqueues", "2")
    run("ip", "link", "add", LINK, *queues, "type", "veth", "peer", "name", PEER, *queues)
    yield


@contextmanager
def no_gateway(place: Place) -> Iterator[None]:
    place.write(('gateway_mac = "02:00:5e:00:00:fe"', 'gateway_mac = "auto"'))
    yield


@contextmanager
def no_journal(place: Place) -> Iterator[None]:
    place.write(
        ('chain = ["katran_accel"]', 'chain = ["flow_actions", "katran_accel"]'),
        more=f'[flow_actions]\npin_dir = "{pins(place)}"\n',
    )
    with mounted(pins(place), kind="bpf"):
        (place.folder / "nf.sock.flows").mkdir()
        yield


OBSTACLES: dict[str, Callable[[Place], AbstractContextManager[None]]] = {
    "nothing": nullcontext,
    "pins of another size": other_pins,
    "pins of somebody else": foreign_pins,
    "a folder of somebody else": foreign_folder,
    "another daemon": other_daemon,
    "another daemon's pins": same_pins,
    "another daemon's NIC": same_nic,
    "another daemon's interface for filters": same_filters,
    "another daemon's interface for probes": probes_of_another,
    "another daemon's probes": same_egress,
    "left in another mode": left_in_another_mode,
    "no such group": no_group,
    "a file for the socket": file_for_socket,
    "a full folder": full_folder,
    "no interface": no_interface,
    "a large MTU": large_mtu,
    "no journal": no_journal,
    "no folder for chains": no_chains,
    "no NIC": no_nic,
    "no gateway": no_gateway,
    "carrier of all packets": spread_queues,
}


@pytest.mark.slow
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_doctor_and_run_agree(place: Place, obstacle: str) -> None:
    with OBSTACLES[obstacle](place):
        before = run("ip", "-d", "link", "show", LINK)
        status, found = place.findings()
        faults = [each["found"] for each in found.values() if each["status"] == "fault"]
        assert run("ip", "-d", "link", "show", LINK) == before
        if obstacle == "nothing":
            assert (status, faults) == (0, [])
            place.runs()
            return
        assert (status, bool(faults)) == (1, True)
        refused = place("run")
        assert refused.returncode == 1
        # The program's name is the only thing that differs where both try to attach one.
        said = [re.sub(r"cannot attach \w+", "cannot attach pass", text) for text in (refused.stderr, *faults)]
        assert any(fault in said[0] for fault in said[1:]), (refused.stderr, faults)


# -- what the machine does to packets


def set_feature(link: str, feature: str, on: bool) -> None:
    run("ethtool", "-K", link, feature, "on" if on else "off")


def pass_everything(link: str) -> None:
    """Attach a program, as the advice for a peer says; it stays as long as the link."""
    with foreign() as program:
        attach_xdp(interface_index(link), program, mode=XdpMode.NATIVE)


def test_a_peer_that_takes_nothing_and_computes_no_checksums(place: Place) -> None:
    set_feature(PEER, "tx", on=True)
    found = place.findings()[1]
    for what in (f"{LINK}: peer", f"{LINK}: checksums"):
        assert found[what]["status"] == "warning"
        assert f"its peer {PEER}" in found[what]["found"]
    follow(found[f"{LINK}: checksums"]["advice"])
    set_feature(PEER, "gro", on=True)  # not enough for what XDP sends back
    found = place.findings()[1]
    assert f"{LINK}: checksums" not in found
    assert "attach a program" in found[f"{LINK}: peer"]["advice"]
    pass_everything(PEER)
    assert f"{LINK}: peer" not in place.findings()[1]


def test_a_peer_in_another_namespace_is_looked_at_there(place: Place) -> None:
    name = f"nftest-peer-{os.getpid()}"
    with namespaces(name), ExitStack() as back:
        run("ip", "link", "set", PEER, "netns", name)
        back.callback(run, "ip", "-n", name, "link", "set", PEER, "netns", str(os.getpid()))
        run("ip", "-n", name, "link", "set", PEER, "up")
        found = place.findings()[1]
        for what in (f"{LINK}: peer", f"{LINK}: checksums"):
            assert f"in namespace {name}" in found[what]["found"]
        follow(found[f"{LINK}: checksums"]["advice"])
        assert f"{LINK}: checksums" not in place.findings()[1]
        with enter(name):
            pass_everything(PEER)
        assert f"{LINK}: peer" not in place.findings()[1]


def test_generic_mode_and_a_large_mtu_are_warnings(place: Place) -> None:
    place.write(('offload = ["none"]', 'offload = ["none"]\nxdp_mode = "generic"'))
    with large_mtu(place):
        status, found = place.findings()
    assert status == 0
    assert found[f"{LINK}: XDP"]["status"] == "warning"
    assert "generic mode" in found[f"{LINK}: XDP"]["found"]
    assert found[f"{LINK}: MTU"]["status"] == "warning"
    assert found[f"{LINK}: MTU"]["found"].startswith("9000: ")


def test_the_advice_for_a_large_mtu_lets_a_native_program_run(place: Place) -> None:
    with large_mtu(place):
        for command in advised(place.findings()[1][f"{LINK}: XDP"]["advice"]):
            run(*command.split())
        assert place.findings()[0] == 0
        place.runs()


def ether(frame_type: str, payload: str) -> bytes:
    """A frame to the interface."""
    mac = json.loads(run("ip", "-j", "link", "show", LINK))[0]["address"].replace(":", "")
    return bytes.fromhex(f"{mac}020000000001{frame_type}{payload}")


def test_what_was_lost_is_told(place: Place) -> None:
    without_reals = '[[katran_accel.vips]]\naddress = "198.18.10.1"\nport = 81\nprotocol = "tcp"\nreals = []\n'
    place.write(('"flow_actions"]', '"stats"]'), more=f'{without_reals}[stats]\nlisten = ""\n')
    head, rest = "4500003c0001000040060000c6120102c6120a019c40", "000000010000000050" + "02faf000000000" + "00" * 20
    with place.daemons.running(place.path), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as network:
        network.bind((PEER, 0))
        assert place.findings()[1]["daemon: drops"]["status"] == "ok"
        for _ in range(10):
            network.send(ether("0800", f"{head}0050{rest}"))
            network.send(ether("0800", f"{head}0051{rest}"))

        def told() -> bool:
            found = place.findings()[1]
            return "xdp_tx_errors" in found.get(f"{LINK}: losses", {}).get("found", "") and (
                "nfcore_drops_total" in found["daemon: drops"]["found"]
            )

        assert eventually(told)
    found = place.findings()[1][f"{LINK}: losses"]
    assert (found["status"], re.findall(r"xdp_tx_errors (\d+)", found["found"])) == ("warning", ["10"])


@pytest.mark.parametrize(
    ("feature", "option", "status"), [("rx-lro", "lro", Status.FAULT), ("rx-gro-hw", "rx-gro-hw", Status.WARNING)]
)
def test_a_nic_that_merges_packets(feature: str, option: str, status: Status) -> None:
    facts = LinkFacts(up=True, mtu=1500, driver="", features={feature: True}, fixed=frozenset())
    (found,) = examine_merging("eth1", facts)
    assert (found.status, found.advice) == (status, f"ethtool -K eth1 {option} off")
    (fixed,) = examine_merging("eth1", replace(facts, fixed=frozenset({feature})))
    assert (fixed.status, fixed.advice) == (Status.WARNING, "")
    (off,) = examine_merging("eth1", replace(facts, features={feature: False}))
    assert off.status is Status.OK
