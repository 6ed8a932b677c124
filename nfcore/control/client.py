# SPDX-License-Identifier: Apache-2.0
"""The client's end of the daemon's socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Self

from ..errors import HostError


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
