# SPDX-License-Identifier: Apache-2.0
"""The server of the daemon's Unix socket. A request is one JSON object on a line, and so is its response.

Request ``{"method": "stats", "params": {}}``; response ``{"result": …}`` or ``{"error": "…", "exit_status": 2}``.
The socket belongs to the daemon's user (mode 0600), or also to a group (0660): `socket_group`, else `order_group`.
Members of `socket_group` may only call methods that read, those of `order_group` also methods that give orders for
flows. The kernel names the user and the groups of each client. Long responses are written in slices, one per turn of
the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import inspect
import json
import logging
import os
import pwd
import socket
import struct
import time
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..api.context import Method
from ..api.json_rows import encode
from ..api.metrics import MetricFamily, counter, gauge
from ..errors import HostError, NfcoreError
from ..folders import closed_to_group, make_folder
from ..refusals import explain
from .client import NOT_ALLOWED, daemon_answers

log = logging.getLogger(__name__)
LINE_LIMIT = 1 << 17
"""Longest request, in bytes. A response may have any length."""
MOST_CLIENTS = 64
"""Clients that are connected at a time: so many of each kind of :class:`Rights`."""
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
_KEYS = frozenset({"method", "params"})
"""Of a request."""
_PEER = struct.Struct("=iII")
"""``struct ucred``: process, user, group."""
_SO_PEERGROUPS = 59


class Rights(Enum):
    """What a client may do; the value is the label of its metric."""

    ALL = "order"
    """Root, and the daemon's own user: call all methods."""
    FLOWS = "flows"
    """`[nf] order_group`: give orders for flows, and read."""
    READ = "ask"
    """`[nf] socket_group`: read."""


@dataclass(eq=False)
class _Client:
    """A connected client."""

    writer: asyncio.StreamWriter
    process: int
    user: int
    rights: Rights
    idle_since: float | None
    """Time of its last response or of its connection, by the loop's clock; None while a request is being handled."""

    def __str__(self) -> str:
        return f"a client of the socket (process {self.process}, user {self.user})"


class ControlServer:
    """Serves a Unix socket until it is closed.

    Clients of each kind of rights have places of their own: those that may only read cannot take those of others.
    """

    def __init__(
        self,
        path: Path,
        methods: Mapping[str, Method],
        read_methods: Collection[str] = (),
        group: str = "",
        order_methods: Collection[str] = (),
        order_group: str = "",
    ) -> None:
        """Serve `methods`.

        Members of `group` may call those of them that are named in `read_methods`, members of `order_group` also those
        in `order_methods`. With both groups, the socket belongs to `group`: who is to give orders must be in it, too.
        """
        self.dropped: Counter[str] = Counter({"full": 0, "idle": 0, "silent": 0, "slow": 0, "failed": 0})
        """Reason → connections that were refused or ended for it."""
        self._path = path
        self._methods = methods
        self._read_methods = read_methods
        self._group = group
        self._order_methods = order_methods
        self._order_group = order_group
        self._order_gid = -1
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
        if self._order_group:
            self._order_gid = group_number(self._order_group, "nf.order_group")
            group = self._order_gid if group is None else group
            warn_of_outsiders(self._group, self._order_group)
        try:
            make_folder(self._path.parent)
            if self._path.is_socket():  # left by a daemon that was killed; any other file stays
                self._path.unlink()
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as made:
                made.bind(str(self._path))
                # Before it listens: until then nobody can connect, whatever mode the umask gave it.
                if group is not None:
                    os.chown(self._path, -1, group)
                self._path.chmod(0o600 if group is None else 0o660)
                self._server = await asyncio.start_unix_server(self._serve, sock=made.dup(), limit=LINE_LIMIT)
            if group is not None:
                warn_of_closed_folders(self._path, group)
        except OSError as error:
            raise HostError(f"nf.socket: cannot listen on {self._path}: {explain(error, self._path)}") from None

    async def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)

    def collect(self) -> Iterator[MetricFamily]:
        """Give the metrics: how many clients are connected, and how many were refused or disconnected."""
        clients = gauge("nfcore_control_clients", "Clients of the daemon's socket.", "connections", "may")
        for rights in Rights:
            clients.add(sum(client.rights is rights for client in self._clients), may=rights.value)
        dropped = counter(
            "nfcore_control_dropped_total", "Clients of the socket that were not served.", "connections", "reason"
        )
        for reason, count in self.dropped.items():
            dropped.add(count, reason=reason)
        yield from (clients, dropped)

    # Connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process, user, groups = _peer(writer)
        client = _Client(writer, process, user, self._rights(user, groups), asyncio.get_running_loop().time())
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

    def _rights(self, user: int, groups: Collection[int]) -> Rights:
        if user in (0, os.geteuid()):
            return Rights.ALL
        return Rights.FLOWS if self._order_gid in groups else Rights.READ

    def _make_room(self, client: _Client) -> bool:
        """Whether there is a place for one more. If need be, the client of its kind that is idle longest gives way."""
        same_kind = [other for other in self._clients if other.rights is client.rights]
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
            await self._respond(client, await self._call(line, client.rights))
            client.idle_since = asyncio.get_running_loop().time()
            line = await self._read_line(reader)
        if line is None:
            await self._respond(client, {"error": f"a request has at most {LINE_LIMIT:,} bytes"})

    @staticmethod
    async def _read_line(reader: asyncio.StreamReader) -> bytes | None:
        """Read a request; empty at the end of the connection, None when it is too long."""
        try:
            return await reader.readline()
        except ValueError:
            return None

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

    async def _call(self, line: bytes, rights: Rights) -> dict[str, Any]:
        """Call the method of a request. Returns the response."""
        try:
            name, parameters = _read_request(line)
        except ValueError as error:
            return {"error": str(error)}
        method = self._methods.get(name) if isinstance(name, str) else None
        if method is None:
            return {"error": f"no method {name!r} here; there are: {', '.join(sorted(self._methods))}"}
        reads = name in self._read_methods
        if not (reads or rights is Rights.ALL or (rights is Rights.FLOWS and name in self._order_methods)):
            return {"error": self._why_not_allowed(name), "code": NOT_ALLOWED}
        try:
            if reads:
                async with self._turn:
                    result = method(parameters)
                    await asyncio.sleep(0)
            else:  # does not wait for requests that only read
                result = method(parameters)
            return {"result": await result if inspect.isawaitable(result) else result}
        except NfcoreError as error:
            details = {"details": dict(error.details)} if error.details else {}
            return {"error": str(error), "exit_status": error.exit_status, **details}
        except Exception as error:
            log.warning("control method %s failed: %s", name, error)
            log.debug("traceback", exc_info=error)
            return {"error": f"{name}: {error}"}

    def _why_not_allowed(self, name: str) -> str:
        if name not in self._order_methods:
            return f"{name} changes the daemon, which only root may do: use sudo"
        if not self._order_group:
            return (
                f"{name} gives orders for flows, which only root may do: use sudo, or let a group by [nf] order_group"
            )
        return f"{name} gives orders for flows, which only root and members of group {self._order_group} may do"


def _read_request(line: bytes) -> tuple[Any, Any]:
    """Give method and parameters of a request. ValueError says what is wrong."""
    try:
        request = json.loads(line, parse_constant=_no_number)
        name, parameters = request["method"], request.get("params", {})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError('not a request; should be like {"method": "stats", "params": {}}') from None
    if unknown := sorted(request.keys() - _KEYS):
        raise ValueError(f"{unknown[0]!r:.40} is no key of a request; there are: {', '.join(sorted(_KEYS))}")
    return name, parameters


def _no_number(text: str) -> object:
    raise ValueError(f"{text} is no JSON")


def _slice(pieces: Iterator[str]) -> str:
    """Join pieces for SLICE seconds, or until there is enough to write. Empty at the end."""
    taken, length, deadline = [], 0, time.monotonic() + SLICE
    for piece in pieces:
        taken.append(piece)
        length += len(piece)
        if length >= WRITE_SIZE or time.monotonic() >= deadline:
            break
    return "".join(taken)


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int, set[int]]:
    """Process, user and groups of the client, as the kernel noted them when it connected."""
    peer = writer.get_extra_info("socket")
    process, user, group = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    others = array("I")
    with contextlib.suppress(OSError):  # it has more than 256 groups, which Python cannot read
        others.frombytes(peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024))
    return process, user, {group, *others}


def group_number(name: str, key: str = "nf.socket_group") -> int:
    """Find a group; `key` has its name. HostError: there is none of this name."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise HostError(f"{key}: there is no group {name!r} on this machine: groupadd {name}") from None


def warn_of_outsiders(group: str, order_group: str) -> None:
    """Log the members of `order_group` who cannot open the socket, because it belongs to `group`."""
    if not group or not order_group or group == order_group:
        return
    number = group_number(group)
    outside = []
    for name in grp.getgrnam(order_group).gr_mem:
        with contextlib.suppress(KeyError):
            if number not in os.getgrouplist(name, pwd.getpwnam(name).pw_gid):
                outside.append(name)
    if outside:
        users = ", ".join(outside)
        log.warning(
            "nf.order_group: %s cannot open the socket, which belongs to group %s: add them to it", users, group
        )


def warn_of_closed_folders(path: Path, group: int) -> None:
    """Log the folders above the socket that its group cannot enter."""
    for folder in closed_to_group(path, group):
        log.warning(
            "nf.socket: group %s cannot reach the socket, because %s is closed to it: chmod o+x %s, or set nf.socket "
            "to a path in another folder",
            grp.getgrgid(group).gr_name,
            folder,
            folder,
        )


def refuse_second(path: Path) -> None:
    """HostError when a daemon listens on the socket `path` already."""
    if daemon_answers(path):
        raise HostError(
            f"a daemon is running already: its socket {path} answers; stop it, or change it with nfcore reload"
        )
