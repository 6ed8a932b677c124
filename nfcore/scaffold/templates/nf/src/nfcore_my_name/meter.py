# SPDX-License-Identifier: Apache-2.0
"""The network function as the engine sees it: program and maps, flows read, marks published.

Its targets are the ports that it watches: all flows to one port share a mark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from socket import if_nameindex

import numpy as np
from nfcore.api.carriers import Carrier, carrier_defines
from nfcore.api.context import Context
from nfcore.api.flows import FLOW_KEY, FlowBatch
from nfcore.api.mark_pools import CpuPools
from nfcore.api.rules import Device
from nfcore.kernel import Map, MapSpec, MapType, RingBufferReader, XdpMode, attach_xdp, compile_program, detach_xdp
from numpy.typing import NDArray

NAME = "my_name"
U32, U64 = np.dtype("<u4"), np.dtype("<u8")
# The structs of meter.c.
MARK = np.dtype([("port", "<u4"), ("slot", "<u4")])
COUNT = np.dtype([("fast", "<u8"), ("slow", "<u8")])
FLOW = np.dtype([("key", FLOW_KEY), ("family", "<u4")])
EVENT = np.dtype([("flow", FLOW), ("ifindex", "<u4"), ("packets", "<u4"), ("cpu", "<u4")])
EVENT_BYTES = 1 << 18


class Meter:
    """What `nfcore.api.network_function.NetworkFunction` asks for."""

    name = NAME
    number = 0
    pools: CpuPools | None = None
    """None: user space chooses the marks, as with dest-id."""

    def __init__(self, context: Context, ports: Sequence[int], flows: int) -> None:
        """Create the maps and load the program. HostError names what stands in the way."""
        self.ports = np.array(ports, dtype=np.uint64)
        self._state = context.state_file
        self._modes = {interface.name: XdpMode(interface.xdp_mode) for interface in context.config.interfaces}
        marks = 1 << context.config.marking.width if context.strategy else 1
        specs = [
            MapSpec("meter_ports", MapType.HASH, U32, U32, len(ports)),
            MapSpec("meter_counts", MapType.PERCPU_ARRAY, U32, COUNT, len(ports)),
            MapSpec("meter_marks", MapType.ARRAY, U32, MARK, marks),
            MapSpec("meter_flows", MapType.LRU_HASH, FLOW, U64, flows),
            MapSpec("meter_events", MapType.RINGBUF, None, None, EVENT_BYTES),
        ]
        with ExitStack() as opened:
            self.maps = {spec.name: opened.enter_context(Map.create(spec)) for spec in specs}
            slots = np.arange(len(ports), dtype=np.uint32)
            self.maps["meter_ports"].update_batch(self.ports.astype(np.uint32), slots)
            self._reader = opened.enter_context(RingBufferReader(self.maps["meter_events"], EVENT))
            carrier = Carrier(context.config.marking.carrier) if context.strategy else None
            defines = {
                "MIN_PACKETS": context.config.offload.min_packets,
                **carrier_defines(carrier, tracing=context.tracing),
            }
            source = Path(__file__).with_name("meter.c")
            program = compile_program(source, "meter_ingress", defines=defines, maps=self.maps)
            self.program = opened.enter_context(program)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Let go of program and maps."""
        self._opened.close()

    # The program on an interface

    def attach(self, device: Device) -> None:
        """Put the program on the device, in place of one that a killed run left there."""
        previous = self._state.recall(program_note(device))
        attach_xdp(device.ifindex, self.program, mode=self._modes[device.name], replace=previous)
        self._state.remember(program_note(device), self.program.id)

    def detach(self, device: Device) -> None:
        """Take the program off the device, if it is still ours and the device is still there."""
        gone = device.ifindex not in {index for index, _ in if_nameindex()}
        if gone or detach_xdp(device.ifindex, expected=self.program.id):
            self._state.forget(program_note(device))

    # Flows

    def wake_fds(self) -> Sequence[int]:
        """Give the event buffer's descriptor."""
        return self._reader.fds

    def read_events(self, limit: int) -> FlowBatch:
        """Take up to `limit` reports."""
        events = self._reader.read(limit)
        batch = FlowBatch.empty(len(events))
        batch.rows["key"], batch.rows["family"] = events["flow"]["key"], events["flow"]["family"]
        for field in ("ifindex", "packets", "cpu"):
            batch.rows[field] = events[field]
        batch.rows["nf"], batch.rows["target"] = self.number, events["flow"]["key"]["dport"]
        return batch

    def restore(self, batch: FlowBatch) -> None:
        """Forget the flows, so that they are reported anew: all that this slow path knows is in the packets."""
        flows = np.zeros(len(batch), dtype=FLOW)
        flows["key"], flows["family"] = batch.rows["key"], batch.rows["family"]
        self.maps["meter_flows"].delete_batch(flows)

    # Targets and marks

    def targets(self) -> FlowBatch:
        """Give all ports, in the TOML's order."""
        batch = FlowBatch.empty(len(self.ports))
        batch.rows["nf"], batch.rows["target"] = self.number, self.ports
        return batch

    def groups(self, targets: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Give each port a group of its own."""
        return targets.astype(np.uint32)

    def describe(self, target: int) -> Mapping[str, str]:
        """Name a port, for `nfcore flows` and `explain`."""
        return {"port": str(target)}

    def fingerprint(self) -> bytes:
        """Say what decides which port gets which mark: the ports in their order."""
        return repr(self.ports.tolist()).encode()

    def publish(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Write what the marks mean, before any rule sets them; whether it stands, per row."""
        slots = {port: slot for slot, port in enumerate(self.ports.tolist())}
        known: NDArray[np.bool_] = np.isin(batch.rows["target"], self.ports)
        entries = np.zeros(int(known.sum()), dtype=MARK)
        entries["port"] = batch.rows["target"][known]
        entries["slot"] = [slots[port] for port in entries["port"].tolist()]
        self.maps["meter_marks"].update_batch(marks[known], entries)
        return known

    def retire(self, marks: NDArray[np.uint32]) -> None:
        """Erase what the marks meant, after the last rule that set them is gone."""
        self.maps["meter_marks"].update_batch(marks, np.zeros(len(marks), dtype=MARK))

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Fill in the targets of flows whose rules an earlier run left: marks mean what they meant then."""
        entries = self.maps["meter_marks"].read_array()
        there = marks < len(entries)
        ports = entries["port"][np.where(there, marks, 0)]
        batch.rows["target"] = ports
        right: NDArray[np.bool_] = there & (ports != 0) & (ports == batch.rows["key"]["dport"])
        return right

    def counted(self) -> NDArray[np.uint64]:
        """Give packets by port, shape (ports, 2): on the fast path, on the slow path."""
        counts = self.maps["meter_counts"].read_array()
        return np.stack([counts["fast"].sum(axis=1), counts["slow"].sum(axis=1)], axis=1)


def program_note(device: Device) -> str:
    """Give the name under which a run notes, for the next, which program it attached."""
    return f"{NAME}.program.{device.ifindex}"
