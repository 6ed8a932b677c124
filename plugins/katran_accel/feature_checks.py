# SPDX-License-Identifier: Apache-2.0
"""Checks of what a TOML says beside VIPs: flags, encapsulation, tunnels' ends, server ids, source routes.

They work on the raw table, so that all mistakes are told at once: what cannot be parsed is left to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.config import Network, parse_network
from nfcore.api.flows import Address, join_rows
from nfcore.errors import Problem, Remark

from . import layouts as lay
from .config import FLAG_NAMES, GUE_ADVICE
from .entries import PREFIX, SERVER_ID, key_text, prefix_key, sortable
from .entry_files import MAX_ID, MOST_MISTAKES, EntryFile, read_server_ids, read_source_routes
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


@dataclass(frozen=True)
class Listed:
    """Server ids or source routes of the table, then those of its file, as they were written."""

    keys: NDArray[Any]
    reals: NDArray[np.int64]
    """Where in `addresses` the real of each one is."""
    addresses: Sequence[Address]
    """Different ones, but perhaps some that no key has."""
    inline: Sequence[int]
    """Number of each one in the TOML's list."""
    file: EntryFile | None
    path: str
    """Of the TOML's list."""

    def real(self, row: int) -> Address:
        """Give the real of one of them."""
        return self.addresses[int(self.reals[row])]

    def to_ipv4(self) -> NDArray[np.bool_]:
        """Say which of them have an IPv4 real."""
        four = np.array([address.version == 4 for address in self.addresses], dtype=bool)
        return four[self.reals]

    def place(self, row: int) -> tuple[str, str]:
        """Give the full key that has an entry, and what says where it is in the file."""
        if row < len(self.inline):
            return f"{self.path}[{self.inline[row]}]", ""
        assert self.file is not None  # the row is its
        return f"{self.path}_file", f"line {self.file.lines.numbers[row - len(self.inline)]}: "

    @property
    def whole(self) -> str:
        """The key to name when it is about all of them."""
        return self.path if self.inline or self.file is None else f"{self.path}_file"

    def name(self, row: int) -> str:
        """Name the place of an entry within another one's message."""
        where, line = self.place(row)
        return f"{line.removesuffix(': ')} of {where}" if line else where


def check_features(raw: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """Find what fits together in no way, and what is hardly meant. Values that cannot be parsed are left out."""
    vips = [*_vips(raw.get("vips"), f"{path}.vips")]
    for vip in vips:
        yield from _check_flags(vip)
        yield from _check_states(vip)
    yield from _check_local(vips)
    ids = _listed(raw, f"{path}.server_ids", SERVER_ID, _id_pair, read_server_ids)
    routes = _listed(raw, f"{path}.source_routes", PREFIX, _route_pair, read_source_routes)
    for listed in (ids, routes):
        yield from _check_file(listed)
        yield from _check_duplicates(listed)
    yield from _check_ids(ids, raw, path)
    yield from _check_routes(routes, raw)
    yield from _check_use(ids, routes, vips, raw)
    reals = {real.address for vip in vips for real in vip.reals if real.address is not None}
    reals.update(ids.addresses, routes.addresses)
    if len(reals) >= lay.MAX_REALS:
        there = f"has {len(reals):,} different reals"
        if len(ids.keys) or len(routes.keys):
            there += ", with those of server_ids and source_routes"
        yield Problem(f"{path}.vips", f"{there}; at most {lay.MAX_REALS - 1:,} fit")
    yield from _check_sources(raw, path, reals)
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


def _check_sources(raw: Mapping[str, Any], path: str, reals: set[Address]) -> Iterator[Problem]:
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


# Server ids and source routes


def _listed(
    raw: Mapping[str, Any],
    path: str,
    key: np.dtype[Any],
    pair: Callable[[Mapping[str, Any]], tuple[bytes, Address] | None],
    read: Callable[[object], EntryFile],
) -> Listed:
    name = path.rpartition(".")[2]
    inline = raw.get(name)
    pairs = [
        (number, *found)
        for number, each in enumerate(inline if isinstance(inline, list) else ())
        if isinstance(each, dict) and (found := pair(each)) is not None
    ]
    keys = np.frombuffer(b"".join(packed for _, packed, _ in pairs), key)
    places: dict[Address, int] = {}
    reals = np.array([places.setdefault(real, len(places)) for *_, real in pairs], np.int64)
    file = try_to(read, raw[f"{name}_file"]) if raw.get(f"{name}_file") is not None else None
    if file is not None:
        keys = join_rows((keys, file.lines.keys), key)
        of_file = np.array([places.setdefault(real, len(places)) for real in file.lines.addresses], np.int64)
        reals = np.concatenate([reals, of_file[file.lines.reals]])
    return Listed(keys, reals, list(places), [number for number, *_ in pairs], file, path)


def _id_pair(raw: Mapping[str, Any]) -> tuple[bytes, Address] | None:
    number, real = raw.get("id"), try_to(server_address, raw.get("real"))
    valid = type(number) is int and 1 <= number <= MAX_ID and real is not None
    return (number.to_bytes(4, "little"), real) if valid and isinstance(number, int) else None


def _route_pair(raw: Mapping[str, Any]) -> tuple[bytes, Address] | None:
    network, real = try_to(parse_network, raw.get("prefix")), try_to(server_address, raw.get("real"))
    return None if network is None or real is None else (prefix_key(network), real)


def _check_file(listed: Listed) -> Iterator[Problem]:
    """Tell the lines of a file that are wrong."""
    if listed.file is None:
        return
    lines, where = listed.file.lines, f"{listed.path}_file"
    for number, fault in lines.mistakes:
        yield Problem(where, f"{listed.file.path}, line {number}: {fault}")
    if lines.wrong > len(lines.mistakes):
        yield Problem(where, f"{listed.file.path}: {lines.wrong - len(lines.mistakes):,} more lines are wrong")


def _tell(rows: NDArray[np.int64], tell: Callable[[int], Problem], rest: Callable[[int], Problem]) -> Iterator[Problem]:
    """Tell the first ones of what may be hundreds of thousands, and how many more there are."""
    for row in rows[:MOST_MISTAKES].tolist():
        yield tell(row)
    if len(rows) > MOST_MISTAKES:
        yield rest(len(rows) - MOST_MISTAKES)


def _check_duplicates(listed: Listed) -> Iterator[Problem]:
    """Find keys that are there twice: a mistake when their reals differ."""
    _, first, inverse = np.unique(sortable(listed.keys), return_index=True, return_inverse=True)
    original = first[inverse.reshape(-1)]
    again = np.flatnonzero(original != np.arange(len(original)))
    other_real = listed.reals[again] != listed.reals[original[again]]

    def tell(row: int, kind: type[Problem] = Problem) -> Problem:
        (where, line), before = listed.place(row), listed.name(int(original[row]))
        real, key = listed.real(int(original[row])), key_text(listed.keys[row])
        how = f"with the real '{real}'; list each once" if kind is Problem else "with the same real"
        return kind(where, f"{line}'{key}' is already {before}, {how}")

    def rest(count: int, kind: type[Problem] = Problem) -> Problem:
        how = "with another real" if kind is Problem else "with the same real"
        return kind(listed.whole, f"{count:,} more are there twice, {how}")

    yield from _tell(again[other_real], tell, rest)
    yield from _tell(again[~other_real], partial(tell, kind=Remark), partial(rest, kind=Remark))


def _check_ids(ids: Listed, raw: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """Find ids that the map cannot hold."""
    most = lay.MAX_SERVER_IDS
    if raw.get("server_id_map", "array") == "array":
        advice = f'set {path}.server_id_map = "hash"'

        def tell(row: int) -> Problem:
            where, line = ids.place(row)
            text = f'{line}is {ids.keys[row]}; with server_id_map = "array" ids go to {most - 1:,}: {advice}'
            return Problem(where, text)

        beyond = np.flatnonzero(ids.keys >= most)
        yield from _tell(beyond, tell, lambda count: Problem(ids.whole, f"{count:,} more ids are above {most - 1:,}"))
    elif len(np.unique(ids.keys)) > most:
        yield Problem(ids.whole, f"has {len(ids.keys):,} ids, with those of its file; at most {most:,} fit")


def _check_routes(routes: Listed, raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Find routes that lead to a real to which there is no tunnel, and too many of them."""
    version = routes.keys["family"]
    for family in (4, 6):
        count = len(np.unique(sortable(routes.keys[version == family])))
        if count > lay.MAX_SOURCE_ROUTES:
            text = f"has {count:,} IPv{family} prefixes, with those of its file; at most {lay.MAX_SOURCE_ROUTES:,} fit"
            yield Problem(routes.whole, text)
    if raw.get("encapsulation", "ipip") != "ipip":
        return

    def tell(row: int) -> Problem:
        (where, line), prefix = routes.place(row), key_text(routes.keys[row])
        text = f"'{prefix}' cannot lead to '{routes.real(row)}': by IPIP, IPv6 is encapsulated in IPv6 only"
        return Problem(where, f"{line}{text}; {GUE_ADVICE}")

    def rest(count: int) -> Problem:
        return Problem(routes.whole, f"{count:,} more IPv6 prefixes lead to IPv4 reals")

    yield from _tell(np.flatnonzero((version == 6) & routes.to_ipv4()), tell, rest)


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
