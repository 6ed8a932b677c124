# SPDX-License-Identifier: Apache-2.0
"""Checks the claims of the chaos: the result of each event, and the client's records over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from .events import Event
from .proof import Check, Prediction, Summary, address_kept, as_check, none_lost, summarise


@dataclass
class Ring:
    """Rings that the balancer used from `since` to `until`, seconds of CLOCK_MONOTONIC."""

    prediction: Prediction
    since: float
    until: float = inf


@dataclass(frozen=True)
class Absence:
    """A real that was removed from `since` to `until`, seconds of CLOCK_MONOTONIC."""

    real: str
    since: float
    until: float


def prove_chaos(
    records: Sequence[Mapping[str, Any]],
    events: Sequence[Event],
    *,
    rings: Sequence[Ring],
    absences: Sequence[Absence],
    strategy: str,
    paths: tuple[int, int],
    retransmitted: int,
    seconds: float,
) -> Summary:
    """Check the client's records (`demo.load.Record` as mappings), and add the result of each event."""
    checks = [
        none_lost(records),
        _one_real(records),
        _right_ring(records, rings),
        *(_never_absent(records, absence) for absence in absences),
        address_kept(records),
        *(as_check(event) for event in events),
    ]
    return summarise(
        records, checks, strategy=strategy, paths=paths, retransmitted=retransmitted, seconds=seconds, events=events
    )


def _one_real(records: Sequence[Mapping[str, Any]]) -> Check:
    checked = [record for record in records if record["reals"]]
    moved = [record for record in checked if len(record["reals"]) > 1]
    detail = f"{len(checked) - len(moved):,} of {len(checked):,} connections"
    if moved:
        detail += "; " + "; ".join(f"{_source(record)}: {record['reals']}" for record in moved[:3])
    return Check("no connection moved from one real to another", bool(checked) and not moved, detail)


def _right_ring(records: Sequence[Mapping[str, Any]], rings: Sequence[Ring]) -> Check:
    checked = [record for record in records if record["reals"]]
    wrong = []
    for record in checked:
        expected = {
            ring.prediction.real(record["vip"], record["address"], record["port"])
            for ring in rings
            if ring.since <= record["connected"] and record["began"] <= ring.until
        }
        if set(record["reals"]) - expected:
            answered = " and ".join(record["reals"])
            wrong.append(f"{_source(record)}: {' or '.join(sorted(expected))} computed, {answered} answered")
    detail = f"{len(checked) - len(wrong):,} of {len(checked):,} connections, {len(rings)} states of the rings"
    if wrong:
        detail += "; " + "; ".join(wrong[:3])
    claim = "the real is the one computed from hash and the ring at the time when the connection was opened"
    return Check(claim, bool(checked) and not wrong, detail)


def _never_absent(records: Sequence[Mapping[str, Any]], absence: Absence) -> Check:
    during = [
        record
        for record in records
        if record["last"] is not None and record["last"] >= absence.since and record["began"] <= absence.until
    ]
    wrong = [record for record in during if absence.real in record["reals"]]
    detail = f"{len(during):,} connections in {absence.until - absence.since:.1f} s"
    if wrong:
        detail += "; " + "; ".join(map(_source, wrong[:3]))
    return Check(f"{absence.real} answered nobody while it was removed", bool(during) and not wrong, detail)


def _source(record: Mapping[str, Any]) -> str:
    return f"{record['address']} port {record['port']}"
