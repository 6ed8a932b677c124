# SPDX-License-Identifier: Apache-2.0
"""The flower filters of one device: install rules, remove them, read them back with their counters.

The kernel's dump is the truth; the index is a copy of it. When an acknowledgement is lost or an error contradicts the
index (a rule exists already, a rule or the qdisc was removed by another program), a dump corrects the index.
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
from nfcore.kernel import interface_exists
from nfcore.kernel.ethtool import HW_TC_OFFLOAD, feature_is_on

from .filters import FilterReader, Filters
from .messages import INFO, delete_messages, encode_dump, template
from .netlink import NetlinkError, Replies, TcSocket
from .probe import Probe, probe_device, remove_leftovers
from .qdisc import ensure_qdisc, is_shared, remove_qdisc
from .rule_index import WHOLE_RULE, RuleIndex, matches_of
from .shapes import EGRESS, INGRESS, Kind, Place, Shape, kinds_of, shapes_of
from .tcmsg.cls_flower import IN_HW, SKIP_SW

log = logging.getLogger(__name__)
_DUMP_ATTEMPTS = 5
_NO_DEVICE = (errno.ENODEV, errno.ENXIO)


@dataclass(frozen=True)
class Settings:
    """Where and how the rules of one device are installed."""

    filter_on: str
    """Name of the interface that carries the filters: the device itself, or its veth peer."""
    ifindex: int
    """Of `filter_on`."""
    direction: Literal["ingress", "egress"] = "ingress"
    prio: int = 6000
    skip_sw: Literal["auto", "on", "off"] = "auto"
    software_helps: bool = False
    """Whether rules that the kernel evaluates are of use. On the device's own ingress they are not: XDP runs before."""
    terse: bool = False
    """Read counters with terse dumps: cheaper, without last_used."""

    def place(self) -> Place:
        """Return where the filters are attached."""
        return Place(self.ifindex, EGRESS if self.direction == "egress" else INGRESS, self.prio)


@dataclass
class _Batch:
    """Rules to install, with what is derived from each of them."""

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
        """Counters behind the metrics: installed, removed, refused, vanished, unheard, resyncs."""
        self._looking = False
        """What is on the device is to stay as it is."""
        self._made = False
        """The qdisc is this object's own."""
        self.probed = Probe(hardware=False, refusal=f"{settings.filter_on}: not probed yet")
        self._index = RuleIndex()
        self._reader = FilterReader()
        self._lacking: set[tuple[Shape, Action]] = set()
        """Shapes and actions that the probe found the device not to take."""
        self._refused: set[int] = set()
        """Numbers of further kinds of rules that it has refused."""
        self._has_worked = False
        """The device has taken rules."""
        self._has_feature = False
        """The device took rules while its feature hw-tc-offload was on."""
        self._off = False
        """The feature was off when it was last read."""
        self._reported: set[str] = set()
        self._socket = socket or TcSocket()

    def open(self, *, looking: bool = False) -> None:
        """Create the qdisc if there is none, probe the device, and take over the nfcore rules that it holds.

        looking: rules and qdisc that are there, of a running daemon or a killed one, stay as they are. Otherwise one of
        the rules is removed when a full table leaves no room for the probe.

        HostError with the kernel's message when no rule can be added for a reason that the user can change. A device or
        kernel without flower is no error: then :attr:`probed` has the reason and every rule is UNSUPPORTED.
        """
        self._looking = looking
        self._made = ensure_qdisc(self._socket, self.place, self.settings.filter_on)
        found = self._probe()
        if found.full and not looking and self.reconcile():
            # The rules of a killed run fill the table.
            self.remove(RuleBatch(self._index.rules(self._index.handles()[:1])))
            found = self._probe()
        self._apply_probe(found)
        if self.probed.refusal:
            self._remove_qdisc()
        else:
            self.reconcile()

    def reprobe(self) -> None:
        """Probe the device again, beside the rules that it holds, and find out which of those it has lost.

        Called when the link or a feature of the device changed, or its driver was reset. A device that is gone or
        takes no rules any more is no error: :attr:`probed` has the reason until the next call.
        """
        before = self.probed
        try:
            self._offload_is_off()
            ensure_qdisc(self._socket, self.place, self.settings.filter_on)
            found = self._probe()
        except HostError as error:
            found = Probe(before.hardware, refusal=str(error))
        if found.refusal and self._has_worked:
            found.temporary = interface_exists(self.place.ifindex)  # what it did before it may do again
        if found.full and not before.refusal:
            found = before  # the table is full of its own rules
        if found.hardware != before.hardware and not found.temporary:
            self._clear()  # a rule with skip_sw is of no use without it, and the reverse
            self._off = False
        self._apply_probe(found)
        if not found.refusal:
            self._update_index(self._remove_useless(self._fetch(terse=False), ask_driver=True))

    def _apply_probe(self, found: Probe) -> None:
        if found.refusal != self.probed.refusal:
            self._reported.clear()
        self.probed = found
        self._lacking = {(shape, action) for shape in Shape for action in Action if self._lacks(shape, action)}
        self._refused.clear()
        self._has_worked |= not found.refusal
        if found.hardware and not found.refusal:
            self._has_feature = feature_is_on(self.place.ifindex, HW_TC_OFFLOAD) is True

    def close(self, *, remove: bool = True) -> bool:
        """Remove the qdisc if nfcore created it and it is empty, and close the socket; whether it was removed."""
        if remove and self._off:
            self._clear()  # dump() did not show these rules any more, so no caller has removed them
        removed = remove and self._remove_qdisc(give_up=not self._looking)
        self._socket.close()
        return removed

    def _remove_qdisc(self, *, give_up: bool = False) -> bool:
        return (self._made or not self._looking) and remove_qdisc(self._socket, self.place.ifindex, give_up=give_up)

    def capabilities(self) -> Capabilities:
        """Return what the device can do, as last probed."""
        return self.probed.capabilities()

    @property
    def held(self) -> int:
        """Number of nfcore's rules on the device, as last known."""
        return len(self._index)

    def _probe(self) -> Probe:
        name, skip_sw = self.settings.filter_on, self.settings.skip_sw
        if skip_sw == "off":
            return probe_device(self._socket, self.place, name, hardware=False)
        found = probe_device(self._socket, self.place, name, hardware=True)
        if not found.refusal or found.full or skip_sw == "on" or not self.settings.software_helps:
            return found
        return probe_device(self._socket, self.place, name, hardware=False)

    def _lacks(self, shape: Shape, action: Action) -> bool:
        return str(shape) in self.probed.refused or (action is Action.DROP and "drop" in self.probed.refused)

    # Install

    def install(self, rules: RuleBatch) -> Outcomes:
        """Install rules. One whose match is there already is replaced: deleted, then added.

        A rule that is replaced by itself (the same cookie) keeps its counters.
        """
        # What may pass must not be taken for what the device lacks.
        outcomes = Outcomes.all(Outcome.FAILED if self.probed.temporary else Outcome.UNSUPPORTED, len(rules))
        refusal = self.probed.refusal or (self._off_message() if self._offload_is_off() else "")
        if refusal:
            self._report_once(outcomes, 0, refusal)
            return outcomes
        batch = _Batch(rules.rows, matches_of(rules.rows), shapes_of(rules.rows), outcomes)
        left = self._supported(batch)
        outcomes.status[left] = Outcome.FAILED
        while len(left):
            now, left = _split_duplicates(batch.matches, left)
            retry = self._install(batch, now)
            if len(retry):
                self._install(batch, retry)
        done = outcomes.status == Outcome.INSTALLED
        outcomes.messages = {row: message for row, message in outcomes.messages.items() if not done[row]}
        self.counts["installed"] += int(np.count_nonzero(done))
        return outcomes

    def _supported(self, batch: _Batch) -> NDArray[np.int64]:
        """Numbers of the rules that the device may take."""
        name = self.settings.filter_on
        good = batch.shapes >= 0
        if not good.all():
            reason = "a rule with ports of another protocol than TCP and UDP, or without a mark, is not offloaded"
            self._report_once(batch.outcomes, int(np.argmin(good)), f"{name}: {reason}")
        # Checked here: the driver's refusal would be taken for one of the whole shape.
        wide = good & (batch.rows["mark"].astype(np.uint64) >> np.uint64(self.probed.mark_width) > 0)
        if wide.any():
            reason = f"a mark wider than {self.probed.mark_width} bits is not offloaded"
            self._report_once(batch.outcomes, int(np.argmax(wide)), f"{name}: {reason}")
        good &= ~wide
        for shape, action in self._lacking:
            good &= (batch.shapes != shape) | (batch.rows["action"] != action)
        if self._refused:
            good &= ~np.isin(kinds_of(batch.rows, batch.shapes), list(self._refused))
        return np.flatnonzero(good)

    def _install(self, batch: _Batch, which: NDArray[np.int64]) -> NDArray[np.int64]:
        """Install the rules numbered `which`, of different matches; numbers of those to try once more."""
        rows = batch.rows.take(which)
        matches = (
            [batch.matches[number] for number in which.tolist()] if len(which) < len(batch.rows) else batch.matches
        )
        earlier = self._delete_same(rows, matches)
        handles = self._index.add(rows, matches)
        failed, unanswered = self._add(batch, which, handles)
        done = np.ones(len(which), dtype=bool)
        done[[*failed, *unanswered]] = False
        batch.outcomes.status[which[done]] = Outcome.INSTALLED
        if earlier.any():
            self._index.add_earlier(handles[done], earlier[done, 0], earlier[done, 1])
        self._index.forget(handles[sorted(failed)])
        doubtful = sorted({*unanswered, *self._set_refusals(batch, which, failed)})
        if not doubtful:
            return which[:0]
        self.reconcile()
        checked = which[doubtful]
        there = self._index.holds(handles[doubtful], batch.rows["cookie"][checked])
        batch.outcomes.status[checked[there]] = Outcome.INSTALLED
        return checked[~there]

    def _add(
        self, batch: _Batch, which: NDArray[np.int64], handles: NDArray[np.uint32]
    ) -> tuple[dict[int, NetlinkError], list[int]]:
        """Send rules; positions in `which` of those that failed, and of those whose acknowledgement was lost."""
        failed: dict[int, NetlinkError] = {}
        unanswered: list[int] = []
        rows = batch.rows.take(which)
        kinds = kinds_of(rows, batch.shapes[which])
        for kind in np.unique(kinds).tolist():
            positions = np.flatnonzero(kinds == kind)
            made = template(self.place, Kind.of(kind), self.probed.hardware)
            replies = self._execute(made.fill(rows.take(positions), handles[positions]))
            failed |= {int(positions[number]): error for number, error in replies.errors.items()}
            unanswered += [int(positions[number]) for number in replies.unanswered - replies.errors.keys()]
        return failed, unanswered

    def _delete_same(self, rows: NDArray[np.void], matches: list[bytes]) -> NDArray[np.uint64]:
        """Delete the rules that have these matches; packets and bytes, shape (rules, 2), that the new rules keep."""
        earlier = np.zeros((len(rows), 2), dtype=np.uint64)
        old = self._index.find(matches)
        there = np.flatnonzero(old)
        if not len(there):
            return earlier
        handles = old[there]
        before = self._index.earlier(handles)
        same = self._index.holds(handles, rows["cookie"][there])
        shapes = shapes_of(self._index.rules(handles))
        replies = self._execute(delete_messages(self.place, shapes, handles, echo=True))
        earlier[there[same]] = (before + self._last_counted(replies, handles))[same]
        self._index.forget(handles)
        return earlier

    def _last_counted(self, replies: Replies, handles: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Packets and bytes, shape (rules, 2), in the echoes of deleted filters; 0 where there is no echo."""
        echoed = self._reader.read_echoes(replies.echoes)
        last = np.zeros((len(handles), 2), dtype=np.uint64)
        if len(echoed):
            order = np.argsort(echoed.handle)
            at = order[np.searchsorted(echoed.handle, handles, sorter=order).clip(max=len(order) - 1)]
            found = echoed.handle[at] == handles
            for column, name in enumerate(("packets", "bytes")):
                last[found, column] = echoed.installed[name][at[found]]
        return last

    def _set_refusals(self, batch: _Batch, which: NDArray[np.int64], failed: dict[int, NetlinkError]) -> list[int]:
        """Turn refusals into outcomes; positions in `which` of those that a dump and a second try may mend."""
        retry: list[int] = []
        qdisc_restored = any(error.number == errno.EINVAL for error in failed.values()) and self._restore_qdisc()
        outcomes: dict[tuple[int, str, int], Outcome | None] = {}
        kinds = kinds_of(batch.rows, batch.shapes)
        for position, error in failed.items():
            number = int(which[position])
            key = (error.number, error.text, int(kinds[number]))
            new = key not in outcomes
            if new:
                mended = qdisc_restored and error.number == errno.EINVAL
                outcomes[key] = None if mended else self._outcome_of(error, key[2])
                self.counts["refused"] += 1
            outcome = outcomes[key]
            batch.outcomes.status[number] = outcome or Outcome.FAILED
            if outcome is None:
                retry.append(position)
            what = f"{self.settings.filter_on}: {Kind.of(key[2])}"
            if outcome is Outcome.UNSUPPORTED:
                self._report_once(batch.outcomes, number, f"{what} are not offloaded: {error}")
            elif new and not qdisc_restored:
                batch.outcomes.messages[number] = f"{what}: {error}"
        return retry

    def _outcome_of(self, error: NetlinkError, kind: int) -> Outcome | None:
        """Outcome that a refusal of a kind of rules (its number) stands for.

        None: the index differs from the device, so dump and try again.
        """
        if error.number == errno.ENOSPC:
            return Outcome.FULL
        if error.number in (errno.EEXIST, errno.ENOENT):
            return None
        if error.number == errno.EOPNOTSUPP or (error.number == errno.EINVAL and error.text):
            if self._has_foreign_filters(Kind.of(kind).shape) or is_shared(self._socket, self.place):
                return Outcome.FAILED  # for now
            if self._offload_is_off():
                return Outcome.UNSUPPORTED  # for now; it does not concern this shape alone
            self._refused.add(kind)
            return Outcome.UNSUPPORTED
        return Outcome.FAILED

    def _restore_qdisc(self) -> bool:
        """Create the qdisc again if another program removed it; whether it was missing."""
        try:
            made = ensure_qdisc(self._socket, self.place, self.settings.filter_on)
        except HostError:
            return False
        if made:
            name = self.settings.filter_on
            log.warning("%s: another program removed the qdisc with all rules; it has been created again", name)
        return made

    def _has_foreign_filters(self, shape: Shape) -> bool:
        """Whether the prio of a shape has filters of another protocol or kind, which only other programs add."""
        info = (self.place.prio + shape) << 16
        own = self.place.info(shape)
        try:
            # Not terse: the kernel cannot dump all kinds so, and gives up.
            for run in self._socket.dump(encode_dump(self.place, info, terse=False)):
                infos = np.ascontiguousarray(run.rows[:, INFO : INFO + 4]).view("<u4")
                if (infos != own).any() or not len(self._reader.read([run])):
                    return True
        except NetlinkError:
            return False  # unknown; then the driver's refusal counts
        return False

    # Remove

    def remove(self, rules: RuleBatch) -> Outcomes:
        """Remove rules and return their last counters; a rule that was replaced by another or is gone is ABSENT."""
        outcomes = Outcomes.all(Outcome.ABSENT, len(rules))
        outcomes.counted = np.zeros((len(rules), 2), dtype=np.uint64)
        matches = matches_of(rules.rows)
        handles = self._index.find(matches)
        held = np.flatnonzero(self._index.holds(handles, rules.rows["cookie"]) & (handles != 0))
        if not len(held):
            return outcomes
        shapes = shapes_of(self._index.rules(handles[held]))
        earlier = self._index.earlier(handles[held])
        replies = self._execute(delete_messages(self.place, shapes, handles[held], echo=True))
        outcomes.status[held] = Outcome.REMOVED
        outcomes.counted[held] = earlier + self._last_counted(replies, handles[held])
        doubtful = set(replies.unanswered)
        for number, error in replies.errors.items():
            if error.number == errno.ENOENT:
                outcomes.status[held[number]] = Outcome.ABSENT
                doubtful.discard(number)
            else:
                doubtful.add(number)
        sure = np.ones(len(held), dtype=bool)
        sure[sorted(doubtful)] = False
        gone = held[sure]
        self._index.forget(
            handles[gone], matches if len(gone) == len(matches) else [matches[row] for row in gone.tolist()]
        )
        if doubtful:
            self.reconcile()
            for number in sorted(doubtful):
                row = held[number]
                there = bool(self._index.holds(handles[row : row + 1], rules.rows["cookie"][row : row + 1])[0])
                outcomes.status[row] = Outcome.FAILED if there else Outcome.REMOVED
                reason = replies.errors.get(number, "no acknowledgement")
                message = f"{self.settings.filter_on}: a rule is not removed: {reason}"
                if there and message not in outcomes.messages.values():
                    outcomes.messages[int(row)] = message
        removed = outcomes.status == Outcome.REMOVED
        outcomes.counted[~removed] = 0
        self.counts["removed"] += int(np.count_nonzero(removed))
        return outcomes

    # Dump

    def dump(self) -> NDArray[np.void]:
        """Return nfcore's rules with their counters, rows of INSTALLED_ROW; none when device or qdisc are gone.

        Rules that cannot mark anything, since the kernel has them but the hardware has not, are removed and not
        returned. While the device's feature hw-tc-offload is off, none is returned.
        """
        if self._offload_is_off():
            return np.zeros(0, dtype=INSTALLED_ROW)
        found = self._remove_useless(self._fetch(terse=self.settings.terse))
        if self.settings.terse:
            if not self._index.holds(found.handle, found.installed["rule"]["cookie"]).all():
                found = self._remove_useless(self._fetch(terse=False))
            else:
                found.installed["rule"].view(WHOLE_RULE)[:] = self._index.rules(found.handle).view(WHOLE_RULE)
        self._update_index(found)
        earlier = self._index.earlier(found.handle)
        found.installed["packets"] += earlier[:, 0]
        found.installed["bytes"] += earlier[:, 1]
        return found.installed

    def reconcile(self) -> int:
        """Dump the device and make the index equal to it; number of nfcore's rules there."""
        self.counts["resyncs"] += 1
        self._update_index(self._fetch(terse=False))
        return len(self._index)

    def sweep(self) -> int:
        """Remove all of nfcore's rules from the device, :meth:`open` or not; how many there were."""
        try:
            there = remove_leftovers(self._socket, self.place)
        except NetlinkError:
            there = 0  # there is no qdisc
        there += self.reconcile()
        outcomes = self.remove(RuleBatch(self._index.rules(self._index.handles())))
        if there and (outcomes.status == Outcome.FAILED).any():
            raise HostError("; ".join(outcomes.messages.values()))
        return there

    def filters(self) -> Filters:
        """Return nfcore's filters as the kernel dumps them."""
        return self._fetch(terse=False)

    def _fetch(self, *, terse: bool) -> Filters:
        for attempt in range(_DUMP_ATTEMPTS):
            try:
                return self._fetch_once(terse=terse)
            except NetlinkError as error:
                if error.number in _NO_DEVICE:
                    break
                if error.number not in (errno.EINTR, errno.ENOBUFS) or attempt == _DUMP_ATTEMPTS - 1:
                    raise HostError(f"{self.settings.filter_on}: rules cannot be read: {error}") from None
        return Filters.empty()

    def _fetch_once(self, *, terse: bool) -> Filters:
        parts: list[Filters] = []
        foreign: set[int] = set()
        for shape in Shape:
            found = self._fetch_shape(shape, terse=terse)
            if len(found):
                foreign.update(found.handle[~found.ours].tolist())
                parts.append(found.where(found.ours if terse else found.ours & found.complete))
        self._index.avoid(foreign)
        return Filters.joined(parts)

    def _fetch_shape(self, shape: Shape, *, terse: bool) -> Filters:
        try:
            return self._reader.read(self._socket.dump(encode_dump(self.place, self.place.info(shape), terse=terse)))
        except NetlinkError as error:
            # Another program's filter has our prio, and its kind has no terse dump.
            if not terse or error.number not in (errno.EMSGSIZE, errno.EOPNOTSUPP):
                raise
        return self._fetch_shape(shape, terse=False)

    def _update_index(self, found: Filters) -> None:
        """Make the index equal to a complete dump."""
        rules = found.installed["rule"]
        known = self._index.holds(found.handle, rules["cookie"])
        held = self._index.handles()
        if len(held) != np.count_nonzero(known):
            gone = held[~np.isin(held, found.handle[known])]
            self.counts["vanished"] += len(gone)
            self._index.forget(gone)
        if not known.all():
            self._index.adopt(np.ascontiguousarray(rules[~known]), found.handle[~known])

    # Rules that the hardware has lost

    def _offload_is_off(self) -> bool:
        """Whether the feature hw-tc-offload, which the rules need, is off now; logs each change.

        When it is switched off a driver may forget its rules or keep them, and the kernel does not know which. When it
        is on again the old rules are removed: dump() did not show them meanwhile, and new ones must not collide.
        """
        if not self.probed.hardware or not self._has_feature:
            return False
        off = feature_is_on(self.place.ifindex, HW_TC_OFFLOAD) is False
        if off and not self._off:
            log.warning("%s", self._off_message())
        if self._off and not off:
            log.warning("%s: %s is on again", self.settings.filter_on, HW_TC_OFFLOAD)
            self._reported.clear()
            self._clear()
        self._off = off
        return off

    def _off_message(self) -> str:
        name = self.settings.filter_on
        return f"{name}: {HW_TC_OFFLOAD} was switched off; nothing is offloaded: ethtool -K {name} {HW_TC_OFFLOAD} on"

    def _remove_useless(self, found: Filters, *, ask_driver: bool = False) -> Filters:
        """Remove the filters that mark nothing because the hardware does not hold them; returns the others.

        ask_driver: also remove those for which a driver that always gives counters gives none; `found` must be a full
        dump. After a reset the kernel still lists such filters as installed.
        """
        if self.probed.refusal:
            return found
        outside = found.flags & IN_HW == 0
        # Flags of 0 say nothing; in software only filters that the kernel must not evaluate are useless.
        useless = outside & (found.flags != 0) if self.probed.hardware else outside & (found.flags & SKIP_SW != 0)
        if ask_driver and self.probed.hardware and self.probed.gives_counters:
            useless |= ~found.driver_counted
        if not useless.any():
            return found
        self._delete(found.where(useless))
        return found.where(~useless)

    def _delete(self, filters: Filters) -> None:
        """Delete filters of nfcore, whether the index has them or not."""
        shapes = (filters.info >> 16).astype(np.int64) - self.place.prio
        self._execute(delete_messages(self.place, shapes, filters.handle))

    def _clear(self) -> None:
        """Delete all of nfcore's filters; they count as vanished."""
        self._delete(self._fetch(terse=False))
        self._update_index(Filters.empty())

    # For all of the above

    def _execute(self, messages: NDArray[np.uint8]) -> Replies:
        try:
            replies = self._socket.execute(messages)
        except OSError as error:
            number = error.errno or errno.EIO
            return Replies(errors=dict.fromkeys(range(len(messages)), NetlinkError(number, "cannot be sent")))
        self.counts["unheard"] += len(replies.unanswered)
        return replies

    def _report_once(self, outcomes: Outcomes, number: int, message: str) -> None:
        """Give rule `number` a message unless it was given before: a million flows must not make a million lines."""
        if message not in self._reported and len(outcomes.status):
            self._reported.add(message)
            outcomes.messages[number] = message


def _split_duplicates(matches: list[bytes], which: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the rules numbered `which` into the first of each match, and the others."""
    firsts = {matches[number]: number for number in reversed(which.tolist())}
    if len(firsts) == len(which):
        return which, which[:0]
    now = np.array(sorted(firsts.values()), dtype=np.int64)
    return now, np.setdiff1d(which, now)
