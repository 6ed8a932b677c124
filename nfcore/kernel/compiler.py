# SPDX-License-Identifier: Apache-2.0
"""From C to a loaded program: the seam behind which bcc stands.

bcc brings a compiler of some 100 MB into the process, changes its working directory and writes to its
standard output. It does so in a child process here, which hands back nothing but the program::

    nfcore ──source, flags, map fds──►  compile_worker.py ──►  bcc ──►  kernel
       ▲                                        │
       └───────── program fd, or the log ───────┘

Sources name maps that already exist, by their descriptors::

    #define MAP(m) ((void *)bpf_pseudo_fd(1, FD_##m))

so that one source serves maps of any size, pinned or not, and works in headers and macros.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import HostError
from .headers import Headers, find_headers
from .maps import Map
from .programs import Program

_WORKER = Path(__file__).with_name("compile_worker.py")
_PATIENCE = 300.0
"""Seconds until the worker is given up; a compilation takes well below one, 20 in an emulated guest."""
_MAIN_FILE = "/virtual/main.c"
"""What bcc calls the source in its messages."""
_LOG_TAIL = 20
_ERRORS_SHOWN = 3
# bcc compiles on one core for a fraction of a second: two at a time gain nothing and need the memory twice.
_TURN = threading.Lock()


class CompileError(HostError):
    """The compiler refused a source. ``log`` is everything that it said."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


class VerifierError(HostError):
    """The kernel refused a program. ``log`` is the verifier's whole log."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


def compile_program(
    source: Path,
    function: str,
    *,
    defines: Mapping[str, int | str],
    maps: Mapping[str, Map],
    include_dirs: Sequence[Path] = (),
    headers: Headers | None = None,
) -> Program:
    """Compile ``source`` and load its ``function`` as an XDP program.

    ``defines`` become ``-D`` flags; ``maps`` become ``FD_<name>``, the number that the source's
    ``MAP(name)`` needs. The source's own folder is the first to be searched for includes, then
    ``include_dirs``. The program is called ``function`` in the kernel, cut to 15 characters.

    Raises CompileError with the first errors, VerifierError with the end of the verifier's log,
    HostError when bcc, headers, the source or privileges are missing.
    """
    source = source.resolve()
    if not source.is_file():
        raise HostError(f"the BPF source {source} does not exist")
    headers = headers or find_headers()
    flags = _flags(source, defines, maps, include_dirs)
    request = {"source": str(source), "function": function, "flags": flags}
    with _TURN:
        answer, fd, noise = _run_worker(request, headers, [map_.fd for map_ in maps.values()])
    if fd is None:
        raise _error(source, function, answer, noise)
    return Program(fd)


def _flags(
    source: Path, defines: Mapping[str, int | str], maps: Mapping[str, Map], include_dirs: Iterable[Path]
) -> list[str]:
    return [
        "-Werror=implicit-function-declaration",
        *(f"-I{folder.resolve()}" for folder in (source.parent, *include_dirs)),
        *(f"-D{name}={value}" for name, value in defines.items()),
        *(f"-DFD_{name}={map_.fd}" for name, map_ in maps.items()),
    ]


def _run_worker(
    request: Mapping[str, Any], headers: Headers, fds: Sequence[int]
) -> tuple[dict[str, Any], int | None, str]:
    """The worker's answer, the program's descriptor if there is one, and what libbcc printed."""
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as output:
        worker = _start_worker(theirs, headers, fds, output)
        theirs.close()
        try:
            ours.settimeout(_PATIENCE)
            ours.sendall(json.dumps(request).encode())
            ours.shutdown(socket.SHUT_WR)
            fd, answer = _receive(ours)
            worker.wait(_PATIENCE)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HostError(f"the compiler process did not answer: {error}") from error
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        output.seek(0)
        noise = output.read().decode(errors="replace")
    if not answer:
        answer = {"status": "died", "returncode": worker.returncode}
    return answer, fd, noise


def _start_worker(
    channel: socket.socket, headers: Headers, fds: Sequence[int], output: IO[bytes]
) -> subprocess.Popen[bytes]:
    # ARCH and BCC_LINUX_VERSION_CODE, meant for kernel builds, would change what bcc compiles.
    inherited = {k: v for k, v in os.environ.items() if k not in ("ARCH", "BCC_LINUX_VERSION_CODE")}
    return subprocess.Popen(
        # -P: the worker's own folder has modules called like those of others.
        [sys.executable, "-P", str(_WORKER), str(channel.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # bcc searches the working directory for headers: it must be one without any.
        cwd="/proc/self",
        env={**inherited, "BCC_KERNEL_SOURCE": str(headers.path), "LC_ALL": "C"},
        pass_fds=(channel.fileno(), *fds),
    )


def _receive(channel: socket.socket) -> tuple[int | None, dict[str, Any]]:
    """The descriptor that came along and the answer; an empty one if the worker died."""
    _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    fd = fds[0] if fds else None
    if fd is not None:
        os.set_inheritable(fd, False)
    with channel.makefile("rb") as stream:
        payload = stream.read()
    return fd, json.loads(payload) if payload else {}


def _error(source: Path, function: str, answer: Mapping[str, Any], noise: str) -> HostError:
    noise = noise.replace(_MAIN_FILE, str(source))
    status = answer["status"]
    if status == "no-bcc":
        return HostError("bcc's Python bindings are missing: install python3-bpfcc")
    if status == "no-libbcc":
        return HostError(f"bcc's library cannot be loaded ({answer['detail']}): install libbpfcc")
    if status == "not-compiled":
        return CompileError(f"{source} does not compile:\n{_first_errors(noise)}", noise)
    if status == "no-function":
        names = ", ".join(answer["functions"]) or "none"
        return HostError(f"{source} defines no program {function} (it has: {names})")
    if status == "refused":
        return _refusal(source, function, answer["errno"], answer["log"])
    return HostError(f"the compiler process died with status {answer.get('returncode')} on {source}: {_tail(noise, 5)}")


def _refusal(source: Path, function: str, code: int, log: str) -> HostError:
    name = f"{function} of {source}"
    if not log.strip():
        if code == errno.EPERM:
            return HostError(f"not permitted to load {name} (needs root, or CAP_BPF and CAP_NET_ADMIN)")
        return HostError(f"the kernel refused {name}: {os.strerror(code)}")
    return VerifierError(f"the kernel's verifier refused {name}:\n{_tail(log, _LOG_TAIL)}", log)


def _first_errors(text: str) -> str:
    """The first errors with the lines that show them; all of a text without any."""
    lines = text.splitlines()
    starts = [index for index, line in enumerate(lines) if re.search(r"\berror:", line)]
    if not starts:
        return _tail(text, _LOG_TAIL)
    shown: list[str] = []
    for start in starts[:_ERRORS_SHOWN]:
        # A message is followed by the source line and a caret.
        place = [line for line in lines[start + 1 : start + 3] if not re.search(r":\d+:\d+: ", line)]
        shown += [lines[start], *place]
    more = len(starts) - _ERRORS_SHOWN
    return "\n".join([*shown, f"... and {more} more"] if more > 0 else shown)


def _tail(text: str, count: int) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])
