# SPDX-License-Identifier: Apache-2.0
"""Changes of server ids and source routes at run time, as the methods of the daemon's socket get them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from nfcore.api.config import parse_network
from nfcore.errors import ConfigError, Problem, Remark

from .config import NAME, KatranTable
from .entries import Entries, key_text, prefix_key, sortable
from .entry_checks import SERVER_IDS, Kind, Listed, check_entries, list_entries
from .entry_files import MAX_ID, MOST_MISTAKES
from .feature_checks import check_sources
from .hosts import try_to
from .routing import Routing

ADD = "add"
STATES = ("invalidate", "restore")
"""Parameters with ids that are to be invalid, and valid again."""
PARAMETERS = (ADD, f"{ADD}_file", "replace", "remove")


@dataclass
class RoutingChange:
    """One change, of server ids or of source routes: removes first, then adds. All of it is made, or nothing."""

    kind: Kind
    parameters: Mapping[str, Any]
    table: KatranTable
    method: str
    """For messages."""
    counts: dict[str, int] = field(default_factory=dict)
    """What was done, once :meth:`apply` has returned."""

    def apply(self, routing: Routing) -> Routing:
        """Make the routing that is in effect afterwards. ConfigError has the first problems that it has."""
        is_ids = self.kind is SERVER_IDS
        before = routing.server_ids if is_ids else routing.source_routes
        base, after = self._change(before)
        self.counts = {"added": len(after) - len(base), "removed": len(before) - len(base)}
        if not is_ids:
            return replace(routing, source_routes=after)
        kept = routing.invalid_ids
        changed = replace(routing, server_ids=after).with_invalid(kept[base.places(kept) >= 0])
        invalidated, restored = (self._keys(name, after) for name in STATES)
        if both := sorted(set(invalidated.tolist()) & set(restored.tolist())):
            self._refuse([Problem(STATES[1], f"has {both[0]}, which {STATES[0]} has, too: name it in one of them")])
        now = changed.invalid_ids
        changed = changed.with_invalid(np.setdiff1d(np.union1d(now, invalidated), restored))
        self.counts[f"{STATES[0]}d"] = len(np.setdiff1d(invalidated, now))
        self.counts[f"{STATES[1]}d"] = len(np.intersect1d(restored, now))
        return changed

    def _change(self, before: Entries) -> tuple[Entries, Entries]:
        """Give what stays of the entries, and that with what is added."""
        raw, whole = self.parameters, self.parameters.get("replace", False)
        if not isinstance(whole, bool):
            self._refuse([Problem("replace", f"is {whole!r:.40}; should be true or false")])
        if whole and self.parameters.get("remove"):
            self._refuse([Problem("remove", "has no meaning beside replace, which removes all that is not added")])
        listed = list_entries(self.kind, raw, ADD)
        keys = self.table.model_dump(include={"encapsulation", "server_id_map", "source_v4", "source_v6"})
        problems = [*self._unreadable(), *check_entries(self.kind, listed, keys)]
        problems += check_sources(keys, NAME, listed.addresses)
        self._refuse(problem for problem in problems if not isinstance(problem, Remark))
        new = Entries.of(listed.keys, listed.reals, listed.addresses)
        if whole:
            base = before.select(~before.differing(new))
        else:
            base = before.without(self._keys("remove", before))
            self._refuse(self._clashes(listed, new, base))
        return base, base.joined(new)

    def _clashes(self, listed: Listed, new: Entries, base: Entries) -> Iterator[Problem]:
        """Find what is to be added and is there with another real."""
        places = base.places(new.keys)
        for row in np.flatnonzero((places >= 0) & new.differing(base))[:MOST_MISTAKES].tolist():
            written = np.flatnonzero(sortable(listed.keys) == sortable(new.keys)[row])[0]
            where, line = listed.place(int(written))
            there = f"'{key_text(new.keys[row])}' leads to '{base.real(int(places[row]))}' already"
            yield Problem(where, f"{line}{there}: remove it in the same change, or replace all")

    def _unreadable(self) -> Iterator[Problem]:
        """Find values of the list that are none, and a file that cannot be read."""
        rows, path = self.parameters.get(ADD, []), self.parameters.get(f"{ADD}_file")
        if not isinstance(rows, list):
            yield Problem(ADD, f"is {rows!r:.80}; should be a list of objects")
            return
        for number, row in enumerate(rows):
            yield from self._faults(row, f"{ADD}[{number}]")
        if path is not None:
            try:
                self.kind.read(path)
            except ValueError as error:
                yield Problem(f"{ADD}_file", f"is {path!r:.80}; {error}")

    def _faults(self, row: object, where: str) -> Iterator[Problem]:
        if not isinstance(row, dict):
            keys = " and ".join(self.kind.model.model_fields)
            yield Problem(where, f"is {row!r:.80}; should be an object with the keys {keys}")
            return
        try:
            self.kind.model.model_validate(row)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                key = ".".join((where, *map(str, detail["loc"])))
                said = f"is {detail['input']!r:.80}; {detail['msg'].removeprefix('Value error, ')}"
                yield Problem(key, "is missing" if detail["type"] == "missing" else said)

    def _keys(self, name: str, known: Entries) -> NDArray[Any]:
        """Give the keys that a parameter names, each of which has to exist."""
        values = self.parameters.get(name, [])
        if not isinstance(values, list):
            self._refuse([Problem(name, f"is {values!r:.80}; should be a list of {self.kind.word}s")])
        packed = [_packed(self.kind, value) for value in values]
        here = f"{self.kind.word}; there are those of nfcore {self.kind.name.replace('_', '-')} list"
        wrong = [number for number, each in enumerate(packed) if each is None]
        self._refuse(Problem(f"{name}[{number}]", f"is {values[number]!r:.60}, which is no {here}") for number in wrong)
        keys = np.frombuffer(b"".join(each for each in packed if each is not None), self.kind.key)
        missing = np.flatnonzero(known.places(keys) < 0).tolist()
        self._refuse(Problem(f"{name}[{number}]", f"'{key_text(keys[number])}' is no {here}") for number in missing)
        return np.unique(keys) if self.kind is SERVER_IDS else keys

    def _refuse(self, problems: Iterable[Problem]) -> None:
        """Raise ConfigError if there are problems."""
        found = list(problems)
        if not found:
            return
        more = len(found) - MOST_MISTAKES
        told = found[:MOST_MISTAKES] + [Problem("", f"{more:,} more mistakes")] * (more > 0)
        raise ConfigError(self.method, told)


def take_page(
    entries: Entries, chosen: NDArray[np.bool_], after: NDArray[Any] | None, limit: int
) -> tuple[NDArray[np.int64], int | None]:
    """Give the places of some of the chosen entries, in their order, and the last of them if there are more."""
    found = np.flatnonzero(chosen)
    if after is not None:
        found = found[np.searchsorted(found, entries.after(after)) :]
    page = found[:limit]
    return page, int(page[-1]) if len(found) > limit else None


def key_of(kind: Kind, value: object, method: str) -> NDArray[Any]:
    """Give the parameter `after` as a key, shape (1,). ConfigError: it is none."""
    packed = _packed(kind, value)
    if packed is None:
        raise ConfigError(method, [Problem("after", f"is {value!r:.60}; should be what 'next' of a page was")])
    return np.frombuffer(packed, kind.key)


def _packed(kind: Kind, value: object) -> bytes | None:
    if kind is SERVER_IDS:
        return value.to_bytes(4, "little") if type(value) is int and 1 <= value <= MAX_ID else None
    network = try_to(parse_network, value)
    return None if network is None else prefix_key(network)
