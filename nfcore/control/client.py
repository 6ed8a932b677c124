# SPDX-License-Identifier: Apache-2.0
"""The client of the daemon's socket."""

from __future__ import annotations

import errno
import grp
import json
import os
import pwd
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from ..errors import HostError
from ..refusals import cause_of, explain

NOT_ALLOWED = "not_allowed"
"""`code` of a response: the user may not call the method."""


class RefusedError(HostError):
    """The daemon's response is an error, possibly with an exit status for the command, and details for programs."""

    def __init__(self, message: str, exit_status: object, details: object = None) -> None:
        super().__init__(message)
        if isinstance(exit_status, int):
            self.exit_status = exit_status
        if isinstance(details, dict):
            self.details = details


class NotAllowedError(HostError):
    """The user may not open the socket, or not call the method."""


class NoDaemonError(HostError):
    """No daemon listens on the socket."""


class EndedError(HostError):
    """The daemon has closed the connection."""


def daemon_answers(path: Path) -> bool:
    """Whether a daemon listens on the socket `path`."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def request(path: Path, method: str, timeout: float = 5.0, **parameters: Any) -> Any:
    """Send one request to the daemon at the socket `path`. HostError: there is no daemon, or it gives an error."""
    with Client(path, timeout) as daemon:
        return daemon.request(method, **parameters)


class Client:
    """A connection to the daemon, for one request after another. HostError when there is no daemon."""

    def __init__(self, path: Path, timeout: float = 5.0) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise describe_failure(error, path) from None
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._lines.close()
        self._socket.close()

    def request(self, method: str, **parameters: Any) -> Any:
        """Send a request and give its result.

        RefusedError: the daemon's error; NotAllowedError: the user may not call this; EndedError: the daemon has ended.
        """
        line = json.dumps({"method": method, "params": parameters}).encode() + b"\n"
        try:
            self._socket.sendall(line)
            return read_response(self._lines.readline(), self._path)
        except (OSError, ValueError) as error:
            raise describe_failure(error, self._path) from None


def read_response(line: bytes, path: Path) -> Any:
    """Give the result in the response of the daemon at the socket `path`. Raises its error; ValueError: no JSON."""
    response = json.loads(line) if line.endswith(b"\n") else None
    if response is None:
        raise EndedError(f"the daemon at {path} gave no answer: it has ended")
    if not isinstance(response, dict) or not response.keys() & {"error", "result"}:
        raise HostError(f"the process that listens at {path} is no nfcore daemon")
    if "error" not in response:
        return response["result"]
    if response.get("code") == NOT_ALLOWED:
        raise NotAllowedError(str(response["error"]))
    raise RefusedError(str(response["error"]), response.get("exit_status"), response.get("details"))


def describe_failure(error: Exception, path: Path) -> HostError:
    """Make an error for the user from a failure of the connection to the socket `path`."""
    match error:
        case PermissionError():
            return NotAllowedError(f"the daemon's socket {path} is not for this user: {_way_in(path)}")
        case FileNotFoundError() | ConnectionRefusedError():
            return NoDaemonError(f"no daemon answers at {path}; start one: nfcore run CONFIG")
        case ConnectionError():
            return EndedError(f"the daemon at {path} gave no answer: it has ended")
    why = explain(error, path) if isinstance(error, OSError) and error.errno else str(error)
    return HostError(f"the daemon at {path} gave no answer: {why}")


def _way_in(path: Path) -> str:
    """Say how this user gets to a socket that it may not open: a folder may be closed, or the socket itself."""
    names = "the group that [nf] socket_group or order_group names"
    try:
        status = path.stat()
    except OSError:
        # The socket cannot be looked at, so whom it lets in is not known here.
        return f"use sudo; or first {cause_of(errno.EACCES, path)}; and become a member of {names}, unless you are"
    if not status.st_mode & 0o020:
        return f"use sudo, or become a member of {names}; neither is set, since the socket is for no group"
    group, user = str(status.st_gid), str(os.geteuid())
    with suppress(KeyError):
        group = grp.getgrgid(status.st_gid).gr_name
        user = pwd.getpwuid(os.geteuid()).pw_name
        if status.st_gid in os.getgrouplist(user, pwd.getpwuid(os.geteuid()).pw_gid):
            return f"it is for group {group}, of which {user} is a member since this session began: log in again"
    return f"use sudo, or become a member of its group {group}: usermod -aG {group} {user}, and log in again"
