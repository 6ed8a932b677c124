# SPDX-License-Identifier: Apache-2.0
"""Checks of what a TOML says beside VIPs: flags, encapsulation, tunnels' ends, server ids, source routes.

They work on the raw table, so that all mistakes are told at once: what cannot be parsed is left to the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nfcore.api.config import Network, parse_network
from nfcore.api.flows import Address
from nfcore.errors import Problem, Remark

from . import layouts as lay
from .config import FLAG_NAMES, GUE_ADVICE
from .entry_checks import SERVER_IDS, SOURCE_ROUTES, Listed, check_entries, list_entries
from .hosts import server_address, try_to

UDP_FLAGS = ("quic", "udp_stable_routing", "udp_flow_migration")
"""Flags that mean something for UDP alone."""
ID_FLAGS = ("quic", "udp_stable_routing")
"""Flags of VIPs whose packets have server ids."""
LONGEST_SHORT_ID = (1 << 24) - 1
"""The largest id that UDP stable routing and QUIC connection ids of version 2 can have."""


@dataclass(frozen=True)
class _Vip:
    where: str
    network: Network | None
    port: object
    protocol: object
    flags: frozenset[str]
    reals: Sequence[_Real]


@dataclass(frozen=True)
class _Real:
    where: str
    address: Address | None
    raw: Mapping[str, Any]


def check_features(raw: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """Find what fits together in no way, and what is hardly meant. Values that cannot be parsed are left out."""
    vips = [*_vips(raw.get("vips"), f"{path}.vips")]
    for vip in vips:
        yield from _check_flags(vip)
        yield from _check_states(vip)
    yield from _check_local(vips)
    ids, routes = (list_entries(kind, raw, f"{path}.{kind.name}") for kind in (SERVER_IDS, SOURCE_ROUTES))
    yield from check_entries(SERVER_IDS, ids, raw)
    yield from check_entries(SOURCE_ROUTES, routes, raw)
    yield from _check_use(ids, routes, vips, raw)
    reals = {real.address for vip in vips for real in vip.reals if real.address is not None}
    reals.update(ids.addresses, routes.addresses)
    if len(reals) >= lay.MAX_REALS:
        there = f"has {len(reals):,} different reals"
        if len(ids.keys) or len(routes.keys):
            there += ", with those of server_ids and source_routes"
        yield Problem(f"{path}.vips", f"{there}; at most {lay.MAX_REALS - 1:,} fit")
    yield from check_sources(raw, path, reals)
    yield from _check_decap(raw.get("decap"), f"{path}.decap", vips)


# VIPs and reals


def _vips(raw: object, path: str) -> Iterator[_Vip]:
    for number, vip in enumerate(raw if isinstance(raw, list) else ()):
        if isinstance(vip, dict):
            where, flags = f"{path}[{number}]", vip.get("flags")
            known = frozenset(flag for flag in flags if isinstance(flag, str)) if isinstance(flags, list) else ()
            reals = [*_reals(vip.get("reals"), f"{where}.reals")]
            network = try_to(parse_network, vip.get("address"))
            yield _Vip(where, network, vip.get("port"), vip.get("protocol"), frozenset(known), reals)


def _reals(raw: object, path: str) -> Iterator[_Real]:
    for number, real in enumerate(raw if isinstance(raw, list) else ()):
        if isinstance(real, dict):
            yield _Real(f"{path}[{number}]", try_to(server_address, real.get("address")), real)


def _check_flags(vip: _Vip) -> Iterator[Problem]:
    for flag in UDP_FLAGS:
        if flag in vip.flags and vip.protocol == "tcp":
            yield Problem(f"{vip.where}.flags", f"has '{flag}', which is for UDP; the VIP is TCP: leave the flag out")
    network = vip.network
    if "udp_flow_migration" in vip.flags and network is not None and network.prefixlen < network.max_prefixlen:
        text = "has 'udp_flow_migration', which works by a VIP's address; this one is the prefix "
        yield Problem(f"{vip.where}.flags", f"{text}'{network}': write a VIP for each address")


def _check_states(vip: _Vip) -> Iterator[Problem]:
    """Find `local` and `down` that nothing reads."""
    for real in vip.reals:
        if real.raw.get("local") is True and "local" not in vip.flags:
            yield Remark(f"{real.where}.local", "is true, but the VIP has no flag 'local': its packets are tunnelled")
        if real.raw.get("down") is True and "udp_flow_migration" not in vip.flags:
            text = "is true, but the VIP has no flag 'udp_flow_migration': it counts as weight 0"
            yield Remark(f"{real.where}.down", text)


def _check_local(vips: Sequence[_Vip]) -> Iterator[Problem]:
    """Find reals that are this host in one VIP, and another host in another: a real has this property once."""
    first: dict[Address, tuple[bool, str]] = {}
    for real in (real for vip in vips for real in vip.reals if real.address is not None):
        local = real.raw.get("local") is True
        assert real.address is not None
        known, where = first.setdefault(real.address, (local, real.where))
        if known != local:
            text = f"is {str(local).lower()} for '{real.address}', and {str(known).lower()} in {where}"
            yield Problem(f"{real.where}.local", f"{text}; should be the same in each VIP")


def check_sources(raw: Mapping[str, Any], path: str, reals: Iterable[Address]) -> Iterator[Problem]:
    """Find the sources that GUE needs and has not."""
    if raw.get("encapsulation") != "gue":
        return
    for version in (4, 6):
        key = f"source_v{version}"
        of_version = [str(real) for real in reals if real.version == version]
        if of_version and raw.get(key, "") == "":
            text = f'is not set; with encapsulation = "gue", packets to IPv{version} reals such as {min(of_version)} '
            yield Problem(f"{path}.{key}", f"{text}need an IPv{version} address of this host as their source")


def _check_decap(raw: object, path: str, vips: Sequence[_Vip]) -> Iterator[Problem]:
    if not isinstance(raw, dict):
        return
    addresses = raw.get("addresses")
    services = {vip.network.network_address: vip.where for vip in vips if vip.network is not None and _is_single(vip)}
    first: dict[Address, int] = {}
    for number, each in enumerate(addresses if isinstance(addresses, list) else ()):
        address = try_to(server_address, each.get("address")) if isinstance(each, dict) else None
        if address is None:
            continue
        where = f"{path}.addresses[{number}].address"
        if first.setdefault(address, number) != number:
            yield Problem(where, f"'{address}' is already addresses[{first[address]}]; list each address once")
        elif address in services:
            text = f"'{address}' is the VIP of {services[address]}, too; should be an address at which tunnels end"
            yield Remark(where, text)
    if raw.get("ipip") is True or raw.get("gue") is True:
        return
    unread = "but neither ipip nor gue is true: no packet is taken out of a tunnel"
    if first:
        yield Remark(f"{path}.addresses", f"has {len(first)} of them, {unread}")
    if raw.get("strict") is True:
        yield Remark(f"{path}.strict", f"is true, {unread}")


def _is_single(vip: _Vip) -> bool:
    return vip.network is not None and vip.network.prefixlen == vip.network.max_prefixlen


def _check_use(ids: Listed, routes: Listed, vips: Sequence[_Vip], raw: Mapping[str, Any]) -> Iterator[Remark]:
    """Find server ids and source routes that no packet is compared with, or that lead nowhere."""
    flags = {flag for vip in vips for flag in vip.flags & FLAG_NAMES.keys()}
    of_tcp = raw.get("tcp_server_ids") is True
    readers = [vip for vip in vips if vip.flags & set(ID_FLAGS) or (of_tcp and vip.protocol == "tcp")]
    if len(ids.keys) and not readers:
        needed = "no VIP has the flag 'quic' or 'udp_stable_routing', and none is TCP with tcp_server_ids = true"
        yield Remark(ids.whole, f"has {len(ids.keys):,} ids that nothing reads: {needed}")
    elif count := int(np.count_nonzero(ids.keys > LONGEST_SHORT_ID)) * (not of_tcp and "quic" not in flags):
        only = "only QUIC connection ids of version 3 and TCP server ids are so long, and nothing reads those here"
        yield Remark(ids.whole, f"has {count:,} ids above {LONGEST_SHORT_ID:,}: {only}")
    six = next((vip for vip in readers if vip.network is not None and vip.network.version == 6), None)
    if six is not None and raw.get("encapsulation", "ipip") == "ipip":
        count = int(np.count_nonzero(ids.to_ipv4()))
        text = f"has {count:,} ids of IPv4 reals: packets of the IPv6 VIP {six.where} that name them are dropped; "
        yield from [Remark(ids.whole, text + GUE_ADVICE)] * (count > 0)
    if len(routes.keys) and "src_routing" not in flags:
        count = len(routes.keys)
        yield Remark(routes.whole, f"has {count:,} routes that nothing reads: no VIP has the flag 'src_routing'")
