# SPDX-License-Identifier: Apache-2.0
"""Compiled objects (ELF files with maps described by BTF), loaded by the distribution's libbpf.

::

    ObjectFile.open ──► maps, programs (read from the file; nothing is in the kernel)
         │ reuse, set_inner         maps that exist already; the maps that a map of maps is made for
         └ load ──► take_map, take_program     descriptors of their own

libbpf reports to one function of the process. One object is opened or loaded at a time: each has its own report.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..errors import HostError, UnsupportedError
from ..refusals import TO_LOAD, cause_of, describe_lack, explain, missing_capabilities
from .maps import Map
from .mapspec import OUTER, MapSpec, MapType
from .objects import Closing
from .programs import Program, ProgramType

_LIBRARY = "libbpf.so.1"
"""From libbpf 1.0 on. Debian 12 has 1.1."""
_LAST_LINES = 20
"""Lines of libbpf's report, the verifier's log among them, that a message shows."""
_LONGEST_LINE = 300
_VERIFIER_LOG = "BEGIN PROG LOAD LOG"
"""Is in the line before the verifier's."""
_INFO = 1
"""Of ``enum libbpf_print_level``: the report has warnings (0) and this."""
_MACHINE_BPF = 247
_ELF_HEAD = struct.Struct("=4sBB10xHH")
"""Magic, class (2: 64 bits), byte order (1: little), type, machine; in a little-endian machine's order."""
_LOCK = threading.Lock()
_report: list[str] = []
"""What libbpf has printed for the holder of the lock."""

_Pointer = ctypes.c_void_p
# On x86-64 and arm64 a va_list is passed as the address of a struct.
_PRINTER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, _Pointer, _Pointer)
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    # name: (result, parameters)
    "libbpf_set_print": (_Pointer, [_PRINTER]),
    "bpf_object__open_file": (_Pointer, [ctypes.c_char_p, _Pointer]),
    "bpf_object__load": (ctypes.c_int, [_Pointer]),
    "bpf_object__close": (None, [_Pointer]),
    "bpf_object__next_map": (_Pointer, [_Pointer, _Pointer]),
    "bpf_object__next_program": (_Pointer, [_Pointer, _Pointer]),
    "bpf_map__name": (ctypes.c_char_p, [_Pointer]),
    "bpf_map__type": (ctypes.c_int, [_Pointer]),
    "bpf_map__key_size": (ctypes.c_uint32, [_Pointer]),
    "bpf_map__value_size": (ctypes.c_uint32, [_Pointer]),
    "bpf_map__max_entries": (ctypes.c_uint32, [_Pointer]),
    "bpf_map__map_flags": (ctypes.c_uint32, [_Pointer]),
    "bpf_map__is_internal": (ctypes.c_bool, [_Pointer]),
    "bpf_map__inner_map": (_Pointer, [_Pointer]),
    "bpf_map__set_inner_map_fd": (ctypes.c_int, [_Pointer, ctypes.c_int]),
    "bpf_map__set_map_flags": (ctypes.c_int, [_Pointer, ctypes.c_uint32]),
    "bpf_map__set_pin_path": (ctypes.c_int, [_Pointer, ctypes.c_char_p]),
    "bpf_map__reuse_fd": (ctypes.c_int, [_Pointer, ctypes.c_int]),
    "bpf_map__fd": (ctypes.c_int, [_Pointer]),
    "bpf_program__name": (ctypes.c_char_p, [_Pointer]),
    "bpf_program__type": (ctypes.c_int, [_Pointer]),
    "bpf_program__set_autoload": (ctypes.c_int, [_Pointer, ctypes.c_bool]),
    "bpf_program__fd": (ctypes.c_int, [_Pointer]),
}


class ObjectError(HostError):
    """An object that cannot be used: its file, or the kernel refuses it. The message names the file."""


@dataclass(frozen=True)
class _Map:
    handle: int
    spec: MapSpec


class ObjectFile(Closing):
    """An opened object. Owns what libbpf holds for it; a context manager."""

    def __init__(self, path: Path, handle: int) -> None:
        """Take over an object that libbpf has opened."""
        self.path, self._handle = path, handle
        self._maps: dict[str, _Map] = {}
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        library = _library()
        for each in _walk(library.bpf_object__next_map, self._handle):
            # Otherwise libbpf pins what the file wants pinned.
            library.bpf_map__set_pin_path(each, None)
            if not library.bpf_map__is_internal(each):
                spec = _spec_of(self.path, each)
                self._maps[spec.name] = _Map(each, spec)
        self._programs = {
            library.bpf_program__name(each).decode(): each
            for each in _walk(library.bpf_object__next_program, self._handle)
            if library.bpf_program__type(each) == ProgramType.XDP
        }

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a file. ObjectError, with libbpf's own last lines: it is no object, or has maps without BTF."""
        problem = examine_header(path)
        if problem:
            raise ObjectError(f"{path} {problem}")
        with _reporting() as report:
            handle = _library().bpf_object__open_file(os.fsencode(path), None)
            if not handle:
                code = ctypes.get_errno()
                raise ObjectError(f"libbpf cannot open {path}: {os.strerror(code)}{_last(report)}")
        return cls(path, handle)

    @property
    def maps(self) -> dict[str, MapSpec]:
        """The maps by their names, without those of global variables.

        Keys and values have their sizes and no fields. A map of maps for which the file does not say what maps it is
        made for has an inner spec without entries.
        """
        return {name: each.spec for name, each in self._maps.items()}

    @property
    def programs(self) -> list[str]:
        """Names of the XDP programs."""
        return list(self._programs)

    def reuse(self, name: str, opened: Map) -> None:
        """Let the programs use an existing map. It must fit; that is not checked."""
        self._set("bpf_map__reuse_fd", name, opened.fd)

    def set_inner(self, name: str, prototype: Map) -> None:
        """Make a map of maps for maps like `prototype`, which must exist until the object is loaded."""
        self._set("bpf_map__set_inner_map_fd", name, prototype.fd)

    def set_flags(self, name: str, flags: int) -> None:
        """Create a map with other flags than the file's; MapFlags."""
        self._set("bpf_map__set_map_flags", name, flags)

    def _set(self, function: str, name: str, value: int) -> None:
        with _reporting() as report:
            if getattr(_library(), function)(self._maps[name].handle, value) < 0:
                code = ctypes.get_errno()
                raise ObjectError(f"{self.path}: libbpf refuses map {name}: {os.strerror(code)}{_last(report)}")

    def load(self, program: str) -> None:
        """Create the maps and load this program, and no other of the file.

        ObjectError has the last lines of libbpf's report, the verifier's among them.
        """
        library = _library()
        with _reporting() as report:
            for each in _walk(library.bpf_object__next_program, self._handle):
                library.bpf_program__set_autoload(each, each == self._programs[program])
            code = -library.bpf_object__load(self._handle)
            if code <= 0:
                return
            if lacking := missing_capabilities(TO_LOAD):
                raise ObjectError(f"{self.path} cannot be loaded: nfcore {describe_lack(lacking)}")
            if any(_VERIFIER_LOG in line for line in report):
                raise ObjectError(f"the kernel's verifier refused {program} of {self.path}:{_last(report)}")
            cause = cause_of(code)
            reason = os.strerror(code) + (f": {cause}" if cause else "")
            raise ObjectError(f"{program} of {self.path} cannot be loaded: {reason}{_last(report)}")

    def take_map(self, name: str, spec: MapSpec) -> Map:
        """Give a map of the loaded object, with a descriptor of its own; `spec`: its spec with dtypes."""
        return Map(_duplicate(_library().bpf_map__fd(self._maps[name].handle)), spec)

    def take_program(self, name: str) -> Program:
        """Give the loaded program, with a descriptor of its own."""
        program = Program(_duplicate(_library().bpf_program__fd(self._programs[name])))
        program.full_name = name
        return program

    def close(self) -> None:
        """Give up what libbpf holds. What was taken stays. Idempotent."""
        if self._handle:
            _library().bpf_object__close(self._handle)
            self._handle = 0


def examine_header(path: Path) -> str:
    """Say why a file cannot be an object of BPF programs, by its first bytes; empty: it may be one."""
    try:
        if path.exists() and not path.is_file():
            return "is no file"
        with path.open("rb") as file:
            head = file.read(_ELF_HEAD.size)
    except OSError as error:
        return f"cannot be read: {explain(error, path)}"
    magic, bits, order, _, machine = _ELF_HEAD.unpack(head.ljust(_ELF_HEAD.size, b"\0"))
    if magic != b"\x7fELF":
        return "is no ELF file; should be what clang -target bpf -g -c makes"
    if bits != 2 or order != 1 or machine != _MACHINE_BPF:
        return "is an ELF file for another machine than BPF; should be what clang -target bpf -g -c makes"
    return ""


def _walk(following: Callable[[int, int | None], int | None], handle: int) -> Iterator[int]:
    """What an object has, one by one."""
    each = following(handle, None)
    while each:
        yield each
        each = following(handle, each)


def _spec_of(path: Path, handle: int) -> MapSpec:
    library = _library()
    kind = library.bpf_map__type(handle)
    name = library.bpf_map__name(handle).decode()
    try:
        known = MapType(kind)
    except ValueError:
        raise ObjectError(f"{path}: map {name} has the type {kind}, which nfcore does not know") from None
    sizes = (library.bpf_map__key_size(handle), library.bpf_map__value_size(handle))
    key, value = (np.dtype(f"V{size}") if size else None for size in sizes)
    inner = None
    if known in OUTER:
        found = library.bpf_map__inner_map(handle)
        # libbpf names the maps that a map of maps is made for as "lru_mapping.inner".
        inner = _spec_of(path, found) if found else MapSpec("unknown", MapType.ARRAY, None, None, 0)
    entries, flags = library.bpf_map__max_entries(handle), library.bpf_map__map_flags(handle)
    return MapSpec(name, known, key, value, entries, flags, inner)


def _duplicate(fd: int) -> int:
    """A descriptor that outlives libbpf's; like all of Python's, it is closed when a program is executed."""
    return os.dup(fd)


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(_LIBRARY, use_errno=True)
        for name, (result, parameters) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, parameters
    except (OSError, AttributeError) as error:
        raise UnsupportedError(f"a compiled object ({error})", "libbpf 1.0: apt-get install libbpf1") from None
    library.libbpf_set_print(_print_callback)
    return library


@contextmanager
def _reporting() -> Iterator[list[str]]:
    """Collect what libbpf prints meanwhile."""
    _library()
    with _LOCK:
        _report.clear()
        yield _report


def _print(level: int, template: int, arguments: int) -> int:
    """Keep what libbpf prints (``libbpf_print_fn_t``)."""
    if level <= _INFO:
        libc, text = ctypes.CDLL(None), ctypes.c_char_p()
        length: int = libc.vasprintf(ctypes.byref(text), _Pointer(template), _Pointer(arguments))
        if length >= 0:
            _report.append((text.value or b"").decode(errors="replace"))
            libc.free(text)
    return 0


_print_callback = _PRINTER(_print)
"""libbpf keeps its address, so it has to stay."""


def _last(report: list[str]) -> str:
    """The last lines of a report, for the end of a message."""
    lines = [line[:_LONGEST_LINE] for line in "".join(report).splitlines() if line.strip()]
    return "".join(f"\n{line}" for line in lines[-_LAST_LINES:])
