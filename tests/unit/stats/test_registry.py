# SPDX-License-Identifier: Apache-2.0
"""Metrics of all plugins in one registry."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.api.config import Config
from nfcore.api.hookspecs import hookimpl
from nfcore.api.json_rows import materialize
from nfcore.api.metrics import (
    Column,
    Distribution,
    Histogram,
    LabelSets,
    MetricFamily,
    MetricKind,
    MonotonicDifference,
    Sample,
    counter,
    histogram,
    total,
)
from nfcore.daemon.bootstrap import make_context, make_engine, set_up
from nfcore.hooks.manager import PluginManager
from nfcore.plugins.stats import StatsPlugin
from nfcore.plugins.stats.registry import Registry


def packets(value: int, name: str = "nfcore_packets_total", unit: str = "packets", **labels: str) -> MetricFamily:
    kind = MetricKind.COUNTER if name.endswith("_total") else MetricKind.GAUGE
    family = MetricFamily(name, kind, "Packets.", unit)
    family.add(value, **labels)
    return family


SETS = LabelSets(["nic"], [["a"], ["b"]])
NICS, UNEVEN, FALLING = (Column(SETS, np.array(values)) for values in ([1, 2], [1], [1, -2]))


def took(cumulative: tuple[int, ...], sum_: float) -> MetricFamily:
    family = histogram("nfcore_took_seconds", "Time.", "seconds")
    family.add(Distribution((1.0,), cumulative, sum_))
    return family


def test_figures_of_one_name_are_one_family() -> None:
    registry = Registry()
    registry.add([packets(1, nic="a"), packets(9, "nfcore_rules")])
    registry.add([packets(2, nic="b")])
    assert len(registry) == 2
    assert materialize(registry.as_rows()) == {
        "metrics": [
            {
                "name": "nfcore_packets_total",
                "type": "counter",
                "unit": "packets",
                "labels": ["nic"],
                "help": "Packets.",
                "samples": [{"labels": {"nic": "a"}, "value": 1}, {"labels": {"nic": "b"}, "value": 2}],
            },
            {
                "name": "nfcore_rules",
                "type": "gauge",
                "unit": "packets",
                "labels": [],
                "help": "Packets.",
                "samples": [{"labels": {}, "value": 9}],
            },
        ]
    }


def test_a_plugins_family_is_left_as_it_was() -> None:
    registry, family = Registry(), packets(1, nic="a")
    registry.add([family])
    registry.add([packets(2, nic="b")])
    assert len(family.samples) == 1


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (packets(1, "packets_total"), "'packets_total' is not a valid metric name"),
        (packets(1, "nfcore_Packets_total"), "not a valid metric name"),
        (MetricFamily("nfcore_packets", MetricKind.COUNTER, ""), "counters, and only they, end in _total"),
        (MetricFamily("nfcore_rules_total", MetricKind.GAUGE, ""), "counters, and only they, end in _total"),
        (packets(1, unit="bytes"), "is a counter of bytes; elsewhere it is a counter of packets"),
        (packets(1), "two samples have the same labels"),
        (packets(1, nic="a"), "a sample has the labels nic; should be none"),
        (packets(1, "nfcore_nic_total", le="a"), "'le' is not a valid label name"),
        (packets(1, "nfcore_nic_total", NIC="a"), "'NIC' is not a valid label name"),
        (packets("many", "nfcore_nic_total"), "'many' is not a valid value of a counter"),  # type: ignore[arg-type]
        (packets(-1, "nfcore_nic_total"), "-1 is not a valid value of a counter"),
        (packets(math.nan, "nfcore_nic_total"), "nan is not a valid value of a counter"),  # type: ignore[arg-type]
        (packets(10**400, "nfcore_nic"), "1000.* is not a valid value of a gauge"),
        (packets(1, "nfcore_nic_total", nic="\ud800"), r"'\\ud800' is not a valid help, unit or label value"),
        (packets(1, "nfcore_nic_total", nic="x" * 1025), "is not a valid help, unit or label value; .* not too long"),
        (packets(1, "nfcore_nic_total", nic=5), "5 is not a valid help, unit or label value"),  # type: ignore[arg-type]
        (
            MetricFamily("nfcore_nic_total", MetricKind.COUNTER, "", columns=[FALLING]),
            "-2.0 is not a valid value of a counter",
        ),
        (took((3, 2), 1.0), "Distribution.* is not a valid value of a histogram"),
        (took((1, 2, 3), 1.0), "Distribution.* is not a valid value of a histogram"),
        (took((1, 2), math.inf), "Distribution.* is not a valid value of a histogram"),
        (MetricFamily("nfcore_nic_sum", MetricKind.GAUGE, ""), "are reserved for histograms"),
        (
            MetricFamily("nfcore_took", MetricKind.HISTOGRAM, "", samples=[Sample(1)]),
            "1 is not a valid value of a histogram",
        ),
        (MetricFamily("nfcore_nic", MetricKind.GAUGE, "", columns=[UNEVEN]), "not a valid value of a gauge"),
        (
            MetricFamily("nfcore_nic", MetricKind.GAUGE, "", samples=[Sample(1, {"nic": "a"})], columns=[NICS]),
            "same labels",
        ),
        (
            MetricFamily("nfcore_nic", MetricKind.GAUGE, "", labels=("vip",), columns=[NICS]),
            "labels nic; should be vip",
        ),
    ],
)
def test_what_breaks_a_rule_is_named(family: MetricFamily, words: str) -> None:
    registry = Registry()
    registry.add([packets(1)])
    with pytest.raises(ValueError, match=words):
        registry.add([family])


def test_nothing_of_a_plugin_is_taken_that_breaks_a_rule() -> None:
    registry = Registry()
    with pytest.raises(ValueError, match="not a valid metric name"):
        registry.add([packets(1), packets(1, "packets")])
    assert len(registry) == 0


def test_columns_are_samples() -> None:
    registry = Registry()
    registry.add([MetricFamily("nfcore_nic_total", MetricKind.COUNTER, "", columns=[NICS])])
    registry.add([packets(3, "nfcore_nic_total", "", nic="c")])
    (family,) = materialize(registry.as_rows())["metrics"]
    assert [(each["labels"]["nic"], each["value"]) for each in family["samples"]] == [("c", 3), ("a", 1), ("b", 2)]


@pytest.mark.parametrize("rows", [[["a"], ["a"]], [["a", "b"]], [[]], [["\ud800"]], [[5]]])
def test_label_sets_are_checked_when_they_are_made(rows: list[list[Any]]) -> None:
    with pytest.raises(ValueError, match="label"):
        LabelSets(["nic"], rows)


def test_histograms_are_written_with_buckets() -> None:
    took = Histogram([0.1, 1.0])
    took.observe(0.1)
    took.observe(0.5, 3)
    took.observe(7)
    family = histogram("nfcore_took_seconds", "Time.", "seconds")
    family.add(took.read())
    registry = Registry()
    registry.add([family])
    answer = json.loads(json.dumps(materialize(registry.as_rows())))["metrics"]
    assert answer[0]["samples"] == [{"labels": {}, "buckets": [[0.1, 1], [1.0, 4]], "sum": 8.6, "count": 5}]
    assert total(answer, "nfcore_took_seconds") == 5


@given(st.lists(st.floats(0, 100)), st.lists(st.floats(0, 50), min_size=1, max_size=8, unique=True).map(sorted))
def test_a_histogram_counts_what_is_at_most_its_bound(values: list[float], bounds: list[float]) -> None:
    made = Histogram(bounds)
    for value in values:
        made.observe(value)
    read = made.read()
    assert read.cumulative == (*(sum(value <= bound for value in values) for bound in bounds), len(values))
    assert read.sum == pytest.approx(sum(values))


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(-5, 5)), max_size=30))
def test_what_is_left_over_never_goes_back_while_its_base_grows(steps: list[tuple[int, int, int]]) -> None:
    ratchet, base, part, last = MonotonicDifference(), 0, 0, 0
    for other, rest, torn in steps:
        base, part = base + other + rest, part + other
        value = int(ratchet.hold("rest", np.array(base), np.array(part + torn)))
        assert value >= max(last, 0)
        last = value
    begun_anew = int(ratchet.hold("rest", np.array(0), np.array(0))) if base else 0
    assert begun_anew == 0


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (
            counter("nfcore_hook_errors_total", "", "things"),
            "nfcore_hook_errors_total is a counter of things; elsewhere it is a counter of calls",
        ),
        (
            packets(5, "nfcore_flows"),
            "plugin odd: collect_stats returned metrics that break a rule: nfcore_flows is a gauge",
        ),
        (MetricFamily("nfcore_odd", MetricKind.GAUGE, "", samples=[5]), "cannot be processed: AttributeError"),  # type: ignore[list-item]
    ],
)
def test_a_plugin_whose_figures_break_a_rule_is_named_and_the_others_are_there(
    config: Config, family: MetricFamily, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd:
        @hookimpl
        def collect_stats(self) -> Iterable[MetricFamily]:
            return [family]

    plugins = PluginManager()
    plugins.register(StatsPlugin(), "stats")
    plugins.register(Odd(), "odd")
    context = make_context(config, plugins, [])
    with set_up(context, plugins):
        make_engine(context, plugins, {})
        metrics = materialize(asyncio.run(context.services.methods["stats"]({})))["metrics"]
    assert total(metrics, "nfcore_flows", state="installed") == 0
    assert total(metrics, "nfcore_hook_errors_total", plugin="odd", hook="collect_stats", kind="wrong_answer") == 1
    assert words in caplog.text


def test_stats_answers_with_everybodys_figures(config: Config) -> None:
    class Nic:
        @hookimpl
        def collect_stats(self) -> Iterable[MetricFamily]:
            return [packets(5, "nfcore_nic_packets_total")]

    plugins = PluginManager()
    plugins.register(StatsPlugin(), "stats")
    plugins.register(Nic(), "nic")
    context = make_context(config, plugins, [])
    with set_up(context, plugins):
        make_engine(context, plugins, {})
        answer = materialize(asyncio.run(context.services.methods["stats"]({})))
    names = [metric["name"] for metric in json.loads(json.dumps(answer))["metrics"]]
    assert {"nfcore_nic_packets_total", "nfcore_events_total", "nfcore_flows", "nfcore_marks"} <= set(names)
    assert names == sorted(names)
