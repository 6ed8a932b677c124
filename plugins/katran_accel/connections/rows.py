# SPDX-License-Identifier: Apache-2.0
"""Entries of the tables as JSON values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from socket import IPPROTO_UDP
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.context import Services
from nfcore.api.flows import PROTOCOL_NAMES, FlowBatch, FlowMatch
from nfcore.api.json_rows import JsonRows
from nfcore.api.rules import Device

from ..balancer import Balancer
from ..connection_table import NO_VIP, families_of_entries, flow_keys
from .entries import Kind, Table
from .search import UDP_IDLE_LIMIT, kernel_now


class Rows:
    """Rows of :data:`~.search.HIT` and all that is told of them, as it is now."""

    def __init__(
        self,
        hits: NDArray[np.void],
        tables: Sequence[Table],
        balancer: Balancer,
        services: Services,
        devices: Sequence[Device],
    ) -> None:
        entries = np.ascontiguousarray(hits["key"])
        self._hits, self._tables, self._now = hits, tables, kernel_now()
        self._keys, self._families = flow_keys(entries), families_of_entries(entries)
        self._in_hardware = _in_hardware(self._keys, self._families, balancer.number, services, devices).tolist()
        numbers = np.unique(hits["real"]).tolist()
        self._reals = {number: balancer.describe(number)["real"] for number in numbers}
        vips = np.unique(hits["vip"]).tolist()
        self._vips = {number: None if number == NO_VIP else balancer.describe(number << 32)["vip"] for number in vips}

    def json(self) -> JsonRows:
        """Give the rows, each made only when it is needed."""
        return JsonRows(self._rows)

    def _rows(self) -> Iterator[dict[str, Any]]:
        families = self._families.tolist()
        for hit, key, family, in_hardware in zip(self._hits, self._keys, families, self._in_hardware, strict=True):
            match, table = FlowMatch.from_key(key, family), self._tables[int(hit["table"])]
            ages = match.proto == IPPROTO_UDP and table.kind is not Kind.RULES
            idle = self._idle(int(hit["used"])) if ages else None
            yield {
                "flow": str(match),
                "vip": self._vips[int(hit["vip"])],
                "real": self._reals[int(hit["real"])],
                "src": str(match.src),
                "sport": match.sport,
                "dst": str(match.dst),
                "dport": match.dport,
                "proto": PROTOCOL_NAMES.get(match.proto, match.proto),
                "table": table.kind.word,
                "cpu": table.cpu,
                "idle_seconds": idle,
                "expired": ages and (idle is None or idle > UDP_IDLE_LIMIT),
                "in_hardware": in_hardware,
            }

    def _idle(self, used: int) -> float | None:
        return round(max(self._now - used, 0) / 1e9, 3) if used else None


def _in_hardware(
    keys: NDArray[np.void], families: NDArray[np.int64], nf: int, services: Services, devices: Sequence[Device]
) -> NDArray[np.bool_]:
    """Which flows have a rule on any NIC."""
    batch, found = FlowBatch.empty(len(keys)), np.zeros(len(keys), dtype=bool)
    batch.rows["key"], batch.rows["family"], batch.rows["nf"] = keys, families, nf
    for device in devices:
        batch.rows["ifindex"] = device.ifindex
        found |= services.flow_facts(batch).in_hardware
    return found
