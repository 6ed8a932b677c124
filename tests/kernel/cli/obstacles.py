# SPDX-License-Identifier: Apache-2.0
"""One interface with the balancer on it, of which tests take things away; and commands with fewer rights."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nfcore.bench.testbed import Daemons, run
from nfcore.kernel import attached_xdp, interface_index
from tests.kernel.site import command_line

LINK, PEER = "eth1", "net0"
LEAST = ("setpriv", "--bounding-set", "-all,+bpf,+net_admin,+perfmon")
"""Begins a command line without any other capability."""
FRAME = "02" * 6 + "04" * 6 + "0800" + "45" + "00" * 45
_ADVISED = re.compile(r"((?:mount|umount|ip|ethtool|bpftool|rm|chattr|chmod|groupadd) [^;)\n]+?)(?:[;)]|, |$)", re.M)
CONFIG = """
[nf]
plugins = ["katran_accel", "flow_actions"]
socket = "{folder}/nf.sock"
[[interfaces]]
name = "eth1"
chain = ["katran_accel"]
offload = ["none"]
[katran_accel]
gateway_mac = "02:00:5e:00:00:fe"
lru_size = 4096
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{{ address = "198.18.20.11" }}]
"""


class Place:
    """A configuration, its daemons, and commands on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "nf.toml"
        self.daemons = Daemons(folder / "nf.sock")
        self.write()

    def write(self, *changes: tuple[str, str], more: str = "") -> Path:
        """Write the TOML, with each old text replaced by a new one."""
        text = CONFIG.format(folder=self.folder)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        self.path.write_text(text + more)
        return self.path

    def __call__(self, command: str, *more: str, enter: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run a command of nfcore with the TOML to its end."""
        return call(*enter, *command_line(command, str(self.path), *more))

    def start_fails(self, enter: Sequence[str] = ()) -> str:
        """Give the error of `nfcore run`, which must not become ready and must leave nothing attached."""
        done = self("run", enter=enter)
        assert done.returncode == 1, done.stderr
        assert self.attached() is None
        return done.stderr.removeprefix("error: ").strip()

    def runs(self, enter: Sequence[str] = ()) -> None:
        """Run a daemon until it is ready, and stop it: it must leave nothing."""
        self.daemons.enter = enter
        with self.daemons.running(self.path):
            assert self.attached() is not None
        self.daemons.enter = ()
        assert self.attached() is None

    def kill_one(self) -> None:
        """Leave what a killed daemon leaves."""
        daemon = self.daemons.start(self.path)
        daemon.kill()
        daemon.wait()
        assert self.attached() is not None

    @staticmethod
    def attached() -> int | None:
        """Id of the program on the interface."""
        there = attached_xdp(interface_index(LINK))
        return None if there is None else there.id

    def findings(self, enter: Sequence[str] = ()) -> tuple[int, dict[str, Any]]:
        """Exit status of `nfcore doctor`, and its findings by what they are about."""
        done = self("doctor", "--json", enter=enter)
        assert done.stdout, done.stderr
        return done.returncode, {found["what"]: found for found in json.loads(done.stdout)["findings"]}


def call(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; none prints a traceback."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return done


def advised(text: str) -> list[str]:
    """The shell commands in an error or an advice."""
    return [found.strip() for found in _ADVISED.findall(text)]


def follow(text: str) -> None:
    """Run the first command that a text advises."""
    commands = advised(text)
    assert commands, text
    run(*shlex.split(commands[0]))


@contextmanager
def interface() -> Iterator[None]:
    """The interface, in this process's namespaces."""
    run("ip", "link", "add", LINK, "type", "veth", "peer", PEER)
    try:
        for link in (LINK, PEER):
            run("ip", "link", "set", link, "up")
        yield
    finally:
        run("ip", "link", "del", LINK)


@contextmanager
def mounted(point: Path, *options: str, kind: str = "tmpfs") -> Iterator[None]:
    """Mount a file system for a block."""
    point.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", kind, *options, "none", str(point))
    try:
        yield
    finally:
        run("umount", "--lazy", str(point))
