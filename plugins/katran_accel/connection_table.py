# SPDX-License-Identifier: Apache-2.0
"""The connection tables from user space: finds the VIP of each entry, removes entries, puts flows back.

Works on arrays: N flows have keys of shape (N,), dtype :data:`nfcore.api.flows.FLOW_KEY`, and families (4 or 6) of
shape (N,).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from socket import IPPROTO_UDP
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import ANY_CPU, FLOW_KEY, Anything, FlowBatch, masks_of, pack_address, take_rows
from nfcore.kernel import Map

from . import layouts as lay
from .config import VipTable
from .hashing import ring_slots
from .inventory import Inventory
from .map_entries import delete_entries
from .maps import BalancerMaps

NO_VIP = -1
_PER_PORT = lay.VipFlag.HASH_DPORT_ONLY | lay.VipFlag.HASH_SRC_DST_PORT
_FACTORS = np.frombuffer(secrets.token_bytes(24), np.uint64) | np.uint64(1)
"""Of a hash that nobody can foresee who chooses flows: :func:`_group`."""
_EXACT = 129
"""Rank of a VIP of one address: above any prefix, as XDP looks into `vip_map` before `vip_lpm_map`."""


Stand = Callable[[FlowBatch], NDArray[np.bool_]]
"""Says for each flow whether its route stands: FlowRoutes."""


class VipFinder:
    """Finds VIP and ring slot as vip.h and ring.h in bpf/balancer/ do, for one inventory."""

    def __init__(self, inventory: Inventory) -> None:
        self._flags = np.zeros(lay.MAX_VIPS, np.int64)
        self._no_port = np.zeros(lay.MAX_VIPS, bool)
        """VIPs whose hash has no port unless a flag says so: those of every port, and prefixes, as published."""
        for number, vip in inventory.vips.items():
            self._flags[number], self._no_port[number] = vip.flag_bits, vip.port == 0 or vip.is_prefix
        ranked = sorted(inventory.vips.items(), key=lambda numbered: _rank(numbered[1]))
        self._patterns = [(number, vip.address.version, vip.port, vip.proto, *_pattern(vip)) for number, vip in ranked]
        self._inventory = inventory

    def owners(self, keys: NDArray[np.void], families: NDArray[Any]) -> NDArray[np.int64]:
        """Number of the VIP of each flow, :data:`NO_VIP` without one."""
        raw = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), FLOW_KEY.itemsize)
        # dst, dport, proto and family: what decides the VIP.
        destinations = np.zeros((len(keys), 24), np.uint8)
        destinations[:, :16], destinations[:, 16:19], destinations[:, 19] = raw[:, 16:32], raw[:, 34:37], families
        firsts, inverse = _group(destinations.view(np.uint64))
        distinct, family = keys[firsts], families[firsts]
        words = np.ascontiguousarray(distinct["dst"]).view(np.uint64).reshape(len(distinct), 2)
        found = np.full(len(distinct), NO_VIP, np.int64)
        for number, version, port, proto, address, mask in self._patterns:
            match = (family == version) & (distinct["proto"] == proto) & ((distinct["dport"] == port) | (port == 0))
            found[match & (((words ^ address) & mask) == 0).all(axis=1)] = number
        owners: NDArray[np.int64] = found[inverse]
        return owners

    def reach(self, batch: FlowBatch) -> NDArray[np.bool_]:
        """Whether packets of each flow go to a VIP; of a masked flow, any of the packets that it may have."""
        rows = batch.rows
        reaching: NDArray[np.bool_] = self.owners(rows["key"], rows["family"]) != NO_VIP
        masked = rows["key"]["wild"].any(axis=1)
        if masked.any():
            reaching[masked] = self._may_reach(rows[masked])
        return reaching

    def _may_reach(self, rows: NDArray[np.void]) -> NDArray[np.bool_]:
        """Whether masked flows and VIPs have a packet in common; rows of FLOW_ROW."""
        keys = rows["key"]
        words = np.ascontiguousarray(keys["dst"]).view(np.uint64).reshape(len(rows), 2)
        fixed = np.ascontiguousarray(masks_of(rows["family"], keys["wild"])["dst"]).view(np.uint64)
        anything = keys["wild"][:, 2]
        any_port, any_proto = (anything & Anything.DPORT) != 0, (anything & Anything.PROTO) != 0
        reaching = np.zeros(len(rows), dtype=bool)
        for _, version, port, proto, address, mask in self._patterns:
            fits = (rows["family"] == version) & (any_proto | (keys["proto"] == proto))
            fits &= any_port | (keys["dport"] == port) | (port == 0)
            reaching |= fits & (((words ^ address) & mask & fixed) == 0).all(axis=1)
        return reaching

    def owners_of_entries(self, entries: NDArray[np.void]) -> NDArray[np.int64]:
        """Number of the VIP of each connection, :data:`NO_VIP` without one; from :func:`entry_keys`."""
        return self.owners(entries, families_of_entries(entries))

    def are_of(self, vip: int, entries: NDArray[np.void]) -> NDArray[np.bool_]:
        """Which connections are those of a VIP. Looks at other VIPs only where these take packets from it."""
        _, version, port, proto, address, mask = next(each for each in self._patterns if each[0] == vip)
        words = np.ascontiguousarray(entries["dst"]).view(np.uint64).reshape(len(entries), 2)
        fit: NDArray[np.bool_] = (((words ^ address) & mask) == 0).all(axis=1) & (entries["proto"] == proto)
        if port:
            fit &= entries["dport"] == port
        likely = np.flatnonzero(fit)
        rows = take_rows(entries, likely)
        shared = vip in self._inventory.winners
        fit[likely] = self.owners_of_entries(rows) == vip if shared else families_of_entries(rows) == version
        return fit

    def slots(self, keys: NDArray[np.void], vips: NDArray[np.int64], families: NDArray[Any]) -> NDArray[np.int64]:
        """Slot of each flow in its VIP's ring, 0..65,536."""
        hashed, flags = keys.copy(), self._flags[vips]
        # What the VIP ignores is 0 in the hash.
        hashed["sport"][(flags & lay.VipFlag.HASH_NO_SRC_PORT) != 0] = 0
        hashed["dport"][self._no_port[vips] & ((flags & _PER_PORT) == 0)] = 0
        only_dport = (flags & lay.VipFlag.HASH_DPORT_ONLY) != 0
        hashed["src"][only_dport] = 0
        hashed["sport"][only_dport] = hashed["dport"][only_dport]
        return ring_slots(hashed, families)


def _group(rows: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find equal rows, shape (n, words): the first row of each group, and the group of each row.

    Sorts a random hash of each row, which takes a tenth of the time of sorting rows, and compares the rows then.
    """
    hashes = (rows * _FACTORS[: rows.shape[1]]).sum(axis=1)
    hashes ^= hashes >> np.uint64(32)
    _, firsts, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    if len(rows) and (rows[firsts].take(inverse, axis=0) != rows).any():
        whole = np.ascontiguousarray(rows).view(f"V{rows.itemsize * rows.shape[1]}").reshape(-1)
        _, firsts, inverse = np.unique(whole, return_index=True, return_inverse=True)
    return firsts, inverse.reshape(-1)


def entry_keys(keys: NDArray[np.void], families: NDArray[Any]) -> NDArray[np.void]:
    """Keys of flows in the connection tables: `connection_key()` of bpf/balancer/lru.h."""
    entries = keys.copy()
    entries["wild"][:, 0] = np.where((families == 6) & _like_ipv4(keys), 6, 0)
    return entries


def _like_ipv4(keys: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which keys have addresses like those of IPv4, all 0 after the first four bytes."""
    rest = np.concatenate([keys["src"][:, 4:], keys["dst"][:, 4:]], axis=1)
    return np.asarray(~rest.any(axis=1))


def flow_keys(entries: NDArray[np.void]) -> NDArray[np.void]:
    """Keys of flows from those of their connections."""
    keys = entries.copy()
    keys["wild"] = 0
    return keys


def families_of_entries(entries: NDArray[np.void]) -> NDArray[np.int64]:
    """4 or 6 for each key of a connection."""
    return np.where(_like_ipv4(entries) & (entries["wild"][:, 0] != 6), 4, 6)


def _rank(vip: VipTable) -> tuple[bool, int]:
    """The highest rank wins: a port before port 0, then one address before a prefix, then the longer prefix."""
    return vip.port != 0, vip.address.prefixlen if vip.is_prefix else _EXACT


def _pattern(vip: VipTable) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Address and mask, two words of 64 bits each, in the packet's byte order."""
    mask = np.full(16, 0xFF, np.uint8)
    if vip.is_prefix:
        mask = pack_address(vip.address.netmask)
    return pack_address(vip.address.network_address).view(np.uint64), mask.view(np.uint64)


class Connections:
    """The connection tables: one per forwarding CPU, and the fallback for the other CPUs."""

    def __init__(self, maps: BalancerMaps) -> None:
        self._maps = maps

    def tables(self) -> Iterable[tuple[int | None, Map]]:
        """Each table with its CPU, None for the fallback."""
        return [*self._maps.lrus.items(), (None, self._maps["fallback_cache"])]

    def clear(self) -> None:
        """Remove all connections."""
        for _, table in self.tables():
            delete_entries(table, table.lookup_all()[0])

    def purge(self, inventory: Inventory, finder: VipFinder) -> None:
        """Remove connections whose VIP is gone or no longer has their real."""
        targets = inventory.targets()
        for _, table in self.tables():
            keys, values = table.lookup_all()
            owners = finder.owners_of_entries(keys)
            valid = (owners != NO_VIP) & np.isin(targets_of(owners, values["pos"]), targets)
            if not self._maps.is_own:
                # Katran stores no port for prefixes, also of one port: such an entry is any VIP's.
                of_any = (owners == NO_VIP) & (keys["dport"] == 0)
                valid |= of_any & np.isin(values["pos"], list(inventory.reals.values()))
            delete_entries(table, keys[~valid])

    def restore(self, batch: FlowBatch, inventory: Inventory, finder: VipFinder, stand: Stand) -> None:
        """Put flows back into the table of the CPU that reported them, or into all tables.

        Into all when the CPU is unknown, and when the ring has another real for the flow by now: RSS may have moved
        the flow to another CPU, which would then choose that real. The report state of an existing entry starts again,
        as for a new flow. An entry of TCP with another real stays if it is a new connection's: if a SYN has made it, or
        the flow's route does not stand any more (`stand`). Flows whose target is gone or that belong to another VIP by
        now are left out.
        """
        owners = finder.owners(batch.rows["key"], batch.rows["family"])
        rows = batch.rows[(owners == _vips(batch)) & np.isin(batch.rows["target"], inventory.targets())]
        vips = _vips(FlowBatch(rows))
        keys = entry_keys(rows["key"], rows["family"])
        values = np.zeros(len(rows), dtype=lay.REAL_POS_LRU)
        values["pos"] = (rows["target"] & np.uint64(0xFFFF_FFFF)).astype(np.uint32)
        values["atime"] = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        everywhere = rows["cpu"] == ANY_CPU
        everywhere |= self.ring_reals(vips, finder.slots(rows["key"], vips, rows["family"])) != values["pos"]
        for cpu, table in self.tables():
            here = everywhere | self._of_table(rows, cpu)
            if here.any():
                _restore_into(table, FlowBatch(rows[here]), keys[here], values[here], stand)

    def moved(self, batch: FlowBatch) -> NDArray[np.bool_]:
        """Which flows a SYN has taken to another real, by the table of the CPU that has reported them last."""
        keys = entry_keys(batch.rows["key"], batch.rows["family"])
        reals = (batch.rows["target"] & np.uint64(0xFFFF_FFFF)).astype(np.uint32)
        moved = np.zeros(len(batch), dtype=bool)
        for cpu, table in self.tables():
            here = self._of_table(batch.rows, cpu)
            if here.any():
                found, entries = table.lookup_batch_keys(keys[here])
                moved[here] = found & (entries["by_syn"] != 0) & (entries["pos"] != reals[here])
        return moved

    def _of_table(self, rows: NDArray[np.void], cpu: int | None) -> NDArray[np.bool_]:
        """Which flows were reported by a CPU that uses the table."""
        known = np.isin(rows["cpu"], list(self._maps.lrus))
        return np.asarray(~known if cpu is None else rows["cpu"] == cpu)

    def ring_reals(self, vips: NDArray[np.int64], slots: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Real number in each flow's slot of its VIP's ring, as the map has it now; 0: none."""
        reals = np.zeros(len(vips), dtype=np.uint32)
        for vip in np.unique(vips).tolist():
            of_vip = vips == vip
            # Slots of one ring lie close together: one system call reads many of them.
            ring_keys = (vip * lay.RING_SLOTS + slots[of_vip]).astype(np.uint32)
            _, reals[of_vip] = self._maps["ch_rings"].lookup_batch_keys(ring_keys)
        return reals


def _restore_into(table: Map, batch: FlowBatch, keys: NDArray[np.void], values: NDArray[np.void], stand: Stand) -> None:
    found, existing = table.lookup_batch_keys(keys)
    to_write = ~found | (keys["proto"] == IPPROTO_UDP) | (existing["pos"] == values["pos"])
    if not to_write.all():
        to_write[~to_write] = stand(batch[~to_write]) & (existing["by_syn"][~to_write] == 0)
    table.update_batch(keys[to_write], values[to_write])


def _vips(batch: FlowBatch) -> NDArray[np.int64]:
    return (batch.rows["target"] >> np.uint64(32)).astype(np.int64)


def targets_of(vips: NDArray[np.int64], reals: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Targets of (VIP, real) pairs."""
    return vips.astype(np.uint64) << np.uint64(32) | reals.astype(np.uint64)
