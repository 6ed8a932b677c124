# SPDX-License-Identifier: Apache-2.0
"""All entries of flow_actions: names, slots, numbers of targets, lifetimes, and who is shadowed by whom.

A change is planned first, which alters nothing and finds every problem; the plan says what the data plane has to do;
then it is committed, which cannot fail. One change at a time.

    plan(add, delete) ──► Change ──► data plane, engine ──► commit(Change)

An entry is shadowed when it overlaps one that wins over it, unless both drop: then it does not matter whose rule drops
what both match. The NIC's rules have no priorities, so a shadowed entry gets no rule: its rule would take packets of
the winner.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import join_rows, masks_of

from .entries import Entries, EntryError, EntryProblem, Target
from .layouts import ENTRY, MOST_SHAPES
from .overlaps import WORDS, Indices, Side, Words, compare, duplicates, match

TOML_PLACE = "flow_actions.flows"
_WHOLE = f"V{ENTRY.itemsize}"
"""A row as opaque bytes: copied at once, not field by field."""
Shape = tuple[int, int, int, int]
"""Family, open bits of source and destination, `Anything` flags."""


class Owner(IntEnum):
    """Who has made an entry, and may delete it."""

    TOML = 1
    APPLICATION = 2


@dataclass(frozen=True)
class Kept:
    """What entries have had in an earlier run."""

    slots: Indices
    targets: Indices
    """Number of each entry's target."""
    expires: NDArray[np.float64]
    owners: NDArray[np.uint8]


@dataclass(frozen=True)
class Change:
    """A planned change. Rows are of type ENTRY, with slot and number of the target."""

    added: NDArray[np.void]
    removed: NDArray[np.void]
    """Removed before `added` is added: a row may take over the slot, or the match, of one of these."""
    new_targets: Mapping[int, Target]
    gone_targets: Sequence[int]
    """No entry has them any more. Their numbers rest until :meth:`Table.release_targets`."""
    offloadable: NDArray[np.void]
    """Entries, added ones or others, that the NIC may have a rule for from now on."""
    withdrawn: NDArray[np.void]
    """Entries, removed ones or others, that the NIC may no longer have a rule for."""
    added_names: Sequence[str]
    removed_names: Sequence[str]
    restored: bool = False
    """The entries were there in an earlier run: their counters go on."""
    expires: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    owners: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))
    offload: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    beaten_by: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Of each added entry: overlapping entries that win over it."""
    beaten_delta: tuple[Indices, Indices] = field(
        default_factory=lambda: (np.zeros(0, np.int64), np.zeros(0, np.int64))
    )
    """Slots of entries that stay, and by how much the number of those that win over them changes."""
    version: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return not (len(self.added) or len(self.removed))


@dataclass(frozen=True)
class _Clash:
    """Two entries that cannot be there together: an added one, and one that stays (or is added, too)."""

    index: int
    slot: int
    """Of the entry that stays; -1: both are added."""
    key: str
    message: str
    other: int = -1
    """Index of the other one, when both are added."""


class _Group:
    """The entries of one shape."""

    def __init__(self, shape: Shape) -> None:
        self.mask = _mask(shape)
        self.count = 0
        self._slots = np.zeros(8, dtype=np.int64)
        self._words = np.zeros((WORDS, 8), dtype=np.uint64)
        self._precedence = np.zeros(8, dtype=np.int64)
        self._drops = np.zeros(8, dtype=bool)

    @property
    def slots(self) -> Indices:
        return self._slots[: self.count]

    @property
    def side(self) -> Side:
        return Side(self._words[:, : self.count], self._precedence[: self.count], self._drops[: self.count])

    def add(self, slots: Indices, side: Side) -> Indices:
        """Add entries; returns their positions."""
        total = self.count + len(slots)
        if total > len(self._slots):
            more = max(total, 2 * len(self._slots)) - self.count
            self._slots = np.pad(self.slots, (0, more))
            self._words = np.pad(self.side.words, ((0, 0), (0, more)))
            self._precedence = np.pad(self._precedence[: self.count], (0, more))
            self._drops = np.pad(self._drops[: self.count], (0, more))
        self._slots[self.count : total] = slots
        self._words[:, self.count : total] = side.words
        self._precedence[self.count : total] = side.precedence
        self._drops[self.count : total] = side.drops
        positions = np.arange(self.count, total)
        self.count = total
        return positions

    def remove(self, positions: Indices) -> tuple[Indices, Indices]:
        """Remove entries: the last ones take their places. Returns the slots of those that moved, and where to."""
        rest = self.count - len(positions)
        last = np.ones(len(positions), dtype=bool)
        last[positions[positions >= rest] - rest] = False
        sources, holes = rest + np.flatnonzero(last), positions[positions < rest]
        self._slots[holes] = self._slots[sources]
        self._words[:, holes] = self._words[:, sources]
        self._precedence[holes] = self._precedence[sources]
        self._drops[holes] = self._drops[sources]
        self.count = rest
        return self._slots[holes], holes


class Table:
    """The entries. `clock`: the time of day in seconds, by which lifetimes are counted."""

    def __init__(self, entries: int, targets: int, clock: Callable[[], float] = time.time) -> None:
        self.capacity, self.most_targets, self.clock = entries, targets, clock
        self.rows = np.zeros(entries, dtype=ENTRY)
        """By slot."""
        self.used = np.zeros(entries, dtype=bool)
        self.owners = np.zeros(entries, dtype=np.uint8)
        self.offload = np.zeros(entries, dtype=bool)
        self.expires = np.zeros(entries)
        """Time of day, infinite without a lifetime."""
        self.beaten_by = np.zeros(entries, dtype=np.int64)
        """How many entries win over this one on some packets: it is shadowed when that is not 0."""
        self.targets: dict[int, Target] = {}
        """Number → target."""
        self.version = 0
        self._names: dict[str, int] = {}
        self._name_of: list[str] = [""] * entries
        self._toml_order: dict[str, int] = {}
        self._positions = np.zeros(entries, dtype=np.int64)
        self._groups: dict[Shape, _Group] = {}
        self._numbers: dict[Target, int] = {}
        self._users: Counter[int] = Counter()
        self._resting: set[int] = set()
        self._free_slots, self._fresh_slot = deque[int](), 0
        self._free_numbers, self._fresh_number = deque[int](), 1
        self._ends: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    # Questions

    def slot_of(self, name: str) -> int | None:
        """Give the slot of the entry, or None."""
        return self._names.get(name)

    def name_of(self, slot: int) -> str:
        """Give the name of the entry in a slot, empty when there is none."""
        return self._name_of[slot]

    def slots(self, owner: Owner | None = None) -> Indices:
        """Give the slots in use, in order."""
        return np.flatnonzero(self.used if owner is None else self.used & (self.owners == owner))

    def names(self, owner: Owner | None = None) -> list[str]:
        """Give the names of all entries, by slot."""
        return [self._name_of[slot] for slot in self.slots(owner)]

    def target(self, slot: int) -> Target:
        """Give the target of the entry in a slot."""
        return self.targets[int(self.rows["target"][slot])]

    def is_shadowed(self, slot: int) -> bool:
        """Whether an entry that wins over it overlaps it."""
        return bool(self.beaten_by[slot])

    def shadowed_by(self, slot: int, most: int = 10) -> list[str]:
        """Give names of entries that win over the one in the slot, at most so many."""
        own, side = _shape(self.rows[slot]), self._side(self.rows[slot : slot + 1])
        found: list[str] = []
        for slots, other, mask in self._others(own, None):
            _, there, _ = match(side.words, other.words, mask)
            wins = (other.precedence[there] > side.precedence[0]) & ~(other.drops[there] & side.drops[0])
            winners = slots[there[wins]]
            found += [self._name_of[winner] for winner in winners[: most - len(found)]]
        return found

    def shapes(self) -> dict[int, int]:
        """Family → number of shapes of masked entries."""
        return {family: sum(shape[0] == family and any(shape[1:]) for shape in self._groups) for family in (4, 6)}

    def next_end(self) -> float:
        """Give the time of day at which the next lifetime ends, infinite when none does."""
        self._forget_old_ends()
        return self._ends[0][0] if self._ends else np.inf

    # Changes

    def plan(self, add: Entries, delete: Sequence[str] = (), place: str = "add") -> Change:
        """Plan a change of an application: what is deleted goes first. EntryError: all problems."""
        gone, problems = self._find_deleted(delete)
        owners = np.full(len(add), Owner.APPLICATION, dtype=np.uint8)
        change, clashes = self._plan(add, gone, owners)
        problems += [self._problem(each, add, place, range(len(add))) for each in clashes]
        if problems:
            raise EntryError("flow", problems)
        return change

    def plan_expired(self) -> Change:
        """Plan the removal of the entries whose lifetime has ended."""
        gone: list[int] = []
        now = self.clock()
        self._forget_old_ends()
        while self._ends and self._ends[0][0] <= now:
            gone.append(heapq.heappop(self._ends)[1])
            self._forget_old_ends()
        for slot in gone:  # they stay on the heap until the change is committed
            heapq.heappush(self._ends, (float(self.expires[slot]), slot))
        return self._plan(Entries.join([]), np.array(sorted(set(gone)), dtype=np.int64), np.zeros(0, np.uint8))[0]

    def plan_toml(self, entries: Entries, *, others_yield: bool = False) -> Change:
        """Plan that the TOML's entries are these. Those that have not changed keep slot, counters and target.

        others_yield: entries of applications that cannot be there together with one of these are removed; else they
        are problems. EntryError: all problems.
        """
        same = self.unchanged(entries)
        fresh = np.flatnonzero(same < 0)
        is_gone = self.used & (self.owners == Owner.TOML)
        is_gone[same[same >= 0]] = False
        add = entries.select(fresh)
        owners = np.full(len(add), Owner.TOML, dtype=np.uint8)
        while True:
            change, clashes = self._plan(add, np.flatnonzero(is_gone), owners)
            yielding = [each.slot for each in clashes if each.slot >= 0 and self.owners[each.slot] != Owner.TOML]
            if not (others_yield and yielding):
                break
            is_gone[yielding] = True
        if clashes:
            numbers = fresh.tolist()
            raise EntryError("flow_actions", [self._problem(each, add, TOML_PLACE, numbers) for each in clashes])
        return change

    def plan_restored(self, entries: Entries, kept: Kept) -> tuple[Change, list[str]]:
        """Plan that an empty table has these of an earlier run again; also give the names that cannot be there."""
        left_out: list[str] = []
        while True:
            kept = self._fit(entries, kept)
            change, clashes = self._plan(entries, np.zeros(0, dtype=np.int64), kept.owners, kept)
            if not clashes:
                return change, left_out
            wrong = {each.index for each in clashes}
            left_out += [entries.names[index] for index in sorted(wrong)]
            good = np.array([index for index in range(len(entries)) if index not in wrong], dtype=np.int64)
            entries = entries.select(good)
            kept = Kept(kept.slots[good], kept.targets[good], kept.expires[good], kept.owners[good])

    def commit(self, change: Change) -> None:
        """Make a planned change, the latest one that was planned."""
        if change.version != self.version:
            raise ValueError("the table has changed since this change was planned")
        self.version += 1
        self._remove(change.removed)
        for slot, delta in zip(*change.beaten_delta, strict=True):
            self.beaten_by[slot] += delta
        self._add(change)

    def note_toml(self, names: Sequence[str]) -> None:
        """Note the order of the entries in the TOML, for messages."""
        self._toml_order = {name: index for index, name in enumerate(names)}

    def release_targets(self, numbers: Sequence[int]) -> None:
        """Let numbers of gone targets be used again: no mark and no packet leads to them any more."""
        for number in numbers:
            if number in self._resting:
                self._resting.remove(number)
                self._free_numbers.append(number)

    def place_of(self, slot: int) -> str:
        """Say where an entry comes from."""
        if self.owners[slot] != Owner.TOML:
            return "of an application"
        number = self._toml_order.get(self._name_of[slot])
        return f"{TOML_PLACE}[{number}] of the TOML" if number is not None else "of the TOML"

    # Planning

    def _find_deleted(self, names: Sequence[str]) -> tuple[Indices, list[EntryProblem]]:
        slots, problems = [], []
        for index, name in enumerate(names):
            slot = self._names.get(name)
            if slot is None:
                problems.append(EntryProblem.at("delete", index, name, "", "there is no such entry"))
            elif self.owners[slot] == Owner.TOML:
                message = f"is {self.place_of(slot)}: remove it there, and reload"
                problems.append(EntryProblem.at("delete", index, name, "", message))
            else:
                slots.append(slot)
        return np.array(sorted(set(slots)), dtype=np.int64), problems

    def unchanged(self, entries: Entries) -> Indices:
        """Give for each of the TOML's entries the slot in which it is already, just as it is, or -1."""
        slots = np.array([self._names.get(name, -1) for name in entries.names], dtype=np.int64)
        old, new = _pick(self.rows, np.maximum(slots, 0)), entries.rows
        numbers = np.array([self._numbers.get(target, 0) for target in entries.actions], dtype=np.int64)
        same = (slots >= 0) & (self.owners[slots] == Owner.TOML) & (self.offload[slots] == entries.offload)
        same &= (_words(old) == _words(new)).all(axis=0) & (old["target"] == numbers[entries.action])
        for key in ("family", "precedence"):
            same &= old[key] == new[key]
        return np.where(same, slots, -1)

    def _fit(self, entries: Entries, kept: Kept) -> Kept:
        """Give other slots and numbers to those that cannot have what they had, as the TOML has other sizes now."""
        slots, targets = kept.slots.copy(), kept.targets.copy()
        _, first = np.unique(slots, return_index=True)
        bad = np.ones(len(slots), dtype=bool)
        bad[first] = False
        bad |= (slots < 0) | (slots >= self.capacity)
        free = np.setdiff1d(np.arange(self.capacity), slots[~bad])[: int(bad.sum())]
        slots[np.flatnonzero(bad)[: len(free)]] = free
        first_users = np.unique(entries.action, return_index=True)
        taken: dict[int, int] = {}
        for action, index in zip(*first_users, strict=True):
            number = int(targets[index])
            if 1 <= number <= self.most_targets:
                taken.setdefault(number, int(action))
        numbers = {action: number for number, action in taken.items()}
        spare = (number for number in range(1, self.most_targets + 1) if number not in taken)
        for action, _ in zip(*first_users, strict=True):
            targets[entries.action == action] = numbers.get(int(action)) or next(spare, 0)
        return Kept(slots, targets, kept.expires, kept.owners)

    def _plan(
        self, add: Entries, gone: Indices, owners: NDArray[np.uint8], kept: Kept | None = None
    ) -> tuple[Change, list[_Clash]]:
        """Plan a change. With clashes, the change is not to be used."""
        is_gone = np.zeros(self._fresh_slot, dtype=bool)
        is_gone[gone] = True
        clashes = [*self._named_already(add, is_gone), *self._too_many(add, gone)]
        if clashes:
            return _nothing(), clashes
        slots = self._choose_slots(len(add), gone) if kept is None else kept.slots
        numbers, new_targets, clashes = self._choose_targets(add, kept)
        if clashes:
            return _nothing(), clashes
        added = add.rows.copy()
        added["slot"], added["target"] = slots, numbers
        beaten_by, delta, more = self._overlaps(added, gone, is_gone, new_targets)
        if more:
            return _nothing(), more
        was, offloadable, withdrawn = self._may_offload(delta, is_gone)
        fresh = np.flatnonzero(add.offload & (beaten_by == 0))
        change = Change(
            added=added,
            removed=_pick(self.rows, gone),
            new_targets=new_targets,
            gone_targets=self._gone_targets(gone, numbers),
            offloadable=join_rows([_pick(self.rows, offloadable), _pick(added, fresh)], ENTRY),
            withdrawn=_pick(self.rows, withdrawn),
            added_names=add.names,
            removed_names=[self._name_of[slot] for slot in gone],
            restored=kept is not None,
            expires=kept.expires if kept is not None else self.clock() + add.lives,
            owners=owners,
            offload=add.offload,
            beaten_by=beaten_by,
            beaten_delta=(was, delta[was]),
            version=self.version,
        )
        return change, []

    def _may_offload(self, delta: Indices, is_gone: NDArray[np.bool_]) -> tuple[Indices, Indices, Indices]:
        """Give slots: those that win or lose a winner; that the NIC may have from now on; and no longer."""
        size = len(delta)
        may = self.used[:size] & self.offload[:size]
        before, after = self.beaten_by[:size] == 0, self.beaten_by[:size] + delta == 0
        changed = np.flatnonzero(delta)
        return (
            changed,
            np.flatnonzero(may & ~before & after & ~is_gone),
            np.flatnonzero(may & before & (is_gone | ~after)),
        )

    def _named_already(self, add: Entries, is_gone: NDArray[np.bool_]) -> Iterator[_Clash]:
        seen: dict[str, int] = {}
        for index, name in enumerate(add.names):
            slot = self._names.get(name)
            if slot is not None and not is_gone[slot]:
                yield _Clash(index, slot, "name", "is the name of another entry; names should be different")
            elif seen.setdefault(name, index) != index:
                yield _Clash(index, -1, "name", "is there twice; names should be different")

    def _too_many(self, add: Entries, gone: Indices) -> Iterator[_Clash]:
        room = self.capacity - len(self._names) + len(gone)
        if len(add) > room:
            text = f"is one too many: {self.capacity:,} entries fit ([flow_actions] entries)"
            for index in range(room, len(add)):
                yield _Clash(index, -1, "", f"{text}, and {len(self._names):,} are there")

    def _choose_slots(self, wanted: int, gone: Indices) -> Indices:
        """Choose free slots: those that are free for longest, then fresh ones, then those of entries that go."""
        free = list(islice(self._free_slots, wanted))
        fresh = min(wanted - len(free), self.capacity - self._fresh_slot)
        free += range(self._fresh_slot, self._fresh_slot + fresh)
        return np.array(free + gone.tolist()[: wanted - len(free)], dtype=np.int64)

    def _choose_targets(self, add: Entries, kept: Kept | None) -> tuple[Indices, dict[int, Target], list[_Clash]]:
        """Choose the number of each entry's target; also give the new targets."""
        numbers = np.zeros(len(add.actions), dtype=np.int64)
        new: dict[int, Target] = {}
        fresh = chain(self._free_numbers, range(self._fresh_number, self.most_targets + 1))
        clashes: list[_Clash] = []
        needed = np.unique(add.action, return_index=True)
        for which, index in zip(*(each.tolist() for each in needed), strict=True):
            target = add.actions[which]
            number = self._numbers.get(target, 0)
            if not number:
                number = next(fresh, 0) if kept is None else int(kept.targets[index])
                if not number:
                    resting = f", and {len(self._resting):,} others are just ending" if self._resting else ""
                    text = f"needs an action of its own, but {self.most_targets:,} different ones fit"
                    users = np.flatnonzero(add.action == which).tolist()
                    text = f"{text} ([flow_actions] targets){resting}"
                    clashes += [_Clash(user, -1, "action", text) for user in users]
                    continue
                new[number] = target
            numbers[which] = number
        return numbers[add.action], new, clashes

    def _gone_targets(self, gone: Indices, added: Indices) -> list[int]:
        left = Counter(self.rows["target"][gone].tolist())
        staying = set(added.tolist())
        return sorted(
            number for number, users in left.items() if self._users[number] == users and number not in staying
        )

    # Overlaps

    def _overlaps(
        self, added: NDArray[np.void], gone: Indices, is_gone: NDArray[np.bool_], new_targets: Mapping[int, Target]
    ) -> tuple[Indices, Indices, list[_Clash]]:
        """Compare what is added, and what goes, with what stays.

        Gives for each added entry how many win over it; for each slot the difference of that number; and clashes.
        """
        beaten_by, delta = np.zeros(len(added), dtype=np.int64), np.zeros(len(is_gone), dtype=np.int64)
        for shape, _, side in self._sides(_pick(self.rows, gone)):
            for slots, other, mask in self._others(shape, is_gone):
                found = compare(side, other, mask)
                delta[slots[found.second]] -= found.second_beaten_by
        clashes: list[_Clash] = []
        sides = list(self._sides(added, new_targets))
        for number, (shape, indices, side) in enumerate(sides):
            clashes += self._same_match(shape, indices, side, is_gone)
            for slots, other, mask in self._others(shape, is_gone):
                found = compare(side, other, mask)
                beaten_by[indices[found.first]] += found.first_beaten_by
                delta[slots[found.second]] += found.second_beaten_by
                clashes += [_tie(int(indices[mine]), int(slots[its])) for mine, its in found.ties]
            for other_shape, others, other in sides[:number]:
                if other_shape[0] == shape[0]:
                    found = compare(side, other, _mask(shape) & _mask(other_shape))
                    beaten_by[indices[found.first]] += found.first_beaten_by
                    beaten_by[others[found.second]] += found.second_beaten_by
                    clashes += [_tie(int(indices[mine]), -1, int(others[its])) for mine, its in found.ties]
        clashes += self._too_many_shapes(sides, gone)
        return beaten_by, delta, clashes

    def _others(self, shape: Shape, is_gone: NDArray[np.bool_] | None) -> Iterator[tuple[Indices, Side, Words]]:
        """Give slots and sides of the other shapes of the family, without what goes, and the mask to compare by."""
        for other, group in self._groups.items():
            if other[0] == shape[0] and other != shape:
                yield *self._staying(group, is_gone), group.mask & _mask(shape)

    def _sides(
        self, rows: NDArray[np.void], new_targets: Mapping[int, Target] | None = None
    ) -> Iterator[tuple[Shape, Indices, Side]]:
        """Give the shapes of rows, and for each the indices of its rows and their keys."""
        for shape, indices in _by_shape(rows):
            yield shape, indices, self._side(_pick(rows, indices), new_targets)

    def _side(self, rows: NDArray[np.void], new_targets: Mapping[int, Target] | None = None) -> Side:
        numbers, inverse = np.unique(rows["target"], return_inverse=True)
        known = [(new_targets or {}).get(number) or self.targets[number] for number in numbers.tolist()]
        drops = np.array([target.action == "drop" for target in known], dtype=bool)[inverse]
        return Side(_words(rows), rows["precedence"].astype(np.int64), drops)

    @staticmethod
    def _staying(group: _Group, is_gone: NDArray[np.bool_] | None) -> tuple[Indices, Side]:
        if is_gone is None or not (leaves := is_gone[group.slots]).any():
            return group.slots, group.side
        side = group.side
        return group.slots[~leaves], Side(side.words[:, ~leaves], side.precedence[~leaves], side.drops[~leaves])

    def _same_match(self, shape: Shape, indices: Indices, side: Side, is_gone: NDArray[np.bool_]) -> Iterator[_Clash]:
        """Find entries with the same match: among those that are added, and between them and those that stay."""
        text = "matches the same packets as another entry; one of them should go"
        for earlier, later in duplicates(side.words):
            yield _Clash(int(indices[later]), -1, "", text, int(indices[earlier]))
        if (group := self._groups.get(shape)) is not None:
            slots, other = self._staying(group, is_gone)
            few, many, many_keys = match(side.words, other.words, group.mask)
            first = dict(zip(few.tolist()[::-1], range(len(few))[::-1], strict=True)) if len(many) else {}
            for there, key in zip(many.tolist(), many_keys.tolist(), strict=True):
                yield _Clash(int(indices[first[key]]), int(slots[there]), "", text)

    def _too_many_shapes(self, sides: Sequence[tuple[Shape, Indices, Side]], gone: Indices) -> Iterator[_Clash]:
        leaving = {shape: len(slots) for shape, slots in _by_shape(_pick(self.rows, gone))}
        staying = {shape for shape, group in self._groups.items() if group.count > leaving.get(shape, 0)}
        for shape, indices, _ in sides:
            staying.add(shape)
            if any(shape[1:]) and sum(other[0] == shape[0] and any(other[1:]) for other in staying) > MOST_SHAPES:
                text = f"needs another shape (prefix lengths, keys that are given), but {MOST_SHAPES} of IPv{shape[0]}"
                yield _Clash(int(indices[0]), -1, "", f"{text} are there already")
                return

    def _problem(self, clash: _Clash, add: Entries, place: str, numbers: Sequence[int]) -> EntryProblem:
        message = clash.message
        if clash.slot >= 0:
            other = f"{self._name_of[clash.slot]!r:.80} {self.place_of(clash.slot)}"
            message = message.replace("another entry", f"entry {other}")
        elif clash.other >= 0:
            message = message.replace(
                "another entry", f"entry {add.names[clash.other]!r:.80}, {place}[{numbers[clash.other]}]"
            )
        return EntryProblem.at(place, numbers[clash.index], add.names[clash.index], clash.key, message)

    # Committing

    def _remove(self, rows: NDArray[np.void]) -> None:
        for shape, indices in _by_shape(rows):
            group, slots = self._groups[shape], rows["slot"][indices].astype(np.int64)
            moved, positions = group.remove(self._positions[slots])
            self._positions[moved] = positions
            if not group.count:
                del self._groups[shape]
        slots = rows["slot"].astype(np.int64)
        self.used[slots] = False
        for slot in slots.tolist():
            del self._names[self._name_of[slot]]
            self._name_of[slot] = ""
        self._free_slots.extend(slots.tolist())
        self._users.subtract(rows["target"].tolist())

    def _add(self, change: Change) -> None:
        rows, slots = change.added, change.added["slot"].astype(np.int64)
        self._take_slots(slots)
        self.rows[slots], self.used[slots] = rows, True
        self.owners[slots], self.offload[slots] = change.owners, change.offload
        self.expires[slots], self.beaten_by[slots] = change.expires, change.beaten_by
        for name, slot in zip(change.added_names, slots.tolist(), strict=True):
            self._names[name] = slot
            self._name_of[slot] = name
        for shape, indices, side in self._sides(rows, change.new_targets):
            group = self._groups.setdefault(shape, _Group(shape))
            self._positions[slots[indices]] = group.add(slots[indices], side)
        for index in np.flatnonzero(np.isfinite(change.expires)):
            heapq.heappush(self._ends, (float(change.expires[index]), int(slots[index])))
        self._take_targets(change)

    def _take_slots(self, slots: Indices) -> None:
        taken = set(slots.tolist())
        while self._free_slots and self._free_slots[0] in taken:
            taken.discard(self._free_slots.popleft())
        if taken and any(slot < self._fresh_slot for slot in taken):
            self._free_slots = deque(slot for slot in self._free_slots if slot not in taken)
        if taken and (end := max(taken) + 1) > self._fresh_slot:
            self._free_slots.extend(slot for slot in range(self._fresh_slot, end) if slot not in taken)
            self._fresh_slot = end

    def _take_targets(self, change: Change) -> None:
        self._users.update(change.added["target"].tolist())
        new = set(change.new_targets)
        for number, target in change.new_targets.items():
            self.targets[number] = target
            self._numbers[target] = number
        while self._free_numbers and self._free_numbers[0] in new:
            self._free_numbers.popleft()
        if new and (end := max(new) + 1) > self._fresh_number:
            self._free_numbers.extend(number for number in range(self._fresh_number, end) if number not in new)
            self._fresh_number = end
        for number in change.gone_targets:
            del self._users[number]
            del self._numbers[self.targets.pop(number)]
            self._resting.add(number)

    def _forget_old_ends(self) -> None:
        ends = self._ends
        while ends and not (self.used[ends[0][1]] and self.expires[ends[0][1]] == ends[0][0]):
            heapq.heappop(ends)


def _nothing() -> Change:
    rows = np.zeros(0, dtype=ENTRY)
    return Change(rows, rows, {}, (), rows, rows, (), ())


def _tie(index: int, slot: int, other: int = -1) -> _Clash:
    text = "overlaps another entry, and both are equally specific and of the same priority; one should have another"
    return _Clash(index, slot, "priority", text, other)


def _pick(rows: NDArray[np.void], which: Indices) -> NDArray[np.void]:
    return rows.view(_WHOLE)[which].view(ENTRY)


def _words(rows: NDArray[np.void]) -> Words:
    """Give the keys of rows as columns of words."""
    keys = np.ascontiguousarray(rows["key"])
    return np.ascontiguousarray(keys.view("<u8").reshape(-1, WORDS).T)


def _shape(row: np.void) -> Shape:
    return int(row["family"]), *(int(each) for each in row["key"]["wild"])  # type: ignore[return-value]


def _by_shape(rows: NDArray[np.void]) -> Iterator[tuple[Shape, Indices]]:
    """Give the shapes of rows, and for each the indices of its rows."""
    if not len(rows):
        return
    wild = rows["key"]["wild"].astype(np.int64)
    codes = (rows["family"].astype(np.int64) << 24) | (wild[:, 0] << 16) | (wild[:, 1] << 8) | wild[:, 2]
    if (codes == codes[0]).all():
        yield _shape(rows[0]), np.arange(len(rows))
        return
    order = np.argsort(codes, kind="stable")
    for indices in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        yield _shape(rows[indices[0]]), indices


@lru_cache(1024)
def _mask(shape: Shape) -> Words:
    """Give the bits that a shape fixes, as words."""
    masks = masks_of(np.array(shape[:1]), np.array([shape[1:]], dtype=np.uint8))
    return masks.view("<u8").reshape(WORDS)
