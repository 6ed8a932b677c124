# SPDX-License-Identifier: Apache-2.0
"""The process that compiles one program, run as a script by :mod:`nfcore.kernel.compiler`.

Imports the standard library and bcc only. The argument is the descriptor of a Unix socket: reads a request from it
(JSON, up to the end of the stream) and answers with JSON. The answer to a request with ``load`` is also the program's
descriptor, or the verifier's log; the maps' descriptors are inherited under the numbers in the request's flags. The
answer to any other request is the instructions and the files that they were made from.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

_LOG_SIZE = 16 << 20
"""Bytes for the verifier's log."""
_RULE_SIZE = 1 << 20
"""Bytes of the list of included files, at most."""
_COMPILER_LIBRARY = re.compile(r"/lib(bcc|bpf|LLVM|clang)[^/]*\.so")


def main() -> None:
    """Serve one request and exit."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    with channel.makefile("rb") as stream:
        request = json.load(stream)
    answer, descriptors = _serve(request)
    payload = json.dumps(answer).encode()
    # One byte carries the descriptor, since the answer may be longer than one message.
    socket.send_fds(channel, [b"+"], descriptors)
    channel.sendall(payload)
    channel.shutdown(socket.SHUT_WR)
    sys.stdout.flush()
    # Skips LLVM's destructors: there is nothing to save.
    os._exit(0)


def _serve(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    try:
        from bcc.libbcc import lib  # noqa: PLC0415 - bcc may be missing: the parent reports it
    except ImportError as error:
        return {"status": "no-bcc", "detail": str(error)}, []
    except OSError as error:
        return {"status": "no-libbcc", "detail": str(error)}, []
    # clang writes the files that it reads here, as a rule for make.
    includes = os.memfd_create("includes")
    tracking = ["-MD", "-MF", f"/proc/self/fd/{includes}", "-MT", "program"]
    flags = [flag.encode() for flag in (*request["flags"], *tracking)]
    array = (ctypes.c_char_p * len(flags))(*flags)
    source = Path(request["source"]).read_bytes()
    module = lib.bpf_module_create_c_from_string(source, 0, array, len(flags), True, None)
    if not module:
        return {"status": "not-compiled"}, []
    function = request["function"].encode()
    if not lib.bpf_function_start(module, function):
        count = lib.bpf_num_functions(module)
        names = [lib.bpf_function_name(module, index).decode() for index in range(count)]
        return {"status": "no-function", "functions": names}, []
    if request["load"]:
        return _load(lib, module, function, request["type"])
    code = ctypes.string_at(lib.bpf_function_start(module, function), lib.bpf_function_size(module, function))
    return {
        "status": "compiled",
        "instructions": code.hex(),
        "license": lib.bpf_module_license(module).decode(),
        "includes": _prerequisites(os.pread(includes, _RULE_SIZE, 0).decode()),
        "libraries": _compiler_libraries(),
    }, []


def _prerequisites(rule: str) -> list[str]:
    """The files in clang's make rule, unquoted, without bcc's built-in ones. Some are relative to the headers."""
    names = re.findall(r"(?:\\[ #\\]|\S)+", rule.replace("\\\n", " ").partition(": ")[2])
    unquoted = [re.sub(r"\\([ #\\])", r"\1", name).replace("$$", "$") for name in names]
    return [name for name in unquoted if not name.startswith("/virtual/")]


def _compiler_libraries() -> list[str]:
    """Paths of the shared libraries in this process that determine the generated code."""
    lines = (line.split() for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines())
    return sorted({line[5] for line in lines if len(line) == 6 and _COMPILER_LIBRARY.search(line[5])})


def _load(lib: ctypes.CDLL, module: int, function: bytes, kind: int) -> tuple[dict[str, Any], list[int]]:
    fd, _ = _func_load(lib, module, function, kind, 0, None)
    if fd >= 0:
        return {"status": "loaded"}, [fd]
    # Refused: load again with the verifier's log, which is slow.
    log = ctypes.create_string_buffer(_LOG_SIZE)
    fd, code = _func_load(lib, module, function, kind, 1, log)
    if fd >= 0:
        return {"status": "loaded"}, [fd]
    return {"status": "refused", "errno": code, "log": log.value.decode(errors="replace")}, []


def _func_load(
    lib: ctypes.CDLL, module: int, function: bytes, kind: int, level: int, log: ctypes.Array[ctypes.c_char] | None
) -> tuple[int, int]:
    ctypes.set_errno(0)
    fd = lib.bcc_func_load(
        module,
        kind,
        function,
        lib.bpf_function_start(module, function),
        lib.bpf_function_size(module, function),
        lib.bpf_module_license(module),
        lib.bpf_module_kern_version(module),
        level,
        log,
        _LOG_SIZE if log is not None else 0,
        None,
        0,
        -1,
    )
    return fd, ctypes.get_errno()


if __name__ == "__main__":
    main()
