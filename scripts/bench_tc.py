# SPDX-License-Identifier: Apache-2.0
"""Flower rules a second, ours against `tc -b`, on one kernel: insert, delete, dump.

    sudo scripts/guest.sh run -- .venv/bin/python scripts/bench_tc.py 10000 50000

Works in a network namespace of its own. Each figure of `tc` is of one process that does everything: `tc -b` with
`filter add` and with `filter del`, and `tc -j -s filter show`. Ours is what the daemon calls: `TcBackend.install`,
`.remove` and `.dump`, with the answer for every rule. Prints two ratios: to what `tc` takes for the same, and to
`tc -b` adding as many rules, the usual yardstick.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfcore.flows import FlowMatch
from nfcore.plugins.tc_offload.backend import Settings, TcBackend
from nfcore.rules import RULE_ROW, Action, Outcome, RuleBatch, make_cookies

PRIO = 6000
CLONE_NEWNET = 0x4000_0000


def make_rules(count: int) -> RuleBatch:
    """Give `count` rules for TCP flows of one VIP, 50,000 clients to an address's ports."""
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


def tc_additions(rules: RuleBatch, device: str) -> Iterator[str]:
    """Give the lines of `tc -b` that add the same rules."""
    for handle, row in enumerate(rules.rows, start=1):
        match = FlowMatch.from_key(row["key"], 4)
        yield (
            f"filter add dev {device} ingress prio {PRIO} handle {handle} protocol ip flower ip_proto tcp "
            f"src_ip {match.src} dst_ip {match.dst} src_port {match.sport} dst_port {match.dport} "
            f"action skbedit mark {row['mark']} cookie {int(row['cookie']):016x}"
        )


def tc_deletions(rules: RuleBatch, device: str) -> Iterator[str]:
    """Give the lines of `tc -b` that delete them."""
    for handle in range(1, len(rules) + 1):
        yield f"filter del dev {device} ingress prio {PRIO} handle {handle} protocol ip flower"


def clock(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def run_tc(*arguments: str) -> None:
    """Run tc; CalledProcessError when it fails."""
    subprocess.run(["tc", *arguments], check=True, stdout=subprocess.DEVNULL)


def measure_tc(rules: RuleBatch, device: str) -> dict[str, float]:
    """Seconds of tc by operation."""
    run_tc("qdisc", "add", "dev", device, "clsact")
    with tempfile.TemporaryDirectory() as folder:
        add, delete = Path(folder, "add"), Path(folder, "del")
        add.write_text("\n".join(tc_additions(rules, device)) + "\n", encoding="ascii")
        delete.write_text("\n".join(tc_deletions(rules, device)) + "\n", encoding="ascii")
        seconds = {
            "insert": clock(lambda: run_tc("-b", str(add))),
            "dump": clock(lambda: run_tc("-j", "-s", "filter", "show", "dev", device, "ingress")),
            "delete": clock(lambda: run_tc("-b", str(delete))),
        }
    run_tc("qdisc", "del", "dev", device, "clsact")
    return seconds


def measure_ours(rules: RuleBatch, device: str, *, terse: bool) -> dict[str, float]:
    """Seconds of ours by operation; AssertionError when an answer is not the expected one."""
    backend = TcBackend(Settings(device, socket.if_nametoindex(device), prio=PRIO, skip_sw="off", terse=terse))
    backend.open()
    # What is made once (templates, the layout of a dump) is made before, as in a daemon that runs.
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
    """Print the figures for each number of rules on the command line."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise SystemExit(f"bench_tc: no network namespace: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "add", "bench0", "type", "veth", "peer", "name", "bench1"], check=True)
    print(f"{'rules':>7} {'what':<12} {'tc /s':>8} {'ours /s':>8} {'to same':>8} {'to tc -b add':>13}")
    for count in [int(word) for word in sys.argv[1:]] or [10_000]:
        rules = make_rules(count)
        tc = measure_tc(rules, "bench0")
        ours = measure_ours(rules, "bench0", terse=False)
        ours["dump, terse"] = measure_ours(rules, "bench0", terse=True)["dump"]
        tc["dump, terse"] = tc["dump"]
        for what, seconds in ours.items():
            ratio = tc[what] / seconds
            print(
                f"{count:>7} {what:<12} {count / tc[what]:>10.0f} {count / seconds:>10.0f} {ratio:>6.1f}x", flush=True
            )


if __name__ == "__main__":
    main()
