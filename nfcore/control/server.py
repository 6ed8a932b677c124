# SPDX-License-Identifier: Apache-2.0
"""The daemon's socket: one JSON object a line asks, one JSON object a line answers.

Question ``{"method": "stats", "params": {}}``; answer ``{"result": …}`` or ``{"error": "…", "exit_status": 2}``.
The socket belongs to the daemon's user alone (mode 0600), or to a group as well (0660), whose members may ask but not
order: the kernel tells who is at the other end. Answers are written a slice a turn of the event loop.
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
"""Longest question, bytes. Answers may be of any length."""
MOST_CLIENTS = 64
"""Connected at a time, of those who may order as of those who may only ask."""
SILENCE = 10.0
"""Seconds in which a client has to ask for the first time."""
IDLE = 5.0
"""Seconds without a question after which a client gives way when its place is needed."""
READ_PATIENCE = 10.0
"""Seconds that a client may take to read what was written to it."""
SLICE = 0.002
"""Seconds of one turn of the event loop that go into an answer."""
WRITE_SIZE = 1 << 16
"""Characters written at a time, about."""
_PEER = struct.Struct("=iII")
"""``struct ucred``: process, user, group."""


@dataclass(eq=False)
class _Client:
    """Somebody who is connected."""

    writer: asyncio.StreamWriter
    process: int
    user: int
    silent_since: float | None
    """Since when it has asked nothing, by the event loop's clock; None while it is being answered."""

    @property
    def may_order(self) -> bool:
        """Whether it is root, or the daemon's own user."""
        return self.user in (0, os.geteuid())

    def __str__(self) -> str:
        return f"a client of the socket (process {self.process}, user {self.user})"


class ControlServer:
    """Answers on a unix socket until it is closed.

    Who may order has places of his own: those who may only ask cannot keep him out, however many they are.
    """

    def __init__(
        self, path: Path, methods: Mapping[str, Method], questions: Collection[str] = (), group: str = ""
    ) -> None:
        """Answer `methods`; to members of `group`, those that are `questions`."""
        self.dropped: Counter[str] = Counter({"full": 0, "idle": 0, "silent": 0, "slow": 0, "failed": 0})
        """Connections that were refused or ended, by the reason."""
        self._path = path
        self._methods = methods
        self._questions = questions
        self._group = group
        self._clients: set[_Client] = set()
        self._refused = 0
        """Of those that are connected, who has only to be told so."""
        self._turn = asyncio.Lock()
        """Held for one turn of the event loop by whoever asks or is answered: many at once make no longer turn."""
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. HostError when another daemon answers there, or the place cannot be used."""
        refuse_second(self._path)
        group = group_number(self._group) if self._group else None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.is_socket():  # a daemon's that is gone; anything else there is not ours to remove
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
        """Tell who is connected, and who was let go."""
        clients = gauge("nfcore_control_clients", "Clients of the daemon's socket.", "connections", "may")
        for may, orders in (("order", True), ("ask", False)):
            clients.add(sum(each.may_order is orders for each in self._clients), may=may)
        dropped = counter(
            "nfcore_control_dropped_total", "Clients of the socket that were not served.", "connections", "reason"
        )
        for reason, number in self.dropped.items():
            dropped.add(number, reason=reason)
        yield from (clients, dropped)

    # Places

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process, user = _peer(writer)
        client = _Client(writer, process, user, asyncio.get_running_loop().time())
        try:
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                if self._make_room(client):
                    self._clients.add(client)
                    await self._converse(reader, client)
                else:
                    await self._refuse(reader, client)
        finally:
            self._clients.discard(client)
            writer.close()

    def _make_room(self, client: _Client) -> bool:
        """Whether there is a place for one more: its own kind's longest idle gives way, if it is idle for a while."""
        kind = [each for each in self._clients if each.may_order == client.may_order]
        if len(kind) < MOST_CLIENTS:
            return True
        now = asyncio.get_running_loop().time()
        idle = {each: now - each.silent_since for each in kind if each.silent_since is not None}
        longest = max(idle, key=lambda each: idle[each], default=None)
        if longest is None or idle[longest] < IDLE:
            return False
        self._drop(longest, "idle", f"it had asked nothing for {idle[longest]:.0f} s and its place was needed")
        return True

    async def _refuse(self, reader: asyncio.StreamReader, client: _Client) -> None:
        """Tell a client that there is no place, once it has asked: what it never reads is of no use."""
        self.dropped["full"] += 1
        log.warning("%s was refused: %d are connected already", client, MOST_CLIENTS)
        if self._refused >= MOST_CLIENTS:
            return
        self._refused += 1
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._read_line(reader), 1.0)
            client.writer.write(_line({"error": f"too many clients: {MOST_CLIENTS} are connected already"}))
        finally:
            self._refused -= 1

    def _drop(self, client: _Client, reason: str, why: str) -> None:
        self.dropped[reason] += 1
        log.warning("%s was let go: %s", client, why)
        self._clients.discard(client)
        client.writer.transport.abort()

    # Questions

    async def _converse(self, reader: asyncio.StreamReader, client: _Client) -> None:
        try:
            line = await asyncio.wait_for(self._read_line(reader), SILENCE)
        except TimeoutError:
            self._drop(client, "silent", f"it has asked nothing for {SILENCE:g} s")
            return
        while line:
            client.silent_since = None
            await self._answer(client, await self._ask(line, may_order=client.may_order))
            client.silent_since = asyncio.get_running_loop().time()
            line = await self._read_line(reader)

    @staticmethod
    async def _read_line(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readline()
        except ValueError:  # longer than LINE_LIMIT
            return b""

    async def _answer(self, client: _Client, answer: Mapping[str, Any]) -> None:
        """Write an answer, a slice a turn. Who does not take it holds no more of it than a slice, and not for long."""
        pieces, begun = encode(answer), False
        while True:
            try:
                async with self._turn:
                    piece = _slice(pieces)
                    await asyncio.sleep(0)
            except Exception as error:
                log.debug("traceback", exc_info=error)
                if begun:
                    self._drop(client, "failed", f"the rest of its answer could not be made: {error}")
                    return
                piece, pieces = "", encode({"error": f"the method's answer cannot be written as JSON: {error}"})
                continue
            if not piece:
                break
            begun = True
            client.writer.write(piece.encode())
            try:
                async with asyncio.timeout(READ_PATIENCE):
                    await client.writer.drain()
            except TimeoutError:
                self._drop(client, "slow", f"it has not read its answer for {READ_PATIENCE:g} s")
                return
        client.writer.write(b"\n")

    async def _ask(self, line: bytes, *, may_order: bool) -> dict[str, Any]:
        try:
            question = json.loads(line)
            name, parameters = question["method"], question.get("params", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {"error": 'not a question; should be like {"method": "stats", "params": {}}'}
        method = self._methods.get(name) if isinstance(name, str) else None
        if method is None:
            return {"error": f"no method {name!r} here; there are: {', '.join(sorted(self._methods))}"}
        is_order = name not in self._questions
        if is_order and not may_order:
            return {"error": f"{name} is an order, for root alone: use sudo"}
        try:
            if is_order:  # which waits for nobody's question
                result = method(parameters)
            else:
                async with self._turn:
                    result = method(parameters)
                    await asyncio.sleep(0)
            return {"result": await result if inspect.isawaitable(result) else result}
        except NfcoreError as error:
            return {"error": str(error), "exit_status": error.exit_status}
        except Exception as error:
            log.warning("control method %s failed: %s", name, error)
            log.debug("traceback", exc_info=error)
            return {"error": f"{name}: {error}"}


def _slice(pieces: Iterator[str]) -> str:
    """Take pieces for SLICE seconds, or until there is enough to write; nothing at the end."""
    taken, length, deadline = [], 0, time.monotonic() + SLICE
    for piece in pieces:
        taken.append(piece)
        length += len(piece)
        if length >= WRITE_SIZE or time.monotonic() >= deadline:
            break
    return "".join(taken)


def _line(answer: Mapping[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """Process and user at the other end, as the kernel noted them when it connected."""
    peer = writer.get_extra_info("socket")
    process, user, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return process, user


def group_number(name: str) -> int:
    """Find a group; HostError names the key of the TOML when there is none of that name."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise HostError(f"nf.socket_group: there is no group {name!r} on this machine: groupadd {name}") from None


def refuse_second(path: Path) -> None:
    """HostError when a daemon listens on the socket `path`: there is one per socket."""
    if daemon_answers(path):
        raise HostError(f"a daemon is running already: its socket {path} answers (set nf.socket to another)")
