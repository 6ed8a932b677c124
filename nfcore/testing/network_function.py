# SPDX-License-Identifier: Apache-2.0
"""The conformance suite of network functions: subclass it and define the fixture `function`; pytest collects the tests.

class TestMyFunction(NetworkFunctionConformance):
    @pytest.fixture
    def function(self) -> FunctionUnderTest: ...

It loads the real program, which needs root, and sends it frames by test runs: no interface is touched.
"""

from __future__ import annotations

import gc
import ipaddress
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from ..api.flows import Anything, FlowBatch, FlowMatch, Wild
from ..api.marks import MarkMeaning
from ..api.network_function import TargetFacts
from ..engine.flow_state import FlowState
from .function_run import MIN_PACKETS, FunctionDriver, FunctionRun, FunctionUnderTest

_UNKNOWN = 0xFFFF_FFFF_FFFF_FFF0
"""A target that no function has."""
_OTHER_NUMBER = 99
"""Of a network function that does not exist."""
_HOOKS = ("setup", "teardown", "publish_marks", "retire_marks", "restore_flows")
_TRUNCATED = (
    bytes(14),
    b"\xff" * 14,
    bytes(12) + b"\x08\x00" + b"\x45",
    bytes(12) + b"\x86\xdd" + b"\x60" + bytes(8),
    bytes(60),
)
_PACKETS = "nfcore_function_packets_total"


class NetworkFunctionConformance:
    """Tests of one network function. Each test is a promise: the docstring states it."""

    @pytest.fixture
    def function(self) -> FunctionUnderTest:
        """The network function under test, defined by the author. Any scope."""
        raise pytest.UsageError(f"{type(self).__name__} needs a fixture `function` that returns a FunctionUnderTest")

    @pytest.fixture
    def nf(self, request: pytest.FixtureRequest, function: FunctionUnderTest) -> Iterator[FunctionDriver]:
        """Sets the plugin up, and calls hooks and methods as the engine does."""
        if os.geteuid() != 0:
            pytest.skip("loading a BPF program needs root")
        driver = FunctionDriver(request.node, NetworkFunctionConformance, function)
        yield driver
        driver.close()

    # The plugin and its function

    def test_hooks_have_our_signatures(self, nf: FunctionDriver) -> None:
        """The plugin implements setup, teardown, publish_marks, retire_marks and restore_flows, and registers one
        function under its own name, with all that nfcore.api.network_function.NetworkFunction has.
        """
        run = nf.run()
        missing = [hook for hook in _HOOKS if nf.name not in nf.plugins.implementing(hook)]
        nf.expect(not missing, f"{', '.join(missing)} is missing; has each @hookimpl above it?")
        nf.expect(run.function.number == 1, f"its number is {run.function.number}; Context.register_nf sets it")

    def test_hooks_do_not_raise(self, nf: FunctionDriver) -> None:
        """No hook and no method raises, whatever it gets: unknown targets, marks of nobody, masked flows, no flows at
        all, frames that are cut off.
        """
        run = nf.run()
        unknown, nothing = run.batch(_UNKNOWN, 0), FlowBatch.empty()
        marks, none = np.array([3, 4], dtype=np.uint32), np.zeros(0, dtype=np.uint32)
        for batch, given in ((unknown, marks), (nothing, none)):
            nf.call("publish_marks", "published-marks-lead-to-their-target", batch=batch, marks=given)
            nf.call("retire_marks", nf=run.function.number, marks=given)
            nf.call("restore_flows", batch=batch)
            run.ask("recognise", FlowBatch(batch.rows.copy()), given)
            run.ask("claims", batch)
            run.ask("groups", batch.rows["target"])
        run.ask("recognise", run.batch(0, 0), np.array([0, 0xFFFF_FFFF], dtype=np.uint32))
        for target in (0, _UNKNOWN):
            run.ask("describe", target)
            run.ask("target_facts", target)
        run.ask("explain", run.flows[0])
        for frame in _TRUNCATED:
            arguments = {"nf": run.function.number, "frame": frame, "mark": 0}
            nf.call("trace_packet", "traces-say-what-happened", **arguments)

    def test_targets_are_listed_once(self, nf: FunctionDriver) -> None:
        """`targets` gives each target once, always in the same order, with the function's number and a key of zeros."""
        run = nf.run()
        batch, again = run.targets(), run.targets()
        rows = batch.rows
        nf.expect((rows["nf"] == run.function.number).all(), f"nf is {rows['nf']!r:.60}", hook="targets")
        twice = len(rows) - len(np.unique(rows["target"]))
        nf.expect(not twice, f"{twice} of {len(rows)} targets are listed twice", hook="targets")
        zeros = np.zeros(len(rows), dtype=rows["key"].dtype)
        nf.expect((rows["key"] == zeros).all(), "a key is not all zeros", hook="targets")
        same = np.array_equal(rows["target"], again.rows["target"])
        nf.expect(same, "a second call gives other targets, or another order", hook="targets")

    def test_groups_are_small_numbers(self, nf: FunctionDriver) -> None:
        """`groups` gives a number (integers of 32 bits) for each target, the same one each time."""
        run = nf.run()
        targets = run.targets().rows["target"].copy()
        groups, backwards = run.ask("groups", targets), run.ask("groups", targets[::-1].copy())
        kind = isinstance(groups, np.ndarray) and groups.shape == targets.shape and groups.dtype.kind in "iu"
        nf.expect(
            kind, f"returned {groups!r:.60} for {len(targets)} targets; should be an array of uint32", hook="groups"
        )
        nf.expect(np.array_equal(groups, backwards[::-1]), "a target has two groups", hook="groups")

    def test_targets_are_described(self, nf: FunctionDriver) -> None:
        """`describe` gives words for each target, as texts: no two targets have the same."""
        run = nf.run()
        known: dict[tuple[tuple[str, str], ...], int] = {}
        for target in run.targets().rows["target"].tolist():
            words = run.ask("describe", target)
            texts = isinstance(words, Mapping) and all(isinstance(each, str) for pair in words.items() for each in pair)
            nf.expect(texts, f"returned {words!r:.60}; should be texts by their names", hook="describe")
            nf.expect(words, f"says nothing of target {target}", hook="describe")
            other = known.setdefault(tuple(sorted(words.items())), target)
            nf.expect(other == target, f"says {dict(words)} of the targets {other} and {target}", hook="describe")

    def test_facts_are_values(self, nf: FunctionDriver) -> None:
        """`target_facts` gives TargetFacts whose fields have their types; of an unknown target nothing."""
        run = nf.run()
        addresses = (ipaddress.IPv4Address, ipaddress.IPv6Address)
        networks = (ipaddress.IPv4Network, ipaddress.IPv6Network)
        kinds: dict[str, tuple[type, ...]] = {"network": networks, "destination": addresses}
        kinds |= dict.fromkeys(("port", "protocol", "weight"), (int,))
        for target in run.targets().rows["target"].tolist():
            facts = run.ask("target_facts", target)
            nf.expect(isinstance(facts, TargetFacts), f"returned {facts!r:.60}", hook="target_facts")
            for name, kind in kinds.items():
                value = getattr(facts, name)
                right = value is None or (isinstance(value, kind) and not isinstance(value, bool))
                nf.expect(right, f"{name} is {value!r:.60}, a {type(value).__name__}", hook="target_facts")
            nf.expect(isinstance(facts.own, Mapping), f"own is {facts.own!r:.60}", hook="target_facts")
        unknown = run.ask("target_facts", _UNKNOWN)
        nf.expect(unknown == TargetFacts(), f"of an unknown target it says {unknown!r:.90}", hook="target_facts")

    def test_fingerprints_tell_meanings_apart(self, nf: FunctionDriver) -> None:
        """`fingerprint` gives equal bytes in two runs whose targets mean the same, and others when they do not."""
        first, second = (nf.run().ask("fingerprint") for _ in range(2))
        nf.expect(isinstance(first, bytes), f"returned {first!r:.60}; should be bytes", hook="fingerprint")
        _with_marks_of_targets(nf)
        nf.expect(first == second, f"two runs of one TOML give {first!r:.40} and {second!r:.40}", hook="fingerprint")
        nf.skip_without("another", nf.under.another)
        other = nf.run(nf.under.another).ask("fingerprint")
        nf.expect(other != first, f"with {', '.join(nf.under.another)} it gives the same bytes", hook="fingerprint")

    # Reports of flows

    def test_flows_are_reported(self, nf: FunctionDriver) -> None:
        """A flow is reported after `[offload] min_packets` packets, not before, with its key, family, device, number of
        the function, and one of its targets.
        """
        nf.needs("reports")
        run = nf.run()
        known = set(run.targets().rows["target"].tolist())
        for flow in run.flows:
            run.send(flow, MIN_PACKETS - 1)
            early = [each.match for each in run.reports()]
            nf.expect(flow not in early, f"{flow} was reported after {MIN_PACKETS - 1} packets", hook="read_events")
            run.send(flow)
            rows = run.reports().rows
            found = [str(FlowMatch.from_key(row["key"], int(row["family"]))) for row in rows]
            nf.expect(
                found == [str(flow)], f"{MIN_PACKETS} packets of {flow} led to reports of {found}", hook="read_events"
            )
            got = (int(rows["nf"][0]), int(rows["ifindex"][0]))
            right = (run.function.number, run.device.ifindex)
            nf.expect(got == right, f"(nf, ifindex) is {got}; should be {right}", hook="read_events")
            target = int(rows["target"][0])
            nf.expect(target in known, f"target {target} of {flow} is none of `targets`", hook="read_events")

    def test_reading_never_waits(self, nf: FunctionDriver) -> None:
        """`read_events` returns at once, also without reports; it takes no more than `limit`, and loses none."""
        nf.needs("reports")
        run = nf.run()
        nf.expect(not len(run.reports()), "there are reports without a packet", hook="read_events")
        for flow in run.flows:
            run.send(flow, MIN_PACKETS)
        nf.skip_without("several", len(run.flows) > 1)
        first = run.reports(1)
        nf.expect(len(first) == 1, f"a limit of 1 gave {len(first)} reports", hook="read_events")
        rest = run.reports()
        total = len(first) + len(rest)
        wrong = f"of {len(run.flows)} reports {total} were read: {len(first)}, then {len(rest)}"
        nf.expect(total == len(run.flows), wrong, hook="read_events")

    def test_other_packets_go_on(self, nf: FunctionDriver) -> None:
        """Packets that are none of its traffic are not reported, and go on unchanged."""
        run = nf.run()
        nf.skip_without("others", run.others)
        for flow in run.others:
            result = run.send(flow, 2 * MIN_PACKETS)
            reported = [str(each.match) for each in run.reports()]
            nf.expect(str(flow) not in reported, f"{flow} was reported", hook="read_events")
            nf.expect(result.verdict.name == "XDP_PASS", f"the verdict for {flow} is {result.verdict.name}")
            traced = run.trace(flow)
            wrong = f"{flow}: passed_on is {traced.passed_on}, path {traced.path!r}"
            nf.expect(traced.passed_on and traced.path == "none", wrong, hook="trace_packet")

    def test_restored_flows_are_reported_again(self, nf: FunctionDriver) -> None:
        """After restore_flows the flow fares as before, and is reported again when it has enough packets."""
        nf.needs("reports")
        run = nf.run()
        for flow in run.flows:
            # So many that without restore_flows the next report would take many more packets, not these few.
            before = run.send(flow, 4 * MIN_PACKETS)
            batch = run.reports()
            nf.expect(len(batch), f"{flow} was not reported", promise="flows-are-reported", hook="read_events")
            nf.call("restore_flows", batch=batch[np.array([len(batch) - 1])])
            after = run.send(flow, MIN_PACKETS)
            same = (after.verdict, after.output) == (before.verdict, before.output)
            nf.expect(same, f"{flow} fares otherwise than before", hook="restore_flows")
            again = [each.match for each in run.reports()]
            nf.expect(
                again == [flow], f"after {MIN_PACKETS} more packets of {flow} reports are {again}", hook="restore_flows"
            )

    # Marks

    def test_published_marks_lead_to_their_target(self, nf: FunctionDriver) -> None:
        """Once publish_marks has said True, packets with the mark take the fast path, and fare as without it."""
        run = _with_marks_of_targets(nf)
        for flow in run.flows:
            target = run.target_of(flow)
            without = run.send(flow)
            marks, there = run.publish(target)
            nf.expect(there.all(), f"the target of {flow} is not published", hook="publish_marks")
            traced = run.trace(flow, int(marks[0]))
            nf.expect(
                traced.path == "fast", f"{flow} with its mark takes the path {traced.path!r}", hook="publish_marks"
            )
            same = (traced.verdict, traced.output) == (without.verdict.name, without.output)
            nf.expect(same, f"{flow}: {traced.verdict} with the mark, {without.verdict.name} without, or another frame")

    def test_unknown_targets_are_not_published(self, nf: FunctionDriver) -> None:
        """publish_marks gives False for a target that does not exist, and True for those beside it."""
        run = _with_marks_of_targets(nf)
        target = run.target_of(run.flows[0])
        _, there = run.publish(_UNKNOWN, target)
        nf.expect(there.tolist() == [False, True], f"(unknown, known) gave {there.tolist()}", hook="publish_marks")

    def test_a_mark_is_a_hint(self, nf: FunctionDriver) -> None:
        """A packet whose mark has no entry, or is of a target of another group, fares as without it."""
        run = _with_marks_of_targets(nf)
        targets = {each: run.target_of(each) for each in run.flows}
        (free,) = run.context.marks.take(1).tolist()
        flow, width = run.flows[0], run.context.config.marking.width
        for mark in (free, (1 << width) - 1, 1 << width, 0xFFFF_FFFF):
            _expect_unmarked(nf, run, flow, mark, "which nobody published")
        nf.needs("checks")
        groups = run.ask("groups", np.array(list(targets.values()), dtype=np.uint64))
        other = next((each for each, group in zip(targets, groups, strict=True) if group != groups[0]), None)
        nf.skip_without("several", other)
        assert other is not None
        marks, _ = run.publish(targets[other])
        _expect_unmarked(nf, run, flow, int(marks[0]), f"which is of the target of {other}")

    def test_retired_marks_mean_nothing(self, nf: FunctionDriver) -> None:
        """After retire_marks a packet with the mark fares as without it; other marks stay."""
        run = _with_marks_of_targets(nf)
        flow = run.flows[0]
        target = run.target_of(flow)
        marks, _ = run.publish(target, target)
        nf.call("retire_marks", nf=run.function.number, marks=marks[:1].copy())
        _expect_unmarked(nf, run, flow, int(marks[0]), "which is retired", hook="retire_marks")
        left = run.trace(flow, int(marks[1]))
        nf.expect(left.path == "fast", "another mark of the target is gone, too", hook="retire_marks")

    def test_marks_are_recognised(self, nf: FunctionDriver) -> None:
        """`recognise` fills in the target of a flow whose mark it has published, and gives False for other marks."""
        nf.needs("reports")
        run = _with_marks_of_targets(nf)
        flow = run.flows[0]
        target = run.target_of(flow)
        marks, _ = run.publish(target, flow=flow)
        batch = run.batch_of([flow, flow, flow, flow])
        (free,) = run.context.marks.take(1)
        asked = np.array([marks[0], 0, free, 0xFFFF_FFFF], dtype=np.uint32)
        known = run.ask("recognise", batch, asked)
        form = isinstance(known, np.ndarray) and known.shape == (4,) and known.dtype == np.bool_
        nf.expect(form, f"returned {known!r:.60} for 4 flows; should be an array of bool", hook="recognise")
        right = [True, False, False, False]
        nf.expect(known.tolist() == right, f"(published, 0, free, huge) gave {known.tolist()}", hook="recognise")
        filled = int(batch.rows["target"][0])
        nf.expect(filled == target, f"filled in target {filled}; should be {target}", hook="recognise")

    def test_flows_get_rules(self, nf: FunctionDriver) -> None:
        """With the engine each flow gets a rule; packets with its mark take the fast path and fare as without it."""
        run = nf.run()
        for flow in run.flows:
            without = run.send(flow, MIN_PACKETS)
            run.poll()
            slots = run.engine.table.slots_in(FlowState.INSTALLED)
            keys = run.engine.table.flow["key"][slots]
            mine = slots[keys == flow.to_key()] if "reports" not in nf.under.lacks else slots
            nf.expect(len(mine), f"{flow} has no rule after {MIN_PACKETS} packets")
            marks = [mark for mark in run.engine.table.mark[mine].tolist() if mark]
            fast = [mark for mark in marks if run.trace(flow, mark).path == "fast"]
            nf.expect(fast, f"{flow} takes the fast path by none of the marks {marks}")
            marked = run.send(flow, mark=fast[0])
            same = (marked.verdict, marked.output) == (without.verdict, without.output)
            nf.expect(
                same, f"{flow}: {marked.verdict.name} with the mark, {without.verdict.name} without, or another frame"
            )

    # In a chain

    def test_it_is_one_of_a_chain(self, nf: FunctionDriver) -> None:
        """In a chain, what goes on reaches the next function; a marked packet comes straight to the mark's owner."""
        name = nf.name
        for chain in ((name, "after"), ("before", name, "after"), ("before", name)):
            run = nf.run(chain=chain)
            flow = run.flows[0]
            goes_on = run.trace(flow).passed_on
            seen = {each: neighbour.seen for each, neighbour in run.neighbours.items()}
            run.send(flow, MIN_PACKETS)
            expected = {"before": MIN_PACKETS, "after": MIN_PACKETS * goes_on}
            _expect_seen(nf, run, seen, expected, f"{MIN_PACKETS} packets of {flow}", chain)
            run.poll()
            slots = run.engine.table.slots_in(FlowState.INSTALLED)
            marks = [
                mark for mark in run.engine.table.mark[slots].tolist() if mark and run.trace(flow, mark).path == "fast"
            ]
            nf.expect(
                marks, f"{flow} has no rule with a mark in the chain {' → '.join(chain)}", promise="flows-get-rules"
            )
            seen = {each: neighbour.seen for each, neighbour in run.neighbours.items()}
            run.send(flow, 3, mark=marks[0])
            _expect_seen(nf, run, seen, {"before": 0, "after": 3 * goes_on}, f"3 marked packets of {flow}", chain)

    def test_claims_cover_its_flows(self, nf: FunctionDriver) -> None:
        """`claims` says True for flows that it handles and for masked ones that have such packets; False for flows that
        are none of its traffic.
        """
        run = nf.run()
        wide = [
            FlowMatch(each.src, each.dst, 0, 0, 0, Wild(0, 0, Anything.SPORT | Anything.DPORT | Anything.PROTO))
            for each in run.flows
        ]
        for flows, right in ((run.flows, True), (wide, True), (run.others, False)):
            claimed = run.ask("claims", run.batch_of(flows))
            form = isinstance(claimed, np.ndarray) and claimed.shape == (len(flows),) and claimed.dtype == np.bool_
            nf.expect(
                form, f"returned {claimed!r:.60} for {len(flows)} flows; should be an array of bool", hook="claims"
            )
            wrong = [str(flow) for flow, got in zip(flows, claimed.tolist(), strict=True) if got is not right]
            nf.expect(not wrong, f"says {not right} for {', '.join(wrong)}", hook="claims")

    # What people see

    def test_traces_say_what_happened(self, nf: FunctionDriver) -> None:
        """trace_packet gives a PacketTrace: what the program does, the path, and the target or VIP and real; None for a
        function that is not the plugin's.
        """
        run = nf.run()
        flow = run.flows[0]
        arguments = {"nf": _OTHER_NUMBER, "frame": bytes(60), "mark": 0}
        foreign = nf.call("trace_packet", "traces-say-what-happened", **arguments)
        nf.expect(foreign is None, f"returned {foreign!r:.60} for a function of another plugin", hook="trace_packet")
        sent, traced = run.send(flow), run.trace(flow)
        same = (traced.verdict, traced.output) == (sent.verdict.name, sent.output)
        nf.expect(
            same,
            f"{flow}: the trace has {traced.verdict}, the program {sent.verdict.name}, or another frame",
            hook="trace_packet",
        )
        nf.expect(traced.path == "slow", f"the path of {flow} without a mark is {traced.path!r}", hook="trace_packet")
        told = traced.target is not None or (traced.vip is not None and traced.real is not None)
        nf.expect(told, f"names no target of {flow}", hook="trace_packet")

    def test_metrics_count_packets(self, nf: FunctionDriver) -> None:
        """`nfcore_function_packets_total` has the function's name, and grows by each packet that it has handled."""
        run = nf.run()
        before = _counted(nf)
        for flow in (*run.flows, *run.others):
            run.send(flow, 3)
        sent, counted = 3 * (len(run.flows) + len(run.others)), _counted(nf) - before
        nf.expect(counted == sent, f"{sent} packets are counted as {counted:g} in {_PACKETS}", hook="collect_stats")

    # The end

    def test_teardown_leaves_nothing(self, nf: FunctionDriver) -> None:
        """Teardown closes all that setup has opened, may be called twice, and the next setup works as the first."""
        nf.run()
        nf.close()  # what the process itself opens once is open now
        before = _descriptors()
        run = nf.run()
        flow = run.flows[0]
        run.send(flow, MIN_PACKETS)
        nf.close()
        nf.call("teardown")
        left = _descriptors() - before
        nf.expect(left <= 0, f"{left} descriptors are still open after teardown", hook="teardown")


def _with_marks_of_targets(nf: FunctionDriver) -> FunctionRun:
    """Set up; end the test where marks mean flows: then the program takes them itself."""
    __tracebackhide__ = True
    run = nf.run()
    strategy = run.context.strategy
    if strategy is not None and strategy.meaning is not MarkMeaning.TARGET:
        nf.not_applicable("its marks mean a flow")
    return run


def _expect_unmarked(
    nf: FunctionDriver, run: FunctionRun, flow: FlowMatch, mark: int, why: str, hook: str = ""
) -> None:
    """A packet with this mark must fare as one without, and not take the fast path."""
    __tracebackhide__ = True
    without, traced = run.send(flow), run.trace(flow, mark)
    nf.expect(traced.path != "fast", f"{flow} takes the fast path by the mark {mark}, {why}", hook=hook)
    same = (traced.verdict, traced.output) == (without.verdict.name, without.output)
    nf.expect(same, f"{flow} fares otherwise with the mark {mark}, {why}", hook=hook)


def _expect_seen(
    nf: FunctionDriver,
    run: FunctionRun,
    before: Mapping[str, int],
    right: Mapping[str, int],
    what: str,
    chain: tuple[str, ...],
) -> None:
    __tracebackhide__ = True
    for name, neighbour in run.neighbours.items():
        came = neighbour.seen - before[name]
        nf.expect(came == right[name], f"of {what} {name!r} saw {came}, not {right[name]}, in {' → '.join(chain)}")


def _counted(nf: FunctionDriver) -> float:
    __tracebackhide__ = True
    families = [family for family in nf.call("collect_stats", "metrics-count-packets") if family.name == _PACKETS]
    nf.expect(families, f"gives no {_PACKETS}: nfcore.api.metrics.function_packets makes it", hook="collect_stats")
    samples = [each for family in families for each in family.everything()]
    named = {each.labels.get("function") for each in samples}
    nf.expect(named == {nf.name}, f"its label function is {named}; should be {nf.name!r}", hook="collect_stats")
    return sum(float(each.value) for each in samples)


def _descriptors() -> int:
    gc.collect()  # what only a circle of references holds is closed, too
    return len(list(Path("/proc/self/fd").iterdir()))
