# SPDX-License-Identifier: Apache-2.0
"""Prometheus reads back what the exposition writes; `[stats] listen` says how it should be written."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from nfcore.api.metrics import Column, Histogram, LabelSets, MetricFamily, counter, gauge, histogram
from nfcore.config.loader import load_config
from nfcore.errors import ConfigError
from nfcore.hooks.manager import PluginManager
from nfcore.plugins.stats.config import StatsTable, split_listen
from nfcore.plugins.stats.prometheus.exposition import Exposition
from nfcore.plugins.stats.registry import Registry


def read_back(*families: MetricFamily, exposition: Exposition | None = None) -> dict[str, dict[tuple[str, ...], float]]:
    """Sample name → values of its labels → value, as Prometheus' parser sees it."""
    registry = Registry()
    registry.add(families)
    text = (exposition or Exposition()).write(registry).decode()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


LABELS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=20)


@given(st.dictionaries(LABELS, st.integers(0, 1 << 53), min_size=1, max_size=5), LABELS)
def test_any_label_and_help_text_comes_through(values: dict[str, int], text: str) -> None:
    family = counter("nfcore_packets_total", text, "packets", "vip")
    for label, value in values.items():
        family.add(value, vip=label)
    assert read_back(family) == {"nfcore_packets_total": {(label,): value for label, value in values.items()}}


@given(st.lists(st.floats(), min_size=1, max_size=5))
def test_any_number_comes_through(values: list[float]) -> None:
    samples, column = gauge("nfcore_a", "", "", "n"), gauge("nfcore_b", "", "", "n")
    for number, value in enumerate(values):
        samples.add(value, n=str(number))
    column.columns.append(Column(LabelSets(["n"], [[str(n)] for n in range(len(values))]), np.array(values)))
    found = read_back(samples, column)
    for name in ("nfcore_a", "nfcore_b"):
        for got, value in zip(found[name].values(), values, strict=True):
            assert got == value or (math.isnan(got) and math.isnan(value))


def test_columns_are_written_anew_with_other_values() -> None:
    exposition, sets = Exposition(), LabelSets(["vip", "path"], [["a", "fast"], ["a", "slow"]])
    for values in ([1, 2], [3, 4]):
        family = counter("nfcore_packets_total", "", "packets", "vip", "path")
        family.columns.append(Column(sets, np.array(values, dtype=np.uint64)))
        found = read_back(family, exposition=exposition)["nfcore_packets_total"]
        assert found == {("a", "fast"): values[0], ("a", "slow"): values[1]}


def test_histograms_end_with_a_bucket_for_everything() -> None:
    took = Histogram([0.1, 1.0])
    for value in (0.05, 0.5, 5.0):
        took.observe(value)
    family = histogram("nfcore_took_seconds", "", "seconds", "nic")
    family.add(took.read(), nic="eth1")
    assert read_back(family) == {
        "nfcore_took_seconds_bucket": {("eth1", "0.1"): 1, ("eth1", "1.0"): 2, ("eth1", "+Inf"): 3},
        "nfcore_took_seconds_sum": {("eth1",): 5.55},
        "nfcore_took_seconds_count": {("eth1",): 3},
    }


# [stats]

STATS = '[nf]\nplugins = ["stats"]\n[stats]\nlisten = {}\n'


def load(listen: str, folder: Path) -> StatsTable:
    path = folder / "nf.toml"
    path.write_text(STATS.format(listen))
    table = load_config(path, PluginManager()).sections["stats"]
    assert isinstance(table, StatsTable)
    return table


@pytest.mark.parametrize(
    ("listen", "where"),
    [("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:80", ("::1", 80)), ("0.0.0.0:1", ("0.0.0.0", 1))],
)
def test_where_to_listen(tmp_path: Path, listen: str, where: tuple[str, int]) -> None:
    assert split_listen(load(f'"{listen}"', tmp_path).listen) == where


@pytest.mark.parametrize("listen", ['""', "false"])
def test_the_endpoint_can_be_left_out(tmp_path: Path, listen: str) -> None:
    assert load(listen, tmp_path).listen == ""


@pytest.mark.parametrize(
    "listen", ["true", "9464", '"9464"', '"localhost:9464"', '"::1:9464"', '"127.0.0.1:0"', '"1.2.3:1"']
)
def test_another_way_to_write_it_is_shown(tmp_path: Path, listen: str) -> None:
    with pytest.raises(ConfigError, match=r"stats\.listen.* should be an address and a port, such as '127.0.0.1:9464'"):
        load(listen, tmp_path)
