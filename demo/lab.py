# SPDX-License-Identifier: Apache-2.0
"""The network of the demo: namespaces, veth pairs, addresses and routes.

The addresses are from ranges reserved for benchmarks and documentation (RFC 2544: 198.18.0.0/15, RFC 3849:
2001:db8::/32), so no packet can be for a host outside. The lab is the network alone; its user starts what runs in it
(emulated NIC, balancer, web servers) with `Lab.popen`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Self

from nfcore.errors import HostError

NETNS_FOLDER = Path("/run/netns")
PLAIN_MTU = 1500
TUNNEL_MTU = 1600
"""Bytes. A full packet of the client plus the outer header of IPv6 in IPv6 (40) must fit."""

VIP4, VIP6 = "198.18.10.1", "2001:db8:10::1"
CLIENT4, CLIENT6 = "198.18.1.2", "2001:db8:1::2"
CLIENT_GATEWAY4, CLIENT_GATEWAY6 = "198.18.1.1", "2001:db8:1::1"
BALANCER4, BALANCER6 = "198.18.2.2", "2001:db8:2::2"
BALANCER_GATEWAY4, BALANCER_GATEWAY6 = "198.18.2.1", "2001:db8:2::1"
REAL_GATEWAY4, REAL_GATEWAY6 = "198.18.20.1", "2001:db8:20::1"

_INACTIVE_STATES = ("06", "0A")
"""TIME_WAIT and LISTEN in /proc/net/tcp (include/net/tcp_states.h), hexadecimal."""
_PREFIX = re.compile(r"[a-z][a-z0-9]{1,8}-")

# Interfaces are created after these are set and inherit the values of "default". Without link-local addresses and
# duplicate address detection an interface is usable at once and sends no packets by itself.
_SYSCTLS = {
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/default/rp_filter": 0,
    "net/ipv6/conf/default/accept_dad": 0,
    "net/ipv6/conf/default/accept_ra": 0,
    "net/ipv6/conf/default/router_solicitations": 0,
    "net/ipv6/conf/default/addr_gen_mode": 1,
}
_ROUTER_SYSCTLS = {
    "net/ipv4/ip_forward": 1,
    "net/ipv6/conf/all/forwarding": 1,
    "net/ipv4/conf/all/send_redirects": 0,
    "net/ipv4/conf/default/send_redirects": 0,
}


@dataclass(frozen=True)
class Real:
    """A server behind the VIPs: its role in the lab (``real1``) and its addresses."""

    name: str
    v4: str
    v6: str


@dataclass(frozen=True)
class End:
    """One end of a veth pair: the role whose namespace it is in, the interface's name and MAC."""

    role: str
    name: str
    mac: str


@dataclass(frozen=True)
class Link:
    """A veth pair; `mtu` in bytes without the Ethernet header."""

    a: End
    b: End
    mtu: int


class Lab:
    """Client, gateway, emulated NIC, balancer and reals, each in a network namespace of its own.

    As a context manager it removes what an earlier lab of the same prefix left and builds the network; in the end it
    stops every process that was started in it and removes the namespaces, whatever happened in between. ``nic=False``
    leaves the NIC's namespace out and connects the gateway's ``net0`` to the balancer's ``eth1``. ``balancer="gw"``
    puts ``eth1`` into the gateway's namespace, beside ``net0``, for marks that do not cross namespaces.

    Raises HostError when a command fails.
    """

    def __init__(
        self, prefix: str = "nfdemo-", *, reals: int = 3, nic: bool = True, balancer: Literal["lb", "gw"] = "lb"
    ) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise HostError(f"prefix {prefix!r} of a lab: expected 2-9 of a-z 0-9 and a hyphen, such as 'nfdemo-'")
        self.prefix = prefix
        self.nic = nic
        self.balancer = balancer
        self.reals = tuple(
            Real(f"real{i}", f"198.18.20.{10 + i}", f"2001:db8:20::{10 + i}") for i in range(1, reals + 1)
        )
        inner = [*(["nic"] if nic else []), *(["lb"] if balancer == "lb" else [])]
        self.roles = ("client", "gw", *inner, *(real.name for real in self.reals))
        self.links = tuple(_links(self.reals, balancer, nic=nic))
        self._processes: list[subprocess.Popen[str]] = []

    def namespace(self, role: str) -> str:
        """Return the name of a role's namespace, as in `ip netns`."""
        return self.prefix + role

    def end(self, role: str, name: str) -> End:
        """Return the end of a link by role and interface name; KeyError if there is none."""
        for link in self.links:
            for end in (link.a, link.b):
                if (end.role, end.name) == (role, name):
                    return end
        raise KeyError(f"{role} has no interface {name}")

    def enter(self, role: str, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` in a role's namespace.

        With nsenter: ``ip netns exec`` mounts a new /sys, which hides the BPF file system.
        """
        return ["nsenter", f"--net={NETNS_FOLDER / self.namespace(role)}", "--", *argv]

    def run(
        self,
        role: str,
        argv: Sequence[str],
        *,
        check: bool = True,
        stdin: str | None = None,
        timeout: float = 30,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a role's namespace to its end; HostError with its output if it fails."""
        return _run(self.enter(role, argv), check=check, stdin=stdin, timeout=timeout, env=env)

    def popen(
        self,
        role: str,
        argv: Sequence[str],
        *,
        stdin: int | IO[str] | None = subprocess.DEVNULL,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> subprocess.Popen[str]:
        """Start a process in a role's namespace; the lab stops it in the end at the latest.

        The process has a session of its own, so that Ctrl-C in a terminal reaches only the lab's user, who decides the
        order of stopping. It gets `stop_signal` when the thread that started it dies.
        """
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", stop_signal.name.removeprefix("SIG"), *self.enter(role, argv)],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[str], *, grace: float = 10) -> int:
        """End a process of this lab: SIGTERM, after `grace` seconds SIGKILL. Returns its exit status."""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(grace)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if process in self._processes:
            self._processes.remove(process)
        return process.returncode

    def route_directly(self, real: Real | None) -> None:
        """Make the gateway send the VIPs' packets to one real, past the balancer; None: to the balancer."""
        via = (BALANCER4, BALANCER6, "net0") if real is None else (real.v4, real.v6, real.name)
        batch = [
            f"route replace {VIP4}/32 via {via[0]} dev {via[2]} onlink",
            f"route replace {VIP6}/128 via {via[1]} dev {via[2]} onlink",
        ]
        self._ip("gw", batch)

    def add_clients(self, addresses: Iterable[str]) -> None:
        """Give the client's interface more addresses, of its networks."""
        addresses = list(addresses)
        # Of a length without a route: the networks are on the interface already.
        lines = [f"address add {each}/{'128 nodad' if ':' in each else 32} dev eth0" for each in addresses]
        self._ip("client", lines)
        mac = self.end("client", "eth0").mac
        self._ip("gw", [f"neighbour add {address} lladdr {mac} nud permanent dev client" for address in addresses])

    def steer(self, cpu: int) -> None:
        """Process all packets of the client on one CPU, from the gateway on, as with a NIC of one queue.

        The frames of a veth are processed on the CPU that sends them, so a flow would change the CPU with its sender;
        behind a NIC with RSS the packets of one flow stay on one CPU.
        """
        queue = "/sys/class/net/client/queues/rx-0/rps_cpus"
        words = [f"{1 << cpu >> 32 * word & 0xFFFFFFFF:x}" for word in range(cpu // 32 + 1)]
        # With `ip netns exec`: only a /sys of the namespace's own has its interfaces.
        _run(["ip", "netns", "exec", self.namespace("gw"), "sh", "-ec", f"echo {','.join(reversed(words))} > {queue}"])

    def tcp_sockets(self, role: str, port: int) -> int:
        """Return how many TCP connections on a local port of a role's namespace may still get packets."""
        lines = self.run(role, ["cat", "/proc/net/tcp", "/proc/net/tcp6"]).stdout.splitlines()
        rows = [line.split() for line in lines if ":" in line.split()[0]]
        return sum(row[1].endswith(f":{port:04X}") and row[3] not in _INACTIVE_STATES for row in rows)

    def received(self, role: str, interface: str) -> int:
        """Return how many packets an interface has received."""
        links = json.loads(self.run(role, ["ip", "-json", "-statistics", "link", "show", "dev", interface]).stdout)
        return int(links[0]["stats64"]["rx"]["packets"])

    def leftovers(self) -> list[str]:
        """Return the existing namespaces with this lab's prefix."""
        if not NETNS_FOLDER.is_dir():
            return []
        return sorted(entry.name for entry in NETNS_FOLDER.iterdir() if entry.name.startswith(self.prefix))

    def build(self) -> None:
        """Create the namespaces and everything in them; HostError at the first command that fails."""
        for role in self.roles:
            _run(["ip", "netns", "add", self.namespace(role)])
            settings = _SYSCTLS | (_ROUTER_SYSCTLS if role == "gw" else {})
            script = "; ".join(f"echo {value} > /proc/sys/{key}" for key, value in settings.items())
            self.run(role, ["sh", "-ec", script])
        _run(["ip", "-batch", "-"], stdin="\n".join(self._link_lines()) + "\n")
        for link in self.links:
            for end in (link.a, link.b):
                # Offloads off: otherwise packets would be encapsulated with unfinished checksums. GRO on: a veth end
                # takes redirected frames only while its NAPI runs.
                features = ["tx", "off", "tso", "off", "gso", "off", "gro", "on"]
                self.run(end.role, ["ethtool", "-K", end.name, *features])
        for role in self.roles:
            self._ip(role, self._address_lines(role))

    def remove(self) -> None:
        """Stop the processes in the namespaces of this prefix, also of an earlier lab, and delete the namespaces."""
        for process in reversed(self._processes.copy()):
            self.stop(process)
        names = self.leftovers()
        for name in names:
            _kill_inside(name)
        for name in names:
            _run(["ip", "netns", "delete", name], check=False)
        left = self.leftovers()
        if left:
            raise HostError(f"could not delete namespaces {', '.join(left)}: see `ip netns pids NAME`")

    def __enter__(self) -> Self:
        self.remove()
        try:
            self.build()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _ip(self, role: str, lines: Iterable[str]) -> None:
        _run(["ip", "-n", self.namespace(role), "-batch", "-"], stdin="\n".join(lines) + "\n")

    def _link_lines(self) -> Iterator[str]:
        for link in self.links:
            a, b = link.a, link.b
            yield (
                f"link add {a.name} netns {self.namespace(a.role)} address {a.mac} mtu {link.mtu} type veth "
                f"peer name {b.name} netns {self.namespace(b.role)} address {b.mac} mtu {link.mtu}"
            )

    def _address_lines(self, role: str) -> Iterator[str]:
        yield "link set lo up"
        for link in self.links:
            for end in (link.a, link.b):
                if end.role == role:
                    yield f"link set {end.name} up"
        if role == "client":
            yield from self._host_lines("client", "eth0", (CLIENT4, CLIENT6), (CLIENT_GATEWAY4, CLIENT_GATEWAY6))
        elif role == "lb":
            yield from self._host_lines("lb", "eth1", (BALANCER4, BALANCER6), (BALANCER_GATEWAY4, BALANCER_GATEWAY6))
        elif role == "gw":
            yield from self._gateway_lines()
        for real in self.reals:
            if role == real.name:
                yield f"address add {VIP4}/32 dev lo"
                yield f"address add {VIP6}/128 dev lo nodad"
                yield from self._host_lines(role, "eth0", (real.v4, real.v6), (REAL_GATEWAY4, REAL_GATEWAY6))

    def _host_lines(self, role: str, interface: str, own: tuple[str, str], gateway: tuple[str, str]) -> Iterator[str]:
        own_end = self.end(role, interface)
        mac = self._gateway_end(own_end).mac
        for address, via, length in ((own[0], gateway[0], 32), (own[1], gateway[1], 128)):
            nodad = " nodad" if length == 128 else ""
            bits = length if role.startswith("real") else {32: 24, 128: 64}[length]
            yield f"address add {address}/{bits} dev {interface}{nodad}"
            yield f"neighbour add {via} lladdr {mac} nud permanent dev {interface}"
            yield f"route add default via {via} dev {interface} onlink"

    def _gateway_lines(self) -> Iterator[str]:
        yield from _router_port("client", (CLIENT_GATEWAY4, CLIENT_GATEWAY6), subnet=True)
        yield from _router_port("net0", (BALANCER_GATEWAY4, BALANCER_GATEWAY6), subnet=True)
        hosts = [
            ("client", CLIENT4, CLIENT6, self.end("client", "eth0").mac),
            ("net0", BALANCER4, BALANCER6, self.end(self.balancer, "eth1").mac),
        ]
        for real in self.reals:
            yield from _router_port(real.name, (REAL_GATEWAY4, REAL_GATEWAY6), subnet=False)
            yield f"route add {real.v4}/32 dev {real.name}"
            yield f"route add {real.v6}/128 dev {real.name}"
            hosts.append((real.name, real.v4, real.v6, self.end(real.name, "eth0").mac))
        for interface, v4, v6, mac in hosts:
            yield f"neighbour add {v4} lladdr {mac} nud permanent dev {interface}"
            yield f"neighbour add {v6} lladdr {mac} nud permanent dev {interface}"
        yield f"route add {VIP4}/32 via {BALANCER4} dev net0"
        yield f"route add {VIP6}/128 via {BALANCER6} dev net0"

    def _gateway_end(self, end: End) -> End:
        # The NIC only forwards frames, so the balancer's next hop is the gateway's net0, two links away.
        if end.role == "lb":
            return self.end("gw", "net0")
        return next(link.a for link in self.links if link.b == end)


def _links(reals: Iterable[Real], balancer: str, *, nic: bool) -> Iterator[Link]:
    pairs = [(("gw", "client"), ("client", "eth0"), PLAIN_MTU)]
    if nic:
        pairs.append((("gw", "net0"), ("nic", "wire0"), TUNNEL_MTU))
        pairs.append((("nic", "port0"), (balancer, "eth1"), TUNNEL_MTU))
    else:
        pairs.append((("gw", "net0"), (balancer, "eth1"), TUNNEL_MTU))
    pairs.extend((("gw", real.name), (real.name, "eth0"), TUNNEL_MTU) for real in reals)
    for number, (a, b, mtu) in enumerate(pairs):
        yield Link(End(*a, f"02:4e:46:00:{number:02x}:0a"), End(*b, f"02:4e:46:00:{number:02x}:0b"), mtu)


def _router_port(interface: str, addresses: tuple[str, str], *, subnet: bool) -> Iterator[str]:
    yield f"address add {addresses[0]}/{24 if subnet else 32} dev {interface}"
    yield f"address add {addresses[1]}/{64 if subnet else 128} dev {interface} nodad"


def _run(
    argv: Sequence[str],
    *,
    check: bool = True,
    stdin: str | None = None,
    timeout: float = 30,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    try:
        # In a session of its own: Ctrl-C in a terminal must not reach the commands of the clean-up.
        result = subprocess.run(
            argv,
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=timeout,
            env=env,
            check=False,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise HostError(f"{argv[0]} is not installed: run scripts/setup.sh") from error
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{shlex.join(argv)} did not end within {timeout:g} s") from error
    if check and result.returncode != 0:
        output = (result.stderr or result.stdout).strip()
        raise HostError(f"{shlex.join(argv)} ended with status {result.returncode}: {output}")
    return result


def _kill_inside(namespace: str) -> None:
    """End the processes in a namespace: SIGTERM, after 3 s SIGKILL."""
    for stop_signal in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 3.0
        sent = False
        while time.monotonic() < deadline:
            listed = _run(["ip", "netns", "pids", namespace], check=False).stdout.split()
            pids = [int(pid) for pid in listed if int(pid) != os.getpid()]
            if not pids:
                return
            if not sent:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, stop_signal)
                sent = True
            time.sleep(0.05)
