# SPDX-License-Identifier: Apache-2.0
"""Measures what a dropped frame costs on one kernel: flow_actions in XDP, xdp-filter, and flower in software.

    sudo scripts/guest.sh run -- .venv/bin/python scripts/bench_filters.py 10 1000 100000

Works in its own network namespace, on a veth pair: frames are sent into one end, and dropped behind the other one. All
of them match an entry, picked at random. Gross: the time of one frame from the sender's system call to the drop, in the
best of the rounds. Net: minus the floor, which drops every frame in the same place without a look: a program in XDP, or
`matchall` at ingress. Prints the ratio of flower's net time to that of flow_actions. `nfcore bench --nf flow_actions`
has the programs alone, without sender and veth.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from ipaddress import ip_address

import numpy as np
from numpy.typing import NDArray

from nfcore.api.rules import RULE_ROW, Action, Outcome, RuleBatch, make_cookies
from nfcore.bench.packet_source import compile_bench
from nfcore.bench.sender import Sender
from nfcore.bench.tc_batch import PRIO, run_tc
from nfcore.bench.traffic import flow_keys, make_frames, make_services
from nfcore.bench.xdp_filter import XdpFilter
from nfcore.errors import HostError, NfcoreError
from nfcore.kernel import Program, XdpAction, XdpMode, attach_xdp, detach_xdp
from nfcore.plugins.flow_actions.benchmark import entries_for, open_data_plane, read_counters, source_keys
from nfcore.plugins.flow_actions.layouts import Action as FlowAction
from nfcore.plugins.tc_offload.backend import Settings, TcBackend

CLONE_NEWNET = 0x4000_0000
NEAR, FAR = "bench0", "bench1"
SERVICES = make_services([(ip_address("198.18.10.1"), 80)])
FRAMES, ROUNDS = 4_000, 60
"""Many short rounds: the best one is one in which the machine did nothing else."""
PATIENCE = 10.0
"""Seconds until the last frames of a round must have been dropped."""
Dropped = Callable[[], int]
"""Counts the dropped frames."""


@contextmanager
def attached(program: Program) -> Iterator[None]:
    """Attach a program to the near end for a block."""
    index = socket.if_nametoindex(NEAR)
    attach_xdp(index, program, mode=XdpMode.NATIVE)
    try:
        yield
    finally:
        detach_xdp(index, expected=program.id)


@contextmanager
def all_in_xdp() -> Iterator[None]:
    """Drop all frames in XDP, unread."""
    with compile_bench("floor.c", "bench_drop", {"OUTER_BYTES": 20}, {}) as program, attached(program):
        yield


@contextmanager
def all_at_ingress() -> Iterator[None]:
    """Drop all frames where flower's rules are."""
    run_tc("qdisc", "add", "dev", NEAR, "clsact")
    run_tc("filter", "add", "dev", NEAR, "ingress", "protocol", "all", "matchall", "action", "drop")
    try:
        yield
    finally:
        run_tc("qdisc", "del", "dev", NEAR, "clsact")


@contextmanager
def flow_actions(keys: NDArray[np.void], precedence: int) -> Iterator[Dropped]:
    """Drop by entries of flow_actions."""
    with open_data_plane(entries_for(keys, 4, precedence)) as plane, attached(plane.program):
        yield lambda: read_counters(plane, FlowAction.DROP).sent


@contextmanager
def xdp_filter(sources: NDArray[np.uint8]) -> Iterator[Dropped]:
    """Drop by addresses of xdp-filter."""
    with XdpFilter.open(len(sources)) as peer, attached(peer.program):
        peer.add_sources(sources, 4)
        yield lambda: peer.verdicts(XdpAction.DROP)


@contextmanager
def flower(keys: NDArray[np.void]) -> Iterator[Dropped]:
    """Drop by flower rules at ingress, without hardware."""
    backend = TcBackend(Settings(NEAR, socket.if_nametoindex(NEAR), prio=PRIO, skip_sw="off"))
    backend.open()
    rows = np.zeros(len(keys), dtype=RULE_ROW)
    rows["key"], rows["family"], rows["action"] = keys, 4, Action.DROP
    rows["cookie"] = make_cookies(np.arange(len(keys)), np.ones(len(keys), dtype=np.uint16))
    rules = RuleBatch(rows)
    outcomes = backend.install(rules)
    if not (outcomes.status == Outcome.INSTALLED).all():
        raise HostError(f"flower takes not every rule: {'; '.join(outcomes.messages.values())}")
    try:
        yield lambda: int(backend.dump()["packets"].sum())
    finally:
        backend.remove(rules)
        backend.close()


def time_frames(flows: int, way: AbstractContextManager[Dropped | None]) -> float:
    """Nanoseconds of a frame in the best round. HostError: not every frame was dropped by an entry."""
    random = np.random.default_rng(1)
    times = []
    with way as dropped:
        for _ in range(ROUNDS):
            chosen = random.integers(0, flows, FRAMES)
            with Sender(FAR, make_frames(chosen, SERVICES, 4, scattered=True)) as sender:
                before = dropped() if dropped else 0
                sent, seconds = sender.send_for(600.0, most=FRAMES)
            if dropped:
                _wait_for(dropped, before + sent)
            times.append(seconds / sent * 1e9)
    return min(times)


def _wait_for(dropped: Dropped, expected: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while (found := dropped()) != expected:
        if time.monotonic() > deadline:
            raise HostError(f"{found} frames were dropped by an entry, {expected} should be")
        time.sleep(0.01)


def main() -> None:
    """Print a line for each number of entries on the command line, and for each way to drop."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise SystemExit(f"bench_filters: no network namespace: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "add", NEAR, "type", "veth", "peer", "name", FAR], check=True)
    for name in (NEAR, FAR):
        subprocess.run(["ip", "link", "set", name, "addrgenmode", "none", "up"], check=True)
    print(f"{'entries':>8} {'what':<24} {'gross ns':>10} {'net ns':>8} {'flower to flow_actions':>24}")
    for count in [int(word) for word in sys.argv[1:]] or [10, 1_000]:
        _compare(count)


def _compare(count: int) -> None:
    keys = flow_keys(np.arange(count), SERVICES, 4, scattered=True)
    sources = source_keys(keys, 4)
    ways = {
        "5-tuple, flow_actions": flow_actions(keys, 0),
        "5-tuple, flower": flower(keys),
        "source, flow_actions": flow_actions(sources, 32),
        "source, xdp-filter": xdp_filter(keys["src"]),
        "source, flower": flower(sources),
    }
    net: dict[str, float] = {}
    for what, way in ways.items():
        match, _, by = what.partition(", ")
        floor = time_frames(1, all_at_ingress() if by == "flower" else all_in_xdp())
        gross = time_frames(count, way)
        net[what] = gross - floor
        own = net[f"{match}, flow_actions"]
        # Below 1 ns the floor's rounds were the slower ones: no ratio.
        ratio = f"{net[what] / own:.1f}x" if by == "flower" and own >= 1 else ""
        print(f"{count:>8} {what:<24} {gross:>10.0f} {net[what]:>8.0f} {ratio:>24}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except NfcoreError as error:
        raise SystemExit(f"bench_filters: {error}") from None
