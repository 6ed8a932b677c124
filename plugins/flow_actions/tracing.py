# SPDX-License-Identifier: Apache-2.0
"""Runs one frame through the loaded program and derives what it did from the counters that changed."""

from __future__ import annotations

import struct

import numpy as np

from nfcore.api.network_function import PacketTrace

from .function import FlowActions, action_text
from .layouts import Action, Other, Path

_WHY = {
    Other.NO_MATCH: "no entry of the TOML matches",
    Other.NOT_IP: "neither IPv4 nor IPv6, or without a whole header",
    Other.MARK_UNKNOWN: "the mark means nothing",
    Other.MARK_MISMATCH: "the packet is not one that the mark stands for",
    Other.POLICED: "it exceeds the rate of its entry",
    Other.INTERFACE_MISSING: "the interface of its entry is not there",
    Other.CPU_MISSING: "the CPU of its entry is not there",
    Other.NOT_CHANGED: "there is no room for a new header",
}


def trace(function: FlowActions, frame: bytes, mark: int) -> PacketTrace:
    """Run `frame` with `mark` (0: none) in its metadata through the program."""
    slots = function.table.slots()
    before, packets = function.data_plane.totals(), function.data_plane.counts(slots.astype(np.uint32))["packets"]
    run = function.program.test_run(frame, metadata=struct.pack("=I", mark) if mark else b"")
    after = function.data_plane.totals()
    actions = (after.actions - before.actions).reshape(len(Path), len(Action))
    others = [other for other in Other if after.others[other] != before.others[other]]
    grown = function.data_plane.counts(slots.astype(np.uint32))["packets"] != packets
    targets = function.table.rows["target"][slots[grown]].tolist()
    path = "fast" if actions[Path.MARK].any() else "slow" if actions[Path.LOOK_UP].any() else "none"
    words = [f"entry {function.table.name_of(slot)!r}: {_text(function, slot)}" for slot in slots[grown].tolist()]
    if not words and path != "none":
        words = [Action(int(np.flatnonzero(actions.sum(axis=0))[0])).name.lower()]
    words += [_WHY[other] for other in others]
    ended = run.verdict.name != "XDP_PASS" or actions[:, (Action.PASS, Action.CPU, Action.REDIRECT)].any()
    return PacketTrace(
        verdict=run.verdict.name,
        output=run.output,
        path=path,
        vip=None,
        real=None,
        why="; ".join(words),
        target=targets[0] if targets else None,
        passed_on=not ended,
    )


def _text(function: FlowActions, slot: int) -> str:
    return action_text(function.table.target(slot))
