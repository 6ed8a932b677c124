# SPDX-License-Identifier: Apache-2.0
"""A network with an emulated NIC and a daemon behind it, for measurements and tests.

::

    net0 ══ wire0 [softnic] port0 ══ eth1 [nfcore run]

Frames go in and come out at net0. All of it is in the network namespace of the calling process, which should have one
of its own: :func:`isolate`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from ..api.config import NO_BACKEND
from ..api.metrics import total
from ..control.client import request
from ..errors import HostError
from ..folders import make_folder
from ..kernel.headers import default_cache_dir
from ..refusals import Capability, explain

HOST, WIRE, PORT, NETWORK = "eth1", "wire0", "port0", "net0"
NIC_MAC, GATEWAY_MAC = "02:00:5e:00:00:01", "02:00:5e:00:00:fe"
NIC_RULES = 1 << 18
CACHE = default_cache_dir()
"""What `nfcore run` keeps between two starts."""
TIMEOUT = 60.0
"""Seconds until something that should happen counts as not happening."""
START_TIMEOUT = 300.0
"""The same for the start of a daemon: a busy machine without KVM's help compiles its program for a minute."""
_CLONE_NEWNS, _CLONE_NEWNET = 0x0002_0000, 0x4000_0000
_NO_IPV6 = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
"""For the links that are made from now on."""
_NETWORK = f"""
link add {WIRE} type veth peer {NETWORK}
link add {PORT} type veth peer {HOST} address {NIC_MAC}
{{up}}
address add 198.18.2.2/24 dev {HOST}
neighbour add 198.18.2.1 lladdr {GATEWAY_MAC} dev {HOST}
route add default via 198.18.2.1
"""
CONFIG = """
[nf]
plugins = [{plugins}]
socket = "{folder}/nf.sock"
[[interfaces]]
name = "{interface}"
chain = ["{nf}"]
offload = ["{backend}"]
"""
_T = TypeVar("_T", bound="Testbed")


def config_text(
    folder: Path,
    nf: str,
    backend: str,
    *tables: str,
    interface: str = HOST,
    marking: str = 'strategy = "dest-id"',
    offload: str = "",
) -> str:
    """Write the TOML of a daemon with a network function on `interface` and a backend for it, which may be "none".

    Its socket is in `folder`. marking, offload: what is in these tables; `tables`: all others.
    """
    plugins = ", ".join(f'"{name}"' for name in (nf, "marking", backend, "stats") if name != NO_BACKEND)
    head = CONFIG.format(folder=folder, nf=nf, backend=backend, interface=interface, plugins=plugins)
    return "\n".join([f"{head}[marking]\n{marking}\n[offload]\n{offload}", *tables, ""])


@dataclass
class Daemons:
    """Runs of `nfcore run` that answer at one socket."""

    socket: Path
    enter: Sequence[str] = ()
    """A command line before theirs, such as one that enters a namespace."""
    python: Path = Path(sys.executable)
    """Of the environment with the nfcore that is to run."""
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _log: IO[bytes] | None = None

    def logged(self) -> str:
        """Give what the last one has logged until now."""
        if self._log is None:
            return ""
        # Not by seek(): the daemon shares the position.
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def start(self, config: Path) -> subprocess.Popen[bytes]:
        """Start one and wait until it is ready; HostError with its log when it is not."""
        command = [*self.enter, "setpriv", "--pdeathsig", "TERM", str(self.python), "-m", "nfcore.cli", "run"]
        if self._log is not None:
            self._log.close()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as somebody may read it
        # In a session of its own: Ctrl-C in a terminal must not reach it.
        daemon = subprocess.Popen(
            [*command, str(config)], stdin=subprocess.DEVNULL, stderr=self._log, start_new_session=True
        )
        self.started.append(daemon)
        deadline = time.monotonic() + START_TIMEOUT
        while not any(line.startswith("ready") for line in self.logged().splitlines()):
            if daemon.poll() is not None:
                raise HostError(f"the daemon ended with status {daemon.returncode}: {self.logged().strip()}")
            if time.monotonic() > deadline:
                raise HostError(f"the daemon was not ready within {START_TIMEOUT:g} s: {self.logged().strip()}")
            time.sleep(0.002)
        return daemon

    @contextmanager
    def running(self, config: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Run one for a block. HostError when it does not end as it should, with status 0."""
        daemon = self.start(config)
        try:
            yield daemon
            daemon.terminate()
            if daemon.wait(TIMEOUT):
                raise HostError(f"the daemon ended with status {daemon.returncode}: {self.logged().strip()}")
        finally:
            self.kill_all()

    def kill_all(self) -> None:
        """End those that still run."""
        for daemon in self.started:
            if daemon.poll() is None:
                daemon.kill()
            daemon.wait()

    def request(self, method: str, **parameters: Any) -> Any:
        """Call a method of the running one; HostError when it does not answer."""
        return request(self.socket, method, timeout=TIMEOUT, **parameters)

    def metric(self, name: str, **labels: str) -> float:
        """Give the sum of a metric's samples that have these labels."""
        return total(self.request("stats")["metrics"], name, **labels)


class Testbed:
    """The network with its NIC, made by :func:`open_testbed`. Its files are in `folder`."""

    __test__ = False
    """Not a class of tests, whatever pytest makes of its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket, self.nic = folder / "nf.sock", folder / "nic"
        self.daemons = Daemons(self.socket)
        self.metric, self.request = self.daemons.metric, self.daemons.request

    def config(self, nf: str, nf_toml: str, *, backend: str = "softnic", offload: str = "") -> Path:
        """Write the TOML of a daemon with one network function and one backend."""
        path = self.folder / "nf.toml"
        tables = (self._backend_toml(backend), nf_toml)
        path.write_text(config_text(self.folder, nf, backend, *tables, offload=offload), encoding="utf-8")
        return path

    def _backend_toml(self, backend: str) -> str:
        """What a backend has to know of this network."""
        if backend == "softnic":
            return f'[softnic]\npins = {{ {HOST} = "{self.nic}" }}'
        if backend == "tc_offload":
            # A rule that the kernel evaluates sets its mark in time on the peer's egress alone.
            place = f'filter_on = "{PORT}"\ndirection = "egress"'
            return f'[tc_offload]\nskip_sw = "off"\n[tc_offload.devices.{HOST}]\n{place}'
        return ""

    @contextmanager
    def daemon(self, config: Path) -> Iterator[float]:
        """Run `nfcore run` for a block; gives the seconds until it was ready."""
        begin = time.perf_counter()
        with self.daemons.running(config):
            yield time.perf_counter() - begin

    def make_nic(self, rules: int = NIC_RULES) -> None:
        """Put a NIC with room for so many rules between the network and the host."""
        links = ("--wire", WIRE, "--port", PORT)
        _nfcore("softnic", "create", *links, "--pin", str(self.nic), "--rules", str(rules))

    def remove_nic(self) -> None:
        """Remove the NIC."""
        _nfcore("softnic", "remove", "--pin", str(self.nic))

    @staticmethod
    def received() -> int:
        """How many frames have come out of the NIC towards the network."""
        for line in Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == NETWORK:
                return int(counters.split()[1])
        raise HostError(f"{NETWORK} of the testbed is gone")


def isolate() -> None:
    """Move the calling process into network and mount namespaces of its own, with an empty /run.

    What it makes there - links, namespaces of `ip netns`, mounts, locks - is gone when it and its children are, even
    when it is killed. HostError with the text of what the machine refuses.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS | _CLONE_NEWNET):
        error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        raise HostError(f"no namespaces of its own for a testbed: {explain(error, needs=[Capability.SYS_ADMIN])}")
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "tmpfs", "-o", "mode=0755", "none", "/run")
    run("ip", "link", "set", "lo", "up")


@contextmanager
def open_testbed() -> Iterator[Testbed]:
    """Isolate the calling process, which must be one of the benchmark's own, and make a testbed there."""
    isolate()
    with tempfile.TemporaryDirectory(prefix="nfcore-bench-") as folder, testbed_here(Testbed(Path(folder))) as testbed:
        yield testbed


@contextmanager
def testbed_here(testbed: _T) -> Iterator[_T]:
    """Make a testbed's network and NIC in this network namespace; remove them at the end, and end its daemons.

    HostError with the text of what the machine refuses.
    """
    with contextlib.ExitStack() as leaving:
        leaving.callback(_ip_batch, f"link del {WIRE}\nlink del {PORT}\n", "-force")
        # So that no link of the testbed sends frames of its own accord: those of the testbed alone are counted.
        with contextlib.suppress(OSError):
            leaving.callback(_NO_IPV6.write_text, _NO_IPV6.read_text(encoding="ascii"), encoding="ascii")
            _NO_IPV6.write_text("1", encoding="ascii")
        links = (NETWORK, WIRE, PORT, HOST)
        _ip_batch(_NETWORK.format(up="\n".join(f"link set {link} up" for link in links)))
        # A veth end takes redirected frames only while its NAPI runs.
        run("ethtool", "-K", NETWORK, "gro", "on")
        testbed.make_nic()
        leaving.callback(testbed.remove_nic)
        leaving.callback(testbed.daemons.kill_all)
        yield testbed


@contextmanager
def cold_cache() -> Iterator[None]:
    """Hide what earlier starts have kept, for a block. In an isolated process."""
    make_folder(CACHE)
    run("mount", "-t", "tmpfs", "-o", "mode=0700", "none", str(CACHE))
    try:
        yield
    finally:
        run("umount", str(CACHE))


def _nfcore(*arguments: str) -> None:
    run(sys.executable, "-m", "nfcore.cli", *arguments)


def _ip_batch(commands: str, *options: str) -> None:
    run("ip", *options, "-batch", "-", text=commands)


def run(*command: str, text: str | None = None) -> str:
    """Run a command to its end, with `text` as its input; what it printed.

    HostError with its messages when it fails, or is not there.
    """
    if shutil.which(command[0]) is None:
        raise HostError(f"{command[0]} is not installed: run scripts/setup.sh")
    # In a session of its own: Ctrl-C in a terminal must not reach what cleans up after it.
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, start_new_session=True, timeout=TIMEOUT
    )
    if done.returncode:
        output = (done.stderr or done.stdout).strip()
        raise HostError(f"{shlex.join(command)} ended with status {done.returncode}: {output}")
    return done.stdout


def wait_for(what: str, condition: Callable[[], bool], timeout: float = TIMEOUT) -> None:
    """Wait until `condition()` holds; HostError names `what` when it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise HostError(f"{what}: waited for {timeout:g} s, in vain")
        time.sleep(0.02)
