# SPDX-License-Identifier: Apache-2.0
"""Rules from the hooks to the simulated driver's table, and where frames arrive."""

from __future__ import annotations

import errno
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import DEVICE, Start, context_of
from driver import DEL, INS, TCP6, Driver, Killed, foreign_entry
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from test_flowspec import frame

from nfcore.api.flows import FlowMatch
from nfcore.api.rules import Drop, Outcome, Rule, RuleBatch, SetMark, make_cookies
from nfcore.errors import HostError
from nfcore_nic_ntuple import NicNtuplePlugin, notes_path

INSTALLED, FULL, UNSUPPORTED, FAILED, REMOVED, ABSENT = Outcome


def flow(number: int, proto: str = "tcp") -> FlowMatch:
    if number % 2:
        return FlowMatch.parse(f"[2001:db8::{number:x}]:40000 > [2001:db8:1::1]:80/{proto}")
    return FlowMatch.parse(f"198.18.{number >> 8}.{number & 255}:40000 > 198.19.10.1:80/{proto}")


def rules(numbers: Sequence[int], mark: int = 3, generation: int = 1, proto: str = "tcp") -> RuleBatch:
    cookies = make_cookies(np.array(numbers, dtype=np.int64), np.full(len(numbers), generation, dtype=np.uint16))
    action = SetMark(mark) if mark else Drop()
    pairs = zip(numbers, cookies.tolist(), strict=True)
    return RuleBatch.of([Rule(flow(number, proto), action, cookie) for number, cookie in pairs])


def install(plugin: NicNtuplePlugin, batch: RuleBatch) -> list[Outcome]:
    return [Outcome(status) for status in plugin.install_offload(DEVICE, batch).status]


def remove(plugin: NicNtuplePlugin, batch: RuleBatch) -> list[Outcome]:
    return [Outcome(status) for status in plugin.remove_offload(DEVICE, batch).status]


def dumped(plugin: NicNtuplePlugin) -> set[bytes]:
    rows = plugin.dump_offload(DEVICE)
    assert rows is not None and not rows["packets"].any()
    return {row["rule"].tobytes() for row in rows}


def as_set(batch: RuleBatch) -> set[bytes]:
    return {row.tobytes() for row in batch.rows}


@pytest.mark.parametrize("chooses", [False, True])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_frames_go_where_rules_say_until_they_are_removed(
    driver: Driver, start: Start, proto: str, chooses: bool
) -> None:
    driver.chooses = chooses
    plugin = start()
    marked, dropped = rules([2, 3], 5, proto=proto), rules([4, 5], 0, proto=proto)
    assert install(plugin, marked) + install(plugin, dropped) == [INSTALLED] * 4
    assert [driver.receive(frame(flow(number, proto))) for number in (2, 3, 4, 5, 6)] == [5, 5, None, None, 0]
    assert dumped(plugin) == as_set(marked) | as_set(dropped)
    assert remove(plugin, marked) + remove(plugin, dropped) == [REMOVED] * 4
    assert [driver.receive(frame(flow(number, proto))) for number in (2, 3, 4, 5)] == [0, 0, 0, 0]
    assert remove(plugin, marked) == [ABSENT] * 2
    assert dumped(plugin) == set() and not driver.rules


@pytest.mark.parametrize("chooses", [False, True])
def test_a_rule_of_the_same_match_is_replaced(driver: Driver, start: Start, chooses: bool) -> None:
    driver.chooses = chooses
    plugin = start()
    install(plugin, rules([2], 5))
    assert install(plugin, rules([2], 7, generation=2)) == [INSTALLED]
    assert driver.receive(frame(flow(2))) == 7
    assert remove(plugin, rules([2], 5)) == [ABSENT]
    assert driver.receive(frame(flow(2))) == 7
    before = len([call for call in driver.calls if call in (INS, DEL)])
    assert install(plugin, rules([2], 7, generation=3)) == [INSTALLED]
    assert len([call for call in driver.calls if call in (INS, DEL)]) == before
    assert dumped(plugin) == as_set(rules([2], 7, generation=3))
    assert len(driver.rules) == 1


@pytest.mark.parametrize("chooses", [False, True])
def test_a_full_table_is_full_and_has_room_again(driver: Driver, start: Start, chooses: bool) -> None:
    driver.chooses, driver.size = chooses, 8
    driver.rules = {0: foreign_entry()}
    plugin = start()
    batch = rules(range(2, 12))
    assert install(plugin, batch) == [INSTALLED] * 7 + [FULL] * 3
    assert install(plugin, RuleBatch(batch.rows[:1])) == [INSTALLED]
    assert remove(plugin, RuleBatch(batch.rows[3:5])) == [REMOVED] * 2
    assert install(plugin, RuleBatch(batch.rows[7:])) == [INSTALLED] * 2 + [FULL]
    assert driver.rules[0] == foreign_entry()


def test_a_batch_succeeds_in_part(driver: Driver, start: Start) -> None:
    driver.refused = {TCP6: errno.EINVAL}
    plugin = start()
    plugin.probe_offload(DEVICE)
    batch = rules([2, 3, 4, 5])
    outcomes = plugin.install_offload(DEVICE, batch)
    assert outcomes.status.tolist() == [INSTALLED, UNSUPPORTED, INSTALLED, UNSUPPORTED]
    assert list(outcomes.messages) == [1]
    assert outcomes.messages[1] == "nic0 cannot mark IPv6 TCP: nic0: Invalid argument"


def test_marks_without_a_queue_and_other_protocols_are_refused_with_a_reason(driver: Driver, start: Start) -> None:
    plugin = start()
    match = FlowMatch.parse("198.18.0.1:1 > 198.18.0.2:2/132")
    batch = RuleBatch.of([Rule(match, SetMark(1), 1), Rule(flow(2), SetMark(16), 2), Rule(flow(4), SetMark(15), 3)])
    outcomes = plugin.install_offload(DEVICE, batch)
    assert outcomes.status.tolist() == [UNSUPPORTED, FAILED, INSTALLED]
    assert outcomes.messages == {0: "only TCP and UDP flows can be steered", 1: "mark 16 has no queue: nic0 has 16"}


def test_an_empty_batch_changes_nothing(start: Start) -> None:
    plugin = start()
    assert (install(plugin, rules([])), remove(plugin, rules([])), dumped(plugin)) == ([], [], set())


# Rules of others


@pytest.mark.parametrize("chooses", [False, True])
def test_rules_of_others_are_left_alone(driver: Driver, start: Start, chooses: bool) -> None:
    driver.chooses = chooses
    others = {location: foreign_entry(location) for location in (0, 62, 63)}
    driver.rules = dict(others)
    plugin = start()
    plugin.probe_offload(DEVICE)
    assert dumped(plugin) == set()
    assert install(plugin, rules([2, 3])) == [INSTALLED] * 2
    assert remove(plugin, rules([2, 3])) == [REMOVED] * 2
    assert driver.rules == others


def test_a_location_with_a_foreign_rule_is_left_alone(driver: Driver, start: Start) -> None:
    plugin = start()
    install(plugin, rules([2]))
    (location,) = driver.rules
    driver.rules[location] = foreign_entry()
    assert remove(plugin, rules([2])) == [ABSENT]
    assert dumped(plugin) == set()
    assert install(plugin, rules([2])) == [INSTALLED]
    assert driver.rules[location] == foreign_entry()


def test_a_match_of_a_foreign_rule_is_refused_with_a_reason(driver: Driver, start: Start) -> None:
    plugin = start()
    install(plugin, rules([2]))
    (entry,) = driver.rules.values()
    driver.rules.clear()
    driver.put(7, entry)
    outcomes = plugin.install_offload(DEVICE, rules([2]))
    assert outcomes.status.tolist() == [FAILED]
    assert "a foreign rule has the same match: ethtool -n nic0" in outcomes.messages[0]
    assert remove(plugin, rules([2])) == [ABSENT] and driver.rules == {7: entry}


def test_only_the_configured_locations_are_used(driver: Driver, start: Start) -> None:
    plugin = start(nic0="10-12")
    assert plugin.probe_offload(DEVICE).table_size == 3
    assert install(plugin, rules([2, 3, 4, 5])) == [INSTALLED] * 3 + [FULL]
    assert set(driver.rules) == {10, 11, 12}


# Changes by others


def test_a_nic_that_was_reset_has_no_rules(driver: Driver, start: Start) -> None:
    plugin = start()
    install(plugin, rules([2, 3]))
    driver.rules.clear()
    assert dumped(plugin) == set()
    assert install(plugin, rules([2, 3])) == [INSTALLED] * 2
    assert driver.receive(frame(flow(2))) == 3


def test_rules_that_are_added_after_the_count_are_seen(driver: Driver, start: Start) -> None:
    driver.size, driver.uncounted = 256, 200
    driver.rules = {location: foreign_entry(location) for location in range(56, 256)}
    others = dict(driver.rules)
    plugin = start()
    assert install(plugin, rules([2, 3])) == [INSTALLED] * 2
    assert set(driver.rules) == {54, 55, *others}


def test_a_refused_rule_leaves_no_note(driver: Driver, start: Start, tmp_path: Path) -> None:
    plugin = start()
    driver.refused = {TCP6: errno.EIO}
    assert install(plugin, rules([3, 5])) == [FAILED] * 2
    plugin.dump_offload(DEVICE)
    metrics = {family.name: [sample.value for sample in family.samples] for family in plugin.collect_stats()}
    assert metrics["nfcore_ntuple_rules"] == metrics["nfcore_ntuple_vanished_total"] == [0]
    plugin.teardown()
    assert not list(tmp_path.iterdir())


def test_flags_that_a_driver_adds_do_not_hide_a_rule(driver: Driver, start: Start) -> None:
    driver.adds_flags = 0x80000000
    plugin = start()
    install(plugin, rules([2]))
    assert dumped(plugin) == as_set(rules([2]))


def test_a_device_that_is_gone_refuses_and_may_come_back(driver: Driver, start: Start) -> None:
    plugin = start()
    install(plugin, rules([2]))
    driver.gone = errno.ENODEV
    assert plugin.dump_offload(DEVICE) is None
    outcomes = plugin.install_offload(DEVICE, rules([4]))
    assert (outcomes.status.tolist(), outcomes.messages) == ([FAILED], {0: "nic0: No such device"})
    driver.gone = 0
    assert dumped(plugin) == as_set(rules([2]))


def test_rss_over_marking_queues_is_logged_and_stops_installation(
    driver: Driver, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = start()
    driver.rss = [0, 1, 2, 3]
    for _ in range(3):
        assert install(plugin, rules([2])) == [FAILED]
    assert caplog.text.count("RSS of nic0 puts packets on 3 of the queues that mark: ethtool -X nic0 equal 1") == 1
    driver.rss = [0]
    assert install(plugin, rules([2])) == [INSTALLED]


def test_a_driver_with_rules_switched_off_has_no_own_rules(driver: Driver, start: Start) -> None:
    plugin = start()
    install(plugin, rules([2]))
    driver.gone = errno.EOPNOTSUPP
    assert dumped(plugin) == set()
    driver.gone = 0
    assert dumped(plugin) == as_set(rules([2]))


def test_a_nic_that_cannot_be_read_is_logged_once(
    driver: Driver, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = start()
    install(plugin, rules([2]))
    driver.gone = errno.EIO
    assert [plugin.dump_offload(DEVICE) for _ in range(3)] == [None] * 3
    assert caplog.text.count("rules cannot be read: nic0: Input/output error") == 1
    outcomes = plugin.remove_offload(DEVICE, rules([2]))
    assert (outcomes.status.tolist(), outcomes.messages) == ([FAILED], {0: "nic0: Input/output error"})
    driver.gone = 0
    assert remove(plugin, rules([2])) == [REMOVED]


def test_a_nic_that_cannot_be_read_at_the_start_stops_it(driver: Driver, start: Start) -> None:
    install(start(), rules([2]))
    driver.gone = errno.EIO
    with pytest.raises(HostError, match="nic0: its rules cannot be read: Input/output error"):
        start()
    driver.gone = 0
    assert dumped(start()) == as_set(rules([2]))


# Killed


def test_the_next_process_finds_our_rules_by_their_cookies(driver: Driver, start: Start) -> None:
    install(start(), rules([2, 3, 4]))
    driver.rules[0] = foreign_entry()
    following = start()
    assert dumped(following) == as_set(rules([2, 3, 4]))
    assert remove(following, rules([2, 3, 4])) == [REMOVED] * 3
    assert list(driver.rules) == [0]


@pytest.mark.parametrize("chooses", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("command", [INS, DEL])
def test_killed_at_any_rule_the_next_process_knows_every_rule(
    driver: Driver, start: Start, command: int, when: str, chooses: bool
) -> None:
    driver.chooses = chooses
    first = start()
    install(first, rules([2, 3]))
    driver.dies_on = (command, when)
    with pytest.raises(Killed):
        first.install_offload(DEVICE, rules([2, 4], 6, generation=2))
    driver.dies_on = None
    following = start()
    there = {entry.tuple_of(entry.values) for entry in driver.rules.values()}
    assert len(dumped(following)) == len(driver.rules) == len(there)
    assert install(following, rules([2, 3, 4], 6, generation=3)) == [INSTALLED] * 3
    assert remove(following, rules([2, 3, 4], 6, generation=3)) == [REMOVED] * 3
    assert not driver.rules


def test_a_trial_rule_of_a_killed_process_is_removed_by_the_next(driver: Driver, start: Start) -> None:
    first = start()
    driver.dies_on = (INS, "after")
    with pytest.raises(Killed):
        first.probe_offload(DEVICE)
    driver.dies_on = None
    assert len(driver.rules) == 1
    start()
    assert not driver.rules


def test_after_a_reset_foreign_rules_are_not_taken_for_own_ones(driver: Driver, start: Start) -> None:
    install(start(), rules([2, 3]))
    driver.rules = {location: foreign_entry(location) for location in driver.rules}
    others = dict(driver.rules)
    following = start()
    assert dumped(following) == set()
    assert remove(following, rules([2, 3])) == [ABSENT] * 2
    assert driver.rules == others


def test_beside_a_running_daemon_nothing_is_touched(driver: Driver, start: Start, tmp_path: Path) -> None:
    daemon = start()
    install(daemon, rules([2, 3]))
    # A rule whose installation has begun: only the daemon may remove its note.
    driver.dies_on = (INS, "before")
    with pytest.raises(Killed):
        install(daemon, rules([4]))
    driver.dies_on = None
    notes = notes_path(context_of(tmp_path), DEVICE.ifindex)
    before = notes.read_bytes()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "nf.sock"))
        listening.listen()
        driver.calls.clear()
        doctor = start()
        assert doctor.probe_offload(DEVICE).mark_width == 4
        doctor.teardown()
    assert not {INS, DEL} & set(driver.calls)
    assert notes.read_bytes() == before
    assert dumped(daemon) == as_set(rules([2, 3]))


def test_cleanup_removes_what_a_killed_daemon_left(driver: Driver, start: Start, tmp_path: Path) -> None:
    install(start(), rules([2, 3]))
    driver.rules[0] = foreign_entry()
    context = context_of(tmp_path)
    gone = notes_path(context, 99)
    gone.write_bytes(b"of a NIC that is gone")
    assert list(NicNtuplePlugin(lambda _: driver).cleanup(context)) == [
        "nic_ntuple: removed 2 rules from nic0",
        f"nic_ntuple: removed {gone}",
    ]
    assert list(driver.rules) == [0]
    assert not list(tmp_path.iterdir())
    assert list(NicNtuplePlugin(lambda _: driver).cleanup(context)) == []


def test_teardown_leaves_notes_for_rules_that_it_could_not_remove(driver: Driver, start: Start, tmp_path: Path) -> None:
    plugin = start()
    install(plugin, rules([2]))
    plugin.teardown()
    assert dumped(start()) == as_set(rules([2]))


def test_notes_that_cannot_be_kept_refuse_rules_with_a_reason(driver: Driver, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    plugin = NicNtuplePlugin(lambda _: driver)
    plugin.setup(context_of(tmp_path / "file" / "below"))
    outcomes = plugin.install_offload(DEVICE, rules([2]))
    assert outcomes.status.tolist() == [FAILED]
    assert outcomes.messages[0].startswith(f"notes cannot be written to {tmp_path}")
    assert not driver.rules


class AgainstATable(RuleBasedStateMachine):
    """Any order of batches, resets, foreign rules and new processes: own rules are there, foreign ones unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.driver = Driver(size=12)
        self.own: dict[int, tuple[int, int]] = {}
        """Flow → mark and generation of its rule."""
        self.others: dict[int, object] = {}
        self.start()

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule()
    def start(self) -> None:
        self.plugin = NicNtuplePlugin(lambda _: self.driver)
        self.plugin.setup(context_of(Path(self.folder.name)))

    @rule(numbers=st.lists(st.integers(2, 20), max_size=6), mark=st.integers(0, 15), generation=st.integers(1, 3))
    def install(self, numbers: list[int], mark: int, generation: int) -> None:
        for number, status in zip(numbers, install(self.plugin, rules(numbers, mark, generation)), strict=True):
            if status == INSTALLED:
                self.own[number] = mark, generation
            else:
                assert status == FULL and len(self.driver.rules) == 12
                self.own.pop(number, None)

    @rule(numbers=st.lists(st.integers(2, 20), max_size=6, unique=True), generation=st.integers(1, 3))
    def remove(self, numbers: list[int], generation: int) -> None:
        for number, status in zip(numbers, remove(self.plugin, rules(numbers, 1, generation)), strict=True):
            mine = number in self.own and self.own[number][1] == generation
            assert status == (REMOVED if mine else ABSENT)
            if mine:
                del self.own[number]

    @rule(location=st.integers(0, 11))
    def another_program_adds_a_rule(self, location: int) -> None:
        if location not in self.driver.rules:
            self.driver.put(location, foreign_entry(location))
            self.others[location] = foreign_entry(location)

    @rule()
    def reset(self) -> None:
        self.driver.rules.clear()
        self.own, self.others = {}, {}

    @invariant()
    def the_table_is_as_it_should_be(self) -> None:
        expected = [rules([number], mark, generation) for number, (mark, generation) in self.own.items()]
        assert dumped(self.plugin) == {row for batch in expected for row in as_set(batch)}
        assert len(self.driver.rules) == len(self.own) + len(self.others)
        assert {location: self.driver.rules[location] for location in self.others} == self.others
        for number, (mark, _) in self.own.items():
            assert self.driver.receive(frame(flow(number))) == (mark or None)


TestAgainstATable = AgainstATable.TestCase
TestAgainstATable.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
