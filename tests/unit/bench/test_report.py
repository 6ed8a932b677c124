# SPDX-License-Identifier: Apache-2.0
"""What `nfcore bench` makes of its results: targets, tables, an HTML page, one JSON object."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from nfcore.api.flows import FlowMatch, unpack_address
from nfcore.bench.cores import core_counts
from nfcore.bench.datapath import Row, Series, rows_of
from nfcore.bench.machine import describe_machine
from nfcore.bench.profile import profile
from nfcore.bench.report.html import render
from nfcore.bench.report.svg import StackedBar, lines, stacked_bars
from nfcore.bench.report.tables import number, tables
from nfcore.bench.results import CoreRow, Figure, Gain, LiveRow, Results, RuleRate, Skipped, Target
from nfcore.bench.sizes import Sizes
from nfcore.bench.traffic import FRAME_BYTES, Family, flow_keys, make_frames, make_services
from nfcore.cli.bench import read_parts
from nfcore.errors import ConfigError
from nfcore.plugins.katran_accel.benchmark import KatranWorkload
from tests.paths import ROOT

SAMPLES = ROOT / "docs/benchmarks"
VOID = {"meta", "br", "line", "rect", "circle", "polyline"}


def row(name: str, flows: int, ns: float, floor: float, **more: float) -> Row:
    given = {"fast_share": 0.0, "hit_ratio": None} | more
    return Row(name, 4, flows, ns, floor, ns - floor, ns - 1, ns + 1, 3, 0, given["fast_share"], given["hit_ratio"])


def datapath(*, slow_at_most: float = 400.0, dest_at_most: float = 34.0) -> list[Row]:
    rows = []
    for flows, slow, dest in ((100, 90.0, 30.0), (1_000_000, slow_at_most, dest_at_most)):
        rows += [row("bare-lru", flows, slow / 1.2, 16), row("slow", flows, slow, 16)]
        rows += [row("flow-id", flows, 40.0, 18, fast_share=1.0), row("dest-id", flows, dest, 18, fast_share=1.0)]
    return rows


@pytest.fixture
def results() -> Results:
    workload = KatranWorkload()
    rows, cores = datapath(dest_at_most=90.0), [CoreRow("slow", 4, 10_000, 2, 200.0, 10.0)]
    cores.append(CoreRow("dest-id", 4, 10_000, 2, 100.0, 20.0))
    return Results(
        machine=describe_machine(),
        size="smoke",
        nf="<b>&",
        datapath=rows,
        cores=cores,
        gains=workload.gains(rows, cores),
        live=[LiveRow("marked", 4, 10, 60, 1.0, 1000, 1000.0, 999, 0.001, 1.0)],
        control=[Figure("a start", 1.5, "s", "how <it> was")],
        rules=[RuleRate("softnic", "insert", 100, 1e6, None)],
        targets=[*workload.judge(rows), Target("many", 5.0, 10.0, "1/s", at_least=True)],
        skipped=[Skipped("rules, other", 'no "NIC" & no <kernel>')],
        notes=["hot"],
    )


class Page(HTMLParser):
    """Checks that every opened element is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_stands_alone(results: Results) -> None:
    text = render(results)
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.references == []
    assert not re.search(r"https?://|@import|url\(", text)
    assert {"svg", "table", "details"} <= set(page.seen)
    assert "prefers-color-scheme: dark" in text
    assert "&lt;b&gt;&amp;" in text
    assert "<kernel>" not in text
    assert "how &lt;it&gt; was" in text


def test_the_plots_are_xml(results: Results) -> None:
    drawings = re.findall(r"<svg.*?</svg>", render(results), flags=re.DOTALL)
    assert len(drawings) >= 4
    for drawing in drawings:
        assert ElementTree.fromstring(drawing).tag == "svg"


def test_a_plot_shows_every_point_within_the_drawing() -> None:
    text = lines({"a": [(100, 5), (10_000, 17), (1e6, 0)], "b": [(100, 3)]}, "flows", "ns", log_x=True)
    circles = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text)]
    assert len(circles) == 4
    first, middle, last, _ = circles
    assert middle[0] == pytest.approx((first[0] + last[0]) / 2, abs=0.2)
    assert middle[1] < first[1] < last[1]
    assert all(0 <= x <= 720 and 0 <= y <= 300 for x, y in circles)
    assert lines({}, "flows", "ns") == "" == stacked_bars([], (), "ns")


def test_bars_have_the_lengths_of_their_values() -> None:
    text = stacked_bars([StackedBar("one", (10, 30)), StackedBar("two", (10, -5))], ("floor", "net"), "ns")
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', text)]
    assert widths[1] == pytest.approx(3 * widths[0], rel=0.01)
    assert widths[2:] == [widths[0], 0.0]


def test_the_json_has_its_shape(results: Results) -> None:
    given = json.loads(json.dumps(results.as_json()))
    assert {"machine", "datapath", "control", "rules", "live", "cores", "targets", "skipped"} <= given.keys()
    assert {"row", "family", "flows", "ns", "floor_ns", "net_ns", "min", "max"} <= given["datapath"][0].keys()
    assert {"name", "value", "unit"} <= given["control"][0].keys()
    assert given["rules"][0]["ratio_to_tc_batch"] is None
    assert given["skipped"] == [{"part": "rules, other", "why": 'no "NIC" & no <kernel>'}]
    assert all(target["met"] == (target["value"] <= target["limit"]) for target in given["targets"][:-1])
    assert (given["targets"][-1]["name"], given["targets"][-1]["met"]) == ("many", False)


def test_every_table_has_full_rows(results: Results) -> None:
    made = {table.title: table for table in tables(results)}
    assert len(made) == 8
    for table in made.values():
        assert all(len(cells) == len(table.heads) for cells in table.rows)
    targets = {cells[0]: cells for cells in made["Targets"].rows}
    assert targets["many"] == ("many", "5 1/s", "≥ 10 1/s", "not met")
    assert len(list(tables(Results(machine={}, size="", nf="")))) == 0


@pytest.mark.parametrize(
    ("value", "text"), [(861_343.4, "861,343"), (144.0, "144"), (12.54, "12.5"), (0.593, "0.593"), (7.0, "7")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_rounds_of_a_busy_machine_are_left_out() -> None:
    quiet = Series("slow", 4, 100, gross=[140, 150, 400], floor=[50, 54, 51])
    busy = Series("slow", 4, 100, gross=[200, 210, 220, 230, 10], floor=[66, 67, 66, 70, 60])
    (row,) = rows_of([quiet, busy])
    assert (row.ns, row.floor_ns, row.net_ns) == (150, 51, 99)
    assert (row.min, row.max) == (10, 400)
    assert (row.rounds, row.left_out) == (3, 5)
    (floor,) = rows_of([Series("head", 4, 100, gross=[50, 66, 52])])
    assert (floor.ns, floor.net_ns, floor.rounds, floor.left_out) == (51, 51, 2, 1)


# Targets of the balancer


def test_targets_that_are_met_have_no_profile() -> None:
    targets = KatranWorkload().judge(datapath())
    assert [target.met for target in targets] == [True] * 5
    assert [target.profile for target in targets] == [""] * 5


def test_a_target_that_is_not_met_shows_where_the_time_goes() -> None:
    targets = {target.name: target for target in KatranWorkload().judge(datapath(dest_at_most=40.0))}
    missed = targets["dest-id, IPv4, 1,000,000 flows, net"]
    assert (missed.met, missed.value, missed.limit) == (False, 22.0, 16.0)
    assert "10.0  more with 1,000,000" in missed.profile


def test_what_was_not_measured_has_no_target() -> None:
    few = [row for row in datapath() if row.flows == 100]
    assert [target.name for target in KatranWorkload().judge(few)] == [
        "dest-id, IPv4, 100 flows, net",
        "slow path, IPv4, 100 flows, gross to bare-lru's",
    ]
    assert KatranWorkload().judge([]) == []


def test_the_talks_percentages_stand_beside_the_measured_ones() -> None:
    cores = [
        CoreRow(name, 4, 10_000, count, ns, 1.0)
        for count in (1, 2)
        for name, ns in (("slow", 200.0), ("dest-id", 100.0))
    ]
    gains = KatranWorkload().gains(datapath(), cores)
    assert Gain("dest-id", "slow", 4, 100, 1, 200.0, 516.7, 40.0) in gains
    assert Gain("dest-id", "slow", 4, 10_000, 2, 100.0, None, 12.0) in gains
    assert [gain.published_percent for gain in gains if gain.flows == 1_000_000] == [None, None]


# Options, sizes, packets


def test_parts_are_read_in_the_order_of_measuring() -> None:
    assert read_parts("rules, datapath") == ["datapath", "rules"]
    for text in ("", "datapath,pps"):
        with pytest.raises(ConfigError, match=r"--parts: is .* should be some of datapath, cores"):
            read_parts(text)


def test_core_counts() -> None:
    assert [core_counts(cpus) for cpus in (1, 2, 6, 64)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 7, 12]]


def test_quick_is_less_than_full() -> None:
    full, quick, smoke = Sizes(), Sizes.quick(), Sizes.smoke()
    for name in ("rounds", "processes", "core_packets", "live_seconds", "first_marks", "repeats"):
        assert getattr(full, name) > getattr(quick, name) > getattr(smoke, name), name
    assert max(quick.fast_flows) == max(full.flows) == 1_000_000


@pytest.mark.parametrize("family", [4, 6])
def test_frames_belong_to_their_flows(family: Family) -> None:
    services = KatranWorkload().services(5, family)
    numbers = np.array([0, 1, 70_000])
    frames = make_frames(numbers, services, family)
    assert frames.shape == (3, FRAME_BYTES[family])
    for frame, key in zip(frames.tolist(), flow_keys(numbers, services, family), strict=True):
        match, size = FlowMatch.from_key(key, family), 4 if family == 4 else 16
        at, l4 = (26, 34) if family == 4 else (22, 54)
        assert bytes(frame[at : at + 2 * size]) == match.src.packed + match.dst.packed
        assert frame[l4 : l4 + 4] == [*match.sport.to_bytes(2, "big"), *match.dport.to_bytes(2, "big")]


def test_services_are_those_of_the_toml() -> None:
    workload = KatranWorkload()
    text = workload.toml(5, 3)
    addresses = [
        unpack_address(bytes(service["addr"]), family) for family in (4, 6) for service in workload.services(5, family)
    ]
    assert len(addresses) == 5
    assert all(f'address = "{address}"' in text for address in addresses)


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cpu"] and machine["cores"] >= len(machine["allowed_cpus"]) > 0
    assert machine["kernel"].startswith("Linux")
    assert len(machine["load_average"]) == 3
    json.dumps(machine)


def test_a_profile_names_the_function_that_took_the_time() -> None:
    def busy() -> int:
        return sum(number * number for number in range(200_000))

    assert "busy" in profile(busy)


def test_the_samples_have_the_keys_of_a_run() -> None:
    samples = sorted(SAMPLES.glob("*.json"))
    assert samples
    for sample in samples:
        given = json.loads(sample.read_text(encoding="utf-8"))
        assert list(given) == list(Results(machine={}, size="", nf="").as_json())
        assert given["skipped"] == [] or all(skipped["why"] for skipped in given["skipped"])
        assert given["machine"]["cpu"] in sample.with_suffix(".html").read_text(encoding="utf-8")
        assert sample.name in (SAMPLES / "README.md").read_text(encoding="utf-8")


def test_services_of_both_families_differ() -> None:
    assert len(make_services([])) == 0
    assert len(KatranWorkload().services(1, 6)) == 0
