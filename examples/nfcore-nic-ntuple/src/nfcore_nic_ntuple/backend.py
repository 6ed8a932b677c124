# SPDX-License-Identifier: Apache-2.0
"""One NIC: installs, removes and dumps rules. The notes say which rules in the NIC's table are its own."""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfcore.api.rules import INSTALLED_ROW, RULE_ROW, Action, Capabilities, Outcome, Outcomes, RuleBatch
from nfcore.errors import HostError

from .ethtool import NO_RULE, Ioctl, Nic, Table
from .flowspec import FLOW_TYPES, Shape, decode, encode, match_of, same_rules
from .layouts import RX_CLS_LOC_ANY
from .notes import UNKNOWN, Notes

log = logging.getLogger(__name__)
TRIAL = 0
"""Cookie of trial rules, by which the capabilities are found."""
_GONE = (errno.ENODEV, errno.ENXIO, errno.EOPNOTSUPP)
"""The interface does not exist, is being reset, or does not support such rules (any more)."""
_FULL = (errno.ENOSPC, errno.E2BIG)


@dataclass(frozen=True)
class Settings:
    """Settings of one device."""

    name: str
    """The interface's name, for messages."""
    locations: range | None = None
    """Locations that the backend may use; None: any free one."""


class NtupleBackend:
    """One device. Only :attr:`counts` and :attr:`held` may be used from several threads."""

    def __init__(self, ioctl: Ioctl, notes: Notes, settings: Settings) -> None:
        self._nic = Nic(ioctl)
        self._notes = notes
        self._settings = settings
        self._table = Table(None, driver_chooses=False, used=set())
        self._free: Iterator[int] | None = None
        """Free locations, the next one first; None when the driver chooses, or the table is unknown."""
        self._queues = 0
        self._refused: dict[tuple[Shape, int], str] = {}
        """Shape and action that the driver never takes → the reason."""
        self._rss_fault, self._read_fault = "", ""
        """Faults that the device has now; each was logged."""
        self.counts: Counter[str] = Counter()
        """Values of the plugin's counters."""

    @property
    def held(self) -> int:
        """Own rules on the NIC, as far as is known."""
        return len(self._notes)

    def open(self) -> None:
        """Find out which noted rules the NIC has, and remove trial rules. HostError: the rules cannot be read."""
        try:
            self._recover()
            for slot in list(self._notes):
                if int(self._notes.rule(slot)["cookie"]) == TRIAL:
                    self._delete(slot)
        except OSError as error:
            if error.errno not in _GONE:
                raise HostError(f"{self._settings.name}: its rules cannot be read: {error.strerror}") from None

    def close(self) -> None:
        """Close the notes."""
        self._notes.close()

    # What the NIC can do

    def capabilities(self, *, trying: bool = True) -> Capabilities:
        """Find out what the NIC can do; if `trying`, by adding and removing a rule of each shape."""
        name, hints, foreign = self._settings.name, [], 0
        try:
            if not self._nic.ntuple_is_on():
                hints.append(f"ntuple-filters is off (ethtool -K {name} ntuple on, where the driver has it)")
            self._refresh()
            if missing := self._missing():
                return _no_marks(missing)
            self._refused = {}
            if trying:
                self._try_shapes()
                foreign = self._count_foreign_rules()
        except OSError as error:
            return _no_marks(f"{name} has no rules that steer flows to queues: {error.strerror}", *hints)
        notes = sorted(set(self._refused.values()))
        markable = {shape for shape in FLOW_TYPES if (shape, Action.SET_MARK) not in self._refused}
        if not markable:
            return _no_marks(*notes, *hints)
        if foreign:
            notes.append(f"foreign rules put packets on queues that mark: {foreign} of ethtool -n {name}")
        locations = self._own_locations()
        return Capabilities(
            mark_width=self._queues.bit_length() - 1,
            ipv6=any(family == 6 for family, _ in markable),
            drop=any((shape, Action.DROP) not in self._refused for shape in FLOW_TYPES),
            counters=False,
            table_size=None if locations is None else len(locations),
            protocols=tuple(sorted({protocol for _, protocol in markable})),
            notes=(f"{self._queues} queues", *notes),
        )

    def _missing(self) -> str:
        """What the NIC lacks for marks, and what to do about it; empty when it lacks nothing."""
        name = self._settings.name
        if self._queues < 2:
            return f"{name} has one receive queue; marks need more: ethtool -L {name} combined N"
        if not self._table.driver_chooses and self._own_locations() is None:
            return f'{name} does not report the size of its table; set it: nic_ntuple.locations.{name} = "0-N"'
        return self._rss_fault

    def _try_shapes(self) -> None:
        """Find out which shapes and actions the driver refuses. OSError: a trial rule cannot be removed."""
        for (family, protocol), action in ((shape, action) for shape in FLOW_TYPES for action in Action):
            rule = _trial(family, protocol, action, self._queues - 1)
            status, reason = self._install(rule, encode(rule.reshape(1))[0])
            if status == Outcome.INSTALLED and (slot := self._notes.find(rule)) is not None:
                self._delete(slot)
            if status in (Outcome.UNSUPPORTED, Outcome.FAILED):
                what = f"{'drop' if action == Action.DROP else 'mark'} IPv{family} {'TCP' if protocol == 6 else 'UDP'}"
                self._refused[(family, protocol), action] = f"cannot {what}: {reason}"

    def _count_foreign_rules(self) -> int:
        """Count rules of other programs that put packets on queues which mark them. OSError."""
        specs, found = self._nic.read(sorted(self._table.used - {self._notes.location(slot) for slot in self._notes}))
        rings = specs["ring_cookie"]
        return int(np.count_nonzero(found & (rings > 0) & (rings < self._queues)))

    # Rules

    def install(self, rules: RuleBatch) -> Outcomes:
        """Install rules. A rule with the match of an own one replaces it."""
        outcomes = Outcomes.all(Outcome.UNSUPPORTED, len(rules))
        try:
            self._refresh()
            self._verify([slot for rule in rules.rows if (slot := self._notes.find(rule)) is not None])
        except OSError as error:
            return Outcomes.all(Outcome.FAILED, len(rules), self._describe(error))
        if self._rss_fault:
            return Outcomes.all(Outcome.FAILED, len(rules), self._rss_fault)
        shapes = list(zip(rules.rows["family"].tolist(), rules.rows["key"]["proto"].tolist(), strict=True))
        known = [number for number, shape in enumerate(shapes) if shape in FLOW_TYPES]
        specs = encode(rules.rows[known])
        reasons: set[str] = set()
        for number, spec in zip(known, specs, strict=True):
            rule = rules.rows[number]
            status, reason = self._known_refusal(shapes[number], rule) or self._install(rule, spec)
            outcomes.status[number] = status
            if reason and reason not in reasons:
                reasons.add(reason)
                outcomes.messages[number] = reason
        unknown = [number for number in range(len(rules)) if shapes[number] not in FLOW_TYPES]
        if unknown:
            outcomes.messages[unknown[0]] = "only TCP and UDP flows can be steered"
        self.counts["refused"] += len(reasons)
        self.counts["installed"] += int(np.count_nonzero(outcomes.status == Outcome.INSTALLED))
        return outcomes

    def _known_refusal(self, shape: Shape, rule: np.void) -> tuple[Outcome, str] | None:
        """Status and reason of a rule that the NIC is known to refuse; None for any other."""
        reason = self._refused.get((shape, int(rule["action"])))
        if reason is not None:
            # The engine remembers UNSUPPORTED for the shape: refused drops alone must not prevent marks.
            never = (shape, Action.SET_MARK) in self._refused
            return Outcome.UNSUPPORTED if never else Outcome.FAILED, f"{self._settings.name} {reason}"
        if rule["action"] == Action.SET_MARK and not 0 < rule["mark"] < self._queues:
            return Outcome.FAILED, f"mark {rule['mark']} has no queue: {self._settings.name} has {self._queues}"
        return None

    def _install(self, rule: np.void, spec: np.void) -> tuple[Outcome, str]:
        """Install a rule; those in the notes must have been verified."""
        slot: int | None = None
        try:
            known = self._notes.find(rule)
            if known is not None and same_rules(self._notes.rules([known]), rule.reshape(1))[0]:
                self._notes.set_cookie(known, int(rule["cookie"]))
                return Outcome.INSTALLED, ""
            if known is not None:
                self._delete(known)
            location = self._choose_location()
            if location is None:
                return Outcome.FULL, ""
            slot = self._notes.add(rule)
            spec["location"] = location
            location = self._nic.insert(spec)
            self._notes.set_location(slot, location)
            self._table.used.add(location)
        except OSError as error:
            if slot is not None:
                self._notes.drop(slot)
            return self._refusal(error)
        return Outcome.INSTALLED, ""

    def _refusal(self, error: OSError) -> tuple[Outcome, str]:
        if error.errno in _FULL and error.filename is None:
            return Outcome.FULL, ""
        status = Outcome.UNSUPPORTED if error.errno == errno.EOPNOTSUPP else Outcome.FAILED
        return status, self._describe(error)

    def remove(self, rules: RuleBatch) -> Outcomes:
        """Remove rules by match; one that has another cookie by now is ABSENT and stays."""
        outcomes = Outcomes.all(Outcome.ABSENT, len(rules))
        slots: dict[int, int] = {}
        for number, rule in enumerate(rules.rows):
            slot = self._notes.find(rule)
            if slot is not None and self._notes.rule(slot)["cookie"] == rule["cookie"]:
                slots.setdefault(slot, number)
        try:
            installed = self._verify(list(slots))
        except OSError as error:
            outcomes.status[list(slots.values())] = Outcome.FAILED
            return Outcomes(outcomes.status, {next(iter(slots.values())): self._describe(error)})
        for slot in installed:
            try:
                if self._delete(slot):
                    outcomes.status[slots[slot]] = Outcome.REMOVED
            except OSError as error:
                outcomes.status[slots[slot]] = Outcome.FAILED
                outcomes.messages.setdefault(slots[slot], self._describe(error))
        self.counts["removed"] += int(np.count_nonzero(outcomes.status == Outcome.REMOVED))
        return outcomes

    def dump(self) -> NDArray[np.void] | None:
        """Return the own rules on the NIC, counters 0; None while they cannot be read, such as during a reset.

        A driver that no longer supports rules, as after `ethtool -K … ntuple off`, has no own rules.
        """
        fault, installed = "", []
        try:
            self._refresh()
            installed = self._verify(list(self._notes))
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                fault = f"rules cannot be read: {self._describe(error)}"
        if fault and fault != self._read_fault:
            log.warning("%s", fault)
        self._read_fault = fault
        if fault:
            return None
        rows = np.zeros(len(installed), dtype=INSTALLED_ROW)
        rows["rule"] = self._notes.rules(installed)
        return rows

    def remove_all(self) -> int:
        """Remove all own rules; return how many there were. HostError: some are left."""
        try:
            return sum(1 for slot in self._verify(list(self._notes)) if self._delete(slot))
        except OSError as error:
            raise HostError(f"{self._settings.name}: rules are left: {self._describe(error)}") from None

    # The NIC's table and the notes

    def _refresh(self) -> None:
        """Read what others may have changed: queues, table, RSS. OSError."""
        self._queues = self._nic.queues()
        self._table = self._nic.table()
        self._free = self._free_locations()
        marking = (self._nic.rss_queues() or frozenset()) - {0}
        name = self._settings.name
        fault = ""
        if marking:
            fault = f"RSS of {name} puts packets on {len(marking)} of the queues that mark: ethtool -X {name} equal 1"
        if fault and fault != self._rss_fault:
            log.warning("%s", fault)
        self._rss_fault = fault

    def _own_locations(self) -> range | None:
        """Locations that own rules may have; None if that is not known."""
        size, given = self._table.size, self._settings.locations
        if given is None:
            return None if size is None else range(size)
        return given if size is None else range(given.start, min(given.stop, size))

    def _free_locations(self) -> Iterator[int] | None:
        """Free locations, from the table's end: of two matching rules the one at the lower location wins, so the lower
        ones stay free for rules of others.
        """
        locations = self._own_locations()
        if locations is None or (self._table.driver_chooses and self._settings.locations is None):
            return None
        used = self._table.used
        return (location for location in reversed(locations) if location not in used)

    def _choose_location(self) -> int | None:
        """A location for a new rule; None when none is free."""
        if self._free is not None:
            return next(self._free, None)
        return RX_CLS_LOC_ANY if self._table.driver_chooses else None

    def _verify(self, slots: Sequence[int]) -> list[int]:
        """Return those notes whose rules the NIC has exactly as noted, and erase the others. OSError."""
        specs, found = self._nic.read([self._notes.location(slot) for slot in slots])
        rules, readable = decode(specs)
        installed = found & readable & same_rules(rules, self._notes.rules(slots))
        noted = np.array(slots, dtype=np.int64)
        for slot in noted[~installed].tolist():
            self._notes.drop(slot)
            self.counts["vanished"] += 1
        verified: list[int] = noted[installed].tolist()
        return verified

    def _delete(self, slot: int) -> bool:
        """Remove a note's rule, then the note; return whether the rule existed. OSError."""
        location = self._notes.location(slot)
        existed = True
        try:
            self._nic.delete(location)
        except OSError as error:
            if error.errno not in NO_RULE:
                raise
            existed = False
        self._notes.drop(slot)
        self._table.used.discard(location)
        self._free = self._free_locations()
        return existed

    def _recover(self) -> None:
        """Compare the notes of an earlier run with the NIC; find rules whose location that run could not note."""
        if not len(self._notes):
            return
        self._refresh()
        unlocated = {match_of(self._notes.rule(s)): s for s in self._notes if self._notes.location(s) == UNKNOWN}
        known = {self._notes.location(slot) for slot in self._notes}
        candidates = sorted(self._table.used - known) if unlocated else []
        specs, found = self._nic.read(candidates)
        rules, readable = decode(specs)
        for number in np.flatnonzero(found & readable).tolist():
            slot = unlocated.get(match_of(rules[number]))
            if slot is not None:
                self._notes.set_location(slot, candidates[number])
        self._verify(list(self._notes))

    def _describe(self, error: OSError) -> str:
        """The kernel's error as text, with a hint what to do."""
        name = self._settings.name
        if error.filename is not None:
            return f"notes cannot be written to {error.filename}: {error.strerror}"
        hints = {
            errno.EPERM: "steering flows needs CAP_NET_ADMIN: use sudo",
            errno.EEXIST: f"a foreign rule has the same match: ethtool -n {name}",
            errno.EOPNOTSUPP: f"try ethtool -K {name} ntuple on",
        }
        message = f"{name}: {os.strerror(error.errno or 0)}"
        return f"{message} ({hints[error.errno]})" if error.errno in hints else message


def _no_marks(*notes: str) -> Capabilities:
    return Capabilities(mark_width=0, ipv6=False, drop=False, counters=False, notes=notes)


def _trial(family: int, protocol: int, action: Action, queue: int) -> np.void:
    """A rule for addresses that no packet has, of RFC 2544 (benchmarking) and RFC 3849 (documentation)."""
    rule = np.zeros(1, dtype=RULE_ROW)
    key = rule["key"]
    ends = {4: (bytes([198, 18, 0, 1]), bytes([198, 18, 0, 2])), 6: (_v6(1), _v6(2))}[family]
    for end, address in zip(("src", "dst"), ends, strict=True):
        key[end][0, : len(address)] = np.frombuffer(address, dtype=np.uint8)
    key["sport"], key["dport"], key["proto"] = 9, 9, protocol
    rule["family"], rule["action"], rule["cookie"] = family, action, TRIAL
    rule["mark"] = queue if action == Action.SET_MARK else 0
    row: np.void = rule[0]
    return row


def _v6(last: int) -> bytes:
    return bytes.fromhex("20010db8") + bytes(11) + bytes([last])
