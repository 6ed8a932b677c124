# SPDX-License-Identifier: Apache-2.0
"""A data plane without links: the deployed program and maps, frames by BPF_PROG_TEST_RUN."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nfcore.api.marks import MarkMeaning
from nfcore.kernel import Map, TestRun
from nfcore.plugins.flow_actions import layouts as lay
from nfcore.plugins.flow_actions.data_plane import DataPlane
from nfcore.plugins.flow_actions.maps import Sizes

SIZES = Sizes(entries=1024, targets=64, mark_width=10, links=8)
DROP, PASS, COUNT = 1, 2, 3
"""Targets that every plane here has."""


def open_plane(
    meaning: MarkMeaning | None = None,
    *,
    sizes: Sizes = SIZES,
    pin_dir: Path | None = None,
    chain_maps: Mapping[str, Map] | None = None,
    **defines: int | str,
) -> DataPlane:
    """Open one with the targets DROP, PASS and COUNT; marks travel as metadata."""
    flags: dict[str, int | str] = {"CARRIER_NONE" if meaning is None else "CARRIER_METADATA": 1}
    flags |= {"MISSING_INTERFACE": "XDP_DROP", **defines}
    plane = DataPlane.open(sizes, meaning, flags, chain_maps or {}, pin_dir)
    set_target(plane, DROP, lay.Action.DROP)
    set_target(plane, PASS, lay.Action.PASS)
    set_target(plane, COUNT, lay.Action.COUNT)
    return plane


def set_target(plane: DataPlane, number: int, action: lay.Action, **fields: Any) -> None:
    """Write one target."""
    row = np.zeros(1, dtype=lay.TARGET)
    row["action"] = action
    for name, value in fields.items():
        row[name] = value
    plane.set_targets(np.array([number], dtype=np.uint32), row)


def send(plane: DataPlane, frame: bytes, mark: int = 0, repeat: int = 1) -> TestRun:
    """Run one frame, with the mark in its metadata unless it is 0."""
    return plane.program.test_run(frame, metadata=struct.pack("=I", mark) if mark else b"", repeat=repeat)


def packets(plane: DataPlane, slot: int) -> int:
    """Packets that were looked up for the entry in a slot."""
    return int(plane.counts(np.array([slot]))["packets"][0])


def others(plane: DataPlane) -> dict[str, int]:
    """The counters besides those of actions, as far as they are not 0."""
    values = plane.totals().others.tolist()
    return {which.name: values[which] for which in lay.Other if values[which]}


def actions(plane: DataPlane, path: lay.Path) -> dict[str, int]:
    """Packets by action, as far as they are not 0."""
    values = plane.totals().actions[path].tolist()
    return {which.name: values[which] for which in lay.Action if values[which]}
