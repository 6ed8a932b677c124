# SPDX-License-Identifier: Apache-2.0
"""What features cost: each row's packets take the way that the row is about. No timing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfcore.bench.datapath import Subject, measure, rows_of
from nfcore.bench.workload import BenchRequest
from nfcore.plugins.katran_accel.feature_benchmark import MARKED, feature_subjects
from tests.isolation import on_one_cpu
from tests.kernel.site import nfcore

FLOWS = 100
SLOW = {"plain", "icmp", "gue", "vlan", "vlan-tag", "decap", "global-lru"}
BY_ID, NEW = {"tcp-server-id", "quic-id"}, {"ring", "source-route"}


@pytest.fixture(scope="module", params=[4, 6])
def present(request: pytest.FixtureRequest) -> Iterator[list[Subject]]:
    with on_one_cpu() as cpu, feature_subjects(BenchRequest(request.param, (cpu,), (FLOWS,), (FLOWS,))) as opened:
        yield list(opened)


@pytest.mark.slow
def test_every_row_is_there_and_its_packets_took_its_way(present: list[Subject]) -> None:
    rows = {row.row: row for row in rows_of(measure(present, 1))}
    floors = {subject.row for subject in present if subject.floor is None}
    marked = {f"{row}-marked" for row in MARKED}
    assert rows.keys() == floors | SLOW | BY_ID | NEW | marked
    assert {subject.floor for subject in present} == {None, *floors}
    assert all(rows[row].fast_share == 1.0 for row in marked)
    assert all(rows[row].fast_share == 0.0 for row in SLOW | BY_ID | NEW)
    assert all(rows[row].hit_ratio == 1.0 for row in SLOW | BY_ID)
    assert all(rows[row].hit_ratio == 0.0 for row in NEW)


@pytest.mark.slow
def test_the_part_is_measured_when_it_is_asked_for(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    done = nfcore("bench", "--smoke", "--parts", "features", "--json", "--report", str(report))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["skipped"] == []
    assert {row["row"] for row in results["datapath"]} >= SLOW | BY_ID | NEW
    assert "vlan-tag-marked" in report.read_text()
    # The other network function has no such part.
    done = nfcore("bench", "--smoke", "--parts", "features", "--nf", "flow_actions", "--json", "--report", str(report))
    assert (done.returncode, json.loads(done.stdout)["datapath"]) == (0, [])
