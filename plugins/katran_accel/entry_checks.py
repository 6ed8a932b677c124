# SPDX-License-Identifier: Apache-2.0
"""Server ids and source routes as somebody wrote them, in a list and in a file, and what is wrong with them.

The same checks are for the TOML and for changes at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.config import ConfigTable, parse_network
from nfcore.api.flows import Address, join_rows
from nfcore.errors import Problem, Remark

from . import layouts as lay
from .config import GUE_ADVICE, NAME, ServerIdTable, SourceRouteTable
from .entries import PREFIX, SERVER_ID, key_text, prefix_key, sortable
from .entry_files import MAX_ID, MOST_MISTAKES, EntryFile, read_server_ids, read_source_routes
from .hosts import server_address, try_to


@dataclass(frozen=True)
class Kind:
    """Server ids or source routes: what is different between the two."""

    name: str
    """Key of the TOML."""
    word: str
    """For one of them."""
    key: np.dtype[Any]
    model: type[ConfigTable]
    pack: Callable[[Mapping[str, Any]], tuple[bytes, Address] | None]
    """Gives key and real of a raw table; None: a value is wrong."""
    read: Callable[[object], EntryFile]


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
        return f"{self.path}_file", f"{self.file.path}, line {self.file.lines.numbers[row - len(self.inline)]}: "

    @property
    def whole(self) -> str:
        """The key to name when it is about all of them."""
        return self.path if self.inline or self.file is None else f"{self.path}_file"

    def name(self, row: int) -> str:
        """Name the place of an entry within another one's message."""
        where, line = self.place(row)
        return line.removesuffix(": ") or where


def list_entries(kind: Kind, raw: Mapping[str, Any], path: str) -> Listed:
    """Collect what a list and its file have; `path`: of the list, whose last part is its key in `raw`."""
    name = path.rpartition(".")[2]
    inline = raw.get(name)
    pairs = [
        (number, *found)
        for number, each in enumerate(inline if isinstance(inline, list) else ())
        if isinstance(each, dict) and (found := kind.pack(each)) is not None
    ]
    keys = np.frombuffer(b"".join(packed for _, packed, _ in pairs), kind.key)
    places: dict[Address, int] = {}
    reals = np.array([places.setdefault(real, len(places)) for *_, real in pairs], np.int64)
    file = try_to(kind.read, raw[f"{name}_file"]) if raw.get(f"{name}_file") is not None else None
    if file is not None:
        keys = join_rows((keys, file.lines.keys), kind.key)
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


SERVER_IDS = Kind("server_ids", "server id", SERVER_ID, ServerIdTable, _id_pair, read_server_ids)
SOURCE_ROUTES = Kind("source_routes", "source route", PREFIX, SourceRouteTable, _route_pair, read_source_routes)


def check_entries(kind: Kind, listed: Listed, raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Find lines of the file that are wrong, duplicates, and what cannot be; `raw`: the keys of [katran_accel]."""
    yield from _check_file(listed)
    yield from _check_duplicates(listed)
    yield from _remark_services(listed, raw.get("vips"))
    yield from _check_ids(listed, raw) if kind is SERVER_IDS else _check_routes(listed, raw)


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


def _remark_services(listed: Listed, vips: object) -> Iterator[Problem]:
    """Find reals that are the address of a VIP; `vips`: the raw list."""
    raw = [vip.get("address") if isinstance(vip, dict) else None for vip in (vips if isinstance(vips, list) else ())]
    services = {address: number for number, text in enumerate(raw) if (address := try_to(server_address, text))}
    to_service = np.array([address in services for address in listed.addresses], dtype=bool)

    def tell(row: int) -> Problem:
        (where, line), real = listed.place(row), listed.real(row)
        vip = f"{listed.path.rpartition('.')[0]}.vips[{services[real]}]"
        return Remark(where, f"{line}'{real}' is that of {vip}, too: a packet sent there may come back")

    rows = np.flatnonzero(to_service[listed.reals])
    yield from _tell(rows, tell, lambda count: Remark(listed.whole, f"{count:,} more lead to addresses of VIPs"))


def _check_ids(ids: Listed, raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Find ids that the map cannot hold."""
    most = lay.MAX_SERVER_IDS
    if raw.get("server_id_map", "array") == "array":
        advice = f'set {NAME}.server_id_map = "hash"'

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
