# SPDX-License-Identifier: Apache-2.0
"""The network function for the engine: its program and maps, its reports of flows, the entries of marks.

Its targets are ports: all flows to one port share a mark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from nfcore.api.carriers import Carrier, carrier_defines
from nfcore.api.context import Context
from nfcore.api.flows import FLOW_KEY, Anything, FlowBatch
from nfcore.api.network_function import NetworkFunction, TargetFacts
from nfcore.api.rules import Device
from nfcore.kernel import Map, MapSpec, MapType, RingBufferReader, compile_program
from numpy.typing import NDArray

NAME = "my_name"
U32, U64 = np.dtype("<u4"), np.dtype("<u8")
# The structs of meter.c.
MARK = np.dtype([("port", "<u4"), ("slot", "<u4")])
COUNT = np.dtype([("fast", "<u8"), ("slow", "<u8")])
FLOW = np.dtype([("key", FLOW_KEY), ("family", "<u4")])
EVENT = np.dtype([("flow", FLOW), ("ifindex", "<u4"), ("packets", "<u4"), ("cpu", "<u4")])
EVENT_BYTES = 1 << 18


class Meter(NetworkFunction):
    """The network function, as the engine uses it."""

    name = NAME
    number = 0

    def __init__(self, context: Context, ports: Sequence[int], flows: int) -> None:
        """Create the maps and load the program. HostError says what is missing."""
        self.ports = np.array(ports, dtype=np.uint64)
        marks = 1 << context.config.marking.width if context.strategy else 1
        specs = [
            MapSpec("meter_ports", MapType.HASH, U32, U32, len(ports)),
            MapSpec("meter_counts", MapType.PERCPU_ARRAY, U32, COUNT, len(ports)),
            MapSpec("meter_others", MapType.PERCPU_ARRAY, U32, U64, 1),
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
            chain = context.chain_build(NAME)
            defines = {
                "MIN_PACKETS": context.config.offload.min_packets,
                **carrier_defines(carrier, tracing=context.tracing),
                **chain.defines,
            }
            source = Path(__file__).with_name("meter.c")
            maps = {**self.maps, **chain.maps}
            program = compile_program(source, "meter_ingress", defines=defines, maps=maps)
            self.program = opened.enter_context(program)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close program and maps."""
        self._opened.close()

    def attached(self, device: Device) -> None:
        """Do nothing: from now on packets of the device reach the program, which needs nothing more."""

    # Flows

    def wake_fds(self) -> Sequence[int]:
        """Give the descriptor of the event buffer."""
        return self._reader.fds

    def read_events(self, limit: int) -> FlowBatch:
        """Read up to `limit` reports of flows."""
        events = self._reader.read(limit)
        batch = FlowBatch.empty(len(events))
        batch.rows["key"], batch.rows["family"] = events["flow"]["key"], events["flow"]["family"]
        for field in ("ifindex", "packets", "cpu"):
            batch.rows[field] = events[field]
        batch.rows["nf"], batch.rows["target"] = self.number, events["flow"]["key"]["dport"]
        return batch

    def claims(self, batch: FlowBatch, since: int | None = None) -> NDArray[np.bool_]:
        """Claim flows to the ports: a mark for a later function of the chain would hide their packets from this one."""
        keys = batch.rows["key"]
        any_port = (keys["wild"][:, 2] & Anything.DPORT) != 0
        claimed: NDArray[np.bool_] = np.isin(keys["dport"], self.ports) | any_port
        return claimed

    def restore(self, batch: FlowBatch) -> None:
        """Forget the flows, so that they are reported again. This slow path needs no other state of a flow."""
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

    def target_facts(self, target: int) -> TargetFacts:
        """Give the port as a value, for strategies and policies."""
        return TargetFacts(port=target) if target in self.ports else TargetFacts()

    def fingerprint(self) -> bytes:
        """Give the ports in their order: with equal bytes, a mark means the same in two runs."""
        return repr(self.ports.tolist()).encode()

    def publish(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Write the entries of marks, before any rule sets the marks: per row, whether the entry is there."""
        slots = {port: slot for slot, port in enumerate(self.ports.tolist())}
        known: NDArray[np.bool_] = np.isin(batch.rows["target"], self.ports)
        entries = np.zeros(int(known.sum()), dtype=MARK)
        entries["port"] = batch.rows["target"][known]
        entries["slot"] = [slots[port] for port in entries["port"].tolist()]
        self.maps["meter_marks"].update_batch(marks[known], entries)
        return known

    def retire(self, marks: NDArray[np.uint32]) -> None:
        """Erase the entries of marks, after the last rule that set the marks is gone."""
        self.maps["meter_marks"].update_batch(marks, np.zeros(len(marks), dtype=MARK))

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Fill in the targets of flows whose rules an earlier run left: per row, whether the mark fits the flow."""
        entries = self.maps["meter_marks"].read_array()
        in_range = marks < len(entries)
        ports = entries["port"][np.where(in_range, marks, 0)]
        batch.rows["target"] = ports
        fits: NDArray[np.bool_] = in_range & (ports != 0) & (ports == batch.rows["key"]["dport"])
        return fits

    def counted(self) -> NDArray[np.uint64]:
        """Give packets by port, shape (ports, 2): on the fast path, on the slow path."""
        counts = self.maps["meter_counts"].read_array()
        return np.stack([counts["fast"].sum(axis=1), counts["slow"].sum(axis=1)], axis=1)

    def passed_on(self) -> int:
        """Give the number of packets to no port of the TOML."""
        return int(self.maps["meter_others"].read_array().sum())
