# SPDX-License-Identifier: Apache-2.0
"""Packets through a running daemon: over veth with native XDP, from nfcore's own sender, on one core."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..api.flows import FlowMatch
from .processes import ShowProgress
from .results import LiveRow
from .sender import Sender
from .sizes import Sizes
from .testbed import NETWORK, Testbed, open_testbed, wait_for
from .traffic import Family, flow_keys, make_frames
from .workload import Workload

VIPS, REALS = 4, 8
OFFLOAD = 'min_packets = 1\nidle_timeout = "10m"\ninserts_per_second = 0'
SETTLE = 0.2
"""Seconds in which frames that are still on their way arrive."""


def measure_live(nf: str, workload: Workload, sizes: Sizes, show_progress: ShowProgress) -> list[LiveRow]:
    """Send for each IP version, without marks and with. Run it in a process of its own."""
    rows: list[LiveRow] = []
    with open_testbed() as testbed:
        config = testbed.config(nf, workload.toml(VIPS, REALS), offload=OFFLOAD)
        with testbed.daemon(config):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
            for family in sizes.families:
                rows += _rounds(testbed, workload.services(VIPS, family), family, sizes, show_progress)
    return rows


def _rounds(
    testbed: Testbed, services: NDArray[np.void], family: Family, sizes: Sizes, show_progress: ShowProgress
) -> list[LiveRow]:
    """Send without marks and with, in turn. Each time with new flows: XDP reports their first packets at once."""
    runs: dict[str, list[LiveRow]] = {"unmarked": [], "marked": []}
    flows = np.arange(sizes.live_flows)
    for number in range(sizes.live_rounds):
        for path, rows in runs.items():
            show_progress(f"IPv{family}, {path}, round {number + 1}")
            frames = make_frames(flows, services, family)
            with Sender(NETWORK, frames) as sender:
                _prepare(testbed, sender, sizes.live_flows, marked=path == "marked")
                rows.append(_send(testbed, sender, path, family, frames.shape[1], sizes))
            flows = flows + sizes.live_flows
    return [_merge(rows) for rows in runs.values()]


def _merge(runs: list[LiveRow]) -> LiveRow:
    """Make one row of several: the sum of their packets and the median of their rates."""
    sent, received = sum(run.sent for run in runs), sum(run.received for run in runs)
    return replace(
        runs[0],
        seconds=round(sum(run.seconds for run in runs), 3),
        sent=sent,
        pps=statistics.median(run.pps for run in runs),
        received=received,
        loss=1 - received / sent if sent else 0.0,
        marked_share=sum(run.marked_share * run.sent for run in runs) / sent if sent else 0.0,
    )


def _prepare(testbed: Testbed, sender: Sender, flows: int, *, marked: bool) -> None:
    """Send until every flow has a rule, or, without `marked`, until none has."""
    testbed.request("offload", on=marked)

    def ready() -> bool:
        # This warms up the slow path, too.
        sender.send_for(1.0, most=20 * flows)
        return testbed.metric("nfcore_flows", state="installed") == (flows if marked else 0)

    wait_for(f"{flows if marked else 0} rules", ready)
    time.sleep(SETTLE)


def _send(testbed: Testbed, sender: Sender, path: str, family: Family, size: int, sizes: Sizes) -> LiveRow:
    before, marked = testbed.received(), _marked(testbed)
    sent, seconds = sender.send_for(sizes.live_seconds)
    time.sleep(SETTLE)
    received = testbed.received() - before
    return LiveRow(
        path=path,
        family=family,
        flows=sizes.live_flows,
        frame_bytes=size,
        seconds=round(seconds, 3),
        sent=sent,
        pps=sent / seconds,
        received=received,
        loss=1 - received / sent if sent else 0.0,
        marked_share=(_marked(testbed) - marked) / sent if sent else 0.0,
    )


def _marked(testbed: Testbed) -> float:
    return testbed.metric("nfcore_softnic_packets_total", kind="marked")


def time_first_marks(nf: str, workload: Workload, sizes: Sizes, show_progress: ShowProgress) -> list[float]:
    """Return for each flow the seconds from its first packet, which XDP reports, to its first marked one.

    The daemon has nothing else to do. From its first marked packet on all packets of a flow are marked, so the NIC's
    count of marked packets shows which one was the first. Flows without a marked packet are left out.
    """
    services = workload.services(VIPS, 4)
    flows = np.arange(sizes.first_marks)
    frames = make_frames(flows, services, 4)
    names = [str(FlowMatch.from_key(key, 4)) for key in flow_keys(flows, services, 4)]
    with open_testbed() as testbed:
        config = testbed.config(nf, workload.toml(VIPS, REALS), offload=OFFLOAD)
        with testbed.daemon(config), Sender(NETWORK, frames) as sender:
            times = []
            for number in range(len(frames)):
                if number % 20 == 0:
                    show_progress(f"flow {number + 1} of {len(frames)}")
                times.append(_send_one_flow(sender, number))
            marked = _marked_packets(testbed, len(names))
    return [
        sent_at[-marked[name]] - sent_at[0]
        for name, sent_at in zip(names, times, strict=True)
        if 0 < marked.get(name, 0) < len(sent_at)
    ]


FLOW_SECONDS = 0.06
"""For how long each flow sends: longer than the daemon's longest sleep plus the installation of a rule."""
PACKET_INTERVAL = 50e-6
"""Seconds between two packets, at least. The time of a first marked packet is exact to some 0.1 ms."""


def _send_one_flow(sender: Sender, number: int) -> list[float]:
    """Send packets of one flow; return when each was sent."""
    times: list[float] = []
    end = time.perf_counter() + FLOW_SECONDS
    while (now := time.perf_counter()) < end:
        times.append(now)
        sender.send_one(number)
        time.sleep(PACKET_INTERVAL)
    return times


def _marked_packets(testbed: Testbed, flows: int) -> dict[str, int]:
    """Return the number of marked packets by flow, once the daemon has read all counters."""
    counts: dict[str, int] = {}

    def complete() -> bool:
        reply = testbed.request("flows", states=["installed"], limit=flows)
        counts.update({row["flow"]: row["packets"] for row in reply["flows"]})
        return sum(counts.values()) == _marked(testbed)

    wait_for("the counters of all rules", complete)
    return counts
