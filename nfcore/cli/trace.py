# SPDX-License-Identifier: Apache-2.0
"""`nfcore trace`: runs given frames through the configured program, one after the other, without attaching anything.

The hooks run as in the daemon, but the backend keeps no rule, and the first packet of a flow that XDP may report (no
SYN, FIN or RST) reports it.
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
"""ifindex that the kernel gives to a packet of a test run."""
SHORTEST_FRAME = 14
"""Bytes: an Ethernet header."""
LONGEST_FRAME = 3500
"""Bytes: a page less the headroom and the kernel's own data at its end."""


@dataclass(frozen=True)
class TraceInput:
    """One frame, and the mark that the NIC would have set on it (0 = none)."""

    frame: bytes
    mark: int = 0


@dataclass(frozen=True)
class TracedPacket:
    """What the program did with one frame, and the mark that its flow got because of it."""

    trace: PacketTrace
    mark_allocated: int | None

    def as_json(self) -> dict[str, Any]:
        """Return the documented JSON object."""
        row = asdict(self.trace)
        del row["why"]
        return row | {"output": self.trace.output.hex(), "mark_allocated": self.mark_allocated}


def parse_line(text: str, where: str) -> TraceInput:
    """Parse ``HEX [mark=N]``. ConfigError names `where` the text stands and what would be right."""
    tokens = text.split()
    marks = [token for token in tokens if token.startswith("mark=")]
    digits = "".join(token for token in tokens if not token.startswith("mark="))
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
        problem = f"{text.strip():.40}: a frame is written as pairs of hex digits, optionally followed by mark=N"
    frame = b"" if problem else bytes.fromhex(digits)
    if problem is None and not SHORTEST_FRAME <= len(frame) <= LONGEST_FRAME:
        problem = f"a frame of {len(frame)} bytes; should be {SHORTEST_FRAME} to {LONGEST_FRAME}"
    if problem is not None:
        raise ConfigError(where, [Problem("", problem)])
    return TraceInput(frame, mark)


def read_frames(path: Path) -> list[TraceInput]:
    """Read a file of frames, one per line; skip empty lines and comments (#). ConfigError names every wrong line."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise ConfigError(str(path), [Problem("", f"cannot be read: {error.strerror or error}")]) from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), [Problem("", "is not text; should be one frame per line, as hex")]) from None
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
    """Choose the CPU of the run: if possible one for which the network function has a pool of marks."""
    with_pool = {cpu for nf in context.nfs if nf.pools is not None for cpu in nf.pools.cpus}
    return min(with_pool & allowed or allowed)


def trace(config: Config, plugins: PluginManager, packets: Iterable[TraceInput]) -> list[TracedPacket]:
    """Run the packets in order on one CPU, with fresh maps. HostError: there is not exactly one network function."""
    functions = [name for interface in config.interfaces for name in interface.chain]
    functions = list(dict.fromkeys(functions)) or plugins.implementing("trace_packet")
    if len(functions) != 1:
        found = ", ".join(functions) or "none"
        raise HostError(f"{config.source}: trace needs exactly one network function; found: {found}")
    # Limits of rates and shares make no sense for single frames: every flow may get a mark.
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
                added = set(engine.table.slots_in(FlowState.INSTALLED).tolist()) - before
                marks = [int(engine.table.mark[slot]) for slot in added]
                traced.append(TracedPacket(result, marks[0] if marks else None))
            return traced
    finally:
        os.sched_setaffinity(0, allowed)
