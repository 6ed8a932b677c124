# SPDX-License-Identifier: Apache-2.0
"""`nfcore trace`: the configured program over given frames, one after the other, without attaching anything.

The hooks run as in the daemon, with a backend that keeps no rule and every flow reported by its first packet that
can be.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..api.config import Config
from ..api.context import Context
from ..api.network_function import PacketTrace
from ..api.rules import Device
from ..daemon.bootstrap import make_context, make_engine, set_up
from ..devices.null_backend import NULL_BACKEND, NullBackend
from ..devices.worker import InlineWorker
from ..engine.flow_state import FlowState
from ..errors import ConfigError, HostError, Problem
from ..hooks.manager import PluginManager

LOOPBACK = 1
"""ifindex that a test run gives to a packet."""
SHORTEST_FRAME = 14
LONGEST_FRAME = 3500
"""Bytes; a page less headroom and the kernel's own room at the end."""


@dataclass(frozen=True)
class TraceInput:
    """One frame, and the mark that the NIC would have set on it (0 = none)."""

    frame: bytes
    mark: int = 0


@dataclass(frozen=True)
class TracedPacket:
    """What became of one frame, and the mark that its flow was given because of it."""

    trace: PacketTrace
    mark_allocated: int | None

    def as_json(self) -> dict[str, Any]:
        """Give the documented JSON object."""
        told = asdict(self.trace)
        del told["why"]
        return told | {"output": self.trace.output.hex(), "mark_allocated": self.mark_allocated}


def parse_line(text: str, where: str) -> TraceInput:
    """Read ``HEX [mark=N]``; ConfigError names the place and what would be right."""
    words = text.split()
    marks = [word for word in words if word.startswith("mark=")]
    digits = "".join(word for word in words if not word.startswith("mark="))
    problem = None
    mark = 0
    if len(marks) > 1:
        problem = "more than one mark=N"
    elif marks:
        number = marks[0].removeprefix("mark=")
        if re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}", number):
            mark = int(number, 16)
        elif re.fullmatch(r"[0-9]{1,10}", number) and int(number) < 1 << 32:
            mark = int(number)
        else:
            problem = f"{marks[0]!r}: a mark is a number from 0 to 4294967295"
    if problem is None and (not re.fullmatch(r"([0-9a-fA-F]{2})+", digits)):
        problem = f"{text.strip():.40}: a frame is written as pairs of hex digits, then perhaps mark=N"
    frame = b"" if problem else bytes.fromhex(digits)
    if problem is None and not SHORTEST_FRAME <= len(frame) <= LONGEST_FRAME:
        problem = f"a frame of {len(frame)} bytes; should be {SHORTEST_FRAME} to {LONGEST_FRAME}"
    if problem is not None:
        raise ConfigError(where, [Problem("", problem)])
    return TraceInput(frame, mark)


def read_frames(path: Path) -> list[TraceInput]:
    """Read a file of frames, one a line; empty lines and those that begin with # are passed over."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise ConfigError(str(path), [Problem("", f"cannot be read: {error.strerror or error}")]) from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), [Problem("", "is not text: a frame a line, as hex")]) from None
    frames, problems = [], []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                frames.append(parse_line(line, f"line {number}"))
            except ConfigError as error:
                problems += [Problem(f"line {number}", problem.message) for problem in error.problems]
    if problems:
        raise ConfigError(str(path), problems)
    return frames


def _cpu_for(context: Context, allowed: set[int]) -> int:
    """Choose one that the network function has marks for, if there is one."""
    pooled = {cpu for nf in context.nfs if nf.pools is not None for cpu in nf.pools.cpus}
    return min(pooled & allowed or allowed)


def trace(config: Config, plugins: PluginManager, packets: Iterable[TraceInput]) -> list[TracedPacket]:
    """Run the packets in order on one CPU, with fresh maps."""
    functions = [name for interface in config.interfaces for name in interface.chain]
    functions = list(dict.fromkeys(functions)) or plugins.implementing("trace_packet")
    if len(functions) != 1:
        raise HostError(
            f"{config.source}: trace follows one network function; here are: {', '.join(functions) or 'none'}"
        )
    # Rates, budgets and shares say nothing about frames that are given one by one.
    unlimited = {"min_packets": 1, "min_rate": 0.0, "inserts_per_second": 0.0, "max_share": 1.0}
    offload = config.offload.model_copy(update=unlimited)
    config = replace(config, offload=offload)
    plugins.register(NullBackend(), NULL_BACKEND)
    device = Device("trace", LOOPBACK, (NULL_BACKEND,))
    context = make_context(config, plugins, [device], tracing=True)
    allowed = os.sched_getaffinity(0)
    try:
        with set_up(context, plugins):
            os.sched_setaffinity(0, {_cpu_for(context, allowed)})
            engine = make_engine(context, plugins, {LOOPBACK: InlineWorker()})
            engine.start()
            traced = []
            for packet in packets:
                before = set(engine.table.slots_in(FlowState.INSTALLED).tolist())
                result = plugins.call(functions[0], "trace_packet", nf=1, frame=packet.frame, mark=packet.mark)
                engine.poll()
                fresh = set(engine.table.slots_in(FlowState.INSTALLED).tolist()) - before
                marks = [int(engine.table.mark[slot]) for slot in fresh]
                traced.append(TracedPacket(result, marks[0] if marks else None))
            return traced
    finally:
        os.sched_setaffinity(0, allowed)
