# SPDX-License-Identifier: Apache-2.0
"""The bench's network: one namespace with an emulated NIC and a daemon behind it.

::

    net0 ══ wire0 [softnic] port0 ══ eth1 [nfcore run]

Frames go in and come out at net0. Network and mounts are of a namespace without a name, which the calling process
alone has: they are gone when it and its children are, even when it is killed.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..api.metrics import total
from ..control.client import request
from ..errors import HostError

HOST, WIRE, PORT, NETWORK = "eth1", "wire0", "port0", "net0"
NIC_MAC, GATEWAY_MAC = "02:00:5e:00:00:01", "02:00:5e:00:00:fe"
NIC_RULES = 1 << 18
CACHE = Path("/var/cache/nfcore")
"""What `nfcore run` keeps between two starts."""
PATIENCE = 60.0
"""Seconds until something that should happen counts as not happening."""
_CLONE_NEWNS, _CLONE_NEWNET = 0x0002_0000, 0x4000_0000

CONFIG = """
[nf]
plugins = ["{nf}", "marking", "{backend}", "stats"]
socket = "{folder}/nf.sock"
[[interfaces]]
name = "eth1"
chain = ["{nf}"]
offload = ["{backend}"]
[marking]
strategy = "dest-id"
[offload]
{offload}
{backend_toml}
{nf_toml}
"""
BACKENDS = {
    "softnic": '[softnic]\npins = {{ eth1 = "{folder}/nic" }}',
    # A rule that the kernel evaluates sets its mark in time on the peer's egress alone.
    "tc_offload": '[tc_offload]\nskip_sw = "off"\n[tc_offload.devices.eth1]\nfilter_on = "port0"\ndirection = "egress"',
}
"""What a backend has to be told of this network."""


class Site:
    """The network, made by :func:`open_site`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def socket(self) -> Path:
        """The daemon's."""
        return self.folder / "nf.sock"

    def config(self, nf: str, nf_toml: str, *, backend: str = "softnic", offload: str = "") -> Path:
        """Write the TOML of a daemon with one network function and one backend."""
        path = self.folder / "nf.toml"
        backend_toml = BACKENDS.get(backend, "").format(folder=self.folder)
        text = CONFIG.format(
            nf=nf, backend=backend, folder=self.folder, offload=offload, backend_toml=backend_toml, nf_toml=nf_toml
        )
        path.write_text(text, encoding="utf-8")
        return path

    @contextmanager
    def daemon(self, config: Path) -> Iterator[float]:
        """Run `nfcore run` for a block; gives the seconds until it was ready. HostError with its words if it is not."""
        said = self.folder / "daemon.log"
        command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "nfcore.cli", "run", str(config)]
        with said.open("wb") as log:
            begin = time.perf_counter()
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True)
            try:
                _await_ready(process, said)
                yield time.perf_counter() - begin
            finally:
                process.terminate()
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def ask(self, method: str, **parameters: Any) -> Any:
        """Ask the daemon; HostError when it does not answer."""
        return request(self.socket, method, timeout=PATIENCE, **parameters)

    def figure(self, name: str, **labels: str) -> float:
        """Give the sum of a metric's samples that have these labels."""
        return total(self.ask("stats")["metrics"], name, **labels)

    @staticmethod
    def received() -> int:
        """How many frames have come out of the NIC towards the network."""
        for line in Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == NETWORK:
                return int(counters.split()[1])
        raise HostError(f"{NETWORK} of the bench's network is gone")


def _await_ready(process: subprocess.Popen[bytes], said: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        words = said.read_text(encoding="utf-8", errors="replace")
        if any(line.startswith("ready") for line in words.splitlines()):
            return
        if process.poll() is not None:
            raise HostError(f"the bench's daemon ended with status {process.returncode}: {words.strip()}")
        time.sleep(0.002)
    raise HostError(f"the bench's daemon was not ready within {PATIENCE:g} s: {words.strip()}")


@contextmanager
def open_site() -> Iterator[Site]:
    """Move the calling process, which must be one of the bench's own, into namespaces of its own, and fill them.

    HostError with the words of what the machine refuses.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS | _CLONE_NEWNET):
        raise HostError(f"no namespaces for the bench: {os.strerror(ctypes.get_errno())}")
    run("mount", "--make-rprivate", "/")
    with tempfile.TemporaryDirectory(prefix="nfcore-bench-") as name:
        site = Site(Path(name))
        for link, peer in ((WIRE, NETWORK), (PORT, HOST)):
            run("ip", "link", "add", link, "type", "veth", "peer", peer)
        run("ip", "link", "set", HOST, "address", NIC_MAC)
        for link in ("lo", NETWORK, WIRE, PORT, HOST):
            # Nothing of its own accord on the links: only the bench's frames are counted.
            with contextlib.suppress(OSError):
                Path(f"/proc/sys/net/ipv6/conf/{link}/disable_ipv6").write_text("1", encoding="ascii")
            run("ip", "link", "set", link, "up")
        # A veth end takes redirected frames only while its NAPI runs.
        run("ethtool", "-K", NETWORK, "gro", "on")
        pin = ["--pin", str(site.folder / "nic")]
        _nfcore("softnic", "create", "--wire", WIRE, "--port", PORT, *pin, "--rules", str(NIC_RULES))
        try:
            yield site
        finally:
            _nfcore("softnic", "remove", *pin)


@contextmanager
def cold_cache() -> Iterator[None]:
    """Hide what earlier starts have kept, for a block. In a process of :func:`open_site`."""
    CACHE.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "mode=0700", "none", str(CACHE))
    try:
        yield
    finally:
        run("umount", str(CACHE))


def _nfcore(*arguments: str) -> None:
    run(sys.executable, "-m", "nfcore.cli", *arguments)


def run(*command: str) -> str:
    """Run a command to its end; what it printed. HostError with its words when it fails, or is not there."""
    if shutil.which(command[0]) is None:
        raise HostError(f"{command[0]} is not installed: run scripts/setup.sh")
    # In a session of its own: Ctrl-C in a terminal must not reach what cleans up after it.
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, start_new_session=True, timeout=PATIENCE
    )
    if done.returncode:
        words = (done.stderr or done.stdout).strip()
        raise HostError(f"{shlex.join(command)} ended with status {done.returncode}: {words}")
    return done.stdout


def wait_for(what: str, condition: Any, patience: float = PATIENCE) -> None:
    """Wait until `condition()` holds; HostError names `what` when it does not in time."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise HostError(f"the bench waited {patience:g} s in vain for {what}")
        time.sleep(0.02)
