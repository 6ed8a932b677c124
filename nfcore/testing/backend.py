# SPDX-License-Identifier: Apache-2.0
"""The conformance suite of offload backends: subclass it, give the fixture `nic`, and pytest collects the rest.

class TestMyNic(BackendConformance):
    @pytest.fixture
    def nic(self) -> Iterator[NicUnderTest]: ...
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ..api.flows import FlowMatch
from ..api.rules import Outcome, RuleBatch, SetMark
from .driver import DUMP, INSTALL, PROBE, REMOVE, BackendDriver, by_protocol, told
from .nic import NicUnderTest, Seen
from .promises import names
from .samples import sample_flow, sample_frame, sample_rules

_FCS = 4
"""Bytes of a frame that some NICs count and some do not."""
_ETHERNET = 14


class BackendConformance:
    """Tests of one backend on one device; each is a promise, in its docstring's words."""

    @pytest.fixture
    def nic(self) -> Iterator[NicUnderTest]:
        """Give the NIC: the author's part. It may be of any scope; no rule of ours is on it at the beginning."""
        raise pytest.UsageError(f"{type(self).__name__} needs a fixture `nic` that gives a NicUnderTest")

    @pytest.fixture
    def backend(self, request: pytest.FixtureRequest, nic: NicUnderTest) -> Iterator[BackendDriver]:
        """Drive the plugin as the engine does."""
        driver = BackendDriver(request.node, BackendConformance, nic)
        yield driver
        driver.sweep()

    # What it says of itself

    def test_hooks_have_our_signatures(self, backend: BackendDriver) -> None:
        """A backend has the hooks {install,remove,dump,probe}_offload, with nfcore's arguments."""
        missing = [hook for hook in (INSTALL, REMOVE, DUMP, PROBE) if not backend.plugins.implementing(hook)]
        backend.expect(not missing, f"it lacks {', '.join(missing)}; is @hookimpl above each?")

    def test_capabilities_are_sane(self, backend: BackendDriver) -> None:
        """Capabilities say what holds: marks of 0 to 32 bits, a table of at least one rule, and something it can do."""
        found, known = backend.capabilities, backend.nic.capabilities
        backend.expect(0 <= found.mark_width <= 32, f"mark_width is {found.mark_width}", hook=PROBE)
        backend.expect(found.mark_width or found.drop, f"{found.describe()}: nothing to offload", hook=PROBE)
        size = found.table_size
        backend.expect(size is None or size > 0, f"table_size is {size}; None where it is not known", hook=PROBE)
        backend.expect(all(isinstance(note, str) for note in found.notes), f"notes are {found.notes!r}", hook=PROBE)
        for ability in ("mark_width", "ipv6", "drop", "counters") if known is not None else ():
            says, is_so = getattr(found, ability), getattr(known, ability)
            backend.expect(says == is_so, f"{ability} is {says}, and should be {is_so}", hook=PROBE)

    def test_capabilities_are_stable(self, backend: BackendDriver) -> None:
        """Asked again, with rules on the NIC, it says the same of itself, and the rules stand."""
        first = backend.probe()
        rules = backend.installed(backend.rules(backend.flows(3)))
        second = backend.probe()
        backend.expect(first == second, f"first {first.describe()}, then {second.describe()}", hook=PROBE)
        lost = set(rules.rows["cookie"].tolist()) - backend.standing().keys()
        backend.expect(not lost, f"{len(lost)} of {len(rules)} rules are gone after it was asked", hook=PROBE)

    # The form of answers

    def test_every_rule_has_a_status(self, backend: BackendDriver) -> None:
        """An answer is Outcomes with a status (uint8) for every rule of the batch, in its order; the batch stays as it
        was.
        """
        rules = backend.rules(backend.flows(5))
        backend.install(rules)
        backend.remove(rules)
        backend.remove(rules)

    def test_dumps_are_installed_rows(self, backend: BackendDriver) -> None:
        """A dump is an array of nfcore.api.rules.INSTALLED_ROW; last_used is nanoseconds of CLOCK_MONOTONIC, or 0."""
        backend.dump()
        flow = backend.flows(1)[0]
        backend.installed(backend.rules([flow]))
        if backend.nic.send is not None:
            backend.send(flow)
        backend.dump()

    def test_empty_batches_are_answered(self, backend: BackendDriver) -> None:
        """A batch of no rules is answered with no statuses, and changes nothing."""
        rules = backend.installed(backend.rules(backend.flows(2)))
        nothing = RuleBatch.of([])
        backend.install(nothing)
        backend.remove(nothing)
        left = len(backend.standing())
        backend.expect(left == len(rules), f"of {len(rules)} rules {left} stand afterwards")

    def test_hooks_do_not_raise(self, backend: BackendDriver) -> None:
        """No hook raises, whatever is in a batch: what cannot be done is a status, with words."""
        flow = backend.flows(1)[0]
        odd = [sample_flow(2, 4, number) for number in (0, 1, 47, 132, 255)]
        wide = sample_rules([*odd, flow, sample_flow(3, 6)], 0xFFFF_FFFF)
        for batch in (wide, sample_rules([*odd, flow], 0), sample_rules([flow, flow, flow], 1)):
            backend.install(batch)
            backend.dump()
            backend.remove(batch)
            backend.remove(batch)

    # Rules stand

    def test_rules_are_accepted(self, backend: BackendDriver) -> None:
        """Rules of every family, protocol and action that the NIC says it has are INSTALLED."""
        for family, protocol in backend.shapes():
            flows = [sample_flow(number, family, protocol) for number in (1, 2)]
            if backend.marks:
                backend.installed(sample_rules(flows[:1], 1))
            if backend.capabilities.drop:
                backend.installed(sample_rules(flows[1:], 0))

    def test_dumps_give_back_the_rules(self, backend: BackendDriver) -> None:
        """A dump has every rule that stands once, with the match, the action, the mark and the cookie it came with."""
        rules = backend.rules([sample_flow(7, *shape) for shape in backend.shapes()], first_mark=3)
        if backend.capabilities.drop:
            drops = sample_rules([sample_flow(8, *shape) for shape in backend.shapes()], 0)
            rules = RuleBatch.of([*rules, *drops])
        backend.installed(rules)
        found = backend.standing()
        for rule, row in zip(rules, rules.rows, strict=True):
            about = f"{rule.match} of cookie {rule.cookie:#x}"
            backend.expect(rule.cookie in found, f"{about} is missing", hook=DUMP)
            (back,) = RuleBatch(found[rule.cookie]["rule"].reshape(1))
            backend.expect(back.match == rule.match, f"{about} came back for {back.match}", hook=DUMP)
            backend.expect(back.action == rule.action, f"{about}, {rule.action}, came back as {back.action}", hook=DUMP)
            family = int(found[rule.cookie]["rule"]["family"])
            backend.expect(family == row["family"], f"{about} came back with family {family}", hook=DUMP)
        backend.expect(len(found) == len(rules), f"{len(found)} rules where {len(rules)} stand", hook=DUMP)

    def test_packets_are_marked(self, backend: BackendDriver) -> None:
        """Packets of a flow with a rule arrive with the rule's mark."""
        backend.needs_marks()
        rules = backend.rules([sample_flow(5, *shape) for shape in backend.shapes()])
        backend.needs("send")
        backend.installed(rules)
        for rule in rules:
            assert isinstance(rule.action, SetMark)
            seen = backend.arrivals(rule.match, 3)
            wrong = f"3 packets of {rule.match} should arrive with mark {rule.action.mark}; {_how(seen)}"
            backend.expect(dict(seen.marks) == {rule.action.mark: 3}, wrong)

    def test_other_packets_are_not_marked(self, backend: BackendDriver) -> None:
        """Packets without a rule of their own arrive without a mark, however alike a flow with one is."""
        backend.needs_marks()
        (flow,) = backend.flows(1, first=9)
        backend.needs("send")
        rules = backend.installed(backend.rules([flow]))
        for other in _alike(flow, backend.shapes()):
            seen = backend.arrivals(other)
            wrong = f"{other} has no rule ({flow} has); its packet should arrive with mark 0; {_how(seen)}"
            backend.expect(dict(seen.marks) == {0: 1}, wrong)
        if backend.capabilities.counters:
            packets = int(backend.counts(rules)[0, 0])
            backend.expect(packets == 0, f"the rule counted {packets} packets of other flows", hook=DUMP)

    def test_packets_are_counted(self, backend: BackendDriver) -> None:
        """Each rule counts the packets that match it and their bytes, late perhaps, but no packet more."""
        backend.needs_counters()
        rules = backend.rules(backend.flows(3))
        backend.needs("send")
        backend.installed(rules)
        sent = np.arange(1, len(rules) + 1)
        for rule, count in zip(rules, sent.tolist(), strict=True):
            backend.send(rule.match, count)
        backend.eventually(lambda: bool((backend.counts(rules)[:, 0] == sent).all()))
        counted = backend.counts(rules)
        wrong = f"packets are {counted[:, 0].tolist()} after {sent.tolist()} were sent"
        backend.expect((counted[:, 0] == sent).all(), wrong, hook=DUMP)
        _expect_bytes(backend, rules, counted)

    def test_counters_never_go_back(self, backend: BackendDriver) -> None:
        """A rule's counters never go back while it stands: not between dumps, not when it is installed again, nor when
        others come and go.
        """
        backend.needs_counters()
        flow, *others = backend.flows(4)
        backend.needs("send")
        rules, beside = backend.installed(backend.rules([flow])), backend.rules(others, first_mark=2)
        last = np.zeros(2, dtype=np.int64)
        steps: tuple[Callable[[], object], ...] = (
            lambda: backend.installed(beside),
            lambda: backend.installed(rules),
            lambda: backend.remove(beside),
            lambda: backend.install(rules),
            lambda: None,
        )
        for step in steps:
            backend.send(flow, 2)
            for _ in range(2):
                now = backend.counts(rules)[0]
                wrong = f"packets and bytes were {last.tolist()} and are {now.tolist()}"
                backend.expect((now >= last).all(), wrong, hook=DUMP)
                last = now
            step()

    def test_drops_keep_packets_away(self, backend: BackendDriver) -> None:
        """Packets of a flow with a drop rule do not arrive, and are counted; other packets arrive."""
        if not backend.capabilities.drop:
            backend.not_applicable("it says that it drops nothing (Capabilities.drop)")
        flow, other = backend.flows(2, first=20)
        backend.needs("send")
        rules = backend.installed(sample_rules([flow], 0))
        seen = backend.arrivals(flow, 4)
        backend.expect(seen.dropped == 4 and not sum(seen.marks.values()), f"of 4 packets to be dropped, {_how(seen)}")
        seen = backend.arrivals(other)
        backend.expect(dict(seen.marks) == {0: 1}, f"a packet of another flow should arrive; {_how(seen)}")
        if backend.capabilities.counters:
            backend.eventually(lambda: int(backend.counts(rules)[0, 0]) == 4)
            packets = int(backend.counts(rules)[0, 0])
            backend.expect(packets == 4, f"the rule counted {packets} of 4 dropped packets", hook=DUMP)

    # Rules go

    def test_removed_rules_are_gone(self, backend: BackendDriver) -> None:
        """A rule that stands is REMOVED: a dump has it no more, and its mark stops; the others stay."""
        rules = backend.installed(backend.rules(backend.flows(4)))
        gone, stay = RuleBatch(rules.rows[:2].copy()), RuleBatch(rules.rows[2:].copy())
        backend.removed(gone)
        found = backend.standing().keys()
        left = found & set(gone.rows["cookie"].tolist())
        backend.expect(not left, f"{len(left)} of {len(gone)} removed rules are in the dump", hook=DUMP)
        lost = set(stay.rows["cookie"].tolist()) - found
        backend.expect(not lost, f"{len(lost)} of {len(stay)} other rules went, too", hook=REMOVE)
        if backend.nic.send is None or backend.send(next(iter(gone)).match) is None:
            return
        for rule in gone:
            match = rule.match
            stopped = backend.eventually(lambda match=match: dict(backend.arrivals(match).marks) == {0: 1})  # type: ignore[misc]
            wrong = f"packets of {match} should arrive with mark 0 by now; {_how(backend.arrivals(match))}"
            backend.expect(stopped, wrong, hook=REMOVE)

    def test_removal_is_idempotent(self, backend: BackendDriver) -> None:
        """Removing a rule that is not there is ABSENT, no failure, as often as it is asked."""
        rules, never = backend.rules(backend.flows(2)), backend.rules(backend.flows(2, first=30))
        backend.installed(rules)
        backend.remove(rules)
        for words, batch in (("were removed before", rules), ("were removed twice", rules), ("never were", never)):
            answer = told(backend.remove(batch))
            wrong = f"of {len(batch)} rules that {words} it says {names(answer)}"
            backend.expect(answer == [Outcome.ABSENT] * len(batch), wrong, hook=REMOVE)

    def test_removal_heeds_the_cookie(self, backend: BackendDriver) -> None:
        """A rule of another cookie is not removed, though its match is the same: ABSENT, and the rule stands."""
        flows = backend.flows(2)
        rules, former = backend.rules(flows, generation=2), backend.rules(flows, generation=1)
        backend.installed(rules)
        answer = told(backend.remove(former))
        wrong = f"of rules whose match is there with another cookie it says {names(answer)}"
        backend.expect(answer == [Outcome.ABSENT] * len(former), wrong, hook=REMOVE)
        lost = set(rules.rows["cookie"].tolist()) - backend.standing().keys()
        backend.expect(not lost, f"{len(lost)} rules of another cookie were removed", hook=REMOVE)

    def test_removal_counts_to_the_end(self, backend: BackendDriver) -> None:
        """Where a removal tells what rules had counted (Outcomes.counted), that is all that they ever counted; zeros
        for rules that were not removed.
        """
        backend.needs_counters()
        rules = backend.rules(backend.flows(3))
        absent = backend.rules(backend.flows(1, first=40))
        backend.needs("send")
        backend.installed(rules)
        sent = np.arange(2, len(rules) + 2)
        for rule, count in zip(rules, sent.tolist(), strict=True):
            backend.send(rule.match, count)
        backend.eventually(lambda: bool((backend.counts(rules)[:, 0] == sent).all()))
        counted = backend.remove(RuleBatch.of([*absent, *rules])).counted
        if counted is None:
            backend.not_applicable("it does not tell what removed rules had counted (Outcomes.counted)")
        wrong = f"after {sent.tolist()} packets counted is {counted[1:, 0].tolist()}"
        backend.expect((counted[1:, 0] == sent).all(), wrong, hook=REMOVE)
        backend.expect(not counted[0].any(), f"of a rule that was not there it is {counted[0].tolist()}", hook=REMOVE)
        _expect_bytes(backend, rules, counted[1:].astype(np.int64))

    # The same again, and what does not work

    def test_installation_is_idempotent(self, backend: BackendDriver) -> None:
        """Installing a rule that stands is INSTALLED again, in another batch or twice in one, and it stands once."""
        rules = backend.installed(backend.rules(backend.flows(3)))
        for batch in (rules, RuleBatch(np.concatenate([rules.rows, rules.rows]).astype(rules.rows.dtype))):
            answer = told(backend.install(batch))
            backend.expect(answer == [Outcome.INSTALLED] * len(batch), f"it says {names(answer)}", hook=INSTALL)
            rows = backend.dump()
            backend.expect(len(rows) == len(rules), f"the dump has {len(rows)} rows for {len(rules)} rules", hook=DUMP)

    def test_a_flow_has_one_rule(self, backend: BackendDriver) -> None:
        """A rule for a flow that has one takes its place, INSTALLED, or is refused and the old one stands alone."""
        (flow,) = backend.flows(1)
        old = backend.installed(backend.rules([flow], first_mark=1, generation=1))
        new = backend.rules([flow], first_mark=2, generation=2)
        (answer,) = told(backend.install(new))
        (stands,) = (new if answer is Outcome.INSTALLED else old).rows["cookie"].tolist()
        found = sorted(backend.standing())
        wrong = f"after {answer.name} cookie {stands:#x} should stand alone, not {[hex(cookie) for cookie in found]}"
        backend.expect(found == [stands], wrong, hook=INSTALL)

    def test_a_bad_rule_harms_no_other(self, backend: BackendDriver) -> None:
        """In a batch with bad rules the good ones are INSTALLED, and the bad ones have a status each and words for at
        least the first.
        """
        good = backend.rules(backend.flows(4))
        bad = sample_rules([sample_flow(number, 4, by_protocol(backend.nic.protocols)[0]) for number in (1, 2)], 1)
        rules = RuleBatch.of([rule for pair in zip(good, [*bad, *bad], strict=True) for rule in pair])
        answer = backend.install(rules)
        goods, bads = told(answer)[0::2], told(answer)[1::2]
        wrong = f"good rules beside bad ones are {names(goods)}"
        backend.expect(goods == [Outcome.INSTALLED] * len(good), wrong, hook=INSTALL)
        backend.expect(Outcome.INSTALLED not in bads, f"rules for ICMP are {names(bads)}", hook=INSTALL)
        worded = [row for row in answer.messages if row % 2 == 0]
        backend.expect(not worded, f"words are with the rows {worded}, whose rules were installed", hook=INSTALL)
        backend.expect(backend.nic.heard, "no words say why a rule was refused", hook=INSTALL)
        found = backend.standing().keys()
        wrong = f"{len(found)} rules stand after {len(good)} good ones"
        backend.expect(found == set(good.rows["cookie"].tolist()), wrong, hook=DUMP)

    def test_a_full_table_says_full(self, backend: BackendDriver) -> None:
        """Rules beyond the table's size are FULL; those that stand can be installed again, and what is removed makes
        room.
        """
        size = int(backend.needs("table_size"))
        rules = backend.rules(backend.flows(size + 3))
        answer = backend.install(rules)
        taken = answer.status == Outcome.INSTALLED
        wrong = f"{size} rules fit; of {len(rules)} it says {names(sorted(told(answer)))}"
        backend.expect(int(taken.sum()) == size and (answer.status[~taken] == Outcome.FULL).all(), wrong, hook=INSTALL)
        stands = len(backend.standing())
        backend.expect(stands == size, f"{size} rules are INSTALLED and {stands} stand", hook=DUMP)
        inside, outside = RuleBatch(rules.rows[taken].copy()), RuleBatch(rules.rows[~taken].copy())
        again = told(backend.install(RuleBatch(inside.rows[:2].copy())))
        wrong = f"of rules that stand, in a full table, it says {names(again)}"
        backend.expect(again == [Outcome.INSTALLED] * len(again), wrong, hook=INSTALL)
        backend.removed(RuleBatch(inside.rows[:1].copy()))
        (answer_now,) = told(backend.install(RuleBatch(outside.rows[:1].copy())))
        backend.expect(answer_now is Outcome.INSTALLED, f"with room for one, it says {answer_now.name}", hook=INSTALL)

    def test_unsupported_is_said(self, backend: BackendDriver) -> None:
        """A rule of a shape that it never takes is UNSUPPORTED: not FAILED, which is tried again, nor taken and
        useless; and rules of other shapes go on being taken.
        """
        for what, batch in _never(backend):
            answer = told(backend.install(batch))
            wrong = f"of {what} it says {names(answer)}"
            backend.expect(answer == [Outcome.UNSUPPORTED] * len(batch), wrong, hook=INSTALL)
            backend.installed(backend.rules(backend.flows(2)))

    # Marks

    def test_the_widest_mark_arrives(self, backend: BackendDriver) -> None:
        """A mark of Capabilities.mark_width bits, all of them set, arrives as it is."""
        backend.needs_marks()
        (flow,) = backend.flows(1)
        rules = backend.installed(sample_rules([flow], backend.marks))
        kept = int(backend.find(rules)[0]["rule"]["mark"])
        backend.expect(kept == backend.marks, f"the dump has the mark {backend.marks:#x} as {kept:#x}", hook=DUMP)
        seen = backend.arrivals(flow)
        backend.expect(dict(seen.marks) == {backend.marks: 1}, f"the mark {backend.marks:#x}: {_how(seen)}")

    def test_marks_are_not_truncated(self, backend: BackendDriver) -> None:
        """A mark wider than Capabilities.mark_width is UNSUPPORTED or FAILED, never cut; narrower ones go on being
        taken.
        """
        backend.needs_marks()
        if backend.marks >= 0xFFFF_FFFF:
            backend.not_applicable("its marks have all 32 bits")
        flow, other = backend.flows(2)
        (answer,) = told(backend.install(sample_rules([flow], backend.marks + 2)))
        refused = answer in (Outcome.UNSUPPORTED, Outcome.FAILED)
        backend.expect(refused, f"the mark {backend.marks + 2:#x} is {answer.name}", hook=INSTALL)
        (answer,) = told(backend.install(sample_rules([other], 1)))
        backend.expect(answer is Outcome.INSTALLED, f"after that the mark 1 is {answer.name}", hook=INSTALL)

    # Others and later

    def test_dumps_go_on_under_traffic(self, backend: BackendDriver) -> None:
        """While packets flow, rules are installed, removed and read: nothing raises, and no counter goes back."""
        flow, *others = backend.flows(5)
        send = backend.needs("send")
        steady, beside = backend.installed(backend.rules([flow])), backend.rules(others, first_mark=2)
        stop, sent = threading.Event(), [0]
        trouble: list[Exception] = []

        def traffic() -> None:
            try:
                while not (stop.is_set() and sent[0]) and sent[0] < 5_000:
                    send(sample_frame(flow), 10)
                    sent[0] += 10
            except Exception as error:  # noqa: BLE001 - told by the test's own thread
                trouble.append(error)

        sender = threading.Thread(target=traffic)
        sender.start()
        try:
            last = np.zeros(2, dtype=np.int64)
            for _ in range(20):
                backend.installed(beside)
                now = backend.counts(steady)[0]
                wrong = f"packets and bytes were {last.tolist()} and are {now.tolist()}"
                backend.expect((now >= last).all(), wrong, hook=DUMP)
                last = now
                backend.removed(beside)
        finally:
            stop.set()
            sender.join()
        if trouble:
            raise trouble[0]
        if backend.capabilities.counters:
            backend.eventually(lambda: int(backend.counts(steady)[0, 0]) == sent[0])
            packets = int(backend.counts(steady)[0, 0])
            backend.expect(packets == sent[0], f"it counted {packets} of {sent[0]} packets", hook=DUMP)

    def test_rules_outlive_their_process(self, backend: BackendDriver) -> None:
        """A new process finds the rules of the last one: cookies, marks and counters in the dump; they mark and count
        on, and can be removed.
        """
        backend.needs("restart")
        rules = backend.installed(backend.rules(backend.flows(3)))
        first = next(iter(rules))
        counting = backend.nic.send is not None and backend.capabilities.counters
        if counting:
            backend.send(first.match, 3)
            backend.eventually(lambda: int(backend.counts(rules)[0, 0]) == 3)
        before = backend.find(rules)
        backend.restart()
        after = backend.standing()
        lost = set(rules.rows["cookie"].tolist()) - after.keys()
        backend.expect(not lost, f"of {len(rules)} rules {len(lost)} are not in the dump of a new process", hook=DUMP)
        for cookie, row in zip(rules.rows["cookie"].tolist(), before, strict=True):
            same = after[cookie]["rule"] == row["rule"]
            backend.expect(same, f"the rule of cookie {cookie:#x} came back as another", hook=DUMP)
        if counting:
            backend.send(first.match, 2)
            backend.eventually(lambda: int(backend.counts(rules)[0, 0]) == 5)
            packets = int(backend.counts(rules)[0, 0])
            backend.expect(packets == 5, f"3 packets before and 2 after are counted as {packets}", hook=DUMP)
        answer = told(backend.remove(rules))
        wrong = f"of the rules that it found there it says {names(answer)}"
        backend.expect(answer == [Outcome.REMOVED] * len(rules), wrong, hook=REMOVE)

    def test_foreign_rules_stand(self, backend: BackendDriver) -> None:
        """Rules of somebody else stand, whatever happens to ours: installed, read, removed, torn down."""
        stands = backend.needs("foreign")()
        rules = backend.rules(backend.flows(3))
        steps: list[tuple[str, Callable[[], object]]] = [
            ("installing", lambda: backend.installed(rules)),
            ("reading", backend.dump),
            ("removing", lambda: backend.remove(rules)),
            ("probing", backend.probe),
        ]
        if backend.nic.restart is not None:
            steps.append(("setting up anew", backend.restart))
        steps.append(("tearing down", lambda: backend.call("teardown")))
        for what, step in steps:
            step()
            backend.expect(stands(), f"a rule of somebody else is gone after {what}")

    def test_teardown_leaves_nothing(self, backend: BackendDriver) -> None:
        """After the last rule went, teardown leaves nothing behind, may be called twice, and the next setup finds an
        empty NIC that takes rules.
        """
        rules = backend.installed(backend.rules(backend.flows(3)))
        backend.removed(rules)
        for _ in range(2):
            backend.call("teardown")
        left = [] if backend.nic.leftovers is None else list(backend.nic.leftovers())
        backend.expect(not left, f"left behind: {'; '.join(left)}", hook="teardown")
        if backend.nic.restart is None:
            return
        backend.restart()
        count = len(backend.standing())
        backend.expect(count == 0, f"the next process finds {count} rules", hook=DUMP)
        backend.installed(rules)

    # Speed

    def test_throughput(self, backend: BackendDriver) -> None:
        """Batches are worked through whole, whatever their size; the summary tells how fast, and nothing is asked of
        it.
        """
        batch = min(backend.nic.batch, (backend.size or 1 << 16) // 4)
        batches = [backend.rules(backend.flows(batch, first=1 + part * batch)) for part in range(4 if batch else 0)]
        total = batch * len(batches)
        began = time.perf_counter()
        for rules in batches:
            backend.installed(rules)
        installed = time.perf_counter()
        found = len(backend.dump())
        dumped = time.perf_counter()
        for rules in batches:
            backend.removed(rules)
        removed = time.perf_counter()
        backend.expect(found == total, f"{found} of {total} rules are in the dump", hook=DUMP)
        times = {"installed": installed - began, "dumped": dumped - installed, "removed": removed - dumped}
        backend.report_throughput(**{what: total / max(seconds, 1e-9) for what, seconds in times.items()})


def _how(seen: Seen) -> str:
    """Say how frames arrived."""
    came = [
        f"{count} with mark {mark:#x}" if mark else f"{count} without" for mark, count in seen.marks.items() if count
    ]
    return f"seen: {', '.join([*came, f'{seen.dropped} dropped'] if seen.dropped or not came else came)}"


def _alike(flow: FlowMatch, shapes: list[tuple[int, str]]) -> Iterator[FlowMatch]:
    """Flows that differ from one in a port, the addresses or the protocol alone."""
    yield FlowMatch(flow.src, flow.dst, flow.proto, flow.sport + 1, flow.dport)
    yield FlowMatch(flow.src, flow.dst, flow.proto, flow.sport, flow.dport + 1)
    yield FlowMatch(flow.src + 1, flow.dst, flow.proto, flow.sport, flow.dport)
    yield FlowMatch(flow.src, flow.dst + 1, flow.proto, flow.sport, flow.dport)
    yield FlowMatch(flow.src, flow.dst, 17 if flow.proto == 6 else 6, flow.sport, flow.dport)
    yield from (sample_flow(9, *shape) for shape in shapes if sample_flow(9, *shape) != flow)


def _never(backend: BackendDriver) -> Iterator[tuple[str, RuleBatch]]:
    """Batches of rules that the NIC should know it never takes."""
    mark, found = min(1, backend.marks), backend.capabilities
    for number in by_protocol(backend.nic.protocols):
        yield f"rules for protocol {number}", sample_rules([sample_flow(at, 4, number) for at in (1, 2)], mark)
    if not found.ipv6:
        yield "IPv6 rules, which it says it has not,", sample_rules([sample_flow(1, 6, backend.nic.protocols[0])], mark)
    if not found.drop:
        yield "drop rules, which it says it has not,", sample_rules(backend.flows(1), 0)
    if not backend.marks:
        yield "rules to set marks, which it says it has not,", sample_rules(backend.flows(1), 1)


def _expect_bytes(
    backend: BackendDriver, rules: RuleBatch, counted: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> None:
    """Bytes are those of the packets: with or without Ethernet header and check sequence, as NICs differ."""
    for rule, (packets, size) in zip(rules, counted.tolist(), strict=True):
        frame = len(sample_frame(rule.match))
        least, most = packets * (frame - _ETHERNET), packets * (frame + _FCS)
        wrong = f"{packets} packets of {frame} bytes are counted as {size} bytes"
        backend.expect(least <= size <= most, wrong)
