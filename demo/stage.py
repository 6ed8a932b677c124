# SPDX-License-Identifier: Apache-2.0
"""Starts and stops what runs in the lab: emulated NIC, reals, balancer, client."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from nfcore.errors import HostError

from .lab import VIP4, VIP6, Lab
from .stop import StopSwitch

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "examples" / "demo.toml"
READY_WITHIN = 30.0
"""Seconds; most of it is compiling, on a slow machine."""


class Reader:
    """Reads the output of a process line by line in a thread, so that its pipe never fills."""

    def __init__(self, name: str, process: subprocess.Popen[str], stream: IO[str] | None) -> None:
        if stream is None:
            raise ValueError(f"{name} was started without a pipe")
        self.name = name
        self.process = process
        self.tail: deque[str] = deque(maxlen=40)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stream = stream
        threading.Thread(target=self._read, daemon=True).start()

    def line(self, stop: StopSwitch, within: float) -> str | None:
        """Return the next line, or None after `within` seconds. HostError when the process has ended."""
        deadline = time.monotonic() + within
        while True:
            stop.check()
            with contextlib.suppress(queue.Empty):
                line = self._lines.get(timeout=max(0.0, min(0.1, deadline - time.monotonic())))
                if line is None:
                    raise self.ended()
                return line
            if time.monotonic() >= deadline:
                return None

    def has_printed(self, word: str, stop: StopSwitch) -> bool:
        """Whether a line since the last call has `word` as a whole word; does not wait."""
        while (line := self.line(stop, 0.0)) is not None:
            if re.search(rf"\b{word}\b", line):
                return True
        return False

    def wait_for(self, word: str, stop: StopSwitch) -> None:
        """Wait for a line with `word` as a whole word; HostError if the process ends or it does not come."""
        deadline = time.monotonic() + READY_WITHIN
        while (left := deadline - time.monotonic()) > 0:
            line = self.line(stop, left)
            if line is not None and re.search(rf"\b{word}\b", line):
                return
        raise HostError(f"{self.name} did not print {word!r} within {READY_WITHIN:g} s; its output:\n{self.output()}")

    def ended(self) -> HostError:
        """Return the error for a process that has ended and should not have."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        return HostError(f"{self.name} ended with status {self.process.returncode}; its output:\n{self.output()}")

    def output(self) -> str:
        """Return the last lines, indented."""
        return "\n".join(f"    {line}" for line in self.tail) or "    (nothing)"

    def _read(self) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in self._stream:
                self.tail.append(line.rstrip("\n"))
                self._lines.put(line)
        self._lines.put(None)


class Stage:
    """Context: emulated NIC, reals and balancer run in the lab; in the end they are stopped, in reverse order.

    `strategy` overrides the TOML's marking strategy; `rules` is the size of the NIC's table, by default `max_rules` of
    the TOML.
    """

    def __init__(
        self,
        lab: Lab,
        stop: StopSwitch,
        *,
        config: Path = CONFIG,
        strategy: str | None = None,
        rules: int | None = None,
    ) -> None:
        self.lab = lab
        self.config = config
        settings = tomllib.loads(config.read_text())
        self.strategy: str = strategy or settings["marking"]["strategy"]
        self.socket = Path(settings["nf"]["socket"])
        self.pins = Path(settings["softnic"]["pins"]["eth1"])
        self.rules: int = rules or settings["offload"]["max_rules"]
        self.stop = stop
        self._daemon: Reader | None = None
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as exits:
            self._start_nic(exits)
            self._start_reals()
            self._start_daemon(exits)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._exits.close()

    def check(self) -> None:
        """Raise HostError if the daemon has ended, StoppedError if the demo should end."""
        self.stop.check()
        if self._daemon is not None and self._daemon.process.poll() is not None:
            raise self._daemon.ended()

    def client(self, *arguments: str) -> Client:
        """Start the client's process, `demo.load`, with these arguments after the VIPs."""
        argv = [sys.executable, "-m", "demo.load", VIP4, VIP6, *arguments]
        process = self.lab.popen("client", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        return Client(process, self.stop)

    def take_picture(self, path: Path) -> subprocess.Popen[str]:
        """Start `nfcore top` to draw an SVG file of six seconds, in which the rules' counters are read."""
        command = [*nfcore("top"), "--once", "--interval", "6", "--svg", str(path.absolute())]
        return self.lab.popen("lb", [*command, "--socket", str(self.socket)], stderr=subprocess.PIPE)

    def command(self, *arguments: str) -> Any:
        """Run an nfcore command with --json on the daemon; returns what it prints. HostError if it fails."""
        done = self.lab.run("lb", [*nfcore(*arguments), "--socket", str(self.socket), "--json"])
        return json.loads(done.stdout)

    def kill_daemon(self) -> None:
        """Send SIGKILL to the daemon, which then cannot clean up."""
        if self._daemon is None:
            raise HostError("there is no daemon to kill")
        daemon, self._daemon = self._daemon, None
        daemon.process.kill()
        daemon.process.wait()
        self.lab.stop(daemon.process)

    def launch_daemon(self) -> Reader:
        """Start the daemon without waiting; it prints ``ready`` when it is."""
        argv = [*nfcore("run"), str(self.config), "--set", f'marking.strategy="{self.strategy}"']
        process = self.lab.popen("lb", argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
        self._daemon = Reader("nfcore run", process, process.stderr)
        return self._daemon

    def _start_nic(self, exits: contextlib.ExitStack) -> None:
        pin = ["--pin", str(self.pins)]
        ports = ["--wire", "wire0", "--port", "port0", "--rules", str(self.rules)]
        exits.callback(self.lab.run, "nic", [*nfcore("softnic", "remove"), *pin], check=False)
        self.lab.run("nic", [*nfcore("softnic", "create"), *ports, *pin], timeout=READY_WITHIN)
        self.stop.check()

    def _start_reals(self) -> None:
        readers = []
        for real in self.lab.reals:
            web = [sys.executable, "-m", "demo.web", real.name, "--listen", VIP4, "--listen", VIP6]
            for name, argv in (("web", web), ("decap", nfcore("decap", "eth0"))):
                process = self.lab.popen(real.name, argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
                readers.append(Reader(f"{real.name}'s {name}", process, process.stdout))
        for reader in readers:
            reader.wait_for("ready", self.stop)

    def _start_daemon(self, exits: contextlib.ExitStack) -> None:
        exits.callback(self.lab.run, "lb", [*nfcore("cleanup"), str(self.config)], check=False)
        exits.callback(self._stop_daemon)
        self.launch_daemon().wait_for("ready", self.stop)

    def _stop_daemon(self) -> None:
        if self._daemon is None:
            return
        process = self._daemon.process
        alive = process.poll() is None
        status = self.lab.stop(process)
        if alive and status != 0:
            output = self._daemon.output()
            raise HostError(f"nfcore run ended with status {status} after SIGTERM; its output:\n{output}")


class Client:
    """The client's process, which takes commands; `demo.load` lists them."""

    def __init__(self, process: subprocess.Popen[str], stop: StopSwitch) -> None:
        self.process = process
        self._reader = Reader("the client", process, process.stdout)
        self._stop = stop

    def phase(self, command: str, *, tick: float = 0.2) -> Iterator[dict[str, Any] | None]:
        """Send a command and yield its events until it is done; None when none comes for `tick` seconds."""
        self.send(command)
        while True:
            event = self.event(tick)
            yield event
            if event is not None and event["event"] == "done":
                return

    def send(self, command: str) -> None:
        """Send a command without waiting for its events."""
        if self.process.stdin is None:
            raise ValueError("the client was started without a pipe")
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self._reader.ended() from error

    def event(self, within: float) -> dict[str, Any] | None:
        """Return the next event, or None after `within` seconds."""
        line = self._reader.line(self._stop, within)
        return None if line is None else json.loads(line)


def nfcore(*arguments: str) -> list[str]:
    """Return a command line of this installation's `nfcore`."""
    return [str(Path(sys.executable).with_name("nfcore")), *arguments]
