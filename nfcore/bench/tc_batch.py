# SPDX-License-Identifier: Apache-2.0
"""The usual comparison for rules a second: one process of `tc -b` for all rules."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..api.flows import FlowMatch
from ..api.rules import RuleBatch
from ..errors import HostError

PRIO = 6000


def tc_additions(rules: RuleBatch, device: str) -> Iterator[str]:
    """Return the lines of `tc -b` that add rules for IPv4 TCP flows."""
    for handle, row in enumerate(rules.rows, start=1):
        match = FlowMatch.from_key(row["key"], 4)
        yield (
            f"filter add dev {device} ingress prio {PRIO} handle {handle} protocol ip flower ip_proto tcp "
            f"src_ip {match.src} dst_ip {match.dst} src_port {match.sport} dst_port {match.dport} "
            f"action skbedit mark {row['mark']} cookie {int(row['cookie']):016x}"
        )


def tc_deletions(rules: RuleBatch, device: str) -> Iterator[str]:
    """Return the lines of `tc -b` that delete the same rules."""
    for handle in range(1, len(rules) + 1):
        yield f"filter del dev {device} ingress prio {PRIO} handle {handle} protocol ip flower"


def clock(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def run_tc(*arguments: str) -> None:
    """Run tc. HostError with its message when it fails."""
    try:
        subprocess.run(["tc", *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise HostError("tc is not installed: run scripts/setup.sh") from None
    except subprocess.CalledProcessError as error:
        raise HostError(f"tc {' '.join(arguments)}: {error.stderr.strip()}") from None


def measure_tc(rules: RuleBatch, device: str) -> dict[str, float]:
    """Return the seconds of `tc` by operation, at the ingress of `device`, which has no qdisc before and after.

    ``insert`` is `tc -b` with `filter add`, ``delete`` with `filter del`, ``dump`` is `tc -j -s filter show`.
    """
    run_tc("qdisc", "add", "dev", device, "clsact")
    try:
        with tempfile.TemporaryDirectory() as folder:
            add, delete = Path(folder, "add"), Path(folder, "del")
            add.write_text("\n".join(tc_additions(rules, device)) + "\n", encoding="ascii")
            delete.write_text("\n".join(tc_deletions(rules, device)) + "\n", encoding="ascii")
            return {
                "insert": clock(lambda: run_tc("-b", str(add))),
                "dump": clock(lambda: run_tc("-j", "-s", "filter", "show", "dev", device, "ingress")),
                "delete": clock(lambda: run_tc("-b", str(delete))),
            }
    finally:
        run_tc("qdisc", "del", "dev", device, "clsact")
