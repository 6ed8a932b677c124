# SPDX-License-Identifier: Apache-2.0
"""Rules on one device as flower filters: in, out, and back with their counters.

What the kernel's dump says is true; the index is the memory of it. Whenever an answer was lost or contradicts the
index (a rule that is there already, one that somebody else removed, a qdisc that is gone) a dump settles it.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nfcore.api.rules import INSTALLED_ROW, Action, Capabilities, Outcome, Outcomes, RuleBatch
from nfcore.errors import HostError
from nfcore.kernel.ethtool import HW_TC_OFFLOAD, feature_is_on

from .filters import FilterReader, Filters
from .messages import INFO, delete_messages, encode_dump, template
from .netlink import NetlinkError, Replies, TcSocket
from .probe import Probe, probe_device
from .qdisc import ensure_qdisc, remove_qdisc
from .rule_index import WHOLE_RULE, RuleIndex, matches_of
from .shapes import EGRESS, INGRESS, Place, Shape, shapes_of
from .tcmsg.cls_flower import IN_HW, SKIP_SW

log = logging.getLogger(__name__)
_DUMP_ATTEMPTS = 5
_GONE = (errno.ENODEV, errno.ENXIO)


@dataclass(frozen=True)
class Settings:
    """Where and how the rules of one device are installed."""

    filter_on: str
    """Name of the interface that the filters sit on: the device itself, or its veth peer."""
    ifindex: int
    """Of `filter_on`."""
    direction: Literal["ingress", "egress"] = "ingress"
    prio: int = 6000
    skip_sw: Literal["auto", "on", "off"] = "auto"
    software_helps: bool = False
    """Whether a rule that the kernel evaluates marks packets in time. At the device's own ingress it does not: XDP
    runs before."""
    terse: bool = False
    """Read counters with terse dumps: cheaper, without last_used."""

    def place(self) -> Place:
        """Give the hook."""
        return Place(self.ifindex, EGRESS if self.direction == "egress" else INGRESS, self.prio)


@dataclass
class _Batch:
    """Rules on their way in."""

    rows: NDArray[np.void]
    matches: list[bytes]
    shapes: NDArray[np.int64]
    outcomes: Outcomes


class TcBackend:
    """The flower rules of one device. Used by one thread at a time, but for :attr:`counts`."""

    def __init__(self, settings: Settings, socket: TcSocket | None = None) -> None:
        self.settings = settings
        self.place = settings.place()
        self.counts: Counter[str] = Counter()
        """What happened: installed, removed, resyncs, refused, vanished."""
        self.owns_qdisc = False
        self.probed = Probe(hardware=False, refusal=f"{settings.filter_on}: not probed yet")
        self._index = RuleIndex()
        self._reader = FilterReader()
        self._refused: set[tuple[int, int]] = set()
        self._switchable = False
        """The device took rules while its feature hw-tc-offload was on."""
        self._off = False
        """That feature was off at the last look."""
        self._said: set[str] = set()
        self._socket = socket or TcSocket()

    def open(self, *, alone: bool = True) -> None:
        """Make the qdisc if there is none, probe the device, and take over the rules of ours that it holds.

        alone: no other process uses them, so that one may go where a full table leaves no room to try anything.
        HostError with the kernel's words when no rule could ever be added for a reason that the user can mend.
        A device or kernel without flower is none: :attr:`probed` says so and every rule is UNSUPPORTED.
        """
        self.owns_qdisc |= ensure_qdisc(self._socket, self.place, self.settings.filter_on)
        found = self._probe()
        if found.full and alone and self.reconcile():
            # The rules of a killed run fill the table.
            self.remove(RuleBatch(self._index.rules(self._index.handles()[:1])))
            found = self._probe()
        self._learn(found)
        if not self.probed.refusal:
            self.reconcile()

    def reprobe(self) -> None:
        """Find out anew what the device can do, beside the rules that it holds, and what it has lost of those.

        For when something happened to the device: its link or a feature changed, its driver began anew. A device that
        is gone, or takes no rules any more, is no error: :attr:`probed` says so until the next time.
        """
        before = self.probed
        try:
            self._is_off()
            self.owns_qdisc |= ensure_qdisc(self._socket, self.place, self.settings.filter_on)
            found = self._probe()
        except HostError as error:
            found = Probe(before.hardware, refusal=str(error))
        if found.full and not before.refusal:
            found = before  # it took what it now holds
        if found.hardware != before.hardware:
            self._clear()  # hardware's rules are none of the kernel's, nor the other way round
            self._off = False
        self._learn(found)
        if not found.refusal:
            self._remember(self._without_useless(self._fetch(terse=False), ask_driver=True))

    def _learn(self, found: Probe) -> None:
        if found.refusal != self.probed.refusal:
            self._said.clear()
        self.probed = found
        self._refused = {(shape, action) for shape in Shape for action in Action if self._cannot(shape, action)}
        if found.refusal and self.owns_qdisc and remove_qdisc(self._socket, self.place.ifindex):
            self.owns_qdisc = False
        if found.hardware and not found.refusal:
            self._switchable = feature_is_on(self.place.ifindex, HW_TC_OFFLOAD) is True

    def close(self, *, remove: bool = True) -> bool:
        """Remove the qdisc if it is ours and empty, and close the socket; whether the qdisc was removed."""
        if remove and self._off:
            self._clear()  # nobody was told of these rules any more, so that nobody removes them
        removed = remove and self.owns_qdisc and remove_qdisc(self._socket, self.place.ifindex)
        self._socket.close()
        return removed

    def capabilities(self) -> Capabilities:
        """Tell what the device can do, as probed by :meth:`open`."""
        return self.probed.capabilities()

    @property
    def held(self) -> int:
        """Rules that the device holds for us, as of the last look at it."""
        return len(self._index)

    def _probe(self) -> Probe:
        name, wanted = self.settings.filter_on, self.settings.skip_sw
        if wanted == "off":
            return probe_device(self._socket, self.place, name, hardware=False)
        found = probe_device(self._socket, self.place, name, hardware=True)
        if not found.refusal or found.full or wanted == "on" or not self.settings.software_helps:
            return found
        return probe_device(self._socket, self.place, name, hardware=False)

    def _cannot(self, shape: Shape, action: Action) -> bool:
        return str(shape) in self.probed.refused or (action is Action.DROP and "drop" in self.probed.refused)

    # Install

    def install(self, rules: RuleBatch) -> Outcomes:
        """Install rules. One whose match is there already is replaced: deleted, then added.

        A rule that is replaced by itself (the same cookie) keeps what it had counted.
        """
        outcomes = Outcomes.all(Outcome.UNSUPPORTED, len(rules))
        unable = self.probed.refusal or (self._off_words() if self._is_off() else "")
        if unable:
            self._say(outcomes, 0, unable)
            return outcomes
        batch = _Batch(rules.rows, matches_of(rules.rows), shapes_of(rules.rows), outcomes)
        left = self._supported(batch)
        outcomes.status[left] = Outcome.FAILED
        while len(left):
            now, left = _first_of_each(batch.matches, left)
            again = self._install(batch, now)
            if len(again):
                self._install(batch, again)
        done = outcomes.status == Outcome.INSTALLED
        outcomes.messages = {row: words for row, words in outcomes.messages.items() if not done[row]}
        self.counts["installed"] += int(np.count_nonzero(done))
        return outcomes

    def _supported(self, batch: _Batch) -> NDArray[np.int64]:
        """Numbers of the rules that are worth trying."""
        good = batch.shapes >= 0
        if not good.all():
            words = "a rule for another protocol than TCP and UDP, or without a mark, is not offloaded"
            self._say(batch.outcomes, int(np.argmin(good)), f"{self.settings.filter_on}: {words}")
        # Not left to the driver, whose refusal would be taken for one of the whole shape.
        wide = good & (batch.rows["mark"].astype(np.uint64) >> np.uint64(self.probed.mark_width) > 0)
        if wide.any():
            words = f"a mark wider than {self.probed.mark_width} bits is not offloaded"
            self._say(batch.outcomes, int(np.argmax(wide)), f"{self.settings.filter_on}: {words}")
        good &= ~wide
        for shape, action in self._refused:
            good &= (batch.shapes != shape) | (batch.rows["action"] != action)
        return np.flatnonzero(good)

    def _install(self, batch: _Batch, which: NDArray[np.int64]) -> NDArray[np.int64]:
        """Install the rules numbered `which`, of different matches; numbers of those to be tried once more."""
        rows = batch.rows.take(which)
        matches = (
            [batch.matches[number] for number in which.tolist()] if len(which) < len(batch.rows) else batch.matches
        )
        carried = self._delete_same(rows, matches)
        handles = self._index.add(rows, matches)
        failed, unheard = self._add(batch, which, handles)
        done = np.ones(len(which), dtype=bool)
        done[[*failed, *unheard]] = False
        batch.outcomes.status[which[done]] = Outcome.INSTALLED
        if carried.any():
            self._index.carry(handles[done], carried[done, 0], carried[done, 1])
        self._index.forget(handles[sorted(failed)])
        doubtful = sorted({*unheard, *self._judge(batch, which, failed)})
        if not doubtful:
            return which[:0]
        self.reconcile()
        asked = which[doubtful]
        there = self._index.holds(handles[doubtful], batch.rows["cookie"][asked])
        batch.outcomes.status[asked[there]] = Outcome.INSTALLED
        return asked[~there]

    def _add(
        self, batch: _Batch, which: NDArray[np.int64], handles: NDArray[np.uint32]
    ) -> tuple[dict[int, NetlinkError], list[int]]:
        """Send rules; positions in `which` of those that failed, and of those whose answer was lost."""
        failed: dict[int, NetlinkError] = {}
        unheard: list[int] = []
        kinds = batch.shapes[which] * 256 + batch.rows["action"][which]
        for kind in np.unique(kinds).tolist():
            mine = np.flatnonzero(kinds == kind)
            made = template(self.place, Shape(kind // 256), Action(kind % 256), self.probed.hardware)
            replies = self._execute(made.fill(batch.rows.take(which[mine]), handles[mine]))
            failed |= {int(mine[number]): error for number, error in replies.errors.items()}
            lost = {number for part in replies.unheard for number in part} - replies.errors.keys()
            unheard += [int(mine[number]) for number in lost]
        return failed, unheard

    def _delete_same(self, rows: NDArray[np.void], matches: list[bytes]) -> NDArray[np.uint64]:
        """Delete the rules that have these matches; packets and bytes, shape (rules, 2), that go over to the new."""
        carried = np.zeros((len(rows), 2), dtype=np.uint64)
        old = self._index.find(matches)
        there = np.flatnonzero(old)
        if not len(there):
            return carried
        handles = old[there]
        before = self._index.before(handles)
        same = self._index.holds(handles, rows["cookie"][there])
        shapes = shapes_of(self._index.rules(handles))
        replies = self._execute(delete_messages(self.place, shapes, handles, echo=True))
        carried[there[same]] = (before + self._last_counted(replies, handles))[same]
        self._index.forget(handles)
        return carried

    def _last_counted(self, replies: Replies, handles: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Packets and bytes, shape (rules, 2), with which deleted filters were echoed; 0 where none was."""
        echoed = self._reader.read_echoes(replies.echoes)
        last = np.zeros((len(handles), 2), dtype=np.uint64)
        if len(echoed):
            order = np.argsort(echoed.handle)
            at = order[np.searchsorted(echoed.handle, handles, sorter=order).clip(max=len(order) - 1)]
            heard = echoed.handle[at] == handles
            for column, name in enumerate(("packets", "bytes")):
                last[heard, column] = echoed.installed[name][at[heard]]
        return last

    def _judge(self, batch: _Batch, which: NDArray[np.int64], failed: dict[int, NetlinkError]) -> list[int]:
        """Turn refusals into outcomes; positions in `which` of those that a look at the device may mend."""
        again: list[int] = []
        lost_qdisc = any(error.number == errno.EINVAL for error in failed.values()) and self._mend_qdisc()
        verdicts: dict[tuple[int, str, int, int], Outcome | None] = {}
        for position, error in failed.items():
            number = int(which[position])
            shape, action = Shape(batch.shapes[number]), Action(batch.rows["action"][number])
            about = (error.number, error.text, int(shape), int(action))
            new = about not in verdicts
            if new:
                mended = lost_qdisc and error.number == errno.EINVAL
                verdicts[about] = None if mended else self._verdict(error, shape, action)
                self.counts["refused"] += 1
            verdict = verdicts[about]
            batch.outcomes.status[number] = verdict or Outcome.FAILED
            if verdict is None:
                again.append(position)
            what = f"{self.settings.filter_on}: {shape} rules to {action.name.lower().replace('_', ' ')}"
            if verdict is Outcome.UNSUPPORTED:
                self._say(batch.outcomes, number, f"{what} are not offloaded: {error}")
            elif new and not lost_qdisc:
                batch.outcomes.messages[number] = f"{what}: {error}"
        return again

    def _verdict(self, error: NetlinkError, shape: Shape, action: Action) -> Outcome | None:
        """What a refusal means; None: the device is not as remembered."""
        if error.number == errno.ENOSPC:
            return Outcome.FULL
        if error.number in (errno.EEXIST, errno.ENOENT):
            return None
        if error.number == errno.EOPNOTSUPP or (error.number == errno.EINVAL and error.text):
            if self._foreign_at(shape):
                return Outcome.FAILED
            if self._is_off():
                return Outcome.UNSUPPORTED  # for now, and no matter of this shape
            self._refused.add((shape, action))
            return Outcome.UNSUPPORTED
        return Outcome.FAILED

    def _mend_qdisc(self) -> bool:
        """Make the qdisc again if somebody removed it; whether it was missing."""
        try:
            made = ensure_qdisc(self._socket, self.place, self.settings.filter_on)
        except HostError:
            return False
        self.owns_qdisc |= made
        if made:
            log.warning("%s: somebody removed the qdisc with all rules; made again", self.settings.filter_on)
        return made

    def _foreign_at(self, shape: Shape) -> bool:
        """Whether somebody else's filters, of another protocol or kind, have a shape's priority."""
        info = (self.place.prio + shape) << 16
        own = self.place.info(shape)
        try:
            for run in self._socket.dump(encode_dump(self.place, info, terse=True)):
                infos = np.ascontiguousarray(run.rows[:, INFO : INFO + 4]).view("<u4")
                if (infos != own).any() or not len(self._reader.read([run])):
                    return True
        except NetlinkError:
            return False  # it cannot be known, and the refusal stands
        return False

    # Remove

    def remove(self, rules: RuleBatch) -> Outcomes:
        """Remove rules, and tell what they had counted; one that is another's by now or gone is ABSENT."""
        outcomes = Outcomes.all(Outcome.ABSENT, len(rules))
        outcomes.counted = np.zeros((len(rules), 2), dtype=np.uint64)
        matches = matches_of(rules.rows)
        handles = self._index.find(matches)
        mine = np.flatnonzero(self._index.holds(handles, rules.rows["cookie"]) & (handles != 0))
        if not len(mine):
            return outcomes
        shapes = shapes_of(self._index.rules(handles[mine]))
        before = self._index.before(handles[mine])
        replies = self._execute(delete_messages(self.place, shapes, handles[mine], echo=True))
        outcomes.status[mine] = Outcome.REMOVED
        outcomes.counted[mine] = before + self._last_counted(replies, handles[mine])
        doubtful = {number for part in replies.unheard for number in part}
        for number, error in replies.errors.items():
            if error.number == errno.ENOENT:
                outcomes.status[mine[number]] = Outcome.ABSENT
                doubtful.discard(number)
            else:
                doubtful.add(number)
        sure = np.ones(len(mine), dtype=bool)
        sure[sorted(doubtful)] = False
        gone = mine[sure]
        self._index.forget(
            handles[gone], matches if len(gone) == len(matches) else [matches[row] for row in gone.tolist()]
        )
        if doubtful:
            self.reconcile()
            for number in sorted(doubtful):
                row = mine[number]
                there = bool(self._index.holds(handles[row : row + 1], rules.rows["cookie"][row : row + 1])[0])
                outcomes.status[row] = Outcome.FAILED if there else Outcome.REMOVED
                words = f"{self.settings.filter_on}: a rule is not removed: {replies.errors.get(number, 'no answer')}"
                if there and words not in outcomes.messages.values():
                    outcomes.messages[int(row)] = words
        removed = outcomes.status == Outcome.REMOVED
        outcomes.counted[~removed] = 0
        self.counts["removed"] += int(np.count_nonzero(removed))
        return outcomes

    # Read back

    def dump(self) -> NDArray[np.void]:
        """Give our rules with their counters, rows of INSTALLED_ROW; none when the device or its qdisc is gone.

        Rules that cannot mark anything are left out and removed: those that the kernel has but the hardware has not.
        While the device's feature hw-tc-offload is off, that is all of them.
        """
        if self._is_off():
            return np.zeros(0, dtype=INSTALLED_ROW)
        found = self._without_useless(self._fetch(terse=self.settings.terse))
        if self.settings.terse:
            if not self._index.holds(found.handle, found.installed["rule"]["cookie"]).all():
                found = self._without_useless(self._fetch(terse=False))
            else:
                found.installed["rule"].view(WHOLE_RULE)[:] = self._index.rules(found.handle).view(WHOLE_RULE)
        self._remember(found)
        before = self._index.before(found.handle)
        found.installed["packets"] += before[:, 0]
        found.installed["bytes"] += before[:, 1]
        return found.installed

    def reconcile(self) -> int:
        """Look at the device and make the index what it holds; how many rules of ours that are."""
        self.counts["resyncs"] += 1
        self._remember(self._fetch(terse=False))
        return len(self._index)

    def sweep(self) -> int:
        """Remove all rules of ours that the device holds, with or without :meth:`open`; how many there were."""
        there = self.reconcile()
        outcomes = self.remove(RuleBatch(self._index.rules(self._index.handles())))
        if there and (outcomes.status == Outcome.FAILED).any():
            raise HostError("; ".join(outcomes.messages.values()))
        return there

    def filters(self) -> Filters:
        """Give our rules as the kernel tells them."""
        return self._fetch(terse=False)

    def _fetch(self, *, terse: bool) -> Filters:
        for attempt in range(_DUMP_ATTEMPTS):
            try:
                return self._fetch_once(terse=terse)
            except NetlinkError as error:
                if error.number in _GONE:
                    break
                if error.number not in (errno.EINTR, errno.ENOBUFS) or attempt == _DUMP_ATTEMPTS - 1:
                    raise HostError(f"{self.settings.filter_on}: rules cannot be read: {error}") from None
        return Filters.empty()

    def _fetch_once(self, *, terse: bool) -> Filters:
        parts = []
        for shape in Shape:
            found = self._reader.read(self._socket.dump(encode_dump(self.place, self.place.info(shape), terse=terse)))
            if len(found):
                parts.append(found.where(found.ours if terse else found.ours & found.keyed))
        return Filters.joined(parts)

    def _remember(self, found: Filters) -> None:
        """Make the index what a complete dump says."""
        rules = found.installed["rule"]
        known = self._index.holds(found.handle, rules["cookie"])
        held = self._index.handles()
        if len(held) != np.count_nonzero(known):
            gone = held[~np.isin(held, found.handle[known])]
            self.counts["vanished"] += len(gone)
            self._index.forget(gone)
        if not known.all():
            self._index.adopt(np.ascontiguousarray(rules[~known]), found.handle[~known])

    # What happens to the hardware

    def _is_off(self) -> bool:
        """Whether somebody switched off the offload that our rules need; said when it changes.

        A driver forgets its rules then, or keeps them, as it likes, and the kernel does not know. When it is on again,
        those of before are removed: they have been given up, and must not be in the way of new ones.
        """
        if not self.probed.hardware or not self._switchable:
            return False
        off = feature_is_on(self.place.ifindex, HW_TC_OFFLOAD) is False
        if off and not self._off:
            log.warning("%s", self._off_words())
        if self._off and not off:
            log.warning("%s: %s is on again", self.settings.filter_on, HW_TC_OFFLOAD)
            self._said.clear()
            self._clear()
        self._off = off
        return off

    def _off_words(self) -> str:
        name = self.settings.filter_on
        return f"{name}: {HW_TC_OFFLOAD} was switched off; nothing is offloaded: ethtool -K {name} {HW_TC_OFFLOAD} on"

    def _without_useless(self, found: Filters, *, ask_driver: bool = False) -> Filters:
        """Remove the filters that mark nothing because the hardware does not hold them; those that are left.

        ask_driver: believe the driver, too, which gives no counters for what it does not know; `found` must be a full
        dump. After a reset the kernel still takes such filters for installed.
        """
        if self.probed.refusal:
            return found
        outside = found.flags & IN_HW == 0
        # No flags at all tell nothing; in software only those that the kernel must not evaluate are useless.
        useless = outside & (found.flags != 0) if self.probed.hardware else outside & (found.flags & SKIP_SW != 0)
        if ask_driver and self.probed.hardware and self.probed.answers:
            useless |= ~found.answered
        if not useless.any():
            return found
        self._delete(found.where(useless))
        return found.where(~useless)

    def _delete(self, filters: Filters) -> None:
        """Delete filters of ours, whatever the index knows of them."""
        shapes = (filters.info >> 16).astype(np.int64) - self.place.prio
        self._execute(delete_messages(self.place, shapes, filters.handle))

    def _clear(self) -> None:
        """Delete all filters of ours; to those who look they have vanished."""
        self._delete(self._fetch(terse=False))
        self._remember(Filters.empty())

    # Common

    def _execute(self, messages: NDArray[np.uint8]) -> Replies:
        try:
            replies = self._socket.execute(messages)
        except OSError as error:
            number = error.errno or errno.EIO
            return Replies(errors=dict.fromkeys(range(len(messages)), NetlinkError(number, "cannot be sent")))
        if replies.unheard:
            self.counts["unheard"] += sum(len(part) for part in replies.unheard)
        return replies

    def _say(self, outcomes: Outcomes, number: int, words: str) -> None:
        """Give words the first time only: a million flows must not make a million lines."""
        if words not in self._said and len(outcomes.status):
            self._said.add(words)
            outcomes.messages[number] = words


def _first_of_each(matches: list[bytes], which: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the rules numbered `which` into the first of each match and the others."""
    firsts = {matches[number]: number for number in reversed(which.tolist())}
    if len(firsts) == len(which):
        return which, which[:0]
    now = np.array(sorted(firsts.values()), dtype=np.int64)
    return now, np.setdiff1d(which, now)
