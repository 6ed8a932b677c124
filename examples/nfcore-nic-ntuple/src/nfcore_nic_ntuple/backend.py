# SPDX-License-Identifier: Apache-2.0
"""One NIC: rules in, out and back. The NIC's table is the truth; the notes say which of its rules are ours."""

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

from .ethtool import NOT_THERE, Ioctl, Nic, Table
from .flowspec import FLOW_TYPES, Shape, decode, encode, match_of, same_rules
from .layouts import RX_CLS_LOC_ANY
from .notes import UNKNOWN, Notes

log = logging.getLogger(__name__)
TRIAL = 0
"""Cookie of rules that only try something."""
_GONE = (errno.ENODEV, errno.ENXIO, errno.EOPNOTSUPP)
"""The interface is not there, or is being reset, or has no such rules (any more)."""
_FULL = (errno.ENOSPC, errno.E2BIG)


@dataclass(frozen=True)
class Settings:
    """What the TOML says of one device."""

    name: str
    """The interface's, for messages."""
    locations: range | None = None
    """Locations of the table that are ours; None: wherever there is room."""


class NtupleBackend:
    """One device. Its methods but :attr:`counts` and :attr:`held` belong to one thread at a time."""

    def __init__(self, ioctl: Ioctl, notes: Notes, settings: Settings) -> None:
        self._nic = Nic(ioctl)
        self._notes = notes
        self._settings = settings
        self._table = Table(None, chooses=False, used=set())
        self._free: Iterator[int] | None = None
        """Free locations, the next one first; None when the driver chooses, or nothing is known of the table."""
        self._queues = 0
        self._refused: dict[tuple[Shape, int], str] = {}
        """Shape and action that the driver never takes → its words."""
        self._spread, self._unreadable = "", ""
        """What is wrong with the device now, and was said."""
        self.counts: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Rules of ours on the NIC, as far as is known."""
        return len(self._notes)

    def open(self) -> None:
        """Find out which noted rules are really there, and remove what only tried something. HostError."""
        try:
            self._confirm()
            for slot in list(self._notes):
                if int(self._notes.rule(slot)["cookie"]) == TRIAL:
                    self._delete(slot)
        except OSError as error:
            if error.errno not in _GONE:
                raise HostError(f"{self._settings.name}: its rules cannot be read: {error.strerror}") from None

    def close(self) -> None:
        """Let go of the notes."""
        self._notes.close()

    # What the NIC can do

    def capabilities(self, *, trying: bool = True) -> Capabilities:
        """Find out what the NIC can do, by adding and removing a rule of each shape unless not `trying`."""
        name, hints, others = self._settings.name, [], 0
        try:
            if not self._nic.ntuple_is_on():
                hints.append(f"ntuple-filters is off (ethtool -K {name} ntuple on, where the driver has it)")
            self._look()
            if lacking := self._lacking():
                return _unable(lacking)
            self._refused = {}
            if trying:
                self._try_shapes()
                others = self._others()
        except OSError as error:
            return _unable(f"{name} has no rules that steer flows to queues: {error.strerror}", *hints)
        words = sorted(set(self._refused.values()))
        able = {shape for shape in FLOW_TYPES if (shape, Action.SET_MARK) not in self._refused}
        if not able:
            return _unable(*words, *hints)
        if others:
            words.append(f"rules of others put packets on queues that mark: {others} of ethtool -n {name}")
        places = self._places()
        return Capabilities(
            mark_width=self._queues.bit_length() - 1,
            ipv6=any(family == 6 for family, _ in able),
            drop=any((shape, Action.DROP) not in self._refused for shape in FLOW_TYPES),
            counters=False,
            table_size=None if places is None else len(places),
            notes=(f"{self._queues} queues", *words),
        )

    def _lacking(self) -> str:
        """What marks need and the NIC has not, with what to do; empty when it has all."""
        name = self._settings.name
        if self._queues < 2:
            return f"{name} has one receive queue; marks need more: ethtool -L {name} combined N"
        if not self._table.chooses and self._places() is None:
            return f'{name} does not tell how large its table is; say so: nic_ntuple.locations.{name} = "0-N"'
        return self._spread

    def _try_shapes(self) -> None:
        """Find out which shapes and actions the driver refuses. OSError when what was tried cannot be removed."""
        for (family, protocol), action in ((shape, action) for shape in FLOW_TYPES for action in Action):
            rule = _trial(family, protocol, action, self._queues - 1)
            status, words = self._install(rule, encode(rule.reshape(1))[0])
            if status == Outcome.INSTALLED and (slot := self._notes.find(rule)) is not None:
                self._delete(slot)
            if status in (Outcome.UNSUPPORTED, Outcome.FAILED):
                what = f"{'drop' if action == Action.DROP else 'mark'} IPv{family} {'TCP' if protocol == 6 else 'UDP'}"
                self._refused[(family, protocol), action] = f"cannot {what}: {words}"

    def _others(self) -> int:
        """Count the rules of others that put packets on queues which mark them. OSError."""
        specs, there = self._nic.read(sorted(self._table.used - {self._notes.location(slot) for slot in self._notes}))
        rings = specs["ring_cookie"]
        return int(np.count_nonzero(there & (rings > 0) & (rings < self._queues)))

    # Rules

    def install(self, rules: RuleBatch) -> Outcomes:
        """Install rules. One of the same match as a rule of ours replaces it."""
        outcomes = Outcomes.all(Outcome.UNSUPPORTED, len(rules))
        try:
            self._look()
            self._standing([slot for rule in rules.rows if (slot := self._notes.find(rule)) is not None])
        except OSError as error:
            return Outcomes.all(Outcome.FAILED, len(rules), self._words(error))
        if self._spread:
            return Outcomes.all(Outcome.FAILED, len(rules), self._spread)
        shapes = list(zip(rules.rows["family"].tolist(), rules.rows["key"]["proto"].tolist(), strict=True))
        known = [number for number, shape in enumerate(shapes) if shape in FLOW_TYPES]
        specs = encode(rules.rows[known])
        said: set[str] = set()
        for number, spec in zip(known, specs, strict=True):
            rule = rules.rows[number]
            status, words = self._judge(shapes[number], rule) or self._install(rule, spec)
            outcomes.status[number] = status
            if words and words not in said:
                said.add(words)
                outcomes.messages[number] = words
        unknown = [number for number in range(len(rules)) if shapes[number] not in FLOW_TYPES]
        if unknown:
            outcomes.messages[unknown[0]] = "only TCP and UDP flows can be steered"
        self.counts["refused"] += len(said)
        self.counts["installed"] += int(np.count_nonzero(outcomes.status == Outcome.INSTALLED))
        return outcomes

    def _judge(self, shape: Shape, rule: np.void) -> tuple[Outcome, str] | None:
        """Refuse what the NIC is known not to take."""
        words = self._refused.get((shape, int(rule["action"])))
        if words is not None:
            # "Unsupported" is remembered of the shape: drops alone must not keep it from being marked.
            never = (shape, Action.SET_MARK) in self._refused
            return Outcome.UNSUPPORTED if never else Outcome.FAILED, f"{self._settings.name} {words}"
        if rule["action"] == Action.SET_MARK and not 0 < rule["mark"] < self._queues:
            return Outcome.FAILED, f"mark {rule['mark']} has no queue: {self._settings.name} has {self._queues}"
        return None

    def _install(self, rule: np.void, spec: np.void) -> tuple[Outcome, str]:
        """Install a rule; what the notes say stands."""
        slot: int | None = None
        try:
            there = self._notes.find(rule)
            if there is not None and same_rules(self._notes.rules([there]), rule.reshape(1))[0]:
                self._notes.rename(there, int(rule["cookie"]))
                return Outcome.INSTALLED, ""
            if there is not None:
                self._delete(there)
            place = self._place()
            if place is None:
                return Outcome.FULL, ""
            slot = self._notes.add(rule)
            spec["location"] = place
            place = self._nic.insert(spec)
            self._notes.settle(slot, place)
            self._table.used.add(place)
        except OSError as error:
            if slot is not None:
                self._notes.drop(slot)
            return self._refusal(error)
        return Outcome.INSTALLED, ""

    def _refusal(self, error: OSError) -> tuple[Outcome, str]:
        if error.errno in _FULL and error.filename is None:
            return Outcome.FULL, ""
        status = Outcome.UNSUPPORTED if error.errno == errno.EOPNOTSUPP else Outcome.FAILED
        return status, self._words(error)

    def remove(self, rules: RuleBatch) -> Outcomes:
        """Remove rules by match; one that is another's by now (other cookie) is ABSENT and stays."""
        outcomes = Outcomes.all(Outcome.ABSENT, len(rules))
        slots: dict[int, int] = {}
        for number, rule in enumerate(rules.rows):
            slot = self._notes.find(rule)
            if slot is not None and self._notes.rule(slot)["cookie"] == rule["cookie"]:
                slots.setdefault(slot, number)
        try:
            standing = self._standing(list(slots))
        except OSError as error:
            outcomes.status[list(slots.values())] = Outcome.FAILED
            return Outcomes(outcomes.status, {next(iter(slots.values())): self._words(error)})
        for slot in standing:
            try:
                if self._delete(slot):
                    outcomes.status[slots[slot]] = Outcome.REMOVED
            except OSError as error:
                outcomes.status[slots[slot]] = Outcome.FAILED
                outcomes.messages.setdefault(slots[slot], self._words(error))
        self.counts["removed"] += int(np.count_nonzero(outcomes.status == Outcome.REMOVED))
        return outcomes

    def dump(self) -> NDArray[np.void] | None:
        """Give our rules as the NIC has them, counters 0; None while it cannot tell, such as in the middle of a reset.

        A driver that has no rules any more, as with `ethtool -K … ntuple off`, has none of ours.
        """
        unreadable, standing = "", []
        try:
            self._look()
            standing = self._standing(list(self._notes))
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                unreadable = f"rules cannot be read: {self._words(error)}"
        if unreadable and unreadable != self._unreadable:
            log.warning("%s", unreadable)
        self._unreadable = unreadable
        if unreadable:
            return None
        rows = np.zeros(len(standing), dtype=INSTALLED_ROW)
        rows["rule"] = self._notes.rules(standing)
        return rows

    def sweep(self) -> int:
        """Remove all rules of ours; how many there were. HostError."""
        try:
            return sum(1 for slot in self._standing(list(self._notes)) if self._delete(slot))
        except OSError as error:
            raise HostError(f"{self._settings.name}: rules are left: {self._words(error)}") from None

    # The NIC's table and the notes

    def _look(self) -> None:
        """Read what may have changed behind our back. OSError."""
        self._queues = self._nic.queues()
        self._table = self._nic.table()
        self._free = self._vacant()
        others = (self._nic.rss_queues() or frozenset()) - {0}
        name = self._settings.name
        spread = ""
        if others:
            spread = f"RSS of {name} puts packets on {len(others)} of the queues that mark: ethtool -X {name} equal 1"
        if spread and spread != self._spread:
            log.warning("%s", spread)
        self._spread = spread

    def _places(self) -> range | None:
        """Locations that rules of ours may have."""
        size, ours = self._table.size, self._settings.locations
        if ours is None:
            return None if size is None else range(size)
        return ours if size is None else range(ours.start, min(ours.stop, size))

    def _vacant(self) -> Iterator[int] | None:
        """Free locations, from the table's end: of two rules that match the one at the lower location counts, so
        there is room for those that shall go before ours.
        """
        places = self._places()
        if places is None or (self._table.chooses and self._settings.locations is None):
            return None
        used = self._table.used
        return (place for place in reversed(places) if place not in used)

    def _place(self) -> int | None:
        """A location for a new rule; None when there is none."""
        if self._free is not None:
            return next(self._free, None)
        return RX_CLS_LOC_ANY if self._table.chooses else None

    def _standing(self, slots: Sequence[int]) -> list[int]:
        """Give those of the notes whose rules the NIC has, exactly as noted, and erase the others. OSError."""
        specs, there = self._nic.read([self._notes.location(slot) for slot in slots])
        found, readable = decode(specs)
        stands = there & readable & same_rules(found, self._notes.rules(slots))
        for slot in np.array(slots, dtype=np.int64)[~stands].tolist():
            self._notes.drop(slot)
            self.counts["vanished"] += 1
        return [slot for slot, standing in zip(slots, stands.tolist(), strict=True) if standing]

    def _delete(self, slot: int) -> bool:
        """Remove a note's rule, then the note; False when it was not there. OSError."""
        location = self._notes.location(slot)
        there = True
        try:
            self._nic.delete(location)
        except OSError as error:
            if error.errno not in NOT_THERE:
                raise
            there = False
        self._notes.drop(slot)
        self._table.used.discard(location)
        self._free = self._vacant()
        return there

    def _confirm(self) -> None:
        """Compare the notes of a run before with the NIC. Where that run died between note and rule, look for it."""
        if not len(self._notes):
            return
        self._look()
        lost = {match_of(self._notes.rule(s)): s for s in self._notes if self._notes.location(s) == UNKNOWN}
        known = {self._notes.location(slot) for slot in self._notes}
        others = sorted(self._table.used - known) if lost else []
        specs, there = self._nic.read(others)
        rules, readable = decode(specs)
        for number in np.flatnonzero(there & readable).tolist():
            slot = lost.get(match_of(rules[number]))
            if slot is not None:
                self._notes.settle(slot, others[number])
        self._standing(list(self._notes))

    def _words(self, error: OSError) -> str:
        """Say what the kernel said, and what would help."""
        name = self._settings.name
        if error.filename is not None:
            return f"notes cannot be kept in {error.filename}: {error.strerror}"
        hints = {
            errno.EPERM: "steering flows needs CAP_NET_ADMIN: use sudo",
            errno.EEXIST: f"somebody else's rule matches the same: ethtool -n {name}",
            errno.EOPNOTSUPP: f"try ethtool -K {name} ntuple on",
        }
        words = f"{name}: {os.strerror(error.errno or 0)}"
        return f"{words} ({hints[error.errno]})" if error.errno in hints else words


def _unable(*notes: str) -> Capabilities:
    return Capabilities(mark_width=0, ipv6=False, drop=False, counters=False, notes=notes)


def _trial(family: int, protocol: int, action: Action, queue: int) -> np.void:
    """A rule of addresses that no packet has: the benchmarking networks of RFC 2544 and the documentation's."""
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
