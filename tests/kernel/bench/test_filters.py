# SPDX-License-Identifier: Apache-2.0
"""The bench of flow_actions: its packets match what they are said to match, alone, in a chain, beside xdp-filter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from nfcore.bench.datapath import BenchError, Subject, measure, prove, rows_of
from nfcore.bench.packet_source import FixedFlows, FlowSource
from nfcore.bench.processes import in_process
from nfcore.bench.sizes import Sizes
from nfcore.bench.traffic import Family, flow_keys, make_services
from nfcore.bench.workload import BenchRequest
from nfcore.bench.xdp_filter import XdpFilter, find_object
from nfcore.errors import HostError
from nfcore.kernel import XdpAction
from nfcore.plugins.flow_actions import benchmark
from nfcore.plugins.flow_actions.benchmark import FlowActionsWorkload
from nfcore.plugins.katran_accel.benchmark import KatranWorkload
from tests.isolation import on_one_cpu

ENTRIES = 100
ALONE = {
    ("pass-exact", XdpAction.PASS),
    ("drop-exact", XdpAction.DROP),
    ("drop-dest-id", XdpAction.DROP),
    ("drop-flow-id", XdpAction.DROP),
    ("pass-source", XdpAction.PASS),
    ("drop-source", XdpAction.DROP),
    ("pass-16-shapes", XdpAction.PASS),
    ("pass-64-shapes", XdpAction.PASS),
}
CHAINED = {
    ("pass-next", XdpAction.TX),
    ("chain-pass", XdpAction.TX),
    ("chain-slow", XdpAction.TX),
    ("chain-dest-id", XdpAction.TX),
    ("chain-drop", XdpAction.DROP),
    ("chain-drop-dest-id", XdpAction.DROP),
}
PEER = {("xdp-filter-pass", XdpAction.PASS), ("xdp-filter-drop", XdpAction.DROP)}
FLOORS = {(name, XdpAction.TX) for name in ("noop", "unmarked", "marked", "head", "metadata", "slow", "dest-id")}


def has_xdp_filter() -> bool:
    try:
        find_object()
    except HostError:
        return False
    return True


needs_xdp_filter = pytest.mark.skipif(not has_xdp_filter(), reason="xdp-filter's programs are not installed: libxdp1")


@pytest.fixture(scope="module")
def cpu() -> Iterator[int]:
    with on_one_cpu() as cpu:
        yield cpu


@pytest.fixture(scope="module", params=[4, 6])
def present(request: pytest.FixtureRequest, cpu: int) -> Iterator[list[Subject]]:
    asked = BenchRequest(request.param, (cpu,), (ENTRIES,), (ENTRIES,), KatranWorkload())
    with FlowActionsWorkload().subjects(asked) as opened:
        yield opened


@pytest.mark.slow
def test_every_row_is_measured_with_its_verdict(present: list[Subject]) -> None:
    assert {(subject.row, subject.verdict) for subject in present} == ALONE | CHAINED | FLOORS | (
        PEER if has_xdp_filter() else set()
    )
    # measure() checks verdicts, counters and reals by itself.
    rows = {row.row: row for row in rows_of(measure(present, 1))}
    marked = {"drop-dest-id", "drop-flow-id", "chain-dest-id", "chain-drop-dest-id", "dest-id"}
    assert {name for name, row in rows.items() if row.fast_share} == marked
    assert {row.flows for row in rows.values()} == {ENTRIES}


def test_packets_without_an_entry_are_noticed(present: list[Subject]) -> None:
    subjects = {subject.row: subject for subject in present}
    with pytest.raises(BenchError, match=r"^drop-exact, .* ended as XDP_PASS, all should as XDP_DROP"):
        prove(replace(subjects["drop-exact"], source=subjects["pass-exact"].source), ENTRIES)
    passing = replace(subjects["pass-exact"], floor=None)
    with pytest.raises(BenchError, match=r": 0 of \d+ packets ended as XDP_PASS, all should$"):
        measure([replace(passing, read_counters=subjects["drop-exact"].read_counters)], 1)


@needs_xdp_filter
@pytest.mark.parametrize("family", [4, 6])
def test_xdp_filter_drops_the_same_packets(family: Family, cpu: int) -> None:
    services = make_services([(benchmark._service_address(family), 80)])
    keys = flow_keys(np.arange(ENTRIES), services, family, scattered=True)
    with ExitStack() as stack:
        peer = stack.enter_context(XdpFilter.open(ENTRIES))
        known = stack.enter_context(FlowSource(services, family, scattered=True, in_turn=True))
        peer.add_sources(keys["src"], family)
        known.send_to(peer.program)
        known.burst(ENTRIES)
        assert peer.verdicts(XdpAction.DROP) == ENTRIES
        known.burst(1_000, first=ENTRIES)
        assert (peer.verdicts(XdpAction.DROP), peer.verdicts(XdpAction.PASS)) == (ENTRIES, 1_000)
        with pytest.raises(HostError, match="xdp-filter's map refuses address 0"):
            peer.add_sources(flow_keys(np.arange(ENTRIES, 200), services, family, scattered=True)["src"], family)


def test_fixed_flows_keep_their_number(present: list[Subject]) -> None:
    (slow,) = [subject for subject in present if subject.row == "slow"]
    assert isinstance(slow.source, FixedFlows)
    # More than the balancer's connection table knows, if the number were taken.
    measure([replace(slow, floor=None, flows=(500_000,))], 1)


@pytest.mark.slow
def test_changes_of_data_plane_and_daemon_are_timed() -> None:
    figures = in_process(lambda _: [figure for figure, _ in FlowActionsWorkload().own_results(Sizes.smoke())])
    assert all(figure.value >= 0 for figure in figures)
    names = {figure.name for figure in figures}
    assert {"changes of the data plane", "changes of a daemon", "a change of a daemon, p99"} <= names
