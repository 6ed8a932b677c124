# SPDX-License-Identifier: Apache-2.0
"""Everything that runs in the lab: emulated NIC, reals, the balancer, the client."""

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
from types import TracebackType
from typing import IO, Any, Self

from nfcore.errors import HostError

from .lab import VIP4, VIP6, Lab
from .stop import StopSwitch

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "examples" / "demo.toml"
READY_WITHIN = 30.0
"""Seconds; compiling takes most of it on a slow machine."""


class Reader:
    """Reads the lines of a process's output in a thread, so that its pipe never fills."""

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
        """The next line, or None after `within` seconds. Raises HostError when the process has ended."""
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

    def has_said(self, word: str, stop: StopSwitch) -> bool:
        """Whether one of the lines that came since the last look has `word`, without waiting."""
        while (line := self.line(stop, 0.0)) is not None:
            if re.search(rf"\b{word}\b", line):
                return True
        return False

    def wait_for(self, word: str, stop: StopSwitch) -> None:
        """Until a line has `word` as a whole word; HostError with what was said if it ends or takes too long."""
        deadline = time.monotonic() + READY_WITHIN
        while (left := deadline - time.monotonic()) > 0:
            line = self.line(stop, left)
            if line is not None and re.search(rf"\b{word}\b", line):
                return
        raise HostError(f"{self.name} did not say {word!r} within {READY_WITHIN:g} s; it said:\n{self.said()}")

    def ended(self) -> HostError:
        """The error to raise when the process is gone and should not be."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        return HostError(f"{self.name} ended with status {self.process.returncode}; it said:\n{self.said()}")

    def said(self) -> str:
        """The last lines, indented."""
        return "\n".join(f"    {line}" for line in self.tail) or "    (nothing)"

    def _read(self) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in self._stream:
                self.tail.append(line.rstrip("\n"))
                self._lines.put(line)
        self._lines.put(None)


class Stage:
    """Context: the lab with a balancer at work in it. On leaving, all of it has stopped, in reverse order.

    `strategy` overrides the TOML's marking strategy; `rules` is the size of the NIC's table, by default what the
    TOML has for `max_rules`.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exits.close()

    def check(self) -> None:
        """Raise HostError if the daemon is gone, StoppedError if the demo is to end."""
        self.stop.check()
        if self._daemon is not None and self._daemon.process.poll() is not None:
            raise self._daemon.ended()

    def client(self, *arguments: str) -> Client:
        """Start the client's process, `demo.load`, with these arguments after the VIPs."""
        argv = [sys.executable, "-m", "demo.load", VIP4, VIP6, *arguments]
        process = self.lab.popen("client", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        return Client(process, self.stop)

    def take_picture(self, path: Path) -> subprocess.Popen[str]:
        """Begin to write what `nfcore top` shows of six seconds, in which rules are counted, into an SVG file."""
        command = [*nfcore("top"), "--once", "--interval", "6", "--svg", str(path.absolute())]
        return self.lab.popen("lb", [*command, "--socket", str(self.socket)], stderr=subprocess.PIPE)

    def order(self, *arguments: str) -> Any:
        """Give the daemon an order by nfcore's own command line, with --json; HostError with its words if it fails."""
        done = self.lab.run("lb", [*nfcore(*arguments), "--socket", str(self.socket), "--json"])
        return json.loads(done.stdout)

    def kill_daemon(self) -> None:
        """SIGKILL: the daemon has no chance to tidy anything up."""
        if self._daemon is None:
            raise HostError("there is no daemon to kill")
        daemon, self._daemon = self._daemon, None
        daemon.process.kill()
        daemon.process.wait()
        self.lab.stop(daemon.process)

    def launch_daemon(self) -> Reader:
        """Start the daemon and do not wait for it: its reader has said ``ready`` once it is."""
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
            argv = [sys.executable, "-m", "demo.web", real.name, "--listen", VIP4, "--listen", VIP6]
            process = self.lab.popen(
                real.name,
                [*argv, "--decap", "eth0"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
            readers.append(Reader(real.name, process, process.stdout))
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
            raise HostError(f"nfcore run ended with status {status} on SIGTERM; it said:\n{self._daemon.said()}")


class Client:
    """The client's process, commanded phase by phase; see `demo.load` for the commands."""

    def __init__(self, process: subprocess.Popen[str], stop: StopSwitch) -> None:
        self.process = process
        self._reader = Reader("the client", process, process.stdout)
        self._stop = stop

    def phase(self, command: str, *, tick: float = 0.2) -> Iterator[dict[str, Any] | None]:
        """Give a command and yield its events until it is done; None where `tick` seconds brought none."""
        self.tell(command)
        while True:
            event = self.event(tick)
            yield event
            if event is not None and event["event"] == "done":
                return

    def tell(self, command: str) -> None:
        """Give a command and do not wait for what comes of it."""
        if self.process.stdin is None:
            raise ValueError("the client was started without a pipe")
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self._reader.ended() from error

    def event(self, within: float) -> dict[str, Any] | None:
        """The next event, or None after `within` seconds."""
        line = self._reader.line(self._stop, within)
        return None if line is None else json.loads(line)


def nfcore(*arguments: str) -> list[str]:
    """The command line of this very installation's `nfcore`."""
    return [str(Path(sys.executable).with_name("nfcore")), *arguments]
