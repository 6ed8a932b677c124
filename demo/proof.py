# SPDX-License-Identifier: Apache-2.0
"""Checks the claims of the demo against the client's records and an independent computation.

Independent means: the real of each connection is computed here from the TOML and the client's address and port only
(Maglev ring and flow hash in Python), without any map, counter or log of the balancer.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nfcore.plugins.katran_accel.hashing import ring_slot
from nfcore.plugins.katran_accel.maglev import Endpoint, build_ring

from .counters import DaemonCounters
from .events import Event
from .lab import Real

MIN_FAST_SHARE = 0.8


class Prediction:
    """VIP, client address and port → the real that must answer."""

    def __init__(self, config: Path, reals: Sequence[Real]) -> None:
        names = {address: real.name for real in reals for address in (real.v4, real.v6)}
        self._rings: dict[str, list[str]] = {}
        self._ports: dict[str, int] = {}
        number = 0
        table = tomllib.loads(config.read_text())["katran_accel"]
        for vip in table["vips"]:
            endpoints = []
            name_of: dict[int, str] = {}
            for real in vip["reals"]:
                number += 1
                endpoints.append(Endpoint(number, ip_address(real["address"]), real.get("weight", 1)))
                name_of[number] = names[real["address"]]
            ring = build_ring(endpoints, version=table.get("maglev", 2))
            self._rings[vip["address"]] = [name_of[int(chosen)] for chosen in ring]
            self._ports[vip["address"]] = vip["port"]

    def real(self, vip: str, address: str, port: int) -> str:
        """Return the name of the real for a connection from `address` and `port` to `vip`."""
        return self._rings[vip][ring_slot(ip_address(address), port, self._ports[vip])]


@dataclass(frozen=True)
class Check:
    """One claim, whether it held, and the numbers behind it."""

    claim: str
    passed: bool
    detail: str


@dataclass
class Summary:
    """The result of a run. Counts are requests or connections; `seconds` is the time of the traffic."""

    strategy: str
    requests: dict[str, int]
    connections: dict[str, int]
    reals: dict[str, int]
    packets: dict[str, int]
    fast_path_share: float | None
    retransmitted_segments: int
    slowest_request_ms: float
    seconds: float
    checks: list[Check] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every claim held and nothing was left behind."""
        return all(check.passed for check in self.checks) and not self.left_behind

    def as_json(self) -> dict[str, Any]:
        """Return the fields and ``ok``, for `--json`."""
        return {"ok": self.ok, **asdict(self)}


def prove(
    records: Sequence[Mapping[str, Any]],
    prediction: Prediction,
    *,
    strategy: str,
    counters: tuple[DaemonCounters, DaemonCounters],
    retransmitted: int,
    seconds: float,
) -> Summary:
    """Check the client's records (`demo.load.Record` as mappings); `counters` are before and after the main phase."""
    before, after = counters
    checks = [none_lost(records), right_real(records, prediction), address_kept(records), _fast_enough(before, after)]
    return summarise(
        records,
        checks,
        strategy=strategy,
        paths=(after.fast - before.fast, after.slow - before.slow),
        retransmitted=retransmitted,
        seconds=seconds,
    )


def summarise(
    records: Sequence[Mapping[str, Any]],
    checks: Sequence[Check],
    *,
    strategy: str,
    paths: tuple[int, int],
    retransmitted: int,
    seconds: float,
    events: Sequence[Event] = (),
) -> Summary:
    """Return checks and numbers as a summary; `paths` are packets on the fast and on the slow path."""
    reals: Counter[str] = Counter()
    for record in records:
        reals.update(record["reals"])
    sent, answered = _sent(records), _answered(records)
    kinds = Counter(record["kind"] for record in records)
    fast, slow = paths
    return Summary(
        strategy=strategy,
        requests={"sent": sent, "answered": answered, "lost": sent - answered},
        connections={"short": kinds["short"], "kept": kinds["kept"]},
        reals=dict(sorted(reals.items())),
        packets={"fast": fast, "slow": slow},
        fast_path_share=fast / (fast + slow) if fast + slow else None,
        retransmitted_segments=retransmitted,
        slowest_request_ms=round(1000 * max((record["worst"] for record in records), default=0.0), 1),
        seconds=round(seconds, 1),
        checks=list(checks),
        events=list(events),
    )


def none_lost(records: Sequence[Mapping[str, Any]]) -> Check:
    """Check that every request was answered."""
    sent, answered = _sent(records), _answered(records)
    detail = f"{answered:,} of {sent:,} requests on {len(records):,} connections, no retries"
    errors = Counter(record["error"] for record in records if record["error"])
    if errors:
        detail += "; " + "; ".join(f"{count} × {error}" for error, count in errors.most_common(3))
    return Check("every request was answered in time", sent == answered > 0, detail)


def right_real(records: Sequence[Mapping[str, Any]], prediction: Prediction) -> Check:
    """Check for each connection that the computed real answered, and no other."""
    wrong = []
    for record in records:
        if record["port"] is None:
            continue
        expected = prediction.real(record["vip"], record["address"], record["port"])
        if set(record["reals"]) - {expected}:
            source = f"{record['address']} port {record['port']}"
            wrong.append(f"{source}: {expected} computed, {' and '.join(record['reals'])} answered")
    checked = sum(bool(record["reals"]) for record in records)
    detail = f"{checked - len(wrong):,} of {checked:,} connections"
    if wrong:
        detail += "; " + "; ".join(wrong[:3])
    return Check("the real that answered is the one computed from ring and hash", checked > 0 and not wrong, detail)


def address_kept(records: Sequence[Mapping[str, Any]]) -> Check:
    """Check that the real saw the client's own address and port, and whole bodies."""
    wrong = sum(record["strange"] for record in records)
    detail = "all answers name the client's own address, port and body length"
    if wrong:
        detail = f"{wrong:,} answers name another address, port or body length"
    return Check("packets reached the real unchanged", wrong == 0, detail)


def as_check(event: Event) -> Check:
    """Return an event as a claim."""
    return Check(event.claim, event.passed, f"{event.what}: {event.detail}")


def _fast_enough(before: DaemonCounters, after: DaemonCounters) -> Check:
    share = after.share_since(before)
    claim = f"kept-alive connections use the fast path (at least {MIN_FAST_SHARE:.0%})"
    if share is None:
        return Check(claim, False, "no packet was counted")
    fast, slow = after.fast - before.fast, after.slow - before.slow
    return Check(claim, share >= MIN_FAST_SHARE, f"{share:.1%}: {fast:,} packets fast, {slow:,} slow")


def _sent(records: Sequence[Mapping[str, Any]]) -> int:
    return sum(record["asked"] for record in records)


def _answered(records: Sequence[Mapping[str, Any]]) -> int:
    return sum(record["answered"] for record in records)
