# SPDX-License-Identifier: Apache-2.0
"""The usual comparison for drops: the program of `xdp-filter`, from the distribution's package, attached to nothing.

It is loaded by libbpf from the object that `xdp-filter load` takes, with its own maps. Only the size of the map of
addresses is another: `xdp-filter` has room for 10,000.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..errors import HostError
from ..kernel import Map, MapFlags, MapSpec, MapType, Program, XdpAction
from .traffic import Family

PACKAGE = "libxdp1 (of xdp-tools)"
VARIANT = "xdpfilt_alw_ip.o"
"""The smallest object that drops by addresses: policy "allow", no ports and no Ethernet addresses."""
_FOLDERS = (Path("/usr/lib/x86_64-linux-gnu/bpf"), Path("/usr/lib/aarch64-linux-gnu/bpf"), Path("/usr/lib/bpf"))
_SOURCE_BIT = 1 << 0
"""In the value of an address: drop what comes from it."""
_ADDRESS_BYTES: dict[Family, int] = {4: 4, 6: 16}
_STATS = MapSpec(
    "xdp_stats_map",
    MapType.PERCPU_ARRAY,
    np.dtype("<u4"),
    np.dtype([("packets", "<u8"), ("bytes", "<u8")]),
    5,
)


def find_object() -> Path:
    """Find the object of the distribution. HostError names the package."""
    for folder in _FOLDERS:
        if (folder / VARIANT).is_file():
            return folder / VARIANT
    raise HostError(f"no {VARIANT}: xdp-filter's programs are in Debian's package {PACKAGE}")


class XdpFilter:
    """The loaded program, with an empty list of addresses for each family."""

    def __init__(self, program: Program, addresses: dict[Family, Map], stats: Map) -> None:
        self.program = program
        self._addresses, self._stats = addresses, stats

    @classmethod
    @contextmanager
    def open(cls, entries: int) -> Iterator[Self]:
        """Load it for a block, with room for `entries` addresses of each family. HostError."""
        with ExitStack() as stack:
            loaded = stack.enter_context(_Object.open(find_object(), max(entries, 1)))
            program = stack.enter_context(Program(loaded.program_fd()))
            addresses: dict[Family, Map] = {}
            for family in (4, 6):
                spec = _addresses_spec(family, max(entries, 1))
                addresses[family] = stack.enter_context(Map(loaded.map_fd(spec.name), spec))
            yield cls(program, addresses, stack.enter_context(Map(loaded.map_fd(_STATS.name), _STATS)))

    def add_sources(self, sources: NDArray[np.uint8], family: Family) -> None:
        """Drop what comes from these addresses, shape (n, 16), as `xdp-filter ip ADDRESS --mode src` says it."""
        keys = np.zeros(len(sources), dtype=_addresses_spec(family, 1).key)
        keys["address"] = sources[:, : _ADDRESS_BYTES[family]]
        result = self._addresses[family].update_batch(keys, np.full(len(keys), _SOURCE_BIT, dtype=np.uint64))
        if result.errno:
            raise HostError(f"xdp-filter's map refuses address {result.done}: {os.strerror(result.errno)}")

    def verdicts(self, action: XdpAction) -> int:
        """Return how many packets have had this verdict."""
        return int(self._stats.read_array()["packets"][action].sum())


def _addresses_spec(family: Family, entries: int) -> MapSpec:
    key = np.dtype([("address", "u1", (_ADDRESS_BYTES[family],))])
    flags = MapFlags.NO_PREALLOC
    return MapSpec(f"filter_ipv{family}", MapType.PERCPU_HASH, key, np.dtype("<u8"), entries, flags)


class _Object:
    """An object file that libbpf has loaded. Its descriptors are libbpf's: callers get copies."""

    def __init__(self, library: ctypes.CDLL, handle: int) -> None:
        self._library, self._handle = library, handle

    @classmethod
    @contextmanager
    def open(cls, path: Path, entries: int) -> Iterator[Self]:
        library = _library()
        handle = library.bpf_object__open_file(str(path).encode(), None)
        if not handle:
            raise HostError(f"libbpf cannot open {path}: {os.strerror(ctypes.get_errno())}")
        try:
            opened = cls(library, handle)
            for name in ("filter_ipv4", "filter_ipv6", _STATS.name):
                # Else libbpf pins it, and finds one that is in use.
                library.bpf_map__set_pin_path(opened._map(name), None)
                if name != _STATS.name:
                    library.bpf_map__set_max_entries(opened._map(name), entries)
            # As the packet source has it: programs with another attach type may not call each other.
            library.bpf_program__set_expected_attach_type(opened._program(), 0)
            if library.bpf_object__load(handle):
                raise HostError(f"libbpf cannot load {path}: {os.strerror(ctypes.get_errno())}")
            yield opened
        finally:
            library.bpf_object__close(handle)

    def program_fd(self) -> int:
        return os.dup(self._library.bpf_program__fd(self._program()))

    def map_fd(self, name: str) -> int:
        return os.dup(self._library.bpf_map__fd(self._map(name)))

    def _program(self) -> int:
        found: int | None = self._library.bpf_object__next_program(self._handle, None)
        if not found:
            raise HostError(f"there is no program in {VARIANT}")
        return found

    def _map(self, name: str) -> int:
        found: int | None = self._library.bpf_object__find_map_by_name(self._handle, name.encode())
        if not found:
            raise HostError(f"{VARIANT} has no map {name}: another version of xdp-tools")
        return found


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise HostError(f"libbpf cannot be loaded: {error}") from None
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    signatures = {
        "libbpf_set_print": (pointer, [pointer]),
        "bpf_object__open_file": (pointer, [text, pointer]),
        "bpf_object__load": (ctypes.c_int, [pointer]),
        "bpf_object__close": (None, [pointer]),
        "bpf_object__next_program": (pointer, [pointer, pointer]),
        "bpf_object__find_map_by_name": (pointer, [pointer, text]),
        "bpf_map__set_max_entries": (ctypes.c_int, [pointer, ctypes.c_uint32]),
        "bpf_map__set_pin_path": (ctypes.c_int, [pointer, text]),
        "bpf_map__fd": (ctypes.c_int, [pointer]),
        "bpf_program__set_expected_attach_type": (ctypes.c_int, [pointer, ctypes.c_int]),
        "bpf_program__fd": (ctypes.c_int, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.libbpf_set_print(None)
    return library
