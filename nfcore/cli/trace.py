# SPDX-License-Identifier: Apache-2.0
"""`nfcore trace`: runs given frames through the configured programs, one after the other, without attaching anything.

The hooks run as in the daemon, but the backend keeps no rule, and the first packet of a flow that XDP may report (no
SYN, FIN or RST) reports it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..api.config import Config, InterfaceTable
from ..api.context import Context
from ..api.network_function import PacketTrace
from ..api.rules import Device
from ..daemon.bootstrap import make_context, make_engine, set_up
from ..daemon.chain import MarkOwnerTable
from ..devices.null_backend import NULL_BACKEND, NullBackend
from ..devices.worker import InlineWorker
from ..engine.engine import Engine
from ..engine.flow_state import FlowState
from ..errors import ConfigError, HostError, Problem
from ..hooks.manager import PluginManager
from ..hooks.results import ResultError, check_result
from ..refusals import explain
from .tables import TextTable, target_columns

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
class Step:
    """What one network function did with a frame."""

    function: str
    trace: PacketTrace
    why: str
    """Why it went as it did; never empty."""
    target: dict[str, str] = field(default_factory=dict)
    """What the function says of the target that the packet went to; empty: it went to none, or that is not known."""

    def as_json(self) -> dict[str, Any]:
        """Return what the function decided, and how it came to that."""
        row = asdict(self.trace)
        del row["passed_on"]
        return row | {"output": self.trace.output.hex(), "target": self.target, "why": self.why}


@dataclass(frozen=True)
class TracedPacket:
    """What became of one frame, and the mark that its flow got because of it."""

    steps: tuple[Step, ...]
    """The functions that saw it, in their order; the last one decided. At least one."""
    mark_allocated: int | None
    in_chain: bool = False
    """Whether there are several functions."""

    @property
    def trace(self) -> PacketTrace:
        """What the function did that decided."""
        return self.steps[-1].trace

    def as_json(self) -> dict[str, Any]:
        """Return the documented JSON object."""
        row = self.steps[-1].as_json() | {"mark_allocated": self.mark_allocated}
        if not self.in_chain:
            return row
        passed = [{"function": step.function, **step.as_json()} for step in self.steps]
        return row | {"function": self.steps[-1].function, "steps": passed}


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
        raise ConfigError(str(path), [Problem("", f"cannot be read: {explain(error, path)}")]) from None
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
    """Run the packets in order on one CPU, with fresh maps. HostError: there is not exactly one chain."""
    chain = _the_chain(config, plugins)
    # Limits of rates and shares make no sense for single frames: every flow may get a mark.
    unlimited = {"min_packets": 1, "min_rate": 0.0, "inserts_per_second": 0.0, "max_share": 1.0}
    device = Device("trace", LOOPBACK, (NULL_BACKEND,))
    config = replace(
        config,
        offload=config.offload.model_copy(update=unlimited),
        interfaces=[InterfaceTable(name=device.name, chain=chain, offload=[NULL_BACKEND])],
    )
    plugins.register(NullBackend(), NULL_BACKEND)
    context = make_context(config, plugins, [device], tracing=True)
    owners = MarkOwnerTable(np.zeros(1 << config.marking.width, np.uint32), chain, context)
    context.mark_owners = owners
    allowed = os.sched_getaffinity(0)
    try:
        with set_up(context, plugins):
            os.sched_setaffinity(0, {_cpu_for(context, allowed)})
            engine = make_engine(context, plugins, {LOOPBACK: InlineWorker()})
            engine.start()
            while engine.poll():  # marks of flows that the TOML orders are no news of a packet
                pass
            traced = []
            for packet in packets:
                before = set(engine.table.slots_in(FlowState.INSTALLED).tolist())
                first = owners.owner(packet.mark) or chain[0]
                steps = list(_walk(context, plugins, chain[chain.index(first) :], packet))
                engine.poll()
                added = sorted(set(engine.table.slots_in(FlowState.INSTALLED).tolist()) - before)
                marks = [int(engine.table.mark[slot]) for slot in added]
                steps = [_with_target(step, packet.mark, engine, added) for step in steps]
                traced.append(TracedPacket(tuple(steps), marks[0] if marks else None, len(chain) > 1))
            return traced
    finally:
        os.sched_setaffinity(0, allowed)


def _the_chain(config: Config, plugins: PluginManager) -> list[str]:
    """The functions to trace. Without an interface, the only function that can be traced. HostError: it is not one."""
    chains = list(dict.fromkeys(tuple(interface.chain) for interface in config.interfaces))
    chains = chains or [(name,) for name in plugins.implementing("trace_packet")]
    if len(chains) == 1:
        return list(chains[0])
    if not chains:
        raise HostError(f"{config.source}: trace needs a network function; found: none")
    found = "; ".join(" → ".join(chain) for chain in chains)
    raise HostError(f"{config.source}: trace needs exactly one chain of network functions; found: {found}")


def _walk(context: Context, plugins: PluginManager, functions: Iterable[str], packet: TraceInput) -> Iterator[Step]:
    """Run a packet through functions until one of them does not pass it on.

    Programs of a trace do not call each other: so each step can be seen.
    """
    numbers = {nf.name: nf.number for nf in context.nfs}
    frame = packet.frame
    for name in functions:
        result: PacketTrace | None = None
        if name in numbers and name in plugins.implementing("trace_packet"):
            result = _traced(plugins, name, nf=numbers[name], frame=frame, mark=packet.mark)
        if result is None:
            raise HostError(f"network function {name!r} cannot be traced: its plugin answers no hook trace_packet")
        yield Step(name, result, result.why or _why(name, result, packet.mark))
        if not result.passed_on:
            return
        frame = result.output


def _traced(plugins: PluginManager, name: str, **arguments: Any) -> PacketTrace | None:
    try:
        result: PacketTrace | None = check_result(
            "trace_packet", arguments, plugins.call(name, "trace_packet", **arguments)
        )
    except ResultError as error:
        raise HostError(f"plugin {name}: trace_packet {error}") from None
    return result


def _why(function: str, result: PacketTrace, mark: int) -> str:
    """Say what the path shows, where the function says nothing."""
    match result.path:
        case "fast":
            return f"mark {mark} is of {function} and fits the packet" if mark else "it took the fast path"
        case "slow":
            return f"mark {mark} did not lead to a target that fits the packet" if mark else "it has no mark"
    return f"it is no traffic of {function}"


def _with_target(step: Step, mark: int, engine: Engine, added: list[int]) -> Step:
    """Add what the function says of the packet's target.

    That is the one that it names, else that of the flow which it reported because of the packet, or of the mark.
    """
    trace, table = step.trace, engine.table
    if trace.vip is not None and trace.real is not None:
        return replace(step, target={"vip": trace.vip, "real": trace.real})
    nf = next(each for each in engine.context.nfs if each.name == step.function)
    target = trace.target
    if target is None:
        slots = added if trace.path != "fast" else np.flatnonzero(table.mark == mark).tolist()
        target = next((int(table.flow["target"][slot]) for slot in slots if table.flow["nf"][slot] == nf.number), None)
    return step if target is None else replace(step, target=dict(nf.describe(target)))


def trace_table(packets: Iterable[TraceInput], traced: Iterable[TracedPacket]) -> TextTable:
    """Write what became of the packets: a line each, with a chain a line for each function that saw the packet."""
    rows = [
        (number if step is packet.steps[0] else None, sent, packet, step)
        for number, (sent, packet) in enumerate(zip(packets, traced, strict=True), 1)
        for step in packet.steps
    ]
    in_chain = any(packet.in_chain for _, _, packet, _ in rows)
    titles, targets = target_columns([{"nf": step.function, "target": step.target} for *_, step in rows])
    named = in_chain and titles[0] != "function"
    table = TextTable(
        "#", *(["function"] if named else []), "verdict", "path", *titles, "mark in", "mark given", "bytes out", "why"
    )
    for (number, sent, packet, step), target in zip(rows, targets, strict=True):
        result, decided = step.trace, step is packet.steps[-1]
        allocated = packet.mark_allocated if decided else None
        marks = ["–" if each is None else str(each) for each in (sent.mark or None, allocated)]
        name = (step.function,) if named else ()
        verdict = result.verdict if decided else "passed on"
        row = (
            *name,
            verdict,
            result.path,
            *(word or "–" for word in target),
            *marks,
            str(len(result.output)),
            step.why,
        )
        table.add_row("" if number is None else str(number), *row)
    return table
