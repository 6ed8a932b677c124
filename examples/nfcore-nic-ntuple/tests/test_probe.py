# SPDX-License-Identifier: Apache-2.0
"""The capabilities of a device, found by trial, and the reasons for what it cannot do."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import pytest
from conftest import DEVICE, Start, config_for, context_of
from driver import INS, TCP4, TCP6, UDP4, UDP6, Driver, foreign_entry
from pydantic import ValidationError
from test_backend import install, remove, rules

from nfcore.api.config import MarkingTable
from nfcore.api.rules import Device, Outcome
from nfcore.daemon.bootstrap import make_context
from nfcore.hooks.manager import PluginManager
from nfcore_nic_ntuple import NicNtuplePlugin, NtupleTable, check_whole


@pytest.mark.parametrize(("queues", "width"), [(2, 1), (3, 1), (4, 2), (8, 3), (63, 5), (64, 6), (4096, 12)])
def test_the_width_is_that_of_the_queues(driver: Driver, start: Start, queues: int, width: int) -> None:
    driver.queues = queues
    found = start().probe_offload(DEVICE)
    assert (found.mark_width, found.ipv6, found.drop, found.counters, found.table_size) == (
        width,
        True,
        True,
        False,
        64,
    )
    assert not driver.rules
    assert INS in driver.calls


SHAPES = (TCP4, UDP4, TCP6, UDP6)
CANNOT: list[tuple[dict[str, Any], str]] = [
    ({"queues": 1}, "nic0 has one receive queue; marks need more: ethtool -L nic0 combined N"),
    ({"rss": [0, 1] * 64}, "RSS of nic0 puts packets on 1 of the queues that mark: ethtool -X nic0 equal 1"),
    ({"gone": errno.EOPNOTSUPP}, "nic0 has no rules that steer flows to queues: Operation not supported"),
    ({"ntuple": False}, "try ethtool -K nic0 ntuple on"),
    ({"tells_size": ""}, 'set it: nic_ntuple.locations.nic0 = "0-N"'),
    (
        {"refused": dict.fromkeys(SHAPES, errno.EINVAL)},
        "cannot mark IPv4 TCP: nic0: Invalid argument",
    ),
    ({"refused": dict.fromkeys(SHAPES, errno.EPERM)}, "needs CAP_NET_ADMIN: use sudo"),
]


@pytest.mark.parametrize(("nic", "reason"), CANNOT, ids=[next(iter(nic)) for nic, _ in CANNOT])
def test_a_device_that_cannot_mark_gives_a_reason(
    driver: Driver, start: Start, nic: dict[str, Any], reason: str
) -> None:
    for name, value in nic.items():
        setattr(driver, name, value)
    found = start().probe_offload(DEVICE)
    assert found.mark_width == 0
    assert reason in found.describe()
    assert not driver.rules


def test_shapes_are_probed_one_by_one(driver: Driver, start: Start) -> None:
    driver.refused = {TCP6: errno.EINVAL, UDP6: errno.EOPNOTSUPP}
    driver.drops = False
    found = start().probe_offload(DEVICE)
    assert (found.mark_width, found.ipv6, found.drop) == (4, False, False)
    assert "cannot mark IPv6 UDP: nic0: Operation not supported (try ethtool -K nic0 ntuple on)" in found.notes


@pytest.mark.parametrize("tells_size", ["count", "all"])
def test_the_tables_size_is_found_by_either_command(driver: Driver, start: Start, tells_size: str) -> None:
    driver.tells_size = tells_size
    assert start().probe_offload(DEVICE).table_size == 64


def test_the_toml_can_give_the_tables_size(driver: Driver, start: Start) -> None:
    driver.tells_size = ""
    assert start(nic0="0-31").probe_offload(DEVICE).table_size == 32


def test_drops_that_are_refused_do_not_keep_a_shape_from_being_marked(driver: Driver, start: Start) -> None:
    driver.drops = False
    plugin = start()
    assert plugin.probe_offload(DEVICE).drop is False
    outcomes = plugin.install_offload(DEVICE, rules([2, 3], 0))
    assert outcomes.status.tolist() == [Outcome.FAILED] * 2
    assert "nic0 cannot drop IPv4 TCP" in outcomes.messages[0]
    assert install(plugin, rules([2, 3])) == [Outcome.INSTALLED] * 2


def test_foreign_rules_that_mark_are_noted(driver: Driver, start: Start) -> None:
    plugin = start()
    install(plugin, rules([2]))
    driver.rules |= {0: foreign_entry(ring=3), 1: foreign_entry(2, ring=0)}
    notes = plugin.probe_offload(DEVICE).notes
    assert "foreign rules put packets on queues that mark: 1 of ethtool -n nic0" in notes


def test_a_trial_that_cannot_be_undone_is_no_traceback(driver: Driver, start: Start) -> None:
    plugin = start()
    driver.stuck = errno.EBUSY
    assert "Device or resource busy" in plugin.probe_offload(DEVICE).describe()
    assert len(driver.rules) == 1
    driver.stuck = 0
    start()
    assert not driver.rules


def test_a_full_table_does_not_change_the_capabilities(driver: Driver, start: Start) -> None:
    driver.rules = {location: foreign_entry(location) for location in range(64)}
    before = dict(driver.rules)
    assert start().probe_offload(DEVICE).mark_width == 4
    assert driver.rules == before


def test_probing_again_learns_what_has_changed(driver: Driver, start: Start) -> None:
    plugin = start()
    driver.ntuple = False
    assert plugin.probe_offload(DEVICE).mark_width == 0
    driver.ntuple, driver.queues = True, 4
    assert plugin.probe_offload(DEVICE).mark_width == 2


def test_a_driver_without_rss_table_can_mark(driver: Driver, start: Start) -> None:
    driver.rss = None
    assert start().probe_offload(DEVICE).mark_width == 4


def test_doctor_finds_what_prevents_marks(driver: Driver, tmp_path: Path) -> None:
    driver.ntuple, driver.queues, driver.rules = False, 1, {0: foreign_entry()}
    findings = {finding.what: finding for finding in NicNtuplePlugin(lambda _: driver).diagnose(context_of(tmp_path))}
    assert findings["nic0: ntuple-filters"].advice == "ethtool -K nic0 ntuple on"
    assert findings["nic0: receive queues"].status == "fault"
    assert findings["nic0: ntuple rules"].found == "1 in a table of 64; list: ethtool -n nic0"
    assert INS not in driver.calls
    driver.gone = errno.EOPNOTSUPP
    (finding,) = NicNtuplePlugin(lambda _: driver).diagnose(context_of(tmp_path))
    assert finding.found == "no rules can be read: Operation not supported"


def test_another_carrier_is_a_mistake(tmp_path: Path) -> None:
    (problem,) = check_whole(dataclasses.replace(config_for(tmp_path), marking=MarkingTable()))
    assert problem.path == "marking.carrier"
    assert problem.message.startswith("is 'metadata'; ") and problem.message.endswith("set it to 'rx-queue'")


def test_locations_of_no_interface_are_a_mistake(tmp_path: Path) -> None:
    (problem,) = check_whole(context_of(tmp_path, nic9="0-9").config)
    assert problem.path == "nic_ntuple.locations.nic9"
    assert problem.message.startswith("belongs to no interface") and problem.message.endswith("those are: nic0")


@pytest.mark.parametrize("text", ["", "5", "5-", "9-5", "a-b", "-1-5", 7])
def test_locations_are_a_first_and_a_last(text: object) -> None:
    with pytest.raises(ValidationError, match="such as '512-1023'"):
        NtupleTable.model_validate({"locations": {"nic0": text}})
    assert NtupleTable.model_validate({"locations": {"nic0": "5-5"}}).locations == {"nic0": "5-5"}


def test_devices_with_other_backends_are_ignored(driver: Driver, tmp_path: Path) -> None:
    plugin = NicNtuplePlugin(lambda _: driver)
    plugin.setup(make_context(config_for(tmp_path), PluginManager(), [Device("nic0", 7)]))
    assert not driver.calls
    assert all(not family.samples for family in plugin.collect_stats())


def test_metrics_count_what_happened(driver: Driver, start: Start) -> None:
    plugin = start()
    install(plugin, rules([2, 3, 4]))
    remove(plugin, rules([2]))
    driver.rules.popitem()
    plugin.dump_offload(DEVICE)
    metrics = {family.name: [sample.value for sample in family.samples] for family in plugin.collect_stats()}
    assert metrics == {
        "nfcore_ntuple_installed_total": [3],
        "nfcore_ntuple_removed_total": [1],
        "nfcore_ntuple_refused_total": [0],
        "nfcore_ntuple_vanished_total": [1],
        "nfcore_ntuple_rules": [1],
    }
