# SPDX-License-Identifier: Apache-2.0
"""Measures flower rules per second on one kernel, nfcore's backend and `tc -b`: insert, delete, dump.

    sudo scripts/guest.sh run -- .venv/bin/python scripts/bench_tc.py 10000 50000

Works in its own network namespace. Each time of `tc` is that of one process that handles all rules: `tc -b` with
`filter add` and `filter del`, and `tc -j -s filter show`. For nfcore it is the time of the calls that the daemon makes:
`TcBackend.install`, `.remove` and `.dump`, with a status for every rule. Prints the ratio to what `tc` takes for the
same operation.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys

import numpy as np
from numpy.typing import NDArray

from nfcore.api.rules import RULE_ROW, Action, Outcome, RuleBatch, make_cookies
from nfcore.bench.tc_batch import PRIO, clock, measure_tc
from nfcore.errors import NfcoreError
from nfcore.plugins.tc_offload.backend import Settings, TcBackend

CLONE_NEWNET = 0x4000_0000


def make_rules(count: int) -> RuleBatch:
    """`count` rules for TCP flows to one VIP, 65,536 client addresses per source port."""
    rows = np.zeros(count, dtype=RULE_ROW)
    number = np.arange(count)
    rows["family"], rows["action"], rows["mark"] = 4, Action.SET_MARK, 1 + number % 0xFFFF
    rows["key"]["src"][:, :2] = 198, 18
    rows["key"]["src"][:, 2], rows["key"]["src"][:, 3] = number >> 8 & 0xFF, number & 0xFF
    rows["key"]["dst"][:, :4] = 198, 19, 10, 1
    rows["key"]["sport"], rows["key"]["dport"] = 1024 + (number >> 16), 80
    rows["key"]["proto"] = socket.IPPROTO_TCP
    rows["cookie"] = make_cookies(number, np.ones(count, dtype=np.uint16))
    return RuleBatch(rows)


def measure_own(rules: RuleBatch, device: str, *, terse: bool) -> dict[str, float]:
    """Operation → seconds with nfcore's backend. AssertionError: a result is not the expected one."""
    backend = TcBackend(Settings(device, socket.if_nametoindex(device), prio=PRIO, skip_sw="off", terse=terse))
    backend.open()
    # Warm up: templates and the layout of a dump are made once, as in a running daemon.
    first = RuleBatch(rules.rows[:2].copy())
    backend.install(first)
    backend.dump()
    backend.remove(first)
    answers: list[NDArray[np.void] | NDArray[np.uint8]] = []
    seconds = {
        "insert": clock(lambda: answers.append(backend.install(rules).status)),
        "dump": clock(lambda: answers.append(backend.dump())),
        "delete": clock(lambda: answers.append(backend.remove(rules).status)),
    }
    assert (answers[0] == Outcome.INSTALLED).all()
    assert len(answers[1]) == len(rules)
    assert (answers[2] == Outcome.REMOVED).all()
    backend.close()
    return seconds


def main() -> None:
    """Print a table for each number of rules on the command line."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise SystemExit(f"bench_tc: no network namespace: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "add", "bench0", "type", "veth", "peer", "name", "bench1"], check=True)
    print(f"{'rules':>7} {'what':<12} {'tc /s':>10} {'nfcore /s':>10} {'ratio':>7}")
    for count in [int(word) for word in sys.argv[1:]] or [10_000]:
        rules = make_rules(count)
        tc = measure_tc(rules, "bench0")
        own = measure_own(rules, "bench0", terse=False)
        own["dump, terse"] = measure_own(rules, "bench0", terse=True)["dump"]
        tc["dump, terse"] = tc["dump"]
        for what, seconds in own.items():
            ratio = tc[what] / seconds
            print(
                f"{count:>7} {what:<12} {count / tc[what]:>10.0f} {count / seconds:>10.0f} {ratio:>6.1f}x", flush=True
            )


if __name__ == "__main__":
    try:
        main()
    except NfcoreError as error:
        raise SystemExit(f"bench_tc: {error}") from None
