# SPDX-License-Identifier: Apache-2.0
"""What `nfcore bench --nf flow_actions` measures: up to 100,000 entries, alone, in chains, and beside `xdp-filter`.

`flows` in its rows is the number of entries. The packets of rows `pass-…` match none of them, the others all do.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nfcore.api.carriers import Carrier, carrier_defines
from nfcore.api.context import ChainBuild
from nfcore.api.flows import FLOW_KEY, Anything, FlowMatch
from nfcore.api.marks import MarkMeaning
from nfcore.api.network_function import NetworkFunction
from nfcore.bench.baselines import Floors
from nfcore.bench.chain import FIRST, SECOND, ChainOfTwo
from nfcore.bench.datapath import PacketCounters, Row, Subject
from nfcore.bench.packet_source import FixedFlows, FlowSource, SameFrame
from nfcore.bench.results import CoreRow, Figure, Gain, Target
from nfcore.bench.sender import Sender
from nfcore.bench.sizes import Sizes as BenchSizes
from nfcore.bench.testbed import NETWORK, open_testbed
from nfcore.bench.traffic import SCATTERED_SOURCES, SCATTERED_STEP, Family, flow_keys, make_frames, make_services
from nfcore.bench.workload import BenchRequest, Workload
from nfcore.bench.xdp_filter import XdpFilter, find_object
from nfcore.client import Flow, FlowClient
from nfcore.errors import HostError
from nfcore.kernel import Program, XdpAction

from . import layouts as lay
from .data_plane import DataPlane
from .function import NAME
from .maps import Sizes

ENTRIES = (10, 100, 1_000, 100_000)
FEW, SOME, MANY = 100, 1_000, 100_000
COMPARED = (10, 1_000, 100_000)
"""Numbers of entries at which `xdp-filter` should be slower."""
OTHERS = SCATTERED_SOURCES - MANY
"""Flows that match no entry."""
SIZES = Sizes(entries=1 << 17, targets=16, mark_width=17)
DROP = 1
"""The target that all entries lead to."""
SHARED_MARKS = 16
FLOW_MARKS = 1 << 17
"""At least as many as entries; a power of two, so that no packet needs a division."""
SHAPES = (16, 64)
BEHIND_FLOWS = 100
"""Flows of the packets that the function behind it gets."""
BEHIND_ENTRIES = (FEW, MANY)
PASS_TARGETS = {("pass-exact", FEW): 15.0, ("pass-exact", MANY): 25.0, ("pass-16-shapes", SOME): 60.0}
"""(row, entries) → net nanoseconds."""
STEP_TARGET = 3.0
"""Nanoseconds that the way to the next function takes."""
LOAD_TARGET, CHANGE_TARGET = 2.0, 5.0
"""Seconds for 100,000 entries; milliseconds for one."""
NOTES = (
    "flows is the number of entries; packets of the rows pass-… match none of them, those of the others all do",
    "pass-16-shapes, pass-64-shapes: with 100,000 entries no field of a packet excludes any of the shapes",
)
_SERVICE: dict[Family, str] = {4: "198.18.10.1", 6: "2001:db8:30::1"}
_PORT = 80


def entries_for(keys: NDArray[np.void], family: Family, precedence: int = 0) -> NDArray[np.void]:
    """Make :data:`.layouts.ENTRY` rows that drop."""
    rows = np.zeros(len(keys), dtype=lay.ENTRY)
    rows["key"], rows["family"], rows["slot"], rows["target"] = keys, family, np.arange(len(keys)), DROP
    rows["precedence"] = precedence << 16
    return rows


def source_keys(keys: NDArray[np.void], family: Family) -> NDArray[np.void]:
    """Give the keys that match everything from the sources of exact ones."""
    masked = np.zeros(len(keys), dtype=FLOW_KEY)
    masked["src"] = keys["src"]
    masked["wild"] = 0, _bits(family), Anything.SPORT | Anything.DPORT | Anything.PROTO
    return masked


def shape_keys(count: int, shapes: int, family: Family) -> NDArray[np.void]:
    """Give `count` masked keys of `shapes` shapes: half have sources of packets, half have their destination.

    So no entry matches a packet, but with many entries no single field of it tells that: each shape has to be tried.
    """
    return np.concatenate([_keys_of_shape(shape, count // shapes, family) for shape in range(shapes)])


def _keys_of_shape(shape: int, count: int, family: Family) -> NDArray[np.void]:
    src_open, dst_open, anything = 4 + shape % 8, shape // 8 % 3, shape // 24
    keys = np.zeros(count, dtype=FLOW_KEY)
    near = count // 2
    numbers, prefixes = np.arange(near, dtype=np.int64), SCATTERED_SOURCES >> src_open
    first, other = ("198.18.0.0", "203.0.0.0") if family == 4 else ("2001:db8:19::", "2001:db8:203::")
    keys["src"][:near] = _addresses(first, numbers * SCATTERED_STEP % prefixes << src_open)
    keys["dst"][:near] = _addresses(_SERVICE[family], 4 * (1 + numbers // prefixes) - 1)
    keys["src"][near:] = _addresses(other, np.arange(count - near, dtype=np.int64) << src_open)
    keys["dst"][near:] = _addresses(_SERVICE[family], -1 if dst_open else 0)
    keys["dport"] = _PORT if anything == 0 else 0
    keys["proto"] = socket.IPPROTO_TCP if anything < 2 else 0
    open_fields = [Anything.SPORT, Anything.SPORT | Anything.DPORT, Anything(7)][anything]
    keys["wild"] = src_open, dst_open, open_fields
    return keys


def _addresses(first: str, numbers: NDArray[np.int64] | int) -> NDArray[np.uint8]:
    """Give the addresses so many behind the first one, as in a flow key, shape (n, 16)."""
    start = ipaddress.ip_address(first)
    size = start.max_prefixlen // 8
    ends = np.atleast_1d(int.from_bytes(start.packed[-4:]) + numbers).astype(">u4")
    rows = np.zeros((len(ends), 16), dtype=np.uint8)
    rows[:, :size] = np.frombuffer(start.packed, np.uint8)
    rows[:, size - 4 : size] = ends.view(np.uint8).reshape(-1, 4)
    return rows


def _bits(family: Family) -> int:
    return 32 if family == 4 else 128


def _service_address(family: Family) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(_SERVICE[family])


@contextmanager
def open_data_plane(
    entries: NDArray[np.void], meaning: MarkMeaning = MarkMeaning.TARGET, chain: ChainBuild | None = None
) -> Iterator[DataPlane]:
    """Load the program as the daemon does, attached to nothing, with entries that drop."""
    build = chain or ChainBuild()
    defines: dict[str, int | str] = {
        "MISSING_INTERFACE": "XDP_DROP",
        **carrier_defines(Carrier.METADATA),
        **build.defines,
    }
    with DataPlane.open(SIZES, meaning, defines, build.maps, None) as plane:
        drop = np.zeros(1, dtype=lay.TARGET)
        drop["action"] = lay.Action.DROP
        plane.set_targets(np.array([DROP], dtype=np.uint32), drop)
        plane.add(entries)
        yield plane


def read_counters(plane: DataPlane, action: lay.Action | None) -> PacketCounters:
    """Read the program's counters. `sent`: packets with this action; None: packets without an entry."""
    totals = plane.totals()
    unmatched = int(totals.others[lay.Other.NO_MATCH])
    return PacketCounters(
        packets=int(totals.actions.sum()) + unmatched + int(totals.others[lay.Other.NOT_IP]),
        sent=unmatched if action is None else int(totals.actions[:, action].sum()),
        fast=int(totals.actions[lay.Path.MARK].sum()),
    )


@dataclass
class _Setup:
    """What is measured with one number of entries of one family. Everything is closed with `stack`."""

    family: Family
    count: int
    stack: ExitStack

    def __post_init__(self) -> None:
        self.services = make_services([(_service_address(self.family), _PORT)])
        self.floors = self.stack.enter_context(Floors.open(self.family))
        self.keys = flow_keys(np.arange(self.count), self.services, self.family, scattered=True)
        self.exact = entries_for(self.keys, self.family)
        self.by_source = entries_for(source_keys(self.keys, self.family), self.family, precedence=_bits(self.family))
        self.known, self.other = self._source(), self._source(beyond=OTHERS)
        self.with_target, self.with_flow = self._source(marks=SHARED_MARKS), self._source(marks=FLOW_MARKS)

    def _source(self, marks: int = 0, beyond: int = 0) -> FlowSource:
        source = FlowSource(self.services, self.family, marks=marks, scattered=True, beyond=beyond)
        return self.stack.enter_context(source)

    def subjects(self, behind: Workload | None) -> Iterator[Subject]:
        """Yield the rows, floors first."""
        flows = (self.count,)
        yield Subject("noop", SameFrame(self.family), self.floors.noop, None, flows)
        yield Subject("unmarked", self.other, self.floors.noop, None, flows)
        yield Subject("marked", self.with_target, self.floors.noop, None, flows)
        yield from self._alone()
        yield from self._masked()
        yield from self._step()
        yield from self._xdp_filter()
        if behind is not None and self.count in BEHIND_ENTRIES:
            yield from self._in_front_of(behind)

    def _open(
        self, entries: NDArray[np.void], meaning: MarkMeaning = MarkMeaning.TARGET, chain: ChainBuild | None = None
    ) -> DataPlane:
        return self.stack.enter_context(open_data_plane(entries, meaning, chain))

    def _passes(self, row: str, plane: DataPlane, program: Program | None = None) -> Subject:
        counters = partial(read_counters, plane, None)
        subject = Subject(row, self.other, program or plane.program, "unmarked", (self.count,), read_counters=counters)
        return replace(subject, verdict=XdpAction.PASS)

    def _drops(self, row: str, plane: DataPlane, program: Program | None = None) -> Subject:
        counters = partial(read_counters, plane, lay.Action.DROP)
        subject = Subject(row, self.known, program or plane.program, "unmarked", (self.count,), read_counters=counters)
        return replace(subject, verdict=XdpAction.DROP)

    def _alone(self) -> Iterator[Subject]:
        exact, by_flow = self._open(self.exact), self._open(self.exact, MarkMeaning.FLOW)
        shared = np.arange(1, SHARED_MARKS + 1, dtype=np.uint32)
        exact.publish_targets(shared, np.full(SHARED_MARKS, DROP, dtype=np.uint32))
        by_flow.publish_flows(np.arange(1, self.count + 1, dtype=np.uint32), self.exact)
        yield replace(self._passes("pass-exact", exact), several_cores=True)
        yield replace(self._drops("drop-exact", exact), several_cores=True)
        yield replace(self._drops("drop-dest-id", exact), source=self.with_target, floor="marked", fast=True)
        yield replace(self._drops("drop-flow-id", by_flow), source=self.with_flow, floor="marked", fast=True)

    def _masked(self) -> Iterator[Subject]:
        plane = self._open(self.by_source)
        yield self._passes("pass-source", plane)
        yield self._drops("drop-source", plane)
        for shapes in SHAPES:
            if self.count >= shapes:
                keys = shape_keys(self.count, shapes, self.family)
                yield self._passes(f"pass-{shapes}-shapes", self._open(entries_for(keys, self.family)))

    def _step(self) -> Iterator[Subject]:
        """The way to a next function that does nothing: from this one, and with the dispatcher in front."""
        chain = self.stack.enter_context(ChainOfTwo())
        plane = self._open(self.exact, chain=chain.build)
        chain.link(plane.program, self.floors.noop)
        yield replace(self._passes("pass-next", plane), verdict=XdpAction.TX)
        yield replace(self._passes("chain-pass", plane, chain.dispatcher(SECOND)), verdict=XdpAction.TX)

    def _xdp_filter(self) -> Iterator[Subject]:
        try:
            find_object()
        except HostError:
            return
        peer = self.stack.enter_context(XdpFilter.open(self.count))
        peer.add_sources(self.keys["src"], self.family)
        yield Subject("xdp-filter-pass", self.other, peer.program, "unmarked", (self.count,), verdict=XdpAction.PASS)
        yield Subject("xdp-filter-drop", self.known, peer.program, "unmarked", (self.count,), verdict=XdpAction.DROP)

    def _in_front_of(self, behind: Workload) -> Iterator[Subject]:
        """In front of another function: its packets, with its checks; then those that this function drops."""
        flows = (BEHIND_FLOWS,)
        request = BenchRequest(self.family, (0,), flows, flows)
        theirs = {subject.row: subject for subject in self.stack.enter_context(behind.subjects(request))}
        # Floors first, as everywhere.
        for row in ("head", "metadata", "slow", "dest-id"):
            yield self._of_others(theirs[row], row)
        chain = self.stack.enter_context(ChainOfTwo())
        plane = self._open(self.exact, chain=chain.build)
        chain.link(plane.program, theirs["slow"].program)
        marks = np.arange(1, SHARED_MARKS + 1, dtype=np.uint32)
        plane.publish_targets(marks, np.full(SHARED_MARKS, DROP, dtype=np.uint32))
        owned_by_first, owned_by_second = chain.dispatcher(FIRST), chain.dispatcher(SECOND)
        yield self._of_others(theirs["slow"], "chain-slow", owned_by_second)
        yield self._of_others(theirs["dest-id"], "chain-dest-id", owned_by_second)
        yield self._drops("chain-drop", plane, owned_by_second)
        marked = replace(self._drops("chain-drop-dest-id", plane, owned_by_first), source=self.with_target)
        yield replace(marked, floor="marked", fast=True)

    def _of_others(self, subject: Subject, row: str, program: Program | None = None) -> Subject:
        assert isinstance(subject.source, FlowSource)
        source = FixedFlows(subject.source, BEHIND_FLOWS)
        return replace(
            subject,
            row=row,
            source=source,
            program=program or subject.program,
            flows=(self.count,),
            several_cores=False,
        )


class FlowActionsWorkload:
    """flow_actions as :class:`nfcore.bench.workload.Workload`."""

    notes = NOTES
    reports_flows = False
    chained_with = "katran_accel"
    feature_subjects = None

    def prepare(self, families: Sequence[Family]) -> None:
        """Do nothing: there is little to compute."""

    def setups(self, flows: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Give numbers of entries, a setup each, up to the largest number of flows."""
        return [(count,) for count in ENTRIES if count <= max(flows)]

    @contextmanager
    def subjects(self, request: BenchRequest) -> Iterator[list[Subject]]:
        """Open everything that is measured of one family with one number of entries."""
        with ExitStack() as stack:
            (count,) = request.flows
            yield list(_Setup(request.family, count, stack).subjects(request.behind))

    def toml(self, vips: int, reals: int) -> str:
        """Return `[flow_actions]` with its defaults: it has neither VIPs nor reals."""
        return "[flow_actions]"

    def services(self, vips: int, family: Family) -> NDArray[np.void]:
        """Return where packets go to."""
        return make_services([(_service_address(family), _PORT)])

    def program(self, nf: NetworkFunction) -> Program:
        """Return the program of an open function."""
        return nf.program

    def own_results(self, sizes: BenchSizes) -> Iterator[tuple[Figure, Target | None]]:
        """Time changes: of the data plane alone, then from a client to a daemon through which packets flow."""
        count = MANY if max(sizes.flows) >= MANY else FEW
        yield from _changes_of_data_plane(count, 100 * sizes.repeats)
        yield from _changes_of_daemon(count, 100 * sizes.repeats)

    def judge(self, rows: Sequence[Row]) -> list[Target]:
        """Compare the rows with their targets. Rows that were not measured have none."""
        return list(_judge({(row.row, row.family, row.flows): row for row in rows}))

    def gains(self, rows: Sequence[Row], cores: Sequence[CoreRow]) -> list[Gain]:
        """Compare nothing: every packet of a row takes the same path."""
        return []


def _changes_of_data_plane(count: int, changes: int) -> Iterator[tuple[Figure, Target | None]]:
    """Time how long `count` entries take at once, and one more beside them, in the data plane alone."""
    keys = flow_keys(np.arange(count + 1), make_services([(_service_address(4), _PORT)]), 4, scattered=True)
    entries = entries_for(keys, 4)
    one = entries[-1:].copy()
    with open_data_plane(entries[:0]) as plane:
        seconds = _seconds(lambda: plane.add(entries[:-1]))
        yield Figure(f"{count:,} entries into the data plane", round(seconds, 3), "s", "at once"), None
        times = [_seconds(partial(change, one)) for _ in range(changes) for change in (plane.add, plane.remove)]
        yield from _rates("of the data plane", times, f"one entry in or out, beside {count:,}", None)
        seconds = _seconds(lambda: plane.remove(entries[:-1]))
        yield Figure(f"{count:,} entries out of it", round(seconds, 3), "s", "at once"), None


def _changes_of_daemon(count: int, changes: int) -> Iterator[tuple[Figure, Target | None]]:
    """The same through the socket of a daemon without a NIC, by the client; then packets flow while entries change."""
    services = make_services([(_service_address(4), _PORT)])
    matches = (FlowMatch.from_key(key, 4) for key in flow_keys(np.arange(count + 1), services, 4, scattered=True))
    flows = [
        Flow(f"flow-{number}", str(match.src), str(match.dst), match.sport, match.dport, "tcp")
        for number, match in enumerate(matches)
    ]
    one, times = flows.pop(), []
    with (
        open_testbed() as testbed,
        testbed.daemon(testbed.config(NAME, "", backend="none")),
        FlowClient(testbed.socket, timeout=60.0) as client,
    ):
        name = f"{count:,} entries into a daemon"
        seconds = round(_seconds(lambda: client.add(*flows)), 3)
        yield Figure(name, seconds, "s", "by the client, no NIC"), Target(name, seconds, LOAD_TARGET, "s")
        with packets_flowing():
            for _ in range(changes):
                times += [_seconds(lambda: client.add(one)), _seconds(lambda: client.delete(one.name))]
        note = f"one entry in or out, beside {count:,}, while packets flow"
        yield from _rates("of a daemon", times, note, CHANGE_TARGET)


@contextmanager
def packets_flowing() -> Iterator[None]:
    """Send packets through the testbed all the time during a block."""
    frames = make_frames(np.arange(256), make_services([(_service_address(4), _PORT)]), 4)
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            sender.send_for(0.05)

    with Sender(NETWORK, frames) as sender:
        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _rates(of: str, times: Sequence[float], note: str, limit: float | None) -> Iterator[tuple[Figure, Target | None]]:
    yield Figure(f"changes {of}", round(len(times) / sum(times)), "1/s", note), None
    name, value = f"a change {of}, p99", round(float(np.percentile(times, 99)) * 1e3, 3)
    yield Figure(name, value, "ms", note), None if limit is None else Target(name, value, limit, "ms")


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _judge(rows: dict[tuple[str, int, int], Row]) -> Iterator[Target]:
    for family in sorted({family for _, family, _ in rows}):
        for (name, count), limit in PASS_TARGETS.items():
            if row := rows.get((name, family, count)):
                yield _target(f"{name}, IPv{family}, {count:,} entries, net", row.net_ns, limit, "ns", row)
        alone, step = rows.get(("pass-exact", family, FEW)), rows.get(("pass-next", family, FEW))
        if alone and step:
            yield _target(
                f"step to the next function, IPv{family}", step.net_ns - alone.net_ns, STEP_TARGET, "ns", step
            )
        for count in COMPARED:
            for what in ("pass", "drop"):
                for kind in ("exact", "source"):
                    own, peer = (
                        rows.get((f"{what}-{kind}", family, count)),
                        rows.get((f"xdp-filter-{what}", family, count)),
                    )
                    if own and peer:
                        name = f"{own.row}, IPv{family}, {count:,} entries, net to xdp-filter's"
                        yield _target(name, round(own.net_ns / max(peer.net_ns, 1.0), 3), 1.0, "", own)


def _target(name: str, value: float, limit: float, unit: str, row: Row) -> Target:
    target = Target(name, value, limit, unit)
    return target if target.met else replace(target, about=(row.row, row.family, row.flows))
