# SPDX-License-Identifier: Apache-2.0
"""Figures of all plugins in one registry."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from nfcore.config import Config
from nfcore.hookspecs import hookimpl
from nfcore.host import PluginHost
from nfcore.metrics import MetricFamily, MetricKind
from nfcore.plugins.stats import StatsPlugin
from nfcore.plugins.stats.registry import Registry
from nfcore.session import make_context, make_engine, set_up


def packets(value: int, name: str = "nfcore_packets_total", unit: str = "packets", **labels: str) -> MetricFamily:
    kind = MetricKind.COUNTER if name.endswith("_total") else MetricKind.GAUGE
    family = MetricFamily(name, kind, "Packets.", unit)
    family.add(value, **labels)
    return family


def test_figures_of_one_name_are_one_family() -> None:
    registry = Registry()
    registry.add([packets(1, nic="a"), packets(9, "nfcore_rules")], "first")
    registry.add([packets(2, nic="b")], "second")
    assert len(registry) == 2
    assert registry.as_json() == {
        "metrics": [
            {
                "name": "nfcore_packets_total",
                "type": "counter",
                "unit": "packets",
                "help": "Packets.",
                "samples": [{"labels": {"nic": "a"}, "value": 1}, {"labels": {"nic": "b"}, "value": 2}],
            },
            {
                "name": "nfcore_rules",
                "type": "gauge",
                "unit": "packets",
                "help": "Packets.",
                "samples": [{"labels": {}, "value": 9}],
            },
        ]
    }


def test_a_plugins_family_is_left_as_it_was() -> None:
    registry, family = Registry(), packets(1)
    registry.add([family], "first")
    registry.add([packets(2)], "second")
    assert len(family.samples) == 1


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (packets(1, "packets_total"), "'packets_total' is no metric name"),
        (packets(1, "nfcore_Packets_total"), "no metric name"),
        (MetricFamily("nfcore_packets", MetricKind.COUNTER, ""), "counters, and only they, end in _total"),
        (MetricFamily("nfcore_rules_total", MetricKind.GAUGE, ""), "counters, and only they, end in _total"),
        (packets(1, unit="bytes"), "is a counter of bytes; elsewhere it is a counter of packets"),
    ],
)
def test_what_breaks_a_rule_is_named(family: MetricFamily, words: str) -> None:
    registry = Registry()
    registry.add([packets(1)], "first")
    with pytest.raises(ValueError, match=words) as refused:
        registry.add([family], "second")
    assert "plugin second" in str(refused.value)


def test_stats_answers_with_everybodys_figures(config: Config) -> None:
    class Nic:
        @hookimpl
        def collect_stats(self) -> Iterable[MetricFamily]:
            return [packets(5, "nfcore_nic_packets_total")]

    host = PluginHost()
    host.register(StatsPlugin(), "stats")
    host.register(Nic(), "nic")
    context = make_context(config, host, [])
    with set_up(context, host):
        make_engine(context, host, {})
        answer = context.methods["stats"]({})
    names = [metric["name"] for metric in json.loads(json.dumps(answer))["metrics"]]
    assert {"nfcore_nic_packets_total", "nfcore_events_total", "nfcore_flows", "nfcore_marks"} <= set(names)
    assert names == sorted(names)
