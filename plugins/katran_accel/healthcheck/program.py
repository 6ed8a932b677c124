# SPDX-License-Identifier: Apache-2.0
"""The program at the egress and its maps: which mark leads to which real, what was counted."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import Address
from nfcore.errors import HostError
from nfcore.kernel import (
    BPF_SOURCES,
    Closing,
    Map,
    Owner,
    TcProgram,
    compile_as,
    egress_programs,
    interface_name,
    owner_of,
    program_map,
)

from . import layouts as lay
from .path import ProbePath

FUNCTION = "healthcheck_encap"
"""The program's name, as published."""
FILTER_PRIORITY = 2307
"""As published; where the kernel has TCX there is no filter."""
KIND = "healthcheck"
"""How the program is marked, with the daemon's socket."""


class ProbeProgram(Closing):
    """The loaded program and its maps. HostError: it cannot be loaded."""

    def __init__(self, path: ProbePath, gue_port: int | None, previous: TcProgram | None = None) -> None:
        """Load the program; it goes on in the maps of `previous`, which it is to replace."""
        self._maps: dict[str, Map] = {}
        with ExitStack() as undo:
            undo.callback(self._close_maps)
            for name, spec in lay.SPECS.items():
                self._maps[name] = (previous and program_map(previous, spec)) or Map.create(spec)
            self.write_path(path)
            defines = {} if gue_port is None else {"GUE_PORT": gue_port}
            defines |= {"KERNEL_NEXT_HOP": 1} if path.destination_mac is None else {}
            source = BPF_SOURCES / "healthcheck/healthcheck.c"
            self.program = compile_as(TcProgram, source, FUNCTION, defines=defines, maps=self._maps)
            undo.pop_all()

    def close(self) -> None:
        """Close program and maps; an attached program stays."""
        self.program.close()
        self._close_maps()

    def _close_maps(self) -> None:
        for opened in self._maps.values():
            opened.close()
        self._maps.clear()

    def write_path(self, path: ProbePath) -> None:
        """Let probes leave by a path."""
        macs = {lay.MacSlot.SOURCE: path.source_mac, lay.MacSlot.DESTINATION: path.destination_mac or bytes(6)}
        for slot, mac in macs.items():
            value = np.zeros(1, lay.HC_MAC)
            value["mac"][0] = np.frombuffer(mac, np.uint8)
            self._maps["hc_pckt_macs"].update(slot, value[0])
        self._maps["hc_ctrl_map"].update(lay.OUT_INTERFACE, path.out_ifindex)
        for version, source in path.sources.items():
            source_slot = lay.SourceSlot.IPV6 if version == 6 else lay.SourceSlot.IPV4
            self._maps["hc_pckt_srcs_map"].update(source_slot, pack_addresses([source])[0])

    def write_marks(self, reals: Mapping[int, Address]) -> None:
        """Let each mark lead to its real, and no other mark to any."""
        table = self._maps["hc_reals_map"]
        marks = np.array(list(reals), np.uint32)
        present, _ = table.lookup_all()
        table.delete_batch(present[~np.isin(present, marks)])
        result = table.update_batch(marks, pack_addresses(list(reals.values())))
        if result.errno:
            raise HostError(f"cannot write the marks of health checks: {os.strerror(result.errno)}")

    def write_keys(self, keys: Mapping[int, tuple[Address, int, int]]) -> None:
        """Count probes to address, port and protocol at an index; a new key begins at 0."""
        table, counts = self._maps["hc_key_map"], self._maps["per_hckey_stats"]
        wanted = {_pack_key(*key).tobytes(): index for index, key in keys.items()}
        present, indices = table.lookup_all()
        known = {key.tobytes(): int(index) for key, index in zip(present, indices, strict=True)}
        gone = [key for key, index in known.items() if wanted.get(key) != index]
        table.delete_batch(np.frombuffer(b"".join(gone), lay.HC_KEY))
        for key, index in wanted.items():
            if known.get(key) != index:
                counts.update(index, 0)
                table.update(np.frombuffer(key, lay.HC_KEY)[0], index)

    def packets(self) -> dict[str, int]:
        """Count packets at the egress: `processed`, encapsulated; `dropped`; `skipped`, without a mark of a real."""
        (values,) = self._maps["hc_stats_map"].read_array()
        return {name: int(values[name].sum()) for name in ("processed", "dropped", "skipped")}

    def probes(self) -> NDArray[np.uint64]:
        """Encapsulated packets by the index of their key, shape ``(MAX_KEYS,)``."""
        total: NDArray[np.uint64] = self._maps["per_hckey_stats"].read_array().sum(axis=1).astype(np.uint64)
        return total


@dataclass(frozen=True)
class Attached:
    """A program of :class:`ProbeProgram` at an egress."""

    id: int
    owner: Owner

    def open(self) -> TcProgram | None:
        """Open it; None when it has gone meanwhile."""
        try:
            return TcProgram.from_id(self.id)
        except HostError:
            return None


def find_attached(ifindex: int) -> Attached | None:
    """Find a daemon's program at the egress of an interface.

    HostError: the kernel does not tell, such as without CAP_SYS_ADMIN, which it takes to open a program of others.
    """
    for identifier in egress_programs(ifindex, FILTER_PRIORITY):
        try:
            owner = owner_of(identifier, TcProgram)
        except HostError as error:
            if identifier in egress_programs(ifindex, FILTER_PRIORITY):
                raise HostError(f"the egress of {interface_name(ifindex)}: {error}") from error
            continue  # detached meanwhile
        if owner is not None and owner.kind == KIND:
            return Attached(identifier, owner)
    return None


def pack_addresses(addresses: Sequence[Address]) -> NDArray[np.void]:
    """Write addresses as `hc_reals_map` and `hc_pckt_srcs_map` have them, shape ``(n,)``."""
    values = np.zeros(len(addresses), lay.HC_ADDRESS)
    for value, address in zip(values, addresses, strict=True):
        value["addr"][: len(address.packed)] = np.frombuffer(address.packed, np.uint8)
        value["flags"] = lay.IPV6_FLAG if address.version == 6 else 0
    return values


def _pack_key(address: Address, port: int, proto: int) -> NDArray[np.void]:
    key = np.zeros(1, lay.HC_KEY)
    key["addr"][0, : len(address.packed)] = np.frombuffer(address.packed, np.uint8)
    key["port"], key["proto"] = port, proto
    return key
