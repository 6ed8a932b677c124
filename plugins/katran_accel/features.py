# SPDX-License-Identifier: Apache-2.0
"""What of Katran's data plane a TOML asks for: build choices of bpf/balancer, and the maps that only these need.

A feature that no VIP and no key asks for is not in the program.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nfcore.api.flows import FLOW_KEY
from nfcore.errors import Problem
from nfcore.kernel import MapFlags, MapSpec, MapType

from . import layouts as lay
from .config import NAME, KatranTable
from .decap.layouts import DESTINATIONS
from .layouts import VipFlag

U8, U32 = np.dtype("u1"), np.dtype("<u4")
PROGRAMS = "subprograms"
"""Map by which the program calls itself. Each run has its own: the program of a killed one must not call another's."""
GLOBAL_LRU_CPUS = 128
GLOBAL_LRU_ENTRIES, FALLBACK_GLOBAL_LRU_ENTRIES = 100_000, 10_000
_OF_FLAGS = {
    VipFlag.QUIC: "QUIC",
    VipFlag.SRC_ROUTING: "SOURCE_ROUTING",
    VipFlag.LOCAL: "LOCAL_DELIVERY",
    VipFlag.GLOBAL_LRU: "GLOBAL_LRU",
    VipFlag.UDP_STABLE_ROUTING: "UDP_STABLE_ROUTING",
    VipFlag.UDP_FLOW_MIGRATION: "UDP_FLOW_MIGRATION",
    VipFlag.HASH_NO_SRC_PORT: "HIDES_SOURCE_PORT",
}
"""Flag → what the program is built with when a VIP has it."""
_KEYS = {
    "ICMP": "icmp",
    "ENCAP_GUE": "encapsulation",
    "GUE_PORT": "gue_port",
    "GUE_CHECKSUM_KATRAN": "gue_checksum",
    "TOO_BIG": "too_big",
    "MTU": "mtu",
    "VLAN": "vlan",
    "TCP_SERVER_IDS": "tcp_server_ids",
    "HASH_FRAGMENTS": "fragments",
    "DECAP_IPIP": "decap.ipip",
    "DECAP_GUE": "decap.gue",
    "DECAP_STRICT": "decap.strict",
    "NEW_FLOWS_PER_WINDOW": "new_flow_limit",
}
"""Build choice → its key in the table."""


@dataclass(frozen=True)
class Features:
    """The features of one program."""

    defines: dict[str, int | str]
    """Build choices."""
    hashed_server_ids: bool = False

    @classmethod
    def of(cls, table: KatranTable) -> Features:
        """Find what a table asks for."""
        flags = {VipFlag(bit) for vip in table.vips for bit in VipFlag if vip.flag_bits & bit}
        wanted = {
            **{name: flag in flags for flag, name in _OF_FLAGS.items()},
            "ICMP": table.icmp,
            "ENCAP_GUE": table.encapsulation == "gue",
            "GUE_CHECKSUM_KATRAN": table.encapsulation == "gue" and table.gue_checksum == "katran",
            "TOO_BIG": table.too_big == "answer",
            "VLAN": table.vlan,
            "TCP_SERVER_IDS": table.tcp_server_ids,
            "HASH_FRAGMENTS": table.fragments == "hash-addresses",
            "DECAP_IPIP": table.decap.ipip,
            "DECAP_GUE": table.decap.gue,
            "DECAP_STRICT": table.decap.strict and (table.decap.ipip or table.decap.gue),
        }
        defines: dict[str, int | str] = {name: 1 for name, on in wanted.items() if on}
        if table.encapsulation == "gue" or table.decap.gue:
            defines["GUE_PORT"] = table.gue_port
        if table.mtu != KatranTable.model_fields["mtu"].default:
            defines["MTU"] = table.mtu
        if table.new_flow_limit != KatranTable.model_fields["new_flow_limit"].default:
            defines["NEW_FLOWS_PER_WINDOW"] = table.new_flow_limit
        return cls(defines, table.server_id_map == "hash")

    def __contains__(self, name: str) -> bool:
        return name in self.defines

    def changes(self, wanted: Features) -> Iterator[Problem]:
        """Say what of another table's features the program of these cannot do."""
        for name in sorted(self.defines.keys() | wanted.defines.keys()):
            if name in _KEYS and self.defines.get(name) != wanted.defines.get(name):
                yield Problem(f"{NAME}.{_KEYS[name]}", "has changed; a change needs a restart")
        for flag, name in _OF_FLAGS.items():
            if name in wanted and name not in self and flag is not VipFlag.HASH_NO_SRC_PORT:
                text = f"have the flag '{str(flag.name).lower()}', which none had at the start; that needs a restart"
                yield Problem(f"{NAME}.vips", text)

    @property
    def server_ids(self) -> bool:
        """Whether packets name their real by an id."""
        return any(name in self for name in ("QUIC", "UDP_STABLE_ROUTING", "TCP_SERVER_IDS"))

    @property
    def unmarked(self) -> VipFlag:
        """Flags of VIPs whose packets are never sent by a mark: they name their real themselves.

        HASH_NO_SRC_PORT when no VIP had it at the start: then the fast path does not know it.
        """
        by_id = VipFlag.QUIC | VipFlag.UDP_STABLE_ROUTING
        return by_id if "HIDES_SOURCE_PORT" in self else by_id | VipFlag.HASH_NO_SRC_PORT

    @property
    def decap(self) -> bool:
        """Whether tunnels end here."""
        return "DECAP_IPIP" in self or "DECAP_GUE" in self

    def map_specs(self) -> Iterator[MapSpec]:
        """Specify the maps that these features need, as published."""
        array, hashed, per_cpu = MapType.ARRAY, MapType.HASH, MapType.PERCPU_ARRAY
        if "ENCAP_GUE" in self or "DECAP_STRICT" in self:
            yield MapSpec("pckt_srcs", array, U32, lay.REAL_DEFINITION, 2)
        if self.server_ids and self.hashed_server_ids:
            yield MapSpec("server_id_map", hashed, U32, U32, lay.MAX_SERVER_IDS, MapFlags.NO_PREALLOC)
        elif self.server_ids:
            yield MapSpec("server_id_map", array, U32, U32, lay.MAX_SERVER_IDS, MapFlags.MMAPABLE)
        if "QUIC" in self or "TCP_SERVER_IDS" in self:
            yield MapSpec("server_id_stats", per_cpu, U32, lay.LB_STATS, lay.MAX_VIPS)
        for name, counters, layout in (
            ("QUIC", "quic_stats_map", lay.QUIC_STATS),
            ("UDP_STABLE_ROUTING", "stable_rt_stats", lay.STABLE_ROUTING_STATS),
            ("TCP_SERVER_IDS", "tpr_stats_map", lay.TCP_SERVER_ID_STATS),
        ):
            if name in self:
                yield MapSpec(counters, per_cpu, U32, layout, 1)
        if "SOURCE_ROUTING" in self:
            for name, layout in (("lpm_src_v4", lay.SOURCE_KEY_V4), ("lpm_src_v6", lay.SOURCE_KEY_V6)):
                yield MapSpec(name, MapType.LPM_TRIE, layout, U32, lay.MAX_SOURCE_ROUTES, MapFlags.NO_PREALLOC)
        if "GLOBAL_LRU" in self:
            inner = MapSpec("global_lru", MapType.LRU_HASH, FLOW_KEY, U32, GLOBAL_LRU_ENTRIES)
            yield MapSpec("global_lru_maps", MapType.ARRAY_OF_MAPS, U32, U32, GLOBAL_LRU_CPUS, inner=inner)
            yield MapSpec("fallback_glru", MapType.LRU_HASH, FLOW_KEY, U32, FALLBACK_GLOBAL_LRU_ENTRIES)
        if "UDP_FLOW_MIGRATION" in self:
            down = MapSpec("down_reals", hashed, U32, U8, lay.MAX_REALS)
            yield MapSpec(
                "vip_to_down_reals_map", MapType.HASH_OF_MAPS, lay.VIP_DEFINITION, U32, lay.MAX_VIPS, inner=down
            )
        if self.decap:
            yield DESTINATIONS
            yield MapSpec(PROGRAMS, MapType.PROG_ARRAY, U32, U32, 1)
        if "DECAP_GUE" in self:
            yield MapSpec("decap_vip_stats", per_cpu, U32, lay.LB_STATS, lay.MAX_VIPS)


NO_FEATURES = Features({})
ALL_FEATURES = Features(dict.fromkeys((*_OF_FLAGS.values(), "ENCAP_GUE", "TCP_SERVER_IDS", "DECAP_GUE"), 1))
"""Has every map."""
