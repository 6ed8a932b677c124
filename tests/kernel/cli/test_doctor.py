# SPDX-License-Identifier: Apache-2.0
"""`nfcore doctor` on set-ups with one thing wrong each: it names that thing and what to do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.katran_accel.world import GATEWAY
from tests.kernel.network import enter, ip, namespaces

NAMESPACE = f"nftest-doctor-{os.getpid()}"
REAL, CLIENT = f"nftest-mss-real-{os.getpid()}", f"nftest-mss-client-{os.getpid()}"
CONFIG = """
[nf]
plugins = ["katran_accel", "marking", "softnic"]
socket = "{socket}"
[[interfaces]]
name = "eth1"
chain = ["katran_accel"]
offload = ["softnic"]
[softnic]
pins = {{ eth1 = "{nic}" }}
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{{ address = "198.18.20.11" }}]
"""


def nfcore(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["nsenter", f"--net=/run/netns/{NAMESPACE}", sys.executable, "-m", "nfcore.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    """A set-up in which all is well."""
    nic = tmp_path / "nic"
    path = tmp_path / "nf.toml"
    path.write_text(CONFIG.format(socket=tmp_path / "nf.sock", nic=nic))
    with namespaces(NAMESPACE):
        for link, peer in (("wire0", "net0"), ("port0", "eth1")):
            ip(NAMESPACE, "link", "add", link, "mtu", "1600", "type", "veth", "peer", peer, "mtu", "1600")
            for end in (link, peer):
                ip(NAMESPACE, "link", "set", end, "up")
        ip(NAMESPACE, "address", "add", "198.18.2.2/24", "dev", "eth1")
        ip(NAMESPACE, "neighbour", "add", "198.18.2.1", "lladdr", GATEWAY, "dev", "eth1")
        ip(NAMESPACE, "route", "add", "default", "via", "198.18.2.1")
        made = nfcore("softnic", "create", "--wire", "wire0", "--port", "port0", "--pin", str(nic))
        assert made.returncode == 0, made.stderr
        yield path
        nfcore("softnic", "remove", "--pin", str(nic))


def findings(config: Path) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit status, and each finding's status and words."""
    run = nfcore("doctor", str(config), "--json")
    assert "Traceback" not in run.stderr
    told = json.loads(run.stdout)["findings"]
    return run.returncode, {f["what"]: (f["status"], f"{f['found']} {f['advice']}") for f in told}


def test_a_sound_set_up_has_no_fault_and_is_left_as_it_was(config: Path) -> None:
    before = ip(NAMESPACE, "-d", "link")
    status, told = findings(config)
    assert status == 0
    assert {status for status, _ in told.values()} == {"ok"}, told
    assert GATEWAY in told["katran_accel: gateway"][1]
    assert "native" in told["eth1: XDP"][1]
    assert "marks of 32 bits" in told["eth1: softnic"][1]
    assert ip(NAMESPACE, "-d", "link") == before
    assert sorted(path.name for path in config.parent.iterdir()) == ["nf.toml", "nic"]


@pytest.mark.parametrize(
    ("breakage", "what", "words"),
    [
        (("link", "set", "eth1", "down"), "eth1: link", "ip link set eth1 up"),
        (("route", "del", "default"), "katran_accel: gateway", "no default route"),
        (("link", "set", "eth1", "name", "eth9"), "interface", "there is no interface 'eth1'"),
    ],
)
def test_what_is_wrong_is_named(config: Path, breakage: tuple[str, ...], what: str, words: str) -> None:
    ip(NAMESPACE, *breakage)
    status, told = findings(config)
    assert status == 1
    assert told[what][0] == "fault"
    assert words in told[what][1]


def test_an_mtu_without_room_is_a_warning(config: Path) -> None:
    ip(NAMESPACE, "link", "set", "eth1", "mtu", "1500")
    status, told = findings(config)
    assert status == 0
    assert told["eth1: room for encapsulation"][0] == "warning"
    assert "1520" in told["eth1: room for encapsulation"][1]


def test_tags_that_xdp_would_not_see_are_a_warning_until_the_advice_is_followed(config: Path) -> None:
    config.write_text(config.read_text().replace("[softnic]", "[katran_accel]\nvlan = true\n[softnic]"))
    what = "katran_accel: VLAN tags on eth1"
    status, told = findings(config)
    assert (status, told[what][0]) == (0, "warning")
    command = told[what][1][told[what][1].index("ethtool -K port0") :].split()
    subprocess.run(["nsenter", f"--net=/run/netns/{NAMESPACE}", *command], check=True)
    assert findings(config)[1][what][0] == "ok"


def test_the_advised_mss_is_what_clients_then_keep_to(config: Path) -> None:
    ip(NAMESPACE, "link", "set", "eth1", "mtu", "1500")
    _, told = findings(config)
    command = told["eth1: room for encapsulation"][1].rpartition(": ")[2]
    with namespaces(REAL, CLIENT):
        ip(REAL, "link", "add", "up0", "type", "veth", "peer", "name", "down0", "netns", CLIENT)
        for namespace, name, address in ((REAL, "up0", "198.18.20.1"), (CLIENT, "down0", "198.18.20.2")):
            ip(namespace, "addr", "add", f"{address}/24", "dev", name)
            ip(namespace, "link", "set", name, "up")
        ip(REAL, "addr", "add", "198.18.10.1/32", "dev", "up0")
        ip(REAL, "route", "add", "default", "via", "198.18.20.2")
        ip(CLIENT, "addr", "add", "198.18.1.2/32", "dev", "down0")
        ip(CLIENT, "route", "add", "198.18.10.1", "via", "198.18.20.1", "src", "198.18.1.2")
        with enter(REAL):
            subprocess.run(["sh", "-c", command], check=True)
            server = socket.create_server(("198.18.10.1", 80))
        with server, enter(CLIENT), socket.create_connection(("198.18.10.1", 80), timeout=10) as client:
            # A packet with so much data and its headers, 20 and 20 bytes, fits behind an outer header of 20 bytes.
            segment = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
            timestamps = 12
            assert segment == 1500 - 20 - 20 - 20 - timestamps


def test_a_missing_nic_is_a_fault_of_its_backend(config: Path) -> None:
    assert nfcore("softnic", "remove", "--pin", str(config.parent / "nic")).returncode == 0
    status, told = findings(config)
    assert (status, told["eth1: softnic"][0]) == (1, "fault")
    assert "nfcore softnic create" in told["eth1: softnic"][1]


def test_the_machine_alone_can_be_examined() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "nfcore.cli", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    told = {finding["what"]: finding["status"] for finding in json.loads(run.stdout)["findings"]}
    assert {"kernel", "privileges", "headers", "bcc"} <= told.keys()
    assert (run.returncode == 0) == ("fault" not in told.values())


def test_a_chain_is_told_and_its_dispatcher_tried(config: Path) -> None:
    text = config.read_text().replace('chain = ["katran_accel"]', 'chain = ["flow_actions", "katran_accel"]')
    config.write_text(text.replace("plugins = [", 'plugins = ["flow_actions", '))
    status, told = findings(config)
    assert (status, told["eth1: chain"][0]) == (0, "ok"), told
    assert "flow_actions → katran_accel; the program in front of them loads" in told["eth1: chain"][1]
