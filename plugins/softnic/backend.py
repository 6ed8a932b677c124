# SPDX-License-Identifier: Apache-2.0
"""Installs, removes and reads the emulated NIC's rules by map operations, as a driver does with a real NIC."""

from __future__ import annotations

import errno
import logging
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfcore.api.rules import INSTALLED_ROW, Capabilities, Outcome, Outcomes, RuleBatch
from nfcore.errors import HostError
from nfcore.kernel import Map, MapSpec, pinned_entries
from nfcore.refusals import explain

from .layouts import MATCH, RULE, SHAPES, SHAPES_SPEC, STATS_SPEC, NicCounter, rules_spec
from .shapes import ShapeTable, can_match, shapes_of

log = logging.getLogger(__name__)
_RULES, _SHAPES, _STATS = "softnic_rules", "softnic_shapes", "softnic_stats"
"""Names of the pins."""
_Pin = tuple[int, int]
_BUCKETS = 1 << 20
_MULTIPLIERS = (np.arange(MATCH.itemsize // 4, dtype=np.uint64) * np.uint64(2) + np.uint64(1)) * np.uint64(
    0x9E37_79B9_7F4A_7C15
)
"""An odd multiplier for each word of a match: multiplicative hashing by Knuth, with 2**64 / the golden ratio."""

NO_MATCHES = np.zeros(0, dtype=MATCH)


class SoftnicBackend:
    """One emulated NIC, found by its pins. Used by one thread at a time, except :meth:`counters`.

    Each batch checks first whether the pins are still those of the open maps. A NIC that was removed and created again
    meanwhile is opened again, and has none of nfcore's rules.
    """

    def __init__(
        self,
        rules: Map | None,
        shapes: Map | None,
        stats: Map | None,
        pin_dir: Path | None = None,
        where: str = "",
    ) -> None:
        """Use open maps. With `pin_dir`, each batch looks for the maps that are pinned there."""
        self._rules = rules
        self._shapes = None if shapes is None else ShapeTable(shapes)
        self._stats = stats
        self._pin_dir = pin_dir
        self._where = where
        self._pin: _Pin | None = None
        self._missing = ""
        """Why there is no NIC; empty while there is one."""
        self._lock = threading.Lock()
        """Guards the statistics, which the engine's thread reads."""
        self._may_exist = np.ones(_BUCKETS, dtype=bool)
        """By :func:`_buckets`: whether the table may have a rule with such a match. Before the first dump, all may."""
        self._counted_before = np.zeros(len(NicCounter), dtype=np.uint64)
        """Counters of earlier NICs with these pins."""

    @classmethod
    def open(cls, pin_dir: Path, where: str) -> SoftnicBackend:
        """Open the NIC pinned in `pin_dir`. HostError when there is none; `where` is the TOML key that it names."""
        backend = cls(None, None, None, pin_dir, where)
        backend._reopen(pin_dir)
        return backend

    @classmethod
    def expect(cls, pin_dir: Path, where: str) -> SoftnicBackend:
        """Open the NIC pinned in `pin_dir`, now or with a later batch; :attr:`missing` says why it is not open."""
        backend = cls(None, None, None, pin_dir, where)
        try:
            backend._reopen(pin_dir)
        except HostError as error:
            backend._missing = str(error)
        return backend

    def close(self) -> None:
        """Close the NIC's maps; the NIC stays."""
        with self._lock:
            for opened in (self._rules, self._shapes, self._stats):
                if opened is not None:
                    opened.close()
            self._rules = self._shapes = self._stats = None

    def capabilities(self) -> Capabilities:
        """Give what the NIC can do: marks of 32 bits, drops, IPv6, masks, VLAN tags; nothing while there is no NIC."""
        rules = self._present()
        if rules is None:
            return Capabilities(mark_width=0, ipv6=False, drop=False, notes=(self._missing,), temporary=True)
        return Capabilities(mark_width=32, masks=True, table_size=rules.spec.max_entries, vlans=True)

    @property
    def missing(self) -> str:
        """Why the last batch found no NIC, and how to create one; empty when it found one."""
        return self._missing

    def _present(self) -> Map | None:
        """The table of the NIC that is there now, None without one. A change is logged."""
        if self._pin_dir is None:
            return self._rules
        try:
            if self._rules is None or self._pin != _identity(self._pin_dir):
                change = "was created again, without nfcore's rules" if self._rules is not None else "is there now"
                self._reopen(self._pin_dir)
                log.warning("%s: the softnic in %s %s", self._where, self._pin_dir, change)
        except (OSError, HostError) as error:
            # A NIC that is just being created may lack a pin: the next batch looks again.
            missing = str(error) if isinstance(error, HostError) else self._no_nic(self._pin_dir)
            if missing != self._missing:
                log.warning("%s", missing)
            self._missing, self._pin = missing, None
            return None
        return self._rules

    def _reopen(self, pin_dir: Path) -> None:
        """Open the pinned maps and close the ones that were open. HostError when there is no such NIC."""
        try:
            # Read before the maps are opened: if they are replaced in between, the next batch notices it.
            pin = _identity(pin_dir)
        except FileNotFoundError:
            raise HostError(self._no_nic(pin_dir)) from None
        except OSError as error:
            raise HostError(f"{self._where}: the softnic in {pin_dir} cannot be opened: {explain(error)}") from None
        if not (pin_dir / _SHAPES).exists():
            raise HostError(self._of_another_version(f"the softnic in {pin_dir} has no map {_SHAPES}"))
        spec: MapSpec = rules_spec(pinned_entries(pin_dir / _RULES))
        try:
            rules = Map.open_pinned(pin_dir / _RULES, spec)
        except HostError as error:
            raise HostError(self._of_another_version(str(error))) from None
        with ExitStack() as undo:
            undo.callback(rules.close)
            shapes = undo.enter_context(Map.open_pinned(pin_dir / _SHAPES, SHAPES_SPEC))
            stats = Map.open_pinned(pin_dir / _STATS, STATS_SPEC)
            undo.pop_all()
        with self._lock:
            if self._stats is not None:
                if self._stats.id != stats.id:
                    self._counted_before += _summed(self._stats)
                self._stats.close()
            for opened in (self._rules, self._shapes):
                if opened is not None:
                    opened.close()
            self._rules, self._shapes, self._stats = rules, ShapeTable(shapes), stats
            self._pin, self._missing = pin, ""
            self._may_exist[:] = True
        if self._shapes.used:
            self._shapes.recount(shapes_of(rules.lookup_all()[0]))

    def _of_another_version(self, found: str) -> str:
        return (
            f"{self._where}: {found}: it is of another version; create it again: "
            f"nfcore softnic remove --pin {self._pin_dir}, then nfcore softnic create"
        )

    def _no_nic(self, pin_dir: Path) -> str:
        return (
            f"{self._where}: there is no softnic in {pin_dir}; "
            f"create one: nfcore softnic create --wire IF --port IF --pin {pin_dir}"
        )

    def install(self, rules: RuleBatch) -> Outcomes:
        """Install rules; FULL when the table is full. A rule with the same match is replaced.

        A rule that replaces itself (the same cookie) keeps its counters.
        """
        table = self._present()
        if table is None:
            return Outcomes.all(Outcome.FAILED, len(rules), self._missing)
        outcomes = Outcomes.all(Outcome.INSTALLED, len(rules))
        keys = _matches(rules)
        rows = self._possible(keys, outcomes)
        keys, values = keys[rows], np.zeros(len(rows), dtype=RULE)
        for name in ("action", "mark", "cookie"):
            values[name] = rules.rows[name][rows]
        new = self._keep_counts(table, keys, values)
        done = 0
        while done < len(rows):
            result = table.update_batch(keys[done:], values[done:])
            done += result.done
            if done == len(rows):
                break
            # The kernel refuses row `done`. Later rows may replace existing rules: continue after it.
            row = int(rows[done])
            full = result.errno in (errno.E2BIG, errno.ENOMEM)
            outcomes.status[row] = Outcome.FULL if full else Outcome.FAILED
            if not full:
                outcomes.messages[row] = f"softnic: {errno.errorcode.get(result.errno, result.errno)}"
            done += 1
        self._count_shapes(added=keys[new & (outcomes.status[rows] == Outcome.INSTALLED)])
        return outcomes

    def _possible(self, keys: NDArray[np.void], outcomes: Outcomes) -> NDArray[np.int64]:
        """Enter the shapes of rules; numbers of the rules that the NIC can match. Others get an outcome."""
        supported = can_match(keys)
        if not supported.all():
            outcomes.status[~supported] = Outcome.UNSUPPORTED
            outcomes.messages[int(np.argmin(supported))] = (
                "softnic: a rule matches TCP or UDP, or leaves both ports open; with VLAN tags it is not masked"
            )
        rows = np.flatnonzero(supported)
        masked = rows[_are_masked(keys)[rows]]
        if len(masked) and self._shapes is not None:
            entered = np.array(self._shapes.enter(shapes_of(keys[masked])))
            # Not unsupported: another shape may make room.
            refused = masked[~entered]
            outcomes.status[refused] = Outcome.FAILED
            if len(refused):
                outcomes.messages[int(refused[0])] = (
                    f"softnic: it has room for {SHAPES} different masks, and all are used"
                )
                rows = np.setdiff1d(rows, refused)
        return rows

    def _count_shapes(self, added: NDArray[np.void] = NO_MATCHES, removed: NDArray[np.void] = NO_MATCHES) -> None:
        """Note which rules are new, and which are gone: the NIC forgets shapes without rules."""
        if self._shapes is not None and (_are_masked(added).any() or _are_masked(removed).any()):
            self._shapes.count(shapes_of(_distinct_masked(added)), shapes_of(_distinct_masked(removed)))

    def _keep_counts(self, table: Map, keys: NDArray[np.void], values: NDArray[np.void]) -> NDArray[np.bool_]:
        """Copy the counters of rules that are in the table already, with the same match and cookie; which are not."""
        buckets = _buckets(keys)
        # Each look-up is a system call, and most rules are known to be new.
        known = np.flatnonzero(self._may_exist[buckets])
        self._may_exist[buckets] = True
        found, existing = table.lookup_batch_keys(keys[known])
        same = found & (existing["cookie"] == values["cookie"][known])
        for name in ("packets", "bytes", "last_used"):
            values[name][known[same]] = existing[name][same]
        new = np.ones(len(keys), dtype=bool)
        new[known[found]] = False
        return new

    def remove(self, rules: RuleBatch) -> Outcomes:
        """Remove rules by match, and return their counters; ABSENT where there is none or one with another cookie."""
        outcomes = Outcomes.all(Outcome.ABSENT, len(rules))
        outcomes.counted = np.zeros((len(rules), 2), dtype=np.uint64)
        table = self._present()
        if table is None:
            return outcomes
        keys = _matches(rules)
        found, values = table.lookup_batch_keys(keys)
        same = found & (values["cookie"] == rules.rows["cookie"])
        table.delete_batch(keys[same])
        self._count_shapes(removed=keys[same])
        outcomes.status[same] = Outcome.REMOVED
        outcomes.counted[same, 0], outcomes.counted[same, 1] = values["packets"][same], values["bytes"][same]
        return outcomes

    def dump(self) -> NDArray[np.void]:
        """Give all rules with their counters; none without a NIC."""
        table = self._present()
        if table is None:
            return np.zeros(0, dtype=INSTALLED_ROW)
        keys, values = table.lookup_all()
        self._may_exist[:] = False
        self._may_exist[_buckets(keys)] = True
        if self._shapes is not None and self._shapes.used:
            self._shapes.recount(shapes_of(keys))
        rows = np.zeros(len(keys), dtype=INSTALLED_ROW)
        rule = rows["rule"]
        rule["key"], rule["family"], rule["vlans"] = keys["flow"], keys["family"], keys["vlans"]
        for name in ("action", "mark", "cookie"):
            rule[name] = values[name]
        for name in ("packets", "bytes", "last_used"):
            rows[name] = values[name]
        return rows

    def counters(self) -> NDArray[np.uint64]:
        """Give the NIC's own counters by :class:`layouts.NicCounter`, summed over the CPUs; the last ones of a NIC that
        is gone. Those of earlier NICs with the same pins are included, so that they do not go back.
        """
        with self._lock:
            now = self._counted_before.copy()
            if self._stats is not None:
                now += _summed(self._stats)
        return now


def _identity(pin_dir: Path) -> _Pin:
    """Device and inode of the table's pin: a table that is created later has others. OSError without a pin."""
    found = (pin_dir / _RULES).stat()
    return found.st_dev, found.st_ino


def _summed(stats: Map) -> NDArray[np.uint64]:
    total: NDArray[np.uint64] = stats.read_array().sum(axis=1).astype(np.uint64)
    return total


def _buckets(keys: NDArray[np.void]) -> NDArray[np.uint64]:
    """Hash each match to a number below :data:`_BUCKETS`."""
    words = np.ascontiguousarray(keys).view("<u4").reshape(len(keys), len(_MULTIPLIERS))
    hashes: NDArray[np.uint64] = (words * _MULTIPLIERS).sum(axis=1, dtype=np.uint64) >> np.uint64(44)
    return hashes


def _are_masked(keys: NDArray[np.void]) -> NDArray[np.bool_]:
    masked: NDArray[np.bool_] = np.bitwise_or.reduce(keys["flow"]["wild"], axis=1) != 0
    return masked


def _distinct_masked(keys: NDArray[np.void]) -> NDArray[np.void]:
    """The masked ones of some matches, each once."""
    masked = keys[_are_masked(keys)]
    return masked[list({key.tobytes(): number for number, key in enumerate(masked)}.values())]


def _matches(rules: RuleBatch) -> NDArray[np.void]:
    keys = np.zeros(len(rules), dtype=MATCH)
    keys["flow"], keys["family"], keys["vlans"] = rules.rows["key"], rules.rows["family"], rules.rows["vlans"]
    return keys
