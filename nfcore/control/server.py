# SPDX-License-Identifier: Apache-2.0
"""The server of the daemon's Unix socket. A request is one JSON object on a line, and so is its response.

Request ``{"method": "stats", "params": {}}``; response ``{"result": …}`` or ``{"error": "…", "exit_status": 2}``.
The socket belongs to the daemon's user (mode 0600), or also to a group (0660). Members of the group may only call
methods that read; the kernel names the user of each client. Long responses are written in slices, one per turn of the
event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import inspect
import json
import logging
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..api.context import Method
from ..api.json_rows import encode
from ..api.metrics import MetricFamily, counter, gauge
from ..errors import HostError, NfcoreError
from .client import daemon_answers

log = logging.getLogger(__name__)
LINE_LIMIT = 1 << 17
"""Longest request, in bytes. A response may have any length."""
MOST_CLIENTS = 64
"""Clients that are connected at a time: so many that may call all methods, and so many that may only read."""
SILENCE = 10.0
"""Seconds in which a client must send its first request."""
IDLE = 5.0
"""Seconds without a request after which a client may be disconnected when its place is needed."""
READ_PATIENCE = 10.0
"""Seconds that a client may take to read what was written to it."""
SLICE = 0.002
"""Seconds that one turn of the event loop spends on a response."""
WRITE_SIZE = 1 << 16
"""Characters written at a time, about."""
_PEER = struct.Struct("=iII")
"""``struct ucred``: process, user, group."""


@dataclass(eq=False)
class _Client:
    """A connected client."""

    writer: asyncio.StreamWriter
    process: int
    user: int
    idle_since: float | None
    """Time of its last response or of its connection, by the loop's clock; None while a request is being handled."""

    @property
    def may_change(self) -> bool:
        """Whether it may call all methods: it is root's, or of the daemon's own user."""
        return self.user in (0, os.geteuid())

    def __str__(self) -> str:
        return f"a client of the socket (process {self.process}, user {self.user})"


class ControlServer:
    """Serves a Unix socket until it is closed.

    Clients that may call all methods have places of their own: those that may only read cannot take them.
    """

    def __init__(
        self, path: Path, methods: Mapping[str, Method], read_methods: Collection[str] = (), group: str = ""
    ) -> None:
        """Serve `methods`. Members of `group` may call those of them that are named in `read_methods`."""
        self.dropped: Counter[str] = Counter({"full": 0, "idle": 0, "silent": 0, "slow": 0, "failed": 0})
        """Reason → connections that were refused or ended for it."""
        self._path = path
        self._methods = methods
        self._read_methods = read_methods
        self._group = group
        self._clients: set[_Client] = set()
        self._refused = 0
        """Clients that are connected only to get the error that there is no place."""
        self._turn = asyncio.Lock()
        """Held for one turn of the event loop by a request or response: many at once do not make the turn longer."""
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. HostError: another daemon listens there, or the path cannot be used."""
        refuse_second(self._path)
        group = group_number(self._group) if self._group else None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.is_socket():  # left by a daemon that was killed; any other file stays
                self._path.unlink()
            mask = os.umask(0o177)
            try:
                self._server = await asyncio.start_unix_server(self._serve, str(self._path), limit=LINE_LIMIT)
            finally:
                os.umask(mask)
            if group is not None:
                os.chown(self._path, -1, group)
                self._path.chmod(0o660)
        except OSError as error:
            raise HostError(f"nf.socket: cannot listen on {self._path}: {error.strerror or error}") from None

    async def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)

    def collect(self) -> Iterator[MetricFamily]:
        """Give the metrics: how many clients are connected, and how many were refused or disconnected."""
        clients = gauge("nfcore_control_clients", "Clients of the daemon's socket.", "connections", "may")
        for label, may_change in (("order", True), ("ask", False)):
            clients.add(sum(client.may_change is may_change for client in self._clients), may=label)
        dropped = counter(
            "nfcore_control_dropped_total", "Clients of the socket that were not served.", "connections", "reason"
        )
        for reason, count in self.dropped.items():
            dropped.add(count, reason=reason)
        yield from (clients, dropped)

    # Connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process, user = _peer(writer)
        client = _Client(writer, process, user, asyncio.get_running_loop().time())
        try:
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                if self._make_room(client):
                    self._clients.add(client)
                    await self._handle_requests(reader, client)
                else:
                    await self._refuse(reader, client)
        finally:
            self._clients.discard(client)
            writer.close()

    def _make_room(self, client: _Client) -> bool:
        """Whether there is a place for one more. If need be, the client of its kind that is idle longest gives way."""
        same_kind = [other for other in self._clients if other.may_change == client.may_change]
        if len(same_kind) < MOST_CLIENTS:
            return True
        now = asyncio.get_running_loop().time()
        idle = {other: now - other.idle_since for other in same_kind if other.idle_since is not None}
        longest = max(idle, key=lambda other: idle[other], default=None)
        if longest is None or idle[longest] < IDLE:
            return False
        self._drop(longest, "idle", f"it was idle for {idle[longest]:.0f} s and its place was needed")
        return True

    async def _refuse(self, reader: asyncio.StreamReader, client: _Client) -> None:
        """Respond to a client's first request with the error that there is no place."""
        self.dropped["full"] += 1
        log.warning("%s was refused: %d are connected already", client, MOST_CLIENTS)
        if self._refused >= MOST_CLIENTS:
            return
        self._refused += 1
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._read_line(reader), 1.0)
            response = {"error": f"too many clients: {MOST_CLIENTS} are connected already"}
            client.writer.write(json.dumps(response).encode() + b"\n")
        finally:
            self._refused -= 1

    def _drop(self, client: _Client, reason: str, why: str) -> None:
        self.dropped[reason] += 1
        log.warning("%s was disconnected: %s", client, why)
        self._clients.discard(client)
        client.writer.transport.abort()

    # Requests and responses

    async def _handle_requests(self, reader: asyncio.StreamReader, client: _Client) -> None:
        try:
            line = await asyncio.wait_for(self._read_line(reader), SILENCE)
        except TimeoutError:
            self._drop(client, "silent", f"it sent no request for {SILENCE:g} s")
            return
        while line:
            client.idle_since = None
            await self._respond(client, await self._call(line, may_change=client.may_change))
            client.idle_since = asyncio.get_running_loop().time()
            line = await self._read_line(reader)

    @staticmethod
    async def _read_line(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readline()
        except ValueError:  # longer than LINE_LIMIT
            return b""

    async def _respond(self, client: _Client, response: Mapping[str, Any]) -> None:
        """Write a response, a slice per turn. A slice is made only when the client has read most of the one before."""
        pieces, begun = encode(response), False
        while True:
            try:
                async with self._turn:
                    text = _slice(pieces)
                    await asyncio.sleep(0)
            except Exception as error:
                log.debug("traceback", exc_info=error)
                if begun:
                    self._drop(client, "failed", f"the rest of its response could not be made: {error}")
                    return
                pieces = encode({"error": f"the method's result cannot be written as JSON: {error}"})
                continue
            if not text:
                break
            begun = True
            client.writer.write(text.encode())
            try:
                async with asyncio.timeout(READ_PATIENCE):
                    await client.writer.drain()
            except TimeoutError:
                self._drop(client, "slow", f"it did not read its response for {READ_PATIENCE:g} s")
                return
        client.writer.write(b"\n")

    async def _call(self, line: bytes, *, may_change: bool) -> dict[str, Any]:
        """Call the method of a request. Returns the response."""
        try:
            request = json.loads(line)
            name, parameters = request["method"], request.get("params", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {"error": 'not a request; should be like {"method": "stats", "params": {}}'}
        method = self._methods.get(name) if isinstance(name, str) else None
        if method is None:
            return {"error": f"no method {name!r} here; there are: {', '.join(sorted(self._methods))}"}
        reads = name in self._read_methods
        if not (reads or may_change):
            return {"error": f"{name} changes the daemon, which only root may do: use sudo"}
        try:
            if reads:
                async with self._turn:
                    result = method(parameters)
                    await asyncio.sleep(0)
            else:  # does not wait for requests that only read
                result = method(parameters)
            return {"result": await result if inspect.isawaitable(result) else result}
        except NfcoreError as error:
            return {"error": str(error), "exit_status": error.exit_status}
        except Exception as error:
            log.warning("control method %s failed: %s", name, error)
            log.debug("traceback", exc_info=error)
            return {"error": f"{name}: {error}"}


def _slice(pieces: Iterator[str]) -> str:
    """Join pieces for SLICE seconds, or until there is enough to write. Empty at the end."""
    taken, length, deadline = [], 0, time.monotonic() + SLICE
    for piece in pieces:
        taken.append(piece)
        length += len(piece)
        if length >= WRITE_SIZE or time.monotonic() >= deadline:
            break
    return "".join(taken)


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """Process and user of the client, as the kernel noted them when it connected."""
    peer = writer.get_extra_info("socket")
    process, user, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return process, user


def group_number(name: str) -> int:
    """Find a group. HostError: there is none of this name."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise HostError(f"nf.socket_group: there is no group {name!r} on this machine: groupadd {name}") from None


def refuse_second(path: Path) -> None:
    """HostError when a daemon listens on the socket `path` already."""
    if daemon_answers(path):
        raise HostError(f"a daemon is running already: its socket {path} answers (set nf.socket to another)")
