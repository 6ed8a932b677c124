# SPDX-License-Identifier: Apache-2.0
"""The client's process: real HTTP/1.1 connections to the VIPs, without retries, each request with a deadline.

Started in the client's namespace as ``python -m demo.load VIP … --short N --kept C``. It reads commands from standard
input, one per line, and writes JSON objects to standard output, one per line:

=========  ===========================================================================================
``short``  `short` connections of one request each, spread evenly over the VIPs
``open``   `kept` connections, kept alive, with `warm` requests each
``idle``   one request on each kept connection (keeps the flows active while the demo waits)
``main``   `measured` requests on each kept connection, one in ten with a body of several full packets
``churn``  until the command ``calm``: `kept` other connections, kept alive, each closed after `life` requests and
           replaced by a new one; one request in ten has a connection of its own, another one in ten a body
``close``  closes the connections, writes a ``connection`` object for each, and ends
=========  ===========================================================================================

During a phase ``progress`` objects have the sums so far; ``done`` ends the phase. Times are of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import http.client
import itertools
import json
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, TypeVar

import typer

BODY = bytes(4000)
"""Three packets at an MTU of 1500; two of them are full, the longest that the balancer takes."""
BODY_EVERY = 10
SHORT_EVERY = 10
PROGRESS_INTERVAL = 0.1
"""Seconds."""

_Lane = TypeVar("_Lane")


@dataclass
class Record:
    """The history of one connection; counts are requests, `worst` is the longest one in seconds.

    `reals` counts answers by the name in them. `port` is the client's, None if it never connected.
    `strange` counts answers with another client address, port or body length. `began`, `connected` and `last` (answer)
    are seconds of CLOCK_MONOTONIC.
    """

    family: int
    kind: str
    vip: str
    address: str | None = None
    port: int | None = None
    asked: int = 0
    answered: int = 0
    strange: int = 0
    worst: float = 0.0
    began: float | None = None
    connected: float | None = None
    last: float | None = None
    reals: dict[str, int] = field(default_factory=dict)
    error: str | None = None


class Connection:
    """One TCP connection to a VIP and its record. After the first failure it sends no more requests."""

    def __init__(self, vip: str, port: int, kind: str, deadline: float, source: str | None = None) -> None:
        self.record = Record(6 if ":" in vip else 4, kind, vip)
        self.deadline = deadline
        self._http = http.client.HTTPConnection(
            vip, port, timeout=deadline, source_address=(source, 0) if source else None
        )
        # Otherwise http.client would open another connection after a close, which is a retry.
        self._http.auto_open = 0
        self._opened = False

    def ask(self, body: bytes | None = None) -> None:
        """Send one request and wait for its answer. Failures go into the record and are not raised."""
        record = self.record
        record.asked += 1
        if record.error is not None:
            return
        began = time.monotonic()
        try:
            self._open()
            self._exchange(body)
            record.answered += 1
            record.last = time.monotonic()
        except (OSError, http.client.HTTPException, ValueError) as error:
            record.error = f"{type(error).__name__}: {error}"
            self._http.close()
        taken = time.monotonic() - began
        record.worst = max(record.worst, taken)
        if taken > self.deadline and record.error is None:
            record.answered -= 1
            record.error = f"answered after {taken:.1f} s, deadline {self.deadline:g} s"

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _open(self) -> None:
        if self._opened:
            return
        self._opened = True
        self.record.began = time.monotonic()
        self._http.connect()
        self.record.connected = time.monotonic()
        name: tuple[Any, ...] = self._http.sock.getsockname()
        self.record.address, self.record.port = name[0], name[1]

    def _exchange(self, body: bytes | None) -> None:
        self._http.request("GET" if body is None else "POST", "/", body=body)
        response = self._http.getresponse()
        fields = response.read().decode("ascii").split()
        if response.status != 200 or len(fields) != 4:
            raise ValueError(f"answer with status {response.status} and body {fields}")
        self.record.reals[fields[0]] = self.record.reals.get(fields[0], 0) + 1
        if fields[1:] != [str(self.record.address), str(self.record.port), str(len(body or b""))]:
            self.record.strange += 1


class Pace:
    """Limits a loop to `rate` turns per second, so that its progress can be watched."""

    def __init__(self, rate: float) -> None:
        self.step = 1 / rate
        self.next = time.monotonic()

    def wait(self) -> None:
        """Return when the next turn is due; after a late turn there is no burst."""
        now = time.monotonic()
        if self.next > now:
            time.sleep(self.next - now)
        self.next = max(self.next, now) + self.step


class ChurnLane:
    """One thread of ``churn``: sends requests on its share of the kept connections in turn, and replaces them."""

    def __init__(self, load: Load, numbers: Sequence[int], life: int) -> None:
        self._load = load
        self._life = life
        self._calm = threading.Event()
        # The first connections get different numbers of requests, so that they end one by one and not all at once.
        self._left = [1 + life * (index + 1) // len(numbers) for index in range(len(numbers))]
        self._kept = [load.add(number, "kept") for number in numbers]
        self._numbers = itertools.count(len(numbers))

    def calm(self) -> None:
        """Make :meth:`drive` end."""
        self._calm.set()

    def drive(self) -> None:
        """Send requests until :meth:`calm`, then close the connections."""
        pace = Pace(self._load.rate / self._load.threads)
        for turn in itertools.count():
            pace.wait()
            if self._calm.is_set():
                break
            if turn % SHORT_EVERY == SHORT_EVERY - 1:
                short = self._load.add(next(self._numbers), "short")
                short.ask()
                short.close()
            else:
                # Counts only these turns: one in ten is a short connection.
                self._ask(turn - turn // SHORT_EVERY)
        for connection in self._kept:
            connection.close()

    def _ask(self, turn: int) -> None:
        index = turn % len(self._kept)
        self._kept[index].ask(BODY if turn % BODY_EVERY == BODY_EVERY - 1 else None)
        self._left[index] -= 1
        if self._left[index] <= 0 or self._kept[index].record.error is not None:
            self._kept[index].close()
            self._kept[index] = self._load.add(next(self._numbers), "kept")
            self._left[index] = self._life


class Load:
    """All connections and the threads that drive them."""

    def __init__(
        self,
        vips: Sequence[str],
        port: int,
        deadline: float,
        threads: int,
        rate: float,
        sources: Sequence[str] = (),
    ) -> None:
        self.vips = vips
        self._sources = {vip: [source for source in sources if (":" in source) == (":" in vip)] for vip in vips}
        self.port = port
        self.deadline = deadline
        self.threads = threads
        self.rate = rate
        self.finished: list[Connection] = []
        self.kept: list[Connection] = []

    def short(self, count: int) -> None:
        """Make `count` connections with one request each."""
        new = [self._connection(number, "short") for number in range(count)]
        self.finished.extend(new)

        def drive(lane: Sequence[Connection]) -> None:
            pace = Pace(self.rate / self.threads)
            for connection in lane:
                pace.wait()
                connection.ask()
                connection.close()

        self._in_threads("short", [new[first :: self.threads] for first in range(self.threads)], drive)

    def open(self, count: int, requests: int) -> None:
        """Make `count` more kept-alive connections with `requests` requests each."""
        self.kept.extend(self._connection(number, "kept") for number in range(count))
        self.more("open", requests)

    def more(self, phase: str, requests: int, *, bodies: bool = False) -> None:
        """Send `requests` more on each kept connection, in turn, so that all stay active."""
        turns = [
            (connection, BODY if bodies and turn % BODY_EVERY == BODY_EVERY - 1 else None)
            for turn in range(requests)
            for connection in self.kept
        ]
        # A connection belongs to one lane and a lane to one thread, so only one thread uses a connection.
        self._in_threads(phase, self._lanes(turns), self._drive)

    def churn(self, count: int, life: int, commands: queue.SimpleQueue[str | None]) -> None:
        """Keep `count` connections busy, each for `life` requests, until the next command, which is ``calm``."""
        lanes = [ChurnLane(self, range(first, count, self.threads), life) for first in range(self.threads)]
        threads = [threading.Thread(target=lane.drive, daemon=True) for lane in lanes]
        for thread in threads:
            thread.start()
        while not _command_came(commands, PROGRESS_INTERVAL):
            emit("progress", phase="churn", **self._sums())
        for lane in lanes:
            lane.calm()
        for thread in threads:
            thread.join()
        emit("done", phase="churn", **self._sums())

    def add(self, number: int, kind: str) -> Connection:
        """Return a new connection to the VIP of this number; its record is kept."""
        connection = self._connection(number, kind)
        self.finished.append(connection)
        return connection

    def close(self) -> None:
        """Close the kept connections and write every record."""
        for connection in self.kept:
            connection.close()
        for connection in (*self.finished, *self.kept):
            emit("connection", **asdict(connection.record))
        emit("done", phase="close", **self._sums())

    def _drive(self, lane: Sequence[tuple[Connection, bytes | None]]) -> None:
        pace = Pace(self.rate / self.threads)
        for connection, body in lane:
            pace.wait()
            connection.ask(body)

    def _connection(self, number: int, kind: str) -> Connection:
        turn, place = divmod(number, len(self.vips))
        sources = self._sources[self.vips[place]]
        source = sources[turn % len(sources)] if sources else None
        return Connection(self.vips[place], self.port, kind, self.deadline, source)

    def _lanes(self, turns: Iterable[tuple[Connection, bytes | None]]) -> list[list[tuple[Connection, bytes | None]]]:
        lane_of = {id(connection): number % self.threads for number, connection in enumerate(self.kept)}
        lanes: list[list[tuple[Connection, bytes | None]]] = [[] for _ in range(self.threads)]
        for turn in turns:
            lanes[lane_of[id(turn[0])]].append(turn)
        return lanes

    def _in_threads(self, phase: str, lanes: Sequence[_Lane], work: Callable[[_Lane], None]) -> None:
        threads = [threading.Thread(target=work, args=(lane,), daemon=True) for lane in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(PROGRESS_INTERVAL)
                emit("progress", phase=phase, **self._sums())
        emit("done", phase=phase, **self._sums())

    def _sums(self) -> dict[str, Any]:
        # An atomic copy: the threads of a churn append to it.
        records = [connection.record for connection in (*self.finished.copy(), *self.kept)]
        reals: Counter[str] = Counter()
        for record in records:
            # An atomic copy: another thread may add a real to it.
            reals.update(record.reals.copy())
        return {
            "asked": sum(record.asked for record in records),
            "answered": sum(record.answered for record in records),
            "failed": sum(record.error is not None for record in records),
            "reals": dict(sorted(reals.items())),
        }


def _command_came(commands: queue.SimpleQueue[str | None], within: float) -> bool:
    """Wait for a command; whether one came within so many seconds. The end of the input counts as one."""
    try:
        commands.get(timeout=within)
    except queue.Empty:
        return False
    return True


def _read_commands(commands: queue.SimpleQueue[str | None]) -> None:
    for line in sys.stdin:
        commands.put(line.strip())
    commands.put(None)


def emit(event: str, **values: object) -> None:
    """Write one JSON object as a line on standard output."""
    print(json.dumps({"event": event, **values}), flush=True)


def main(
    vips: Annotated[list[str], typer.Argument(help="Addresses to send requests to, in turn.")],
    *,
    short: Annotated[int, typer.Option(help="Connections of one request.")] = 1000,
    kept: Annotated[int, typer.Option(help="Connections that are kept alive.")] = 50,
    warm: Annotated[int, typer.Option(help="Requests on each when it is opened.")] = 8,
    measured: Annotated[int, typer.Option(help="Requests on each in the main phase.")] = 52,
    life: Annotated[int, typer.Option(help="Requests on each kept connection of a churn.")] = 24,
    port: Annotated[int, typer.Option(help="TCP port of the VIPs.")] = 80,
    deadline: Annotated[float, typer.Option(help="Seconds that one request may take.")] = 5.0,
    threads: Annotated[int, typer.Option(help="Threads that send requests at once.")] = 4,
    rate: Annotated[float, typer.Option(help="Requests per second at most, over all threads.")] = 2000.0,
    source: Annotated[list[str] | None, typer.Option(help="Own address; repeated: one after the other.")] = None,
) -> None:
    """Make requests by commands on standard input."""
    load = Load(vips, port, deadline, threads, rate, source or ())
    commands: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read_commands, args=(commands,), daemon=True).start()
    actions: dict[str, Callable[[], None]] = {
        "short": lambda: load.short(short),
        "open": lambda: load.open(kept, warm),
        "idle": lambda: load.more("idle", 1),
        "main": lambda: load.more("main", measured, bodies=True),
        "churn": lambda: load.churn(kept, life, commands),
        "close": load.close,
    }
    while (command := commands.get()) is not None:
        actions[command]()
        if command == "close":
            return


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
