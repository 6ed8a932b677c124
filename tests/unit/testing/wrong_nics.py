# SPDX-License-Identifier: Apache-2.0
"""Backends that are wrong on purpose, each in one way, and the promise that each of them breaks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import EXACT, PROTOCOL_NAMES, FlowMatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.rules import Capabilities, Device, Drop, Outcome, Outcomes, Rule, RuleBatch, SetMark
from tests.unit.engine.world import FOREIGN

from .reference_nic import ReferenceNic, flow_of, untag

_Class = type[ReferenceNic]
WRONG: dict[str, tuple[_Class, str, set[str]]] = {}
"""What is wrong → the backend, the promise that must be reported, and others that it breaks, too."""


def breaks(promise: str, *also: str) -> Callable[[_Class], _Class]:
    def enter(kind: _Class) -> _Class:
        WRONG[kind.__name__] = (kind, promise, set(also))
        return kind

    return enter


@breaks("hooks-have-our-signatures")
class TakesOtherArguments(ReferenceNic):
    @hookimpl
    def dump_offload(self, device: Device, since: int) -> NDArray[np.void]:  # type: ignore[override]
        return super().dump_offload(device)


@breaks("capabilities-are-sane")
class HasMarksOf64Bits(ReferenceNic):
    TAKES = replace(ReferenceNic.TAKES, mark_width=64)


@breaks("capabilities-are-stable")
class ForgetsWhatItCanDo(ReferenceNic):
    @hookimpl
    def probe_offload(self, device: Device) -> Capabilities:
        return replace(self.TAKES, notes=("nearly full",)) if self.rules else self.TAKES


@breaks("every-rule-has-a-status")
class AnswersOneStatusTooFew(ReferenceNic):
    def answer(self, status: list[Outcome]) -> Outcomes:
        return super().answer(status[:-1])


@breaks("every-rule-has-a-status")
class AnswersRightForRemovals(ReferenceNic):
    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        answer = super().install_offload(device, rules)
        answer.status = np.where(answer.status == Outcome.INSTALLED, Outcome.REMOVED, answer.status).astype(np.uint8)
        return answer


@breaks("every-rule-has-a-status")
class AnswersAList(ReferenceNic):
    def answer(self, status: list[Outcome]) -> Outcomes:
        return Outcomes(status)  # type: ignore[arg-type]


@breaks("every-rule-has-a-status")
class WritesToTheBatch(ReferenceNic):
    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        answer = super().install_offload(device, rules)
        rules.rows["mark"] = 1
        return answer


@breaks("dumps-are-installed-rows")
class DumpsPlainRules(ReferenceNic):
    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        return super().dump_offload(device)["rule"]  # type: ignore[no-any-return]


@breaks("dumps-are-installed-rows")
class LivesInTheFuture(ReferenceNic):
    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        rows = super().dump_offload(device)
        rows["last_used"] = 1 << 63
        return rows


@breaks("empty-batches-are-answered")
class TakesAnEmptyBatchForAll(ReferenceNic):
    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        if not len(rules):
            self.rules.clear()
        return super().remove_offload(device, rules)


@breaks("hooks-do-not-raise")
class RaisesInsideABatch(ReferenceNic):
    def take(self, rule: Rule) -> Outcome:
        return {6: super().take, 17: super().take, 1: super().take, 132: super().take}[rule.match.proto](rule)


@breaks("rules-are-accepted")
class LacksIpv6WithoutAWord(ReferenceNic):
    """IPv4 works, with which most tests begin."""

    def take(self, rule: Rule) -> Outcome:
        return Outcome.UNSUPPORTED if rule.match.family == 6 else super().take(rule)


@breaks("dumps-give-back-the-rules")
class ForgetsCookies(ReferenceNic):
    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        rows = super().dump_offload(device)
        rows["rule"]["cookie"] &= np.uint64(0xFFFF_0000_0000_FFFF)
        return rows


@breaks("dumps-give-back-the-rules")
class DumpsOtherPorts(ReferenceNic):
    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        rows = super().dump_offload(device)
        rows["rule"]["key"]["sport"] = rows["rule"]["key"]["sport"].astype("<u2").view(">u2")
        return rows


@breaks("packets-are-marked", "the-widest-mark-arrives", "masked-rules-mark", "tagged-rules-mark")
class SaysInstalledAndMarksNothing(ReferenceNic):
    def receive(self, frame: bytes) -> int | None:
        return 0 if super().receive(frame) is not None else None


@breaks("other-packets-are-not-marked", "drops-keep-packets-away", "masked-rules-mark", "masked-rules-drop")
class IgnoresTheSourcePort(ReferenceNic):
    def receive(self, frame: bytes) -> int | None:
        heads = [frame[:34] + rule.match.sport.to_bytes(2, "big") + frame[36:] for rule in self.rules.values()]
        return next((mark for head in heads if (mark := super(IgnoresTheSourcePort, self).receive(head))), 0) or (
            super().receive(frame)
        )


@breaks(
    "packets-are-counted",
    "removal-counts-to-the-end",
    "rules-outlive-their-process",
    "masked-rules-mark",
    "masked-rules-drop",
    "tagged-rules-mark",
)
class CountsEveryOtherPacket(ReferenceNic):
    def counted(self, rule: Rule) -> tuple[int, int]:
        packets, size = super().counted(rule)
        return packets // 2 * 2, size


@breaks("packets-are-counted", "removal-counts-to-the-end")
class CountsBitsForBytes(ReferenceNic):
    def counted(self, rule: Rule) -> tuple[int, int]:
        packets, size = super().counted(rule)
        return packets, size * 8


@breaks("counters-never-go-back")
class ResetsCountersOfWhatIsInstalledAgain(ReferenceNic):
    def keep(self, rule: Rule) -> None:
        self.forget(rule.cookie)
        super().keep(rule)


@breaks("counters-never-go-back")
class CountsBackwards(ReferenceNic):
    """From the sixth packet on, which most tests never send."""

    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        rows = super().dump_offload(device)
        rows["packets"] = np.where(
            (rows["packets"] > 5) & (rows["packets"] < 20), 11 - rows["packets"] // 2, rows["packets"]
        )
        return rows


@breaks("drops-keep-packets-away", "masked-rules-drop")
class DropsNothing(ReferenceNic):
    def receive(self, frame: bytes) -> int | None:
        return super().receive(frame) or 0


@breaks("masked-rules-mark", "masked-rules-drop")
class TakesMasksForExactMatches(ReferenceNic):
    def fits(self, match: FlowMatch, flow: FlowMatch, has_ports: bool) -> bool:
        return match == flow


@breaks("masked-rules-mark", "masked-rules-drop")
class MatchesPrefixesByBytes(ReferenceNic):
    """A prefix of 24 bits is one of 16."""

    def fits(self, match: FlowMatch, flow: FlowMatch, has_ports: bool) -> bool:
        wider = replace(match, wild=replace(match.wild, src=match.wild.src and match.wild.src + 8))
        return super().fits(wider, flow, has_ports)


@breaks("masked-rules-mark", "masked-rules-drop")
class KnowsNoFragments(ReferenceNic):
    def fits(self, match: FlowMatch, flow: FlowMatch, has_ports: bool) -> bool:
        return (has_ports or flow.proto not in PROTOCOL_NAMES) and super().fits(match, flow, has_ports)


@breaks("masked-rules-drop")
class MarksWhatAMaskedRuleDrops(ReferenceNic):
    def receive(self, frame: bytes) -> int | None:
        flow, has_ports = flow_of(frame)
        masked = any(self.fits(each.match, flow, has_ports) for each in self.rules.values() if each.match.wild != EXACT)
        mark = super().receive(frame)
        return 0 if mark is None and masked else mark


@breaks("tagged-rules-mark")
class MatchesTheOuterTagAlone(ReferenceNic):
    def fits_tags(self, wanted: tuple[int, ...], vlans: tuple[int, ...]) -> bool:
        return wanted[0] == vlans[0]


@breaks("tagged-rules-mark")
class TakesAPriorityForPartOfTheId(ReferenceNic):
    def receive(self, frame: bytes) -> int | None:
        return 0 if untag(frame)[0][0] and frame[14] >> 4 else super().receive(frame)


@breaks("dumps-give-back-the-rules")
class DumpsWithoutTags(ReferenceNic):
    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        rows = super().dump_offload(device)
        rows["rule"]["vlans"] = 0
        return rows


@breaks("rules-are-accepted")
class SaysTagsAndTakesNone(ReferenceNic):
    def take(self, rule: Rule) -> Outcome:
        return Outcome.UNSUPPORTED if any(rule.vlans) else super().take(rule)


@breaks("dumps-give-back-the-rules")
class DumpsWithoutMasks(ReferenceNic):
    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        rows = super().dump_offload(device)
        rows["rule"]["key"]["wild"] = 0
        return rows


@breaks("rules-are-accepted")
class SaysMasksAndTakesNone(ReferenceNic):
    def take(self, rule: Rule) -> Outcome:
        return super().take(rule) if rule.match.wild == EXACT else Outcome.UNSUPPORTED


@breaks(
    "removed-rules-are-gone",
    "removal-is-idempotent",
    "a-full-table-says-full",
    "teardown-leaves-nothing",
    "dumps-give-back-the-rules",
    "masked-rules-mark",
    "masked-rules-drop",
)
class SaysRemovedAndKeeps(ReferenceNic):
    def let_go(self, rule: Rule) -> Outcome:
        return Outcome.REMOVED if rule.cookie in self.rules else Outcome.ABSENT


@breaks("removal-is-idempotent")
class FailsToRemoveWhatIsGone(ReferenceNic):
    def let_go(self, rule: Rule) -> Outcome:
        there = any(each.match == rule.match for each in self.rules.values())
        return super().let_go(rule) if there else Outcome.FAILED


@breaks("removal-heeds-the-cookie")
class RemovesByMatch(ReferenceNic):
    def let_go(self, rule: Rule) -> Outcome:
        there = next((each for each in self.rules.values() if each.match == rule.match), rule)
        return super().let_go(there)


@breaks("removal-counts-to-the-end")
class TellsOfTheLastDump(ReferenceNic):
    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        answer = super().remove_offload(device, rules)
        assert answer.counted is not None
        answer.counted //= np.uint64(2)
        return answer


@breaks("installation-is-idempotent", "rules-are-accepted")
class InstallsOnce(ReferenceNic):
    def take(self, rule: Rule) -> Outcome:
        again = rule in self.rules.values() and len(self.rules) < self.size
        return Outcome.FAILED if again and not self.hits[rule.cookie] else super().take(rule)


@breaks("a-flow-has-one-rule")
class KeepsBothRulesOfAFlow(ReferenceNic):
    def take(self, rule: Rule) -> Outcome:
        same = any(each.match == rule.match and each.cookie != rule.cookie for each in self.rules.values())
        if same:
            self.keep(rule)
            return Outcome.INSTALLED
        return super().take(rule)


@breaks("a-bad-rule-harms-no-other")
class GivesUpAtTheFirstBadRule(ReferenceNic):
    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        answer = super().install_offload(device, rules)
        bad = np.flatnonzero(answer.status == Outcome.UNSUPPORTED)
        for row in range(bad[0], len(rules)) if len(bad) else ():
            self.let_go(list(rules)[row])
            answer.status[row] = Outcome.UNSUPPORTED
        return answer


@breaks("a-bad-rule-harms-no-other")
class RefusesWithoutWords(ReferenceNic):
    def answer(self, status: list[Outcome]) -> Outcomes:
        return Outcomes(np.array(status, dtype=np.uint8))


@breaks("a-full-table-says-full")
class FailsWhenFull(ReferenceNic):
    def take(self, rule: Rule) -> Outcome:
        answer = super().take(rule)
        return Outcome.FAILED if answer is Outcome.FULL else answer


@breaks("a-full-table-says-full")
class EvictsTheOldest(ReferenceNic):
    def take(self, rule: Rule) -> Outcome:
        if super().take(rule) is Outcome.FULL:
            self.forget(next(iter(self.rules)))
        return super().take(rule)


@breaks("unsupported-is-reported")
class FailsAtOtherProtocols(ReferenceNic):
    def take(self, rule: Rule) -> Outcome:
        answer = super().take(rule)
        return Outcome.FAILED if answer is Outcome.UNSUPPORTED else answer


@breaks("unsupported-is-reported")
class TakesWhatItNeverMatches(ReferenceNic):
    def take(self, rule: Rule) -> Outcome:
        return Outcome.INSTALLED if rule.match.proto == 132 else super().take(rule)


@breaks("the-widest-mark-arrives")
class HasOneBitLess(ReferenceNic):
    def receive(self, frame: bytes) -> int | None:
        mark = super().receive(frame)
        return mark if mark is None else mark & 0x7FFF


@breaks("marks-are-not-truncated")
class TruncatesMarks(ReferenceNic):
    def take(self, rule: Rule) -> Outcome:
        if isinstance(rule.action, SetMark):
            rule = replace(rule, action=SetMark(rule.action.mark & 0xFFFF))
        return super().take(rule)


@breaks("dumps-go-on-under-traffic")
class LosesPacketsWhenItIsRead(ReferenceNic):
    def receive(self, frame: bytes) -> int | None:
        before = dict(self.hits)
        answer = super().receive(frame)
        # Only the test under traffic sends from another thread.
        if threading.current_thread() is not threading.main_thread():
            self.hits.update(before)
        return answer


@breaks("rules-outlive-their-process")
class BeginsWithAnEmptyTable(ReferenceNic):
    def __init__(self, hardware: Any) -> None:
        super().__init__(hardware)
        ours = [cookie for cookie in self.rules if cookie >> 48]
        for cookie in ours:
            self.forget(cookie)


@breaks("foreign-rules-stay")
class RemovesForeignRules(ReferenceNic):
    @hookimpl
    def probe_offload(self, device: Device) -> Capabilities:
        for cookie in [cookie for cookie in self.rules if not cookie >> 48]:
            self.forget(cookie)
        return super().probe_offload(device)


@breaks("teardown-leaves-nothing")
class LeavesARuleBehind(ReferenceNic):
    @hookimpl
    def teardown(self) -> None:
        self.keep(Rule(FOREIGN.match, Drop(), 0x6E66 << 48))


@breaks("throughput", "a-full-table-says-full")
class DumpsAtMostTen(ReferenceNic):
    @hookimpl
    def dump_offload(self, device: Device) -> NDArray[np.void]:
        return super().dump_offload(device)[:10]
