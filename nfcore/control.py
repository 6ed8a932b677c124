# SPDX-License-Identifier: Apache-2.0
"""The daemon's socket: one JSON object a line asks, one JSON object a line answers.

Question ``{"method": "stats", "params": {}}``; answer ``{"result": …}`` or ``{"error": "…", "exit_status": 2}``.
The socket belongs to the daemon's user alone (mode 0600).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .context import Method
from .errors import HostError, NfcoreError

log = logging.getLogger(__name__)
LINE_LIMIT = 1 << 20
"""Longest question, bytes. Answers may be of any length."""


class RefusedError(HostError):
    """The daemon answered with an error, and perhaps with the exit status that suits it."""

    def __init__(self, words: str, exit_status: object) -> None:
        super().__init__(words)
        if isinstance(exit_status, int):
            self.exit_status = exit_status


class ControlServer:
    """Answers on a unix socket until it is closed."""

    def __init__(self, path: Path, methods: Mapping[str, Method]) -> None:
        self._path = path
        self._methods = methods
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. HostError when another daemon answers there, or the place cannot be used."""
        refuse_second(self._path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.is_socket():  # a daemon's that is gone; anything else there is not ours to remove
                self._path.unlink()
            mask = os.umask(0o177)
            try:
                self._server = await asyncio.start_unix_server(self._serve, str(self._path), limit=LINE_LIMIT)
            finally:
                os.umask(mask)
        except OSError as error:
            raise HostError(f"nf.socket: cannot listen on {self._path}: {error.strerror or error}") from None

    async def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while line := await self._read_line(reader):
                writer.write(self._answer(line) + b"\n")
                await writer.drain()
        writer.close()

    @staticmethod
    async def _read_line(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readline()
        except ValueError:  # longer than LINE_LIMIT
            return b""

    def _answer(self, line: bytes) -> bytes:
        answer = self._ask(line)
        try:
            return json.dumps(answer).encode()
        except (TypeError, ValueError) as error:
            return json.dumps({"error": f"the method's answer cannot be written as JSON: {error}"}).encode()

    def _ask(self, line: bytes) -> dict[str, Any]:
        try:
            question = json.loads(line)
            name, parameters = question["method"], question.get("params", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {"error": 'not a question; should be like {"method": "stats", "params": {}}'}
        method = self._methods.get(name) if isinstance(name, str) else None
        if method is None:
            return {"error": f"no method {name!r} here; there are: {', '.join(sorted(self._methods))}"}
        try:
            return {"result": method(parameters)}
        except NfcoreError as error:
            return {"error": str(error), "exit_status": error.exit_status}
        except Exception as error:
            log.warning("control method %s failed: %s", name, error)
            log.debug("traceback", exc_info=error)
            return {"error": f"{name}: {error}"}


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
    question = json.dumps({"method": method, "params": parameters}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout)
        try:
            client.connect(str(path))
            client.sendall(question)
            with client.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        except PermissionError:
            raise HostError(f"the daemon's socket {path} is for its own user: use sudo") from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise HostError(f"no daemon answers at {path}; start one: nfcore run CONFIG") from None
        except (OSError, ValueError) as error:
            raise HostError(f"the daemon at {path} gave no answer: {error}") from None
    if not isinstance(answer, dict) or not answer.keys() & {"error", "result"}:
        raise HostError(f"what answers at {path} is no nfcore daemon")
    if "error" in answer:
        raise RefusedError(str(answer["error"]), answer.get("exit_status"))
    return answer["result"]
