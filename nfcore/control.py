# SPDX-License-Identifier: Apache-2.0
"""The daemon's socket: one JSON object a line asks, one JSON object a line answers.

Question ``{"method": "stats", "params": {}}``; answer ``{"result": …}`` or ``{"error": "…", "exit_status": 2}``.
The socket belongs to the daemon's user alone (mode 0600), or to a group as well (0660), whose members may ask but not
order: the kernel tells who is at the other end.
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
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

from .context import Method
from .errors import HostError, NfcoreError

log = logging.getLogger(__name__)
LINE_LIMIT = 1 << 20
"""Longest question, bytes. Answers may be of any length."""
MOST_CLIENTS = 64
"""Connected at a time: each may wait for its answer, and none can be made to hurry."""
_PEER = struct.Struct("=iII")
"""``struct ucred``: process, user, group."""


class RefusedError(HostError):
    """The daemon answered with an error, and perhaps with the exit status that suits it."""

    def __init__(self, words: str, exit_status: object) -> None:
        super().__init__(words)
        if isinstance(exit_status, int):
            self.exit_status = exit_status


class NoDaemonError(HostError):
    """Nobody listens on the socket."""


class EndedError(HostError):
    """The daemon hung up."""


class ControlServer:
    """Answers on a unix socket until it is closed."""

    def __init__(
        self, path: Path, methods: Mapping[str, Method], questions: Collection[str] = (), group: str = ""
    ) -> None:
        """Answer `methods`; to members of `group`, those that are `questions`."""
        self._path = path
        self._methods = methods
        self._questions = questions
        self._group = group
        self._clients = 0
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

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                if self._clients > MOST_CLIENTS:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._read_line(reader), 1.0)
                    writer.write(_line({"error": f"too many clients: {MOST_CLIENTS} are connected already"}))
                    return
                may_order = _may_order(writer)
                while line := await self._read_line(reader):
                    writer.write(await self._answer(line, may_order=may_order))
                    await writer.drain()
        finally:
            self._clients -= 1
            writer.close()

    @staticmethod
    async def _read_line(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readline()
        except ValueError:  # longer than LINE_LIMIT
            return b""

    async def _answer(self, line: bytes, *, may_order: bool) -> bytes:
        answer = await self._ask(line, may_order=may_order)
        try:
            return _line(answer)
        except (TypeError, ValueError) as error:
            return _line({"error": f"the method's answer cannot be written as JSON: {error}"})

    async def _ask(self, line: bytes, *, may_order: bool) -> dict[str, Any]:
        try:
            question = json.loads(line)
            name, parameters = question["method"], question.get("params", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {"error": 'not a question; should be like {"method": "stats", "params": {}}'}
        method = self._methods.get(name) if isinstance(name, str) else None
        if method is None:
            return {"error": f"no method {name!r} here; there are: {', '.join(sorted(self._methods))}"}
        if not may_order and name not in self._questions:
            return {"error": f"{name} is an order, for root alone: use sudo"}
        try:
            result = method(parameters)
            return {"result": await result if inspect.isawaitable(result) else result}
        except NfcoreError as error:
            return {"error": str(error), "exit_status": error.exit_status}
        except Exception as error:
            log.warning("control method %s failed: %s", name, error)
            log.debug("traceback", exc_info=error)
            return {"error": f"{name}: {error}"}


def _line(answer: Mapping[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def _may_order(writer: asyncio.StreamWriter) -> bool:
    """Whether root, or the daemon's own user, is at the other end."""
    peer = writer.get_extra_info("socket")
    _, user, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return user in (0, os.geteuid())


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


def daemon_answers(path: Path) -> bool:
    """Whether a daemon listens on the socket `path`."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def request(path: Path, method: str, timeout: float = 5.0, **parameters: Any) -> Any:
    """Ask the daemon behind the socket `path`; HostError when none is there or it answers with an error."""
    with Client(path, timeout) as daemon:
        return daemon.ask(method, **parameters)


class Client:
    """A connection to the daemon, for questions one after the other. HostError when there is none."""

    def __init__(self, path: Path, timeout: float = 5.0) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise self._words(error) from None
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._lines.close()
        self._socket.close()

    def ask(self, method: str, **parameters: Any) -> Any:
        """Give the answer to one question. RefusedError: the daemon's words; EndedError: it has ended meanwhile."""
        question = json.dumps({"method": method, "params": parameters}).encode() + b"\n"
        try:
            self._socket.sendall(question)
            line = self._lines.readline()
            answer = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError) as error:
            raise self._words(error) from None
        if answer is None:
            raise EndedError(f"the daemon at {self._path} gave no answer: it has ended")
        if not isinstance(answer, dict) or not answer.keys() & {"error", "result"}:
            raise HostError(f"what answers at {self._path} is no nfcore daemon")
        if "error" in answer:
            raise RefusedError(str(answer["error"]), answer.get("exit_status"))
        return answer["result"]

    def _words(self, error: Exception) -> HostError:
        """Say what a failure means to whoever asked."""
        match error:
            case PermissionError():
                return HostError(
                    f"the daemon's socket {self._path} is for its own user: use sudo, or let a group in by "
                    "[nf] socket_group"
                )
            case FileNotFoundError() | ConnectionRefusedError():
                return NoDaemonError(f"no daemon answers at {self._path}; start one: nfcore run CONFIG")
            case ConnectionError():
                return EndedError(f"the daemon at {self._path} gave no answer: it has ended")
        return HostError(f"the daemon at {self._path} gave no answer: {error}")
