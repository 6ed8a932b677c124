# SPDX-License-Identifier: Apache-2.0
"""The conformance suite of offload backends: subclass it and define the fixture `nic`; pytest collects the tests.

class TestMyNic(BackendConformance):
    @pytest.fixture
    def nic(self) -> Iterator[NicUnderTest]: ...
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from ..api.flows import PROTOCOL_NAMES, PROTOCOL_NUMBERS, FlowMatch
from ..api.rules import Outcome, RuleBatch, SetMark
from .driver import DUMP, INSTALL, PROBE, REMOVE, BackendDriver, other_protocols, statuses
from .nic import NicUnderTest, Seen
from .promises import names
from .samples import MatchSample, masked_samples, sample_flow, sample_frame, sample_rules

_FCS = 4
"""Bytes of the frame check sequence, which some NICs count and others do not."""
_ETHERNET = 14


class BackendConformance:
    """Tests of one backend on one device. Each test is a promise: the docstring states it."""

    @pytest.fixture
    def nic(self) -> Iterator[NicUnderTest]:
        """The NIC under test, defined by the author. Any scope; nfcore has no rules on it at the beginning."""
        raise pytest.UsageError(f"{type(self).__name__} needs a fixture `nic` that returns a NicUnderTest")

    @pytest.fixture
    def backend(self, request: pytest.FixtureRequest, nic: NicUnderTest) -> Iterator[BackendDriver]:
        """Calls the plugin's hooks as the engine does."""
        driver = BackendDriver(request.node, BackendConformance, nic)
        yield driver
        driver.clean_up()

    # Capabilities

    def test_hooks_have_our_signatures(self, backend: BackendDriver) -> None:
        """A backend implements the hooks {install,remove,dump,probe}_offload, with nfcore's arguments."""
        missing = [hook for hook in (INSTALL, REMOVE, DUMP, PROBE) if not backend.plugins.implementing(hook)]
        backend.expect(not missing, f"{', '.join(missing)} is missing; has each @hookimpl above it?")

    def test_capabilities_are_sane(self, backend: BackendDriver) -> None:
        """Capabilities are correct: marks of 0 to 32 bits, a table of at least one rule, and marks or drops."""
        found, known = backend.capabilities, backend.nic.capabilities
        backend.expect(0 <= found.mark_width <= 32, f"mark_width is {found.mark_width}", hook=PROBE)
        backend.expect(found.mark_width or found.drop, f"{found.describe()}: it can neither mark nor drop", hook=PROBE)
        size = found.table_size
        backend.expect(size is None or size > 0, f"table_size is {size}; should be None if it is not known", hook=PROBE)
        backend.expect(all(isinstance(note, str) for note in found.notes), f"notes are {found.notes!r}", hook=PROBE)
        taken = PROTOCOL_NAMES if found.protocols is None else found.protocols
        missing = [name for name in backend.nic.protocols if PROTOCOL_NUMBERS[name] not in taken]
        backend.expect(not missing, f"protocols is {found.protocols}, without {', '.join(missing)}", hook=PROBE)
        for ability in ("mark_width", "ipv6", "drop", "masks", "counters", "vlans") if known is not None else ():
            value, correct = getattr(found, ability), getattr(known, ability)
            backend.expect(value == correct, f"{ability} is {value}, and should be {correct}", hook=PROBE)

    def test_capabilities_are_stable(self, backend: BackendDriver) -> None:
        """Probing again, with rules on the NIC, gives the same Capabilities, and the rules stay installed."""
        first = backend.probe()
        rules = backend.install_all(backend.rules(backend.flows(3)))
        second = backend.probe()
        backend.expect(first == second, f"first {first.describe()}, then {second.describe()}", hook=PROBE)
        lost = set(rules.rows["cookie"].tolist()) - backend.dump_by_cookie().keys()
        backend.expect(not lost, f"{len(lost)} of {len(rules)} rules are gone after probing", hook=PROBE)

    # The form of results

    def test_every_rule_has_a_status(self, backend: BackendDriver) -> None:
        """A result is Outcomes with a status (uint8) for every rule of the batch, in its order; the hook does not write
        to the batch.
        """
        rules = backend.rules(backend.flows(5))
        backend.install(rules)
        backend.remove(rules)
        backend.remove(rules)

    def test_dumps_are_installed_rows(self, backend: BackendDriver) -> None:
        """A dump is an array of nfcore.api.rules.INSTALLED_ROW; last_used is nanoseconds of CLOCK_MONOTONIC, or 0."""
        backend.dump()
        flow = backend.flows(1)[0]
        backend.install_all(backend.rules([flow]))
        if backend.nic.send is not None:
            backend.send(flow)
        backend.dump()

    def test_empty_batches_are_answered(self, backend: BackendDriver) -> None:
        """A batch without rules gives a result without statuses, and changes nothing."""
        rules = backend.install_all(backend.rules(backend.flows(2)))
        nothing = RuleBatch.of([])
        backend.install(nothing)
        backend.remove(nothing)
        left = len(backend.dump_by_cookie())
        backend.expect(left == len(rules), f"{left} of {len(rules)} rules are installed afterwards")

    def test_hooks_do_not_raise(self, backend: BackendDriver) -> None:
        """No hook raises, whatever is in a batch: a rule that cannot be installed gets a status, and a message."""
        flow = backend.flows(1)[0]
        odd = [sample_flow(2, 4, number) for number in (0, 1, 47, 132, 255)]
        wide = sample_rules([*odd, flow, sample_flow(3, 6)], 0xFFFF_FFFF)
        for batch in (wide, sample_rules([*odd, flow], 0), sample_rules([flow, flow, flow], 1)):
            backend.install(batch)
            backend.dump()
            backend.remove(batch)
            backend.remove(batch)

    # Installed rules

    def test_rules_are_accepted(self, backend: BackendDriver) -> None:
        """Rules of every family, protocol and action that the NIC is said to support are INSTALLED."""
        for family, protocol in backend.shapes():
            flows = [sample_flow(number, family, protocol) for number in (1, 2)]
            masked = [sample.match for sample in masked_samples(family, protocol) if backend.capabilities.masks]
            batches = [sample_rules([flows[0], *masked], 1)] if backend.largest_mark else []
            if backend.capabilities.drop:
                batches.append(sample_rules([flows[1], *masked], 0))
            for batch in batches:
                backend.install_all(batch)
                # The table may be small.
                backend.remove(batch)
            for _, tagged in backend.install_tagged(family, protocol) if backend.capabilities.vlans else ():
                backend.remove(tagged)

    def test_dumps_give_back_the_rules(self, backend: BackendDriver) -> None:
        """A dump has every installed rule exactly once, with its match, action, mark and cookie."""
        for shape in backend.shapes():
            flows = [sample_flow(7, *shape)]
            if backend.capabilities.masks:
                flows += [sample.match for sample in masked_samples(*shape)]
            rules = backend.rules(flows, first_mark=3)
            if backend.capabilities.drop:
                rules = RuleBatch.of([*rules, *sample_rules([sample_flow(8, *shape)], 0)])
            backend.install_all(rules)
            tagged = [of_one for _, of_one in backend.install_tagged(*shape)] if backend.capabilities.vlans else []
            rules = RuleBatch.of([rule for batch in (rules, *tagged) for rule in batch])
            self._expect_dumped(backend, rules)
            backend.remove(rules)

    @staticmethod
    def _expect_dumped(backend: BackendDriver, rules: RuleBatch) -> None:
        found = backend.dump_by_cookie()
        for rule, row in zip(rules, rules.rows, strict=True):
            about = f"the rule for {rule.match} with cookie {rule.cookie:#x}"
            backend.expect(rule.cookie in found, f"{about} is missing", hook=DUMP)
            (dumped,) = RuleBatch(found[rule.cookie]["rule"].reshape(1))
            backend.expect(dumped.match == rule.match, f"{about} has the match {dumped.match}", hook=DUMP)
            wrong = f"{about} has the VLAN tags {dumped.vlans}, not {rule.vlans}"
            backend.expect(dumped.vlans == rule.vlans, wrong, hook=DUMP)
            wrong = f"{about} has the action {dumped.action}, not {rule.action}"
            backend.expect(dumped.action == rule.action, wrong, hook=DUMP)
            family = int(found[rule.cookie]["rule"]["family"])
            backend.expect(family == row["family"], f"{about} has family {family}", hook=DUMP)
        backend.expect(len(found) == len(rules), f"the dump has {len(found)} rules, not {len(rules)}", hook=DUMP)

    def test_packets_are_marked(self, backend: BackendDriver) -> None:
        """Packets of a flow with a rule arrive with the rule's mark."""
        backend.needs_marks()
        rules = backend.rules([sample_flow(5, *shape) for shape in backend.shapes()])
        backend.needs("send")
        backend.install_all(rules)
        for rule in rules:
            assert isinstance(rule.action, SetMark)
            seen = backend.arrivals(rule.match, 3)
            wrong = f"3 packets of {rule.match} should arrive with mark {rule.action.mark}; {_arrived(seen)}"
            backend.expect(dict(seen.marks) == {rule.action.mark: 3}, wrong)

    def test_other_packets_are_not_marked(self, backend: BackendDriver) -> None:
        """Packets of a flow without a rule arrive without a mark, also when a similar flow has a rule."""
        backend.needs_marks()
        (flow,) = backend.flows(1, first=9)
        backend.needs("send")
        rules = backend.install_all(backend.rules([flow]))
        for other in _similar_flows(flow, backend.shapes()):
            seen = backend.arrivals(other)
            wrong = f"{other} has no rule (but {flow} has); its packet should arrive with mark 0; {_arrived(seen)}"
            backend.expect(dict(seen.marks) == {0: 1}, wrong)
        if backend.capabilities.counters:
            packets = int(backend.counts(rules)[0, 0])
            backend.expect(packets == 0, f"the rule counted {packets} packets of other flows", hook=DUMP)

    def test_packets_are_counted(self, backend: BackendDriver) -> None:
        """Each rule counts exactly the packets that match it, and their bytes; counters may be late."""
        backend.needs_counters()
        rules = backend.rules(backend.flows(3))
        backend.needs("send")
        backend.install_all(rules)
        sent = np.arange(1, len(rules) + 1)
        for rule, count in zip(rules, sent.tolist(), strict=True):
            backend.send(rule.match, count)
        backend.eventually(lambda: bool((backend.counts(rules)[:, 0] == sent).all()))
        counted = backend.counts(rules)
        wrong = f"counters have {counted[:, 0].tolist()} packets; sent were {sent.tolist()}"
        backend.expect((counted[:, 0] == sent).all(), wrong, hook=DUMP)
        _expect_bytes(backend, rules, counted)

    def test_counters_never_go_back(self, backend: BackendDriver) -> None:
        """A rule's counters never decrease while it is installed: not between dumps, not when it is installed again,
        not when other rules are installed or removed.
        """
        backend.needs_counters()
        flow, *others = backend.flows(4)
        backend.needs("send")
        rules, beside = backend.install_all(backend.rules([flow])), backend.rules(others, first_mark=2)
        last = np.zeros(2, dtype=np.int64)
        steps: tuple[Callable[[], object], ...] = (
            lambda: backend.install_all(beside),
            lambda: backend.install_all(rules),
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
        backend.needs_drop()
        flow, other = backend.flows(2, first=20)
        backend.needs("send")
        rules = backend.install_all(sample_rules([flow], 0))
        seen = backend.arrivals(flow, 4)
        backend.expect(
            seen.dropped == 4 and not sum(seen.marks.values()), f"4 packets should be dropped; {_arrived(seen)}"
        )
        seen = backend.arrivals(other)
        backend.expect(dict(seen.marks) == {0: 1}, f"a packet of another flow should arrive; {_arrived(seen)}")
        if backend.capabilities.counters:
            backend.eventually(lambda: int(backend.counts(rules)[0, 0]) == 4)
            packets = int(backend.counts(rules)[0, 0])
            backend.expect(packets == 4, f"the rule counted {packets} of 4 dropped packets", hook=DUMP)

    # Masked rules

    def test_masked_rules_mark(self, backend: BackendDriver) -> None:
        """A masked rule marks and counts all packets that it matches by prefix, port and protocol, and no others; rules
        of several masks and exact rules work side by side. A removed one marks no more.
        """
        backend.needs_masks()
        backend.needs_marks()
        backend.needs("send")
        for shape in backend.shapes():
            samples, exact = masked_samples(*shape), sample_flow(3, *shape)
            rules = backend.install_all(backend.rules([exact, *(sample.match for sample in samples)]))
            first, *masked = rules
            seen = backend.arrivals(exact)
            wrong = f"a packet of {exact} should arrive with the mark of its rule, {first.action}; {_arrived(seen)}"
            backend.expect(first.action == SetMark(next(iter(seen.marks), 0)), wrong)
            for sample, rule in zip(samples, masked, strict=True):
                assert isinstance(rule.action, SetMark)
                self._expect_hits(backend, sample, Seen({rule.action.mark: 1}))
            self._expect_counted(backend, RuleBatch(rules.rows[1:].copy()), samples)
            backend.remove_all(rules)
            for sample in samples:
                hit = sample.hits[0]
                stopped = backend.eventually(lambda hit=hit: dict(backend.arrivals(hit).marks) == {0: 1})  # type: ignore[misc]
                backend.expect(stopped, f"packets that {sample.match} matched are still marked after its removal")

    def test_masked_rules_drop(self, backend: BackendDriver) -> None:
        """A masked rule that drops keeps away and counts all packets that it matches, and no others."""
        backend.needs_masks()
        backend.needs_drop()
        backend.needs("send")
        for shape in backend.shapes():
            samples = masked_samples(*shape)
            rules = backend.install_all(sample_rules([sample.match for sample in samples], 0))
            for sample in samples:
                self._expect_hits(backend, sample, Seen({}, 1))
            self._expect_counted(backend, rules, samples)
            backend.remove_all(rules)

    # VLAN tags

    def test_tagged_rules_mark(self, backend: BackendDriver) -> None:
        """A rule with VLAN tags marks and counts the packets with these tags, whatever their priority, and no others:
        without a tag, with another VLAN id, or with another number of tags. Rules with two tags may be UNSUPPORTED.
        """
        backend.needs_vlans()
        backend.needs_marks()
        backend.needs("send")
        for shape in backend.shapes():
            for sample, rules in backend.install_tagged(*shape):
                self._expect_hits(backend, sample, Seen({1: 1}))
                self._expect_counted(backend, rules, [sample])
                backend.remove_all(rules)

    @staticmethod
    def _expect_hits(backend: BackendDriver, sample: MatchSample, hit: Seen) -> None:
        """Send the frames of a sample once: hits must arrive as `hit`, misses unmarked."""
        for what, frames, right in (("matches", sample.hits, hit), ("does not match", sample.misses, Seen({0: 1}))):
            for number, frame in enumerate(frames, start=1):
                seen = backend.arrivals(frame)
                came = Seen({mark: count for mark, count in seen.marks.items() if count}, seen.dropped)
                wrong = f"packet {number} that {sample} {what} should be {_arrived(right)}; {_arrived(seen)}"
                backend.expect(came == right, wrong)

    @staticmethod
    def _expect_counted(backend: BackendDriver, rules: RuleBatch, samples: Sequence[MatchSample]) -> None:
        if not backend.capabilities.counters:
            return
        sent = [len(sample.hits) for sample in samples]
        backend.eventually(lambda: backend.counts(rules)[:, 0].tolist() == sent)
        counted = backend.counts(rules)[:, 0].tolist()
        backend.expect(counted == sent, f"the rules counted {counted} packets; sent were {sent}", hook=DUMP)

    # Removal

    def test_removed_rules_are_gone(self, backend: BackendDriver) -> None:
        """Removing an installed rule is REMOVED: it is in no later dump, packets get its mark no more; others stay."""
        rules = backend.install_all(backend.rules(backend.flows(4)))
        gone, stay = RuleBatch(rules.rows[:2].copy()), RuleBatch(rules.rows[2:].copy())
        backend.remove_all(gone)
        found = backend.dump_by_cookie().keys()
        left = found & set(gone.rows["cookie"].tolist())
        backend.expect(not left, f"{len(left)} of {len(gone)} removed rules are still in the dump", hook=DUMP)
        lost = set(stay.rows["cookie"].tolist()) - found
        backend.expect(not lost, f"{len(lost)} of {len(stay)} other rules are removed, too", hook=REMOVE)
        if backend.nic.send is None or backend.send(next(iter(gone)).match) is None:
            return
        for rule in gone:
            match = rule.match
            stopped = backend.eventually(lambda match=match: dict(backend.arrivals(match).marks) == {0: 1})  # type: ignore[misc]
            wrong = f"packets of {match} should arrive with mark 0 by now; {_arrived(backend.arrivals(match))}"
            backend.expect(stopped, wrong, hook=REMOVE)

    def test_removal_is_idempotent(self, backend: BackendDriver) -> None:
        """Removing a rule that is not installed is ABSENT and no failure, however often it is called."""
        rules, never = backend.rules(backend.flows(2)), backend.rules(backend.flows(2, first=30))
        backend.install_all(rules)
        backend.remove(rules)
        for what, batch in (("removed before", rules), ("removed twice", rules), ("never installed", never)):
            found = statuses(backend.remove(batch))
            wrong = f"removing {len(batch)} rules that were {what} gives {names(found)}"
            backend.expect(found == [Outcome.ABSENT] * len(batch), wrong, hook=REMOVE)

    def test_removal_heeds_the_cookie(self, backend: BackendDriver) -> None:
        """A rule with the same match but another cookie is not removed: the status is ABSENT, and the rule stays."""
        flows = backend.flows(2)
        rules, former = backend.rules(flows, generation=2), backend.rules(flows, generation=1)
        backend.install_all(rules)
        found = statuses(backend.remove(former))
        wrong = f"removing rules with the match of others but another cookie gives {names(found)}"
        backend.expect(found == [Outcome.ABSENT] * len(former), wrong, hook=REMOVE)
        lost = set(rules.rows["cookie"].tolist()) - backend.dump_by_cookie().keys()
        backend.expect(not lost, f"{len(lost)} rules with another cookie were removed", hook=REMOVE)

    def test_removal_counts_to_the_end(self, backend: BackendDriver) -> None:
        """If a removal returns what rules had counted (Outcomes.counted), these are their final counts; zeros for rules
        that were not removed.
        """
        backend.needs_counters()
        rules = backend.rules(backend.flows(3))
        absent = backend.rules(backend.flows(1, first=40))
        backend.needs("send")
        backend.install_all(rules)
        sent = np.arange(2, len(rules) + 2)
        for rule, count in zip(rules, sent.tolist(), strict=True):
            backend.send(rule.match, count)
        backend.eventually(lambda: bool((backend.counts(rules)[:, 0] == sent).all()))
        counted = backend.remove(RuleBatch.of([*absent, *rules])).counted
        if counted is None:
            backend.not_applicable("it does not return what removed rules had counted (Outcomes.counted)")
        wrong = f"counted has {counted[1:, 0].tolist()} packets; sent were {sent.tolist()}"
        backend.expect((counted[1:, 0] == sent).all(), wrong, hook=REMOVE)
        backend.expect(
            not counted[0].any(), f"counted of a rule that was not installed is {counted[0].tolist()}", hook=REMOVE
        )
        _expect_bytes(backend, rules, counted[1:].astype(np.int64))

    # Repeated, bad and unsupported rules

    def test_installation_is_idempotent(self, backend: BackendDriver) -> None:
        """Installing a rule again, in another batch or twice in one, is INSTALLED, and the NIC has it once."""
        rules = backend.install_all(backend.rules(backend.flows(3)))
        for batch in (rules, RuleBatch(np.concatenate([rules.rows, rules.rows]).astype(rules.rows.dtype))):
            found = statuses(backend.install(batch))
            wrong = f"installing again gives {names(found)}"
            backend.expect(found == [Outcome.INSTALLED] * len(batch), wrong, hook=INSTALL)
            rows = backend.dump()
            backend.expect(len(rows) == len(rules), f"the dump has {len(rows)} rows for {len(rules)} rules", hook=DUMP)

    def test_a_flow_has_one_rule(self, backend: BackendDriver) -> None:
        """A second rule for a flow is INSTALLED and replaces the first, or is refused and the first one stays."""
        (flow,) = backend.flows(1)
        old = backend.install_all(backend.rules([flow], first_mark=1, generation=1))
        new = backend.rules([flow], first_mark=2, generation=2)
        (status,) = statuses(backend.install(new))
        (cookie,) = (new if status is Outcome.INSTALLED else old).rows["cookie"].tolist()
        found = sorted(backend.dump_by_cookie())
        wrong = (
            f"after {status.name} only cookie {cookie:#x} should be installed, not {[hex(other) for other in found]}"
        )
        backend.expect(found == [cookie], wrong, hook=INSTALL)

    def test_a_bad_rule_harms_no_other(self, backend: BackendDriver) -> None:
        """In a batch with bad rules the good ones are INSTALLED; each bad one has a status, and at least the first a
        message.
        """
        good = backend.rules(backend.flows(4))
        bad = sample_rules([sample_flow(number, 4, other_protocols(backend.nic.protocols)[0]) for number in (1, 2)], 1)
        rules = RuleBatch.of([rule for pair in zip(good, [*bad, *bad], strict=True) for rule in pair])
        result = backend.install(rules)
        of_good, of_bad = statuses(result)[0::2], statuses(result)[1::2]
        wrong = f"good rules beside bad ones are {names(of_good)}"
        backend.expect(of_good == [Outcome.INSTALLED] * len(good), wrong, hook=INSTALL)
        backend.expect(Outcome.INSTALLED not in of_bad, f"rules for ICMP are {names(of_bad)}", hook=INSTALL)
        misplaced = [row for row in result.messages if row % 2 == 0]
        backend.expect(not misplaced, f"rows {misplaced} are INSTALLED, but have messages", hook=INSTALL)
        backend.expect(backend.nic.messages, "no message says why a rule was refused", hook=INSTALL)
        found = backend.dump_by_cookie().keys()
        wrong = f"{len(found)} rules are installed, of which {len(good)} are good"
        backend.expect(found == set(good.rows["cookie"].tolist()), wrong, hook=DUMP)

    def test_a_full_table_says_full(self, backend: BackendDriver) -> None:
        """Rules beyond the table's size are FULL; installed rules can be installed again, and a removal makes room."""
        size = int(backend.needs("table_size"))
        rules = backend.rules(backend.flows(size + 3))
        result = backend.install(rules)
        fit = result.status == Outcome.INSTALLED
        wrong = f"{size} rules fit; installing {len(rules)} gives {names(sorted(statuses(result)))}"
        backend.expect(int(fit.sum()) == size and (result.status[~fit] == Outcome.FULL).all(), wrong, hook=INSTALL)
        count = len(backend.dump_by_cookie())
        backend.expect(count == size, f"{size} rules are INSTALLED and {count} are in the dump", hook=DUMP)
        inside, outside = RuleBatch(rules.rows[fit].copy()), RuleBatch(rules.rows[~fit].copy())
        again = statuses(backend.install(RuleBatch(inside.rows[:2].copy())))
        wrong = f"installing rules again in a full table gives {names(again)}"
        backend.expect(again == [Outcome.INSTALLED] * len(again), wrong, hook=INSTALL)
        backend.remove_all(RuleBatch(inside.rows[:1].copy()))
        (status,) = statuses(backend.install(RuleBatch(outside.rows[:1].copy())))
        backend.expect(status is Outcome.INSTALLED, f"with room for one rule, it is {status.name}", hook=INSTALL)

    def test_unsupported_is_reported(self, backend: BackendDriver) -> None:
        """A rule of a kind that the NIC never supports is UNSUPPORTED: not FAILED, which is tried again, and not
        INSTALLED without effect; rules of other kinds can still be installed.
        """
        for what, batch in _unsupported_batches(backend):
            found = statuses(backend.install(batch))
            wrong = f"installing {what} gives {names(found)}"
            backend.expect(found == [Outcome.UNSUPPORTED] * len(batch), wrong, hook=INSTALL)
            backend.install_all(backend.rules(backend.flows(2)))

    # Marks

    def test_the_widest_mark_arrives(self, backend: BackendDriver) -> None:
        """A mark of Capabilities.mark_width bits, all of them set, arrives unchanged."""
        backend.needs_marks()
        (flow,) = backend.flows(1)
        rules = backend.install_all(sample_rules([flow], backend.largest_mark))
        mark, dumped = backend.largest_mark, int(backend.rows_of(rules)[0]["rule"]["mark"])
        backend.expect(dumped == mark, f"the dump has the mark {mark:#x} as {dumped:#x}", hook=DUMP)
        seen = backend.arrivals(flow)
        backend.expect(dict(seen.marks) == {mark: 1}, f"the mark is {mark:#x}; {_arrived(seen)}")

    def test_marks_are_not_truncated(self, backend: BackendDriver) -> None:
        """A mark wider than Capabilities.mark_width is UNSUPPORTED or FAILED, never truncated; narrower marks still
        work.
        """
        backend.needs_marks()
        if backend.largest_mark >= 0xFFFF_FFFF:
            backend.not_applicable("its marks have 32 bits, which is the maximum")
        flow, other = backend.flows(2)
        (status,) = statuses(backend.install(sample_rules([flow], backend.largest_mark + 2)))
        refused = status in (Outcome.UNSUPPORTED, Outcome.FAILED)
        backend.expect(refused, f"the mark {backend.largest_mark + 2:#x} is {status.name}", hook=INSTALL)
        (status,) = statuses(backend.install(sample_rules([other], 1)))
        backend.expect(status is Outcome.INSTALLED, f"after that the mark 1 is {status.name}", hook=INSTALL)

    # Traffic, restarts, other programs

    def test_dumps_go_on_under_traffic(self, backend: BackendDriver) -> None:
        """While packets flow, rules are installed, removed and dumped: no hook raises, and no counter decreases."""
        flow, *others = backend.flows(5)
        send = backend.needs("send")
        steady, beside = backend.install_all(backend.rules([flow])), backend.rules(others, first_mark=2)
        stop, sent = threading.Event(), [0]
        errors: list[Exception] = []

        def traffic() -> None:
            try:
                while not (stop.is_set() and sent[0]) and sent[0] < 5_000:
                    send(sample_frame(flow), 10)
                    sent[0] += 10
            except Exception as error:  # noqa: BLE001 - raised again by the test's own thread
                errors.append(error)

        sender = threading.Thread(target=traffic)
        sender.start()
        try:
            last = np.zeros(2, dtype=np.int64)
            for _ in range(20):
                backend.install_all(beside)
                now = backend.counts(steady)[0]
                wrong = f"packets and bytes were {last.tolist()} and are {now.tolist()}"
                backend.expect((now >= last).all(), wrong, hook=DUMP)
                last = now
                backend.remove_all(beside)
        finally:
            stop.set()
            sender.join()
        if errors:
            raise errors[0]
        if backend.capabilities.counters:
            backend.eventually(lambda: int(backend.counts(steady)[0, 0]) == sent[0])
            packets = int(backend.counts(steady)[0, 0])
            backend.expect(packets == sent[0], f"the rule counted {packets} of {sent[0]} packets", hook=DUMP)

    def test_rules_outlive_their_process(self, backend: BackendDriver) -> None:
        """A new process finds the rules of the last one in the dump, with cookies, marks and counters; they still mark
        and count, and can be removed.
        """
        backend.needs("restart")
        rules = backend.install_all(backend.rules(backend.flows(3)))
        first = next(iter(rules))
        counting = backend.nic.send is not None and backend.capabilities.counters
        if counting:
            backend.send(first.match, 3)
            backend.eventually(lambda: int(backend.counts(rules)[0, 0]) == 3)
        before = backend.rows_of(rules)
        backend.restart()
        after = backend.dump_by_cookie()
        lost = set(rules.rows["cookie"].tolist()) - after.keys()
        backend.expect(not lost, f"{len(lost)} of {len(rules)} rules are not in the dump of a new process", hook=DUMP)
        for cookie, row in zip(rules.rows["cookie"].tolist(), before, strict=True):
            same = after[cookie]["rule"] == row["rule"]
            backend.expect(same, f"the rule with cookie {cookie:#x} has changed", hook=DUMP)
        if counting:
            backend.send(first.match, 2)
            backend.eventually(lambda: int(backend.counts(rules)[0, 0]) == 5)
            packets = int(backend.counts(rules)[0, 0])
            backend.expect(
                packets == 5, f"3 packets before the restart and 2 after it are counted as {packets}", hook=DUMP
            )
        found = statuses(backend.remove(rules))
        wrong = f"removing the rules of the last process gives {names(found)}"
        backend.expect(found == [Outcome.REMOVED] * len(rules), wrong, hook=REMOVE)

    def test_foreign_rules_stay(self, backend: BackendDriver) -> None:
        """Rules of other programs stay, whatever happens to nfcore's rules: installed, dumped, removed, torn down."""
        is_installed = backend.needs("foreign")()
        rules = backend.rules(backend.flows(3))
        steps: list[tuple[str, Callable[[], object]]] = [
            ("installing", lambda: backend.install_all(rules)),
            ("dumping", backend.dump),
            ("removing", lambda: backend.remove(rules)),
            ("probing", backend.probe),
        ]
        if backend.nic.restart is not None:
            steps.append(("setting up again", backend.restart))
        steps.append(("tearing down", lambda: backend.call("teardown")))
        for what, step in steps:
            step()
            backend.expect(is_installed(), f"a rule of another program is gone after {what}")

    def test_teardown_leaves_nothing(self, backend: BackendDriver) -> None:
        """After the last rule is removed, teardown leaves nothing behind and may be called twice; the next setup finds
        an empty NIC that takes rules.
        """
        rules = backend.install_all(backend.rules(backend.flows(3)))
        backend.remove_all(rules)
        for _ in range(2):
            backend.call("teardown")
        left = [] if backend.nic.leftovers is None else list(backend.nic.leftovers())
        backend.expect(not left, f"left behind: {'; '.join(left)}", hook="teardown")
        if backend.nic.restart is None:
            return
        backend.restart()
        count = len(backend.dump_by_cookie())
        backend.expect(count == 0, f"the next process finds {count} rules", hook=DUMP)
        backend.install_all(rules)

    # Speed

    def test_throughput(self, backend: BackendDriver) -> None:
        """Batches are processed completely, whatever their size; the summary shows the rate, which is not judged."""
        batch = min(backend.nic.batch, (backend.fillable_size or 1 << 16) // 4)
        batches = [backend.rules(backend.flows(batch, first=1 + number * batch)) for number in range(4 if batch else 0)]
        total = batch * len(batches)
        began = time.perf_counter()
        for rules in batches:
            backend.install_all(rules)
        installed = time.perf_counter()
        found = len(backend.dump())
        dumped = time.perf_counter()
        for rules in batches:
            backend.remove_all(rules)
        removed = time.perf_counter()
        backend.expect(found == total, f"{found} of {total} rules are in the dump", hook=DUMP)
        times = {"installed": installed - began, "dumped": dumped - installed, "removed": removed - dumped}
        backend.report_throughput(**{what: total / max(seconds, 1e-9) for what, seconds in times.items()})


def _arrived(seen: Seen) -> str:
    """How frames arrived, as text."""
    parts = [
        f"{count} with mark {mark:#x}" if mark else f"{count} unmarked" for mark, count in seen.marks.items() if count
    ]
    if seen.dropped or not parts:
        parts.append(f"{seen.dropped} dropped")
    return f"seen: {', '.join(parts)}"


def _similar_flows(flow: FlowMatch, shapes: list[tuple[int, str]]) -> Iterator[FlowMatch]:
    """Flows that differ from `flow` in one port, address or the protocol, and flows of other shapes."""
    yield FlowMatch(flow.src, flow.dst, flow.proto, flow.sport + 1, flow.dport)
    yield FlowMatch(flow.src, flow.dst, flow.proto, flow.sport, flow.dport + 1)
    yield FlowMatch(flow.src + 1, flow.dst, flow.proto, flow.sport, flow.dport)
    yield FlowMatch(flow.src, flow.dst + 1, flow.proto, flow.sport, flow.dport)
    yield FlowMatch(flow.src, flow.dst, 17 if flow.proto == 6 else 6, flow.sport, flow.dport)
    yield from (sample_flow(9, *shape) for shape in shapes if sample_flow(9, *shape) != flow)


def _unsupported_batches(backend: BackendDriver) -> Iterator[tuple[str, RuleBatch]]:
    """Batches of rules that the NIC never supports, each with its description."""
    mark, found = min(1, backend.largest_mark), backend.capabilities
    for number in other_protocols(backend.nic.protocols):
        yield f"rules for IP protocol {number}", sample_rules([sample_flow(at, 4, number) for at in (1, 2)], mark)
    if not found.ipv6:
        yield (
            "IPv6 rules (Capabilities.ipv6 is False)",
            sample_rules([sample_flow(1, 6, backend.nic.protocols[0])], mark),
        )
    if not found.drop:
        yield "drop rules (Capabilities.drop is False)", sample_rules(backend.flows(1), 0)
    if not backend.largest_mark:
        yield "rules that set marks (Capabilities.mark_width is 0)", sample_rules(backend.flows(1), 1)


def _expect_bytes(
    backend: BackendDriver, rules: RuleBatch, counted: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> None:
    """Counted bytes must be those of the packets, with or without Ethernet header and FCS: NICs differ."""
    for rule, (packets, size) in zip(rules, counted.tolist(), strict=True):
        frame = len(sample_frame(rule.match))
        least, most = packets * (frame - _ETHERNET), packets * (frame + _FCS)
        wrong = f"{packets} packets of {frame} bytes are counted as {size} bytes"
        backend.expect(least <= size <= most, wrong)
