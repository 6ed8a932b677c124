# SPDX-License-Identifier: Apache-2.0
"""Rules into the emulated NIC's table and back: what a driver does, by map operations."""

from __future__ import annotations

import errno
import logging
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import PROTOCOL_NAMES
from nfcore.api.rules import INSTALLED_ROW, Capabilities, Outcome, Outcomes, RuleBatch
from nfcore.errors import HostError
from nfcore.kernel import Map, MapSpec, pinned_entries

from .layouts import MATCH, RULE, STATS_SPEC, NicCounter, rules_spec

log = logging.getLogger(__name__)
_RULES, _STATS = "softnic_rules", "softnic_stats"
"""Names of the pins."""
_Pin = tuple[int, int]
_PLACES = 1 << 20
_ODD = (np.arange(MATCH.itemsize // 4, dtype=np.uint64) * np.uint64(2) + np.uint64(1)) * np.uint64(
    0x9E37_79B9_7F4A_7C15
)
"""A multiplier for each word of a match; 2**64 by the golden ratio, as in Knuth's multiplicative hashing."""


class SoftnicBackend:
    """One emulated NIC, found by its pins. Used by one thread at a time, but for :meth:`counters`.

    Whether the pins still name the maps that are open is looked at before each batch: a NIC that was removed and made
    again while we run is opened anew, and has none of our rules.
    """

    def __init__(self, rules: Map | None, stats: Map | None, pin_dir: Path | None = None, where: str = "") -> None:
        """Take over open maps; those pinned in `pin_dir`, if that is told, are looked for again before each batch."""
        self._rules = rules
        self._stats = stats
        self._pin_dir = pin_dir
        self._where = where
        self._pin: _Pin | None = None
        self._missing = ""
        """Why there is no NIC, in words; empty while there is one."""
        self._lock = threading.Lock()
        """Of the statistics, which the engine's thread reads."""
        self._perhaps = np.ones(_PLACES, dtype=bool)
        """By :func:`_places`: whether the table may have a rule of such a match. Until the first dump it may."""
        self._before = np.zeros(len(NicCounter), dtype=np.uint64)
        """What earlier NICs in this place had counted."""

    @classmethod
    def open(cls, pin_dir: Path, where: str) -> SoftnicBackend:
        """Open the NIC pinned in `pin_dir`; HostError names `where`, the TOML key, when there is none."""
        backend = cls(None, None, pin_dir, where)
        backend._reopen(pin_dir)
        return backend

    @classmethod
    def expect(cls, pin_dir: Path, where: str) -> SoftnicBackend:
        """Open the NIC pinned in `pin_dir` now, or once it is there and as it should be: :attr:`missing` says."""
        backend = cls(None, None, pin_dir, where)
        try:
            backend._reopen(pin_dir)
        except HostError as error:
            backend._missing = str(error)
        return backend

    def close(self) -> None:
        """Let go of the NIC's maps; the NIC stays."""
        with self._lock:
            for opened in (self._rules, self._stats):
                if opened is not None:
                    opened.close()
            self._rules = self._stats = None

    def capabilities(self) -> Capabilities:
        """Everything that the framework asks for; nothing while there is no NIC."""
        rules = self._present()
        if rules is None:
            return Capabilities(mark_width=0, ipv6=False, drop=False, notes=(self._missing,))
        return Capabilities(mark_width=32, table_size=rules.spec.max_entries)

    @property
    def missing(self) -> str:
        """Why there was no NIC when it was last wanted, and how to make one; empty when there was one."""
        return self._missing

    def _present(self) -> Map | None:
        """The table of the NIC that is there now; None when there is none, which is logged when it is news."""
        if self._pin_dir is None:
            return self._rules
        try:
            if self._rules is None or self._pin != _identity(self._pin_dir):
                news = "was made again, without our rules" if self._rules is not None else "is there now"
                self._reopen(self._pin_dir)
                log.warning("%s: the softnic in %s %s", self._where, self._pin_dir, news)
        except (OSError, HostError) as error:
            # Half-made, it may lack a pin: it is looked for again with the next batch.
            missing = str(error) if isinstance(error, HostError) else self._no_nic(self._pin_dir)
            if missing != self._missing:
                log.warning("%s", missing)
            self._missing, self._pin = missing, None
            return None
        return self._rules

    def _reopen(self, pin_dir: Path) -> None:
        """Open what is pinned and let go of what was open. HostError when there is no such NIC."""
        try:
            # Before the maps: what is exchanged in between is then noticed the next time.
            pin = _identity(pin_dir)
        except OSError:
            raise HostError(self._no_nic(pin_dir)) from None
        spec: MapSpec = rules_spec(pinned_entries(pin_dir / _RULES))
        rules = Map.open_pinned(pin_dir / _RULES, spec)
        try:
            stats = Map.open_pinned(pin_dir / _STATS, STATS_SPEC)
        except HostError:
            rules.close()
            raise
        with self._lock:
            if self._stats is not None:
                if self._stats.id != stats.id:
                    self._before += _summed(self._stats)
                self._stats.close()
            if self._rules is not None:
                self._rules.close()
            self._rules, self._stats, self._pin, self._missing = rules, stats, pin, ""
            self._perhaps[:] = True

    def _no_nic(self, pin_dir: Path) -> str:
        return (
            f"{self._where}: there is no softnic in {pin_dir}; "
            f"make one: nfcore softnic create --wire IF --port IF --pin {pin_dir}"
        )

    def install(self, rules: RuleBatch) -> Outcomes:
        """Install rules; those beyond the table's size are FULL. A rule of the same match is replaced.

        A rule that is replaced by itself (the same cookie) keeps what it had counted.
        """
        table = self._present()
        if table is None:
            return Outcomes.all(Outcome.FAILED, len(rules), self._missing)
        outcomes = Outcomes.all(Outcome.INSTALLED, len(rules))
        able = _able(rules)
        if not able.all():
            outcomes.status[~able] = Outcome.UNSUPPORTED
            outcomes.messages[int(np.argmin(able))] = "softnic: only rules for TCP and UDP match anything"
        rows = np.flatnonzero(able)
        keys, values = _matches(rules)[rows], np.zeros(len(rows), dtype=RULE)
        for name in ("action", "mark", "cookie"):
            values[name] = rules.rows[name][rows]
        self._keep_counts(table, keys, values)
        done = 0
        while done < len(rows):
            result = table.update_batch(keys[done:], values[done:])
            done += result.done
            if done == len(rows):
                break
            # The kernel refused row `done`; later rows may replace rules that are there, so go on behind it.
            row = int(rows[done])
            full = result.errno in (errno.E2BIG, errno.ENOMEM)
            outcomes.status[row] = Outcome.FULL if full else Outcome.FAILED
            if not full:
                outcomes.messages[row] = f"softnic: {errno.errorcode.get(result.errno, result.errno)}"
            done += 1
        return outcomes

    def _keep_counts(self, table: Map, keys: NDArray[np.void], values: NDArray[np.void]) -> None:
        """Let rules begin with what the same rules, by match and cookie, have counted in the table."""
        places = _places(keys)
        # A look at a key is a system call: most rules are new and are known to be.
        known = np.flatnonzero(self._perhaps[places])
        self._perhaps[places] = True
        there, before = table.lookup_batch_keys(keys[known])
        same = there & (before["cookie"] == values["cookie"][known])
        for name in ("packets", "bytes", "last_used"):
            values[name][known[same]] = before[name][same]

    def remove(self, rules: RuleBatch) -> Outcomes:
        """Remove rules by match, and tell what they had counted; one of another cookie by now is ABSENT and stays."""
        outcomes = Outcomes.all(Outcome.ABSENT, len(rules))
        outcomes.counted = np.zeros((len(rules), 2), dtype=np.uint64)
        table = self._present()
        if table is None:
            return outcomes
        keys = _matches(rules)
        found, values = table.lookup_batch_keys(keys)
        mine = found & (values["cookie"] == rules.rows["cookie"])
        table.delete_batch(keys[mine])
        outcomes.status[mine] = Outcome.REMOVED
        outcomes.counted[mine, 0], outcomes.counted[mine, 1] = values["packets"][mine], values["bytes"][mine]
        return outcomes

    def dump(self) -> NDArray[np.void]:
        """Give all rules with their counters: none where there is no NIC."""
        table = self._present()
        if table is None:
            return np.zeros(0, dtype=INSTALLED_ROW)
        keys, values = table.lookup_all()
        self._perhaps[:] = False
        self._perhaps[_places(keys)] = True
        rows = np.zeros(len(keys), dtype=INSTALLED_ROW)
        rule = rows["rule"]
        rule["key"], rule["family"] = keys["flow"], keys["family"]
        for name in ("action", "mark", "cookie"):
            rule[name] = values[name]
        for name in ("packets", "bytes", "last_used"):
            rows[name] = values[name]
        return rows

    def counters(self) -> NDArray[np.uint64]:
        """Give the NIC's own counters by :class:`layouts.NicCounter`, summed over the CPUs and over NICs before it.

        Where the NIC is gone, the last that it counted.
        """
        with self._lock:
            now = self._before.copy()
            if self._stats is not None:
                now += _summed(self._stats)
        return now


def _identity(pin_dir: Path) -> _Pin:
    """What tells the pinned table from one made later: device and inode of its pin. OSError when there is none."""
    found = (pin_dir / _RULES).stat()
    return found.st_dev, found.st_ino


def _summed(stats: Map) -> NDArray[np.uint64]:
    total: NDArray[np.uint64] = stats.read_array().sum(axis=1).astype(np.uint64)
    return total


def _places(keys: NDArray[np.void]) -> NDArray[np.uint64]:
    """Give each match one of :data:`_PLACES` numbers."""
    words = np.ascontiguousarray(keys).view("<u4").reshape(len(keys), len(_ODD))
    mixed: NDArray[np.uint64] = (words * _ODD).sum(axis=1, dtype=np.uint64) >> np.uint64(44)
    return mixed


def _able(rules: RuleBatch) -> NDArray[np.bool_]:
    """Which rules match what the program reads: it hands on frames of other protocols without a look at its table."""
    able: NDArray[np.bool_] = np.isin(rules.rows["key"]["proto"], tuple(PROTOCOL_NAMES))
    return able & np.isin(rules.rows["family"], (4, 6))


def _matches(rules: RuleBatch) -> NDArray[np.void]:
    keys = np.zeros(len(rules), dtype=MATCH)
    keys["flow"], keys["family"] = rules.rows["key"], rules.rows["family"]
    return keys
