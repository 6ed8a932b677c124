# SPDX-License-Identifier: Apache-2.0
"""The hooks of a network function. They run on the event loop and must not block it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from nfcore.api.config import ConfigTable, Section
from nfcore.api.context import Context
from nfcore.api.flows import FlowBatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.marks import MarkMeaning
from nfcore.api.metrics import MetricFamily, MetricKind, function_packets
from nfcore.api.network_function import PacketTrace
from nfcore.errors import ConfigError, Problem
from numpy.typing import NDArray
from pydantic import Field

from .meter import NAME, Meter


class MyNameTable(ConfigTable):
    """`[my_name]`: strict, like every table of nfcore."""

    ports: list[Annotated[int, Field(ge=1, le=65_535)]] = Field(min_length=1, max_length=1024)
    """Destination ports, of TCP and UDP, whose packets are counted."""
    flows: int = Field(default=65_536, ge=1, le=16_000_000)
    """Flows that the slow path can remember."""


def check_table(raw: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """Find what types cannot express. The table is raw: its values may be of any type."""
    value = raw.get("ports")
    ports = value if isinstance(value, list) else []
    for number, port in enumerate(ports):
        if port in ports[:number]:
            yield Problem(f"{path}.ports[{number}]", f"{port!r} is named twice")


def count_ports(table: MyNameTable) -> int:
    """Count the targets: each needs a mark."""
    return len(table.ports)


class MyNamePlugin:
    """Implements the hooks for the meter."""

    nfcore_api = 1
    """The version of nfcore's hooks for which this plugin was written."""

    def __init__(self) -> None:
        self._running: Meter | None = None

    @hookimpl
    def config_section(self) -> Section:
        """Declare `[my_name]`."""
        return Section(MyNameTable, check_table, count_ports)

    @hookimpl
    def setup(self, context: Context) -> None:
        """Create the maps, load the program, register the network function. Attach nothing yet."""
        if context.strategy is not None and context.strategy.meaning is not MarkMeaning.TARGET:
            message = f"is {context.strategy.name!r}; {NAME} needs one mark per target, such as 'dest-id'"
            raise ConfigError(context.config.source, [Problem("marking.strategy", message)])
        table = context.config.sections[NAME]
        assert isinstance(table, MyNameTable)  # as config_section() declares
        self._running = Meter(context, table.ports, table.flows)
        context.register_nf(self._running)

    @hookimpl
    def teardown(self) -> None:
        """Release everything; called also when a `setup` failed."""
        if self._running is not None:
            self._running.close()
            self._running = None

    @hookimpl
    def publish_marks(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Write the entry of each mark."""
        return self._meter.publish(batch, marks)

    @hookimpl
    def retire_marks(self, nf: int, marks: NDArray[np.uint32]) -> None:
        """Erase the entries of the marks."""
        self._meter.retire(marks)

    @hookimpl
    def restore_flows(self, batch: FlowBatch) -> None:
        """Let the slow path report these flows again when they have enough packets."""
        self._meter.restore(batch)

    @hookimpl
    def collect_stats(self) -> Iterable[MetricFamily]:
        """Give packets by port and path; and for `nfcore top`, what the function did with all of them."""
        name, text = f"nfcore_{NAME}_packets_total", "Packets by port and path"
        packets = MetricFamily(name, MetricKind.COUNTER, text, "packets")
        counted = self._meter.counted()
        for port, (fast, slow) in zip(self._meter.ports.tolist(), counted.tolist(), strict=True):
            packets.add(fast, port=str(port), path="fast")
            packets.add(slow, port=str(port), path="slow")
        outcomes = {"counted": int(counted.sum()), "passed_on": self._meter.passed_on()}
        return [packets, function_packets(NAME, outcomes)]

    @hookimpl
    def trace_packet(self, nf: int, frame: bytes, mark: int) -> PacketTrace | None:
        """Run a frame through the program, for `nfcore trace`; the counter that changes shows port and path."""
        meter = self._meter
        if nf != meter.number:
            return None
        before = meter.counted()
        run = meter.program.test_run(frame, metadata=struct.pack("=I", mark) if mark else b"")
        grown = meter.counted() - before
        fast, slow = grown.sum(axis=0).tolist()
        path = "fast" if fast else "slow" if slow else "none"
        port = int(meter.ports[grown.sum(axis=1).argmax()]) if grown.any() else None
        why = "" if port else f"no port of [{NAME}]"
        return PacketTrace(run.verdict.name, run.output, path, None, None, why, passed_on=True, target=port)

    @property
    def _meter(self) -> Meter:
        assert self._running is not None, "the core calls setup() before other hooks of a network function"
        return self._running
