# SPDX-License-Identifier: Apache-2.0
"""The proof fails where the demo went wrong: each claim is given records or counters that break it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from demo.counters import DaemonCounters
from demo.lab import CLIENT4, CLIENT6, VIP4, VIP6, Lab
from demo.proof import Prediction, Summary, prove
from demo.stage import CONFIG


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    return Prediction(CONFIG, Lab("nfproof-").reals)


def good_records(prediction: Prediction) -> list[dict[str, Any]]:
    records = []
    for vip, address in ((VIP4, CLIENT4), (VIP6, CLIENT6)):
        for port in range(40000, 40030):
            reals = {prediction.real(vip, address, port): 3}
            records.append(
                {"kind": "kept", "vip": vip, "address": address, "port": port, "asked": 3, "answered": 3}
                | {"strange": 0, "worst": 0.001, "reals": reals, "error": None}
            )
    return records


def summary(
    prediction: Prediction, records: list[dict[str, Any]], counters: tuple[DaemonCounters, DaemonCounters]
) -> Summary:
    return prove(records, prediction, strategy="dest-id", counters=counters, retransmitted=0, seconds=1.0)


WARM = (DaemonCounters(fast=10, slow=90), DaemonCounters(fast=190, slow=95))


def test_all_claims_hold(prediction: Prediction) -> None:
    result = summary(prediction, good_records(prediction), WARM)
    assert result.ok
    assert result.requests == {"sent": 180, "answered": 180, "lost": 0}
    assert result.fast_path_share == pytest.approx(180 / 185)
    assert set(result.reals) == {"real1", "real2", "real3"}


def lose_one(records: list[dict[str, Any]]) -> None:
    records[7] |= {"answered": 2, "error": "TimeoutError: timed out"}


def answer_by_another(records: list[dict[str, Any]]) -> None:
    right = next(iter(records[7]["reals"]))
    wrong = next(name for name in ("real1", "real2") if name != right)
    records[7]["reals"] = {wrong: 3}


def change_real_midway(records: list[dict[str, Any]]) -> None:
    right = next(iter(records[40]["reals"]))
    wrong = next(name for name in ("real1", "real2") if name != right)
    records[40]["reals"] = {right: 2, wrong: 1}


def change_source(records: list[dict[str, Any]]) -> None:
    records[3]["strange"] = 1


@pytest.mark.parametrize("damage", [lose_one, answer_by_another, change_real_midway, change_source])
def test_one_bad_connection_fails_one_claim(
    prediction: Prediction, damage: Callable[[list[dict[str, Any]]], None]
) -> None:
    records = good_records(prediction)
    damage(records)
    result = summary(prediction, records, WARM)
    assert not result.ok
    assert sum(not check.passed for check in result.checks) == 1


@pytest.mark.parametrize("after", [DaemonCounters(fast=10, slow=90), DaemonCounters(fast=49, slow=100)])
def test_too_small_a_share_fails(prediction: Prediction, after: DaemonCounters) -> None:
    result = summary(prediction, good_records(prediction), (DaemonCounters(fast=10, slow=90), after))
    assert [check.passed for check in result.checks] == [True, True, True, False]


def test_nothing_sent_proves_nothing(prediction: Prediction) -> None:
    assert not any(check.passed for check in summary(prediction, [], WARM).checks[:2])


def test_what_is_left_behind_is_a_failure(prediction: Prediction) -> None:
    result = summary(prediction, good_records(prediction), WARM)
    result.left_behind = ["nfdemo-gw"]
    assert not result.ok


def test_weights_decide_the_split(prediction: Prediction) -> None:
    answers = [prediction.real(VIP4, CLIENT4, port) for port in range(20000, 24000)]
    shares = {name: answers.count(name) / len(answers) for name in ("real1", "real2", "real3")}
    # The TOML gives weights 20, 10, 10.
    assert shares == pytest.approx({"real1": 0.5, "real2": 0.25, "real3": 0.25}, abs=0.05)
