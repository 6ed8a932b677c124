# SPDX-License-Identifier: Apache-2.0
"""Compiles C and loads the program; bcc is used here only, in a child process.

bcc loads a compiler of some 100 MB into the process, changes its working directory and writes to its standard output.
In a child process none of that matters; it returns only the program::

    nfcore ──source, flags──►  compile_worker.py ──►  bcc
       ▲                              │
       └────── instructions ──────────┘
       └──► program_cache, map fds ──► kernel

A program that was compiled before from the same files is taken from program_cache.py and needs neither child nor bcc.
If the kernel refuses a program, the child compiles and loads it again, since only bcc adds source lines to the
verifier's log.

Sources name maps that already exist, by their descriptors::

    #define MAP(m) ((void *)bpf_pseudo_fd(1, FD_##m))

so that one source serves maps of any size, pinned or not, and works in headers and macros.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from ..errors import HostError
from ..refusals import TO_LOAD, cause_of, describe_lack, explain, missing_capabilities
from .headers import Headers, find_headers
from .maps import Map
from .program_cache import Compiled, ProgramCache, cache_key, placeholders, relocate
from .programs import LoadedProgram, Program, ProgramType
from .syscall import Command, bpf, lift_locked_memory_limit

BPF_SOURCES = Path(__file__).resolve().parents[1] / "bpf"
"""nfcore's own C: its programs, and the headers in ``lib/`` that any network function may include."""
_WORKER = Path(__file__).with_name("compile_worker.py")
_TIMEOUT = 300.0
"""Seconds that the worker may take. A compilation takes well below one, 20 in an emulated guest."""
_DROPPED_VARIABLES = ("ARCH", "BCC_LINUX_VERSION_CODE", "CPATH", "C_INCLUDE_PATH")
"""Environment variables, set for other compilers, that would change what bcc compiles."""
_MAIN_FILE = "/virtual/main.c"
"""Name of the source in bcc's messages."""
_PROG_LOAD = struct.Struct("=IIQQIIQII16s")
"""Head of ``union bpf_attr`` for BPF_PROG_LOAD: type, count of instructions, pointers to them and to the
license, log level, log size, log, kernel version, flags, name."""
_INSTRUCTION_SIZE = 8
_LONGEST_NAME = 15
_LOG_TAIL = 20
"""Lines of the verifier's log in a message."""
_ERRORS_SHOWN = 3
# One compilation at a time: a second one would gain little and need the memory twice.
_COMPILER_LOCK = threading.Lock()
_Kind = TypeVar("_Kind", bound=LoadedProgram)


class CompileError(HostError):
    """The compiler refused a source. ``log`` is its whole output."""

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
    cache: ProgramCache | None = None,
) -> Program:
    """Compile ``source``, or take it from the cache, and load its ``function`` as an XDP program.

    Arguments and errors are those of :func:`compile_as`.
    """
    return compile_as(
        *(Program, source, function),
        defines=defines,
        maps=maps,
        include_dirs=include_dirs,
        headers=headers,
        cache=cache,
    )


def compile_as(
    kind: type[_Kind],
    source: Path,
    function: str,
    *,
    defines: Mapping[str, int | str],
    maps: Mapping[str, Map],
    include_dirs: Sequence[Path] = (),
    headers: Headers | None = None,
    cache: ProgramCache | None = None,
) -> _Kind:
    """Compile ``source``, or take it from the cache, and load its ``function`` as a program of ``kind``.

    ``defines`` become ``-D`` flags; ``maps`` become ``FD_<name>``, the number that ``MAP(name)`` in the source needs.
    Includes are searched in the source's own folder, then ``include_dirs``, then :data:`BPF_SOURCES`. In the kernel
    the program's name is ``function``, cut to 15 characters. ``cache`` defaults to that of this user.

    Raises CompileError with the first errors, VerifierError with the end of the verifier's log,
    HostError when bcc, headers, the source or privileges are missing.
    """
    source = source.resolve()
    if not source.is_file():
        raise HostError(f"the BPF source {source} does not exist")
    headers = headers or find_headers()
    numbers = placeholders(maps)
    searched = (source.parent, *include_dirs, BPF_SOURCES)
    flags = _flags(searched, defines)
    request = _Request(source, function, [*flags, *_map_flags(numbers)], headers, kind.type)
    with _COMPILER_LOCK:
        compiled = _find_or_compile(request, searched, cache or ProgramCache())
        try:
            code = relocate(compiled.instructions, {numbers[name]: map_.fd for name, map_ in maps.items()})
            program = kind(_load(kind.type, code, compiled.license, function))
        except (OSError, KeyError):
            # KeyError: the source declares a map by bcc's macros, so that map exists in the worker only.
            descriptors = {name: map_.fd for name, map_ in maps.items()}
            loading = _Request(source, function, [*flags, *_map_flags(descriptors)], headers, kind.type)
            program = kind(_compile_and_load(loading, list(descriptors.values())))
    program.full_name = function
    return program


@dataclass(frozen=True)
class _Request:
    """One program to compile."""

    source: Path
    function: str
    flags: list[str]
    headers: Headers
    type: ProgramType

    def payload(self, *, load: bool) -> dict[str, Any]:
        """The request to the worker."""
        request = {"source": str(self.source), "function": self.function, "flags": self.flags}
        return {**request, "load": load, "type": int(self.type)}

    def key(self) -> str:
        """The key in the cache."""
        worker = _WORKER.read_text(encoding="utf-8")
        return cache_key(worker, str(self.source), self.function, self.flags, str(self.headers.path))


def _flags(folders: Iterable[Path], defines: Mapping[str, int | str]) -> list[str]:
    return [
        "-Werror=implicit-function-declaration",
        *(f"-I{folder.resolve()}" for folder in folders),
        *(f"-D{name}={value}" for name, value in defines.items()),
    ]


def _map_flags(numbers: Mapping[str, int]) -> list[str]:
    return [f"-DFD_{name}={number}" for name, number in numbers.items()]


def _find_or_compile(request: _Request, searched: Iterable[Path], cache: ProgramCache) -> Compiled:
    key = request.key()
    found = cache.find(key)
    if found is not None:
        return found
    started = time.time_ns()
    answer, _, printed = _run_worker(request.payload(load=False), request.headers, [])
    if answer["status"] != "compiled":
        raise _error(request.source, request.function, answer, printed)
    compiled = Compiled(
        bytes.fromhex(answer["instructions"]),
        answer["license"],
        # bcc compiles in the folder of the headers.
        (request.source, *(request.headers.path / name for name in answer["includes"])),
        tuple(map(Path, answer["libraries"])),
        tuple(folder.resolve() for folder in searched),
    )
    cache.keep(key, compiled, started)
    return compiled


def _compile_and_load(request: _Request, fds: Sequence[int]) -> int:
    answer, fd, printed = _run_worker(request.payload(load=True), request.headers, fds)
    if fd is None:
        raise _error(request.source, request.function, answer, printed)
    return fd


def _load(kind: ProgramType, code: bytes, license_: str, name: str) -> int:
    """Load a program and return its descriptor. OSError, without the verifier's log, when the kernel refuses."""
    instructions = ctypes.create_string_buffer(code, len(code))
    text = ctypes.create_string_buffer(license_.encode())
    attr = _PROG_LOAD.pack(
        *(kind, len(code) // _INSTRUCTION_SIZE, ctypes.addressof(instructions), ctypes.addressof(text)),
        *(0, 0, 0, 0, 0, name.encode()[:_LONGEST_NAME]),
    )
    try:
        return bpf(Command.PROG_LOAD, bytearray(attr))
    except OSError as error:
        if error.errno != errno.EPERM or not lift_locked_memory_limit():
            raise
        return bpf(Command.PROG_LOAD, bytearray(attr))


def _run_worker(
    request: Mapping[str, Any], headers: Headers, fds: Sequence[int]
) -> tuple[dict[str, Any], int | None, str]:
    """The worker's answer, the program's descriptor if there is one, and what libbcc printed."""
    channel, worker_end = socket.socketpair()
    # In memory: the machine may have no folder for temporary files.
    with channel, worker_end, os.fdopen(os.memfd_create("compiler"), "w+b") as output:
        worker = _start_worker(worker_end, headers, fds, output)
        worker_end.close()
        try:
            channel.settimeout(_TIMEOUT)
            channel.sendall(json.dumps(request).encode())
            channel.shutdown(socket.SHUT_WR)
            fd, answer = _receive(channel)
            worker.wait(_TIMEOUT)
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = explain(error) if isinstance(error, OSError) else str(error)
            raise HostError(f"the compiler process did not answer: {reason}") from error
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        output.seek(0)
        printed = output.read().decode(errors="replace")
    if not answer:
        answer = {"status": "died", "returncode": worker.returncode}
    return answer, fd, printed


def _start_worker(
    channel: socket.socket, headers: Headers, fds: Sequence[int], output: IO[bytes]
) -> subprocess.Popen[bytes]:
    inherited = {name: value for name, value in os.environ.items() if name not in _DROPPED_VARIABLES}
    return subprocess.Popen(
        # -P: otherwise modules in the worker's folder would hide others of the same name.
        [sys.executable, "-P", str(_WORKER), str(channel.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # bcc searches the working directory for headers: use one that has none.
        cwd="/proc/self",
        env={**inherited, "BCC_KERNEL_SOURCE": str(headers.path), "LC_ALL": "C"},
        pass_fds=(channel.fileno(), *fds),
    )


def _receive(channel: socket.socket) -> tuple[int | None, dict[str, Any]]:
    """The descriptor that came with the answer, if any, and the answer; empty if the worker died."""
    _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    fd = fds[0] if fds else None
    if fd is not None:
        os.set_inheritable(fd, False)
    with channel.makefile("rb") as stream:
        payload = stream.read()
    return fd, json.loads(payload) if payload else {}


def _error(source: Path, function: str, answer: Mapping[str, Any], printed: str) -> HostError:
    printed = printed.replace(_MAIN_FILE, str(source))
    status = answer["status"]
    if status == "no-bcc":
        return HostError(f"{sys.executable} cannot import bcc ({answer['detail']}): {bcc_advice()}")
    if status == "no-libbcc":
        return HostError(f"bcc's library cannot be loaded ({answer['detail']}): install libbpfcc")
    if status == "not-compiled":
        return CompileError(f"{source} does not compile:\n{_first_errors(printed)}", printed)
    if status == "no-function":
        names = ", ".join(answer["functions"]) or "none"
        return HostError(f"{source} defines no program {function} (it has: {names})")
    if status == "refused":
        return _refusal(source, function, answer["errno"], answer["log"])
    code = answer.get("returncode")
    return HostError(f"the compiler process died with status {code} on {source}: {_tail(printed, 5)}")


def bcc_advice() -> str:
    """Say how this Python gets bcc's bindings, which come from the distribution alone."""
    has_bindings = [path for path in Path("/usr/lib/python3").glob("*-packages/bcc") if path.is_dir()]
    if not has_bindings:
        return "apt-get install python3-bpfcc"
    config = Path(sys.prefix) / "pyvenv.cfg"
    if config.is_file() and "include-system-site-packages = true" not in config.read_text(encoding="utf-8"):
        return f"they are installed, but not for this venv: python3 -m venv --system-site-packages {sys.prefix}"
    return f"they are installed in {has_bindings[0]}, for /usr/bin/python3: use that one, or a venv of it"


def _refusal(source: Path, function: str, code: int, log: str) -> HostError:
    name = f"{function} of {source}"
    if lacking := missing_capabilities(TO_LOAD):
        # What the verifier says then is about code that it accepts of others.
        return VerifierError(f"the kernel refused {name}: {describe_lack(lacking)}", log)
    if not log.strip():
        cause = cause_of(code)
        return HostError(f"the kernel refused {name}: {os.strerror(code)}" + (f": {cause}" if cause else ""))
    return VerifierError(f"the kernel's verifier refused {name}:\n{_tail(log, _LOG_TAIL)}", log)


def _first_errors(text: str) -> str:
    """The first errors, each with its source line and caret; the end of the text if it has no errors."""
    lines = text.splitlines()
    starts = [index for index, line in enumerate(lines) if re.search(r"\berror:", line)]
    if not starts:
        return _tail(text, _LOG_TAIL)
    shown: list[str] = []
    for start in starts[:_ERRORS_SHOWN]:
        # A message is followed by the source line and a caret, unless the next message follows at once.
        context = [line for line in lines[start + 1 : start + 3] if not re.search(r":\d+:\d+: ", line)]
        shown += [lines[start], *context]
    more = len(starts) - _ERRORS_SHOWN
    return "\n".join([*shown, f"... and {more} more"] if more > 0 else shown)


def _tail(text: str, count: int) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])
