# SPDX-License-Identifier: Apache-2.0
"""What pinned maps say of server ids, source routes and reals that are down, by the published layouts alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

from .foreign_reader import HASH, ForeignMap


@dataclass
class PinnedRouting:
    """The maps of one balancer; opened when they are first read."""

    folder: Path
    open: ExitStack
    maps: dict[str, ForeignMap] = field(default_factory=dict)

    def __getitem__(self, name: str) -> ForeignMap:
        if name not in self.maps:
            self.maps[name] = ForeignMap.pinned(self.folder / name)
            self.open.callback(self.maps[name].close)
        return self.maps[name]

    def real_of(self, number: int) -> str:
        """The real that a number stands for, by the map `reals`."""
        raw, flags = struct.unpack("=16sB3x", self["reals"][number])
        return str(ip_address(raw if flags & 1 else raw[:4])) if any(raw) else ""

    def server_ids(self, *ids: int) -> dict[int, str]:
        """The reals to which ids lead; of a hash, those of all that it has."""
        found = self["server_id_map"]
        if found.kind == HASH:
            ids = tuple(int.from_bytes(key, "little") for key in found)
        return {number: self.real_of(int.from_bytes(found[number], "little")) for number in sorted(ids)}

    def routes(self) -> dict[str, str]:
        """The reals to which prefixes lead."""
        result = {}
        for name in ("lpm_src_v4", "lpm_src_v6"):
            found = self[name]
            for key in found:
                network = ip_network((key[4:], int.from_bytes(key[:4], "little")))
                result[str(network)] = self.real_of(int.from_bytes(found[key], "little"))
        return result

    def down(self) -> dict[tuple[str, int, int], set[str]]:
        """The reals that are down, by VIP."""
        found, result = self["vip_to_down_reals_map"], {}
        for key in found:
            address, port, protocol = struct.unpack(">4s12xHBx", key)
            inner = found.inner(key)
            self.open.callback(inner.close)
            reals = {self.real_of(int.from_bytes(number, "little")) for number in inner}
            result[str(ip_address(address)), port, protocol] = reals
        return result


@contextmanager
def open_routing(folder: Path) -> Iterator[PinnedRouting]:
    """Read what is pinned in a folder."""
    with ExitStack() as opened:
        yield PinnedRouting(folder, opened)
