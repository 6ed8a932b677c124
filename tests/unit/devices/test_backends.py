# SPDX-License-Identifier: Apache-2.0
"""A device's backends as one, and the thread that waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from nfcore.api.flows import NO_TAGS, SERVICE_TAG, FlowBatch, FlowMatch, ReportKind
from nfcore.api.hookspecs import hookimpl
from nfcore.api.rules import INSTALLED_ROW, Capabilities, Device, Drop, Outcome, Outcomes, Rule, RuleBatch, SetMark
from nfcore.devices.backends import BackendChain, RuleShapes
from nfcore.devices.device_state import DeviceState
from nfcore.devices.null_backend import NULL_BACKEND, NullBackend
from nfcore.devices.token_bucket import TokenBucket
from nfcore.devices.worker import DeviceWorker, InlineWorker
from nfcore.hooks.manager import PluginManager
from tests.unit.hooks.faults import errors_of

PATIENCE = 10.0
"""Seconds until a thread that hangs fails the test."""


def rules(*ports: int) -> RuleBatch:
    flows = [FlowMatch.parse(f"198.18.1.2:{port} > 198.18.10.1:80/tcp") for port in ports]
    return RuleBatch.of([Rule(flow, SetMark(1), flow.sport) for flow in flows])


def ports_of(batch: RuleBatch) -> list[int]:
    return [rule.match.sport for rule in batch]


class Picky:
    """Takes rules from some source ports and tells which it was asked for."""

    def __init__(self, takes: set[int], else_: Outcome = Outcome.UNSUPPORTED) -> None:
        self._takes, self._else = takes, else_
        self.asked: list[list[int]] = []

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        self.asked.append(ports_of(rules))
        status = [Outcome.INSTALLED if port in self._takes else self._else for port in self.asked[-1]]
        return Outcomes(np.array(status, dtype=np.uint8), dict.fromkeys(range(len(status)), "odd ports only"))

    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        self.asked.append(ports_of(rules))
        status = [Outcome.REMOVED if port in self._takes else Outcome.ABSENT for port in self.asked[-1]]
        return Outcomes(np.array(status, dtype=np.uint8))


class Answers:
    """A backend that answers all its hooks with one value, or raises it."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def _give(self) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Any:
        return self._give()

    @hookimpl
    def remove_offload(self, device: Device, rules: RuleBatch) -> Any:
        return self._give()

    @hookimpl
    def dump_offload(self, device: Device) -> Any:
        return self._give()


def backends(**named: object) -> tuple[BackendChain, PluginManager]:
    plugins = PluginManager()
    for name, plugin in named.items():
        plugins.register(plugin, name)
    return BackendChain(Device("eth1", 4, tuple(named)), plugins), plugins


def test_each_backend_is_asked_for_what_is_left() -> None:
    first, second, third = Picky({1, 2}), Picky({3}), Picky({9})
    device, _ = backends(first=first, second=second, third=third)
    result = device.install(rules(1, 3, 2, 4))
    assert (first.asked, second.asked, third.asked) == ([[1, 3, 2, 4]], [[3, 4]], [[4]])
    assert result.status.tolist() == [Outcome.INSTALLED] * 3 + [Outcome.UNSUPPORTED]
    assert result.backend.tolist() == [0, 1, 0, 2]
    assert result.messages == ["odd ports only"]


def test_nobody_is_asked_for_nothing() -> None:
    first, second = Picky({1}), Picky(set())
    device, _ = backends(first=first, second=second)
    device.install(rules(1))
    assert second.asked == []
    assert device.remove(rules(1), np.array([0], dtype=np.uint8)).gone.tolist() == [True]
    assert second.asked == []


def test_removal_goes_to_the_backend_that_holds_the_rule() -> None:
    first, second = Picky({1, 2}), Picky({3})
    device, _ = backends(first=first, second=second)
    assert device.remove(rules(1, 3, 2), np.array([0, 1, 0], dtype=np.uint8)).gone.all()
    assert (first.asked, second.asked) == ([[1, 2]], [[3]])


def test_removing_what_is_not_there_is_no_error() -> None:
    device, _ = backends(first=Picky(set()))
    assert device.remove(rules(5), np.zeros(1, dtype=np.uint8)).gone.all()


def test_without_backends_nothing_is_installed() -> None:
    device, _ = backends()
    assert device.install(rules(1)).status.tolist() == [Outcome.UNSUPPORTED]
    assert len(device.dump().rows) == 0


WRONG = [OSError("gone"), None, 1, Outcomes.all(Outcome.INSTALLED, 3), Outcomes([Outcome.INSTALLED]), np.zeros(3)]


@pytest.mark.parametrize("answer", WRONG, ids=repr)
def test_a_broken_backend_has_failed_and_the_next_is_asked(answer: object) -> None:
    device, plugins = backends(broken=Answers(answer), next=Picky({1}))
    result = device.install(rules(1, 2))
    assert result.status.tolist() == [Outcome.INSTALLED, Outcome.FAILED]
    assert result.backend.tolist() == [1, 1]
    assert errors_of(plugins) == {("broken", "install_offload"): 1}
    assert not device.remove(rules(1, 2), np.zeros(2, dtype=np.uint8)).gone.any()
    assert errors_of(plugins)["broken", "remove_offload"] == 1


def test_dumps_of_all_backends_are_one() -> None:
    first, second = np.zeros(2, dtype=INSTALLED_ROW), np.zeros(1, dtype=INSTALLED_ROW)
    first["rule"], second["rule"] = rules(1001, 1002).rows, rules(80).rows
    device, plugins = backends(
        first=Answers(first), silent=Picky(set()), broken=Answers(OSError()), second=Answers(second)
    )
    dump = device.dump()
    assert dump.rows["rule"]["key"]["sport"].tolist() == [1001, 1002, 80]
    assert dump.rows.dtype == INSTALLED_ROW
    assert dump.complete == [0, 3]
    assert errors_of(plugins) == {("broken", "dump_offload"): 1}


@pytest.mark.parametrize("answer", [np.zeros(2), [], "rules"], ids=repr)
def test_a_dump_of_something_else_is_left_out(answer: object) -> None:
    device, plugins = backends(wrong=Answers(answer))
    assert device.dump().complete == []
    assert errors_of(plugins) == {("wrong", "dump_offload"): 1}


EXACT, MASKED = "198.18.1.2:{port} > 198.18.10.1:80/tcp", "198.18.1.0/24:{port} > 198.18.10.1:*/tcp"
SHAPES: list[tuple[str, SetMark | Drop]] = [
    (EXACT, SetMark(1)),
    (MASKED, SetMark(1)),
    (EXACT, Drop()),
    (MASKED, Drop()),
]


def every_shape() -> RuleBatch:
    """An exact and a masked rule that mark, an exact and a masked one that drop: source ports 1 to 4."""
    return RuleBatch.of(
        [
            Rule(FlowMatch.parse(text.format(port=port)), action, port)
            for port, (text, action) in enumerate(SHAPES, start=1)
        ]
    )


class Able(Picky):
    """Takes whatever it is asked for, and says what that may be."""

    def __init__(self, able: Capabilities | None) -> None:
        super().__init__({1, 2, 3, 4})
        self._able = able

    @hookimpl
    def probe_offload(self, device: Device) -> Capabilities | None:
        return self._able


ABLE = [
    (Capabilities(32, masks=True), [1, 2, 3, 4]),
    (Capabilities(32), [1, 3]),
    (Capabilities(32, drop=False), [1]),
    (Capabilities(32, drop=False, masks=True), [1, 2]),
    (None, [1, 3]),
]


@pytest.mark.parametrize(("able", "asked"), ABLE, ids=str)
def test_a_backend_is_asked_only_for_what_it_can_do(able: Capabilities | None, asked: list[int]) -> None:
    first, second = Able(able), Able(Capabilities(32, masks=True))
    device, _ = backends(first=first, second=second)
    device.probe()
    assert (device.install(every_shape()).status == Outcome.INSTALLED).all()
    assert first.asked == [asked]
    assert second.asked == ([] if len(asked) == 4 else [[port for port in (1, 2, 3, 4) if port not in asked]])


def test_a_backend_that_was_not_probed_gets_no_masked_rules() -> None:
    able = Able(Capabilities(32, masks=True))
    device, _ = backends(able=able)
    assert device.install(every_shape()).status.tolist() == [Outcome.INSTALLED, Outcome.UNSUPPORTED] * 2
    assert able.asked == [[1, 3]]
    device.probe()
    assert (device.install(every_shape()).status == Outcome.INSTALLED).all()


def test_what_is_unsupported_is_remembered_for_its_shape_alone() -> None:
    class NoMaskedDrops(Able):
        @hookimpl
        def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
            outcomes = super().install_offload(device, rules)
            outcomes.status[rules.rows["cookie"] == 4] = Outcome.UNSUPPORTED
            return outcomes

    backend = NoMaskedDrops(Capabilities(32, masks=True))
    device, _ = backends(only=backend)
    device.probe()
    for expected in ([1, 2, 3, 4], [1, 2, 3]):
        assert device.install(every_shape()).status.tolist() == [Outcome.INSTALLED] * 3 + [Outcome.UNSUPPORTED]
        assert backend.asked[-1] == expected
    # Other bits that are open make another shape.
    other = RuleBatch.of([Rule(FlowMatch.parse("198.18.0.0/16:4 > 198.18.10.1:*/tcp"), Drop(), 5)])
    assert device.install(other).status.tolist() == [Outcome.INSTALLED]
    device.forget_unsupported()
    device.install(every_shape())
    assert backend.asked[-1] == [1, 2, 3, 4]


@pytest.mark.parametrize(("able", "asked"), ABLE, ids=str)
def test_flows_that_no_backend_takes_are_known(able: Capabilities | None, asked: list[int]) -> None:
    device, _ = backends(only=Able(able))
    device.probe()
    state = DeviceState(device, InlineWorker(), TokenBucket(0, 1, lambda: 0.0))
    flows = FlowBatch.empty(4)
    flows.rows["key"], flows.rows["family"] = every_shape().rows["key"], 4
    flows.rows["kind"] = [ReportKind.ORDERED, ReportKind.ORDERED, ReportKind.ORDERED_DROP, ReportKind.ORDERED_DROP]
    assert state.unsupported(flows).tolist() == [port not in asked for port in (1, 2, 3, 4)]
    flows.rows["kind"] = ReportKind.SHOWN
    assert state.unsupported(flows).tolist() == [1 not in asked, 2 not in asked] * 2


def test_the_null_backend_takes_and_lets_go() -> None:
    device, _ = backends(**{NULL_BACKEND: NullBackend()})
    device.probe()
    assert (device.install(every_shape()).status == Outcome.INSTALLED).all()
    assert device.install(rules(1, 2)).status.tolist() == [Outcome.INSTALLED] * 2
    assert device.remove(rules(1, 2), np.zeros(2, dtype=np.uint8)).gone.all()


def raises() -> None:
    raise LookupError("no such rule")


def test_an_inline_worker_answers_at_once() -> None:
    results: list[Any] = []
    worker = InlineWorker()
    assert worker.submit(lambda: 7, results.append)
    assert worker.submit(raises, results.append)
    assert worker.stop(0)
    assert results[0] == 7
    assert isinstance(results[1], LookupError)


class Loop:
    """Stands for the engine's thread: what the worker delivers waits here."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def deliver(self, done: Callable[[], None]) -> None:
        self.waiting.append(done)

    def run(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_jobs_run_in_order_elsewhere_and_answers_come_here(loop: Loop) -> None:
    worker = DeviceWorker("eth1", loop.deliver)
    jobs: list[tuple[int, str]] = []
    answers: list[tuple[Any, threading.Thread]] = []
    for number in range(20):
        assert worker.submit(
            lambda number=number: jobs.append((number, threading.current_thread().name)) or number,
            lambda result: answers.append((result, threading.current_thread())),
        )
    assert worker.stop(PATIENCE)
    assert jobs == [(number, "offload-eth1") for number in range(20)]
    assert answers == []
    loop.run()
    assert answers == [(number, threading.main_thread()) for number in range(20)]


def test_a_job_that_raises_does_not_end_the_thread(loop: Loop) -> None:
    worker = DeviceWorker("eth1", loop.deliver)
    results: list[Any] = []
    worker.submit(raises, results.append)
    worker.submit(lambda: 7, results.append)
    assert worker.stop(PATIENCE)
    loop.run()
    assert isinstance(results[0], LookupError)
    assert results[1] == 7


def test_a_full_queue_says_so_and_loses_nothing(loop: Loop, gate: threading.Event) -> None:
    worker = DeviceWorker("eth1", loop.deliver, depth=2)
    started = threading.Event()
    results: list[Any] = []

    def hold() -> int:
        started.set()
        gate.wait(PATIENCE)
        return 0

    assert worker.submit(hold, results.append)
    assert started.wait(PATIENCE)
    assert [worker.submit(lambda n=n: n, results.append) for n in (1, 2, 3)] == [True, True, False]
    gate.set()
    assert worker.stop(PATIENCE)
    loop.run()
    assert results == [0, 1, 2]


def test_a_thread_that_hangs_is_reported(loop: Loop, gate: threading.Event) -> None:
    worker = DeviceWorker("eth1", loop.deliver)
    worker.submit(lambda: gate.wait(PATIENCE), lambda result: None)
    assert worker.stop(0.01) is False
    gate.set()


FAMILIES = [
    ("198.18.1.1:1 > 198.18.10.1:80/tcp", SetMark(1)),
    ("198.18.1.1:2 > 198.18.10.1:80/udp", SetMark(1)),
    ("[2001:db8::1]:3 > [2001:db8::2]:80/tcp", SetMark(1)),
    ("198.18.1.1:4 > 198.18.10.1:0/47", Drop()),
    ("198.18.0.0/16:1 > 198.18.10.1:*/*", Drop()),
    ("198.18.0.0/16:* > 198.18.10.1:80/udp", Drop()),
]
TAGS = [NO_TAGS, (5, 0), (5, 6), (SERVICE_TAG | 5, 6)]


class Cookies(Able):
    """Tells the cookies of the rules that it was asked for, and takes them all."""

    @hookimpl
    def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
        self.asked.append(rules.rows["cookie"].tolist())
        return Outcomes.all(Outcome.INSTALLED, len(rules))


@pytest.mark.parametrize(
    ("able", "asked"),
    [
        (Capabilities(32, masks=True), [0, 1, 2, 3, 4, 5]),
        (Capabilities(32, masks=True, protocols=(6,)), [0, 2, 4]),
        (Capabilities(32, masks=True, protocols=(6, 17)), [0, 1, 2, 4, 5]),
        (Capabilities(32, protocols=(17,), ipv6=False), [1]),
        (Capabilities(32, masks=True, ipv6=False), [0, 1, 3, 4, 5]),
        (Capabilities(32, protocols=()), []),
    ],
    ids=str,
)
def test_a_backend_is_asked_only_for_protocols_and_families_that_it_has(able: Capabilities, asked: list[int]) -> None:
    backend = Cookies(able)
    device, _ = backends(only=backend)
    device.probe()
    rules = RuleBatch.of([Rule(FlowMatch.parse(flow), action, n) for n, (flow, action) in enumerate(FAMILIES)])
    status = device.install(rules).status
    assert backend.asked == ([asked] if asked else [])
    assert [n for n in range(len(rules)) if status[n] != Outcome.UNSUPPORTED] == asked
    shapes = RuleShapes.of(rules.rows, rules.rows["action"])
    assert np.flatnonzero(~device.unsupported(shapes)).tolist() == asked


@pytest.mark.parametrize(("vlans", "asked"), [(False, [0]), (True, [0, 1, 2, 3])])
def test_only_a_backend_that_matches_vlan_tags_is_asked_for_them(vlans: bool, asked: list[int]) -> None:
    backend = Cookies(Capabilities(32, vlans=vlans))
    device, _ = backends(only=backend)
    device.probe()
    flow, action = FAMILIES[0]
    rules = RuleBatch.of([Rule(FlowMatch.parse(flow), action, n, tags) for n, tags in enumerate(TAGS)])
    shapes = RuleShapes.of(rules.rows, rules.rows["action"])
    assert np.flatnonzero(~device.unsupported(shapes)).tolist() == asked
    device.install(rules)
    assert backend.asked == [asked]


def test_which_tags_a_backend_refuses_is_remembered_but_not_their_ids() -> None:
    class OneTag(Cookies):
        @hookimpl
        def install_offload(self, device: Device, rules: RuleBatch) -> Outcomes:
            outcomes = super().install_offload(device, rules)
            outcomes.status[rules.rows["vlans"][:, 1] != 0] = Outcome.UNSUPPORTED
            return outcomes

    backend = OneTag(Capabilities(32, vlans=True))
    device, _ = backends(only=backend)
    device.probe()
    flow, action = FAMILIES[0]

    def install(*tags: tuple[int, int]) -> None:
        device.install(RuleBatch.of([Rule(FlowMatch.parse(flow), action, n, each) for n, each in enumerate(tags)]))

    install(*TAGS[:3])
    install((7, 8), (7, 0), (SERVICE_TAG | 7, 8))
    assert backend.asked == [[0, 1, 2], [1, 2]]
