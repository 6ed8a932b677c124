# SPDX-License-Identifier: Apache-2.0
"""`nfcore decap` on the interface of a real: packets reach its sockets, and nothing is left, however the run ends.

balancer (net namespace) ══ veth ══ real: the VIPs on lo, `nfcore decap eth0`
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from nfcore.errors import HostError
from nfcore.kernel import BPF_SOURCES, Program, XdpMode, attach_xdp, attached_xdp, compile_program, interface_index
from nfcore.plugins.katran_accel.decap.program import DecapOptions
from nfcore.plugins.katran_accel.decap.running import read, remove, run
from tests.kernel.network import enter, ip, namespaces, send_frame
from tests.kernel.site import command_line

NET, REAL = "decap-net", "decap-real"
VIP4, VIP6, REAL4, REAL6 = "198.18.10.1", "2001:db8:10::1", "198.18.20.11", "2001:db8:20::11"
REAL_MAC = "02:00:5e:20:00:11"


@pytest.fixture(autouse=True)
def _link() -> Iterator[None]:
    with namespaces(NET, REAL):
        ip(NET, "link", "add", "net0", "type", "veth", "peer", "name", "eth0", "netns", REAL, "address", REAL_MAC)
        for namespace, name in ((NET, "net0"), (REAL, "eth0"), (REAL, "lo")):
            ip(namespace, "link", "set", name, "addrgenmode", "none")
            ip(namespace, "link", "set", name, "up")
        for address in (f"{VIP4}/32", f"{VIP6}/128"):
            ip(REAL, "address", "add", address, "dev", "lo")
        for address in (f"{REAL4}/24", f"{REAL6}/64"):
            ip(REAL, "address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        # The real's answers do not matter, but the kernel asks for the way back to a source.
        ip(REAL, "route", "add", "default", "dev", "eth0")
        yield


inside = partial(enter, REAL)


def begin(*arguments: str) -> subprocess.Popen[str]:
    command = ["ip", "netns", "exec", REAL, *command_line("decap", "eth0", *arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["ip", "netns", "exec", REAL, *command_line("decap", "eth0", *arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A run that is ready; one that still goes on at the end is killed."""
    process = begin(*arguments)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "ready: eth0: decapsulates" in line, line + process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate()


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    return out


def attached() -> int | None:
    with inside():
        there = attached_xdp(interface_index("eth0"))
    return None if there is None else there.id


def foreign_program() -> Program:
    return compile_program(BPF_SOURCES / "pass.c", "pass", defines={}, maps={})


def listen(vip: str) -> socket.socket:
    with inside():
        opened = socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET, socket.SOCK_DGRAM)
    opened.settimeout(30)
    opened.bind((vip, 443))
    return opened


def send(*packets: Packet) -> None:
    with enter(NET), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("net0", 0))
        for packet in packets:
            send_frame(sender, bytes(Ether(src="02:00:5e:00:00:02", dst=REAL_MAC) / packet))


def query(vip: str, word: str) -> Packet:
    source = IPv6(src="2001:db8:1::2", dst=vip) if ":" in vip else IP(src="198.18.1.2", dst=vip)
    return source / UDP(sport=1000, dport=443) / Raw(word.encode())


def test_packets_of_every_tunnel_reach_the_real() -> None:
    four, six = IP(src="172.16.1.1", dst=REAL4), IPv6(src="100::1", dst=REAL6)
    gue = UDP(sport=9000, dport=6080, chksum=0)
    with running("--gue", "6080") as process, listen(VIP4) as in4, listen(VIP6) as in6:
        send(four / query(VIP4, "a"), four / gue / query(VIP4, "b"), six / query(VIP4, "c"))
        send(six / gue / query(VIP4, "d"), query(VIP4, "plain"))
        assert [in4.recv(100) for _ in range(5)] == [b"a", b"b", b"c", b"d", b"plain"]
        send(
            six / query(VIP6, "a"), six / gue / query(VIP6, "b"), four / query(VIP6, "c"), four / gue / query(VIP6, "d")
        )
        assert [in6.recv(100) for _ in range(4)] == [b"a", b"b", b"c", b"d"]
        shown = call("--stats")
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.startswith("eth0: 8 packets decapsulated (4 from IPv4, 4 from IPv6); dropped: 0 fragments")
        assert stop(process) == shown.stdout
    assert attached() is None


def test_only_the_named_destinations_and_the_servers_own_ids() -> None:
    with running("--dst", REAL4, "--server-id", "7", "--json") as process, listen(VIP4) as opened:
        send(IP(src="172.16.1.1", dst="198.18.20.12") / query(VIP4, "not mine"))
        send(IP(src="172.16.1.1", dst=REAL4, flags="MF") / Raw(bytes(64)))
        send(IP(src="172.16.1.1", dst=REAL4) / query(VIP4, "mine"))
        assert opened.recv(100) == b"mine"
        shown = json.loads(stop(process, signal.SIGINT))
    # A fragment of 64 zero bytes has protocol 0: no tunnel's.
    assert shown == {
        "interface": "eth0",
        "decapsulated": {"v4": 1, "v6": 0, "total": 1},
        "dropped": {"fragments": 0, "options": 0, "malformed": 0},
        "server_ids": {"misrouted": 0, "total": 0},
    }


def test_a_killed_run_goes_on_and_the_next_one_continues_it() -> None:
    tunnel = IP(src="172.16.1.1", dst=REAL4)
    with listen(VIP4) as opened:
        with running("--mode", "generic") as process:
            send(tunnel / query(VIP4, "before"))
            assert opened.recv(100) == b"before"
        first = attached()
        assert first is not None and process.returncode == -signal.SIGKILL
        send(tunnel / query(VIP4, "alone"))
        assert opened.recv(100) == b"alone"
        # With other choices, and in another mode.
        with running("--mode", "native", "--gue", "6080") as process:
            assert attached() not in (None, first)
            send(tunnel / UDP(dport=6080) / query(VIP4, "after"))
            assert opened.recv(100) == b"after"
            assert "3 packets decapsulated (3 from IPv4" in stop(process)
    assert attached() is None


def test_what_a_killed_run_left_is_removed() -> None:
    with running():
        with inside(), pytest.raises(HostError, match="interface eth0 is in use by another nfcore"):
            remove("eth0")
        with inside(), pytest.raises(HostError, match="interface eth0 is in use by another nfcore"):
            run("eth0", DecapOptions(), XdpMode.AUTO)
    left = attached()
    removed = call("--remove")
    assert (removed.returncode, removed.stdout) == (0, f"removed program {left} from eth0\n")
    assert attached() is None
    with inside():
        assert remove("eth0") is None
        with pytest.raises(HostError, match="eth0 has no decapsulation: start it with nfcore decap eth0"):
            read("eth0")


def test_a_foreign_program_is_refused_by_name_and_stays() -> None:
    with foreign_program() as foreign:
        with inside():
            attach_xdp(interface_index("eth0"), foreign, mode=XdpMode.NATIVE)
            for use in (remove, read, lambda name: run(name, DecapOptions(), XdpMode.AUTO)):
                with pytest.raises(HostError, match=rf"eth0 already has the XDP program {foreign.id} \(pass\)"):
                    use("eth0")
        assert attached() == foreign.id


@pytest.mark.parametrize("loss", ["detached", "replaced", "interface removed"])
def test_a_run_whose_program_is_gone_ends_and_says_so(loss: str) -> None:
    with running() as process:
        program = attached()
        if loss == "interface removed":
            ip(REAL, "link", "del", "eth0")
            expected = "interface eth0 is gone"
        elif loss == "detached":
            ip(REAL, "link", "set", "dev", "eth0", "xdp", "off")
            expected = f"interface eth0 has lost program {program}"
        else:
            with (
                inside(),
                foreign_program() as new,
            ):
                attach_xdp(interface_index("eth0"), new, mode=XdpMode.NATIVE, replace=program)
            expected = "which replaced program"
        _, error = process.communicate(timeout=60)
        assert process.returncode == 1 and expected in error
        assert "Traceback" not in error
