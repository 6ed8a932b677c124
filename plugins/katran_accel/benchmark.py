# SPDX-License-Identifier: Apache-2.0
"""What `nfcore bench` measures of the balancer, with 64 VIPs, 4,096 (VIP, real) pairs and up to a million flows."""

from __future__ import annotations

import ipaddress
import statistics
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import cache, cached_property, partial
from operator import attrgetter
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from nfcore.api.config import Config, MarkingTable, NfTable, OffloadTable
from nfcore.api.context import Context
from nfcore.api.flows import Address, FlowBatch, pack_address
from nfcore.api.marks import MarkAllocator, MarkMeaning, StrategyInfo
from nfcore.api.network_function import NetworkFunction
from nfcore.bench.baselines import BareLru, Floors
from nfcore.bench.datapath import PacketCounters, Row, Subject
from nfcore.bench.packet_source import FlowSource, SameFrame
from nfcore.bench.profile import profile
from nfcore.bench.results import CoreRow, Figure, Gain, Target
from nfcore.bench.sizes import Sizes
from nfcore.bench.traffic import ACK, SYN, Family, flow_keys, make_services
from nfcore.bench.workload import BenchRequest
from nfcore.errors import NfcoreError
from nfcore.kernel import Program

from . import layouts as lay
from .balancer import Balancer
from .config import NAME, KatranTable
from .hashing import flow_hash
from .maglev import Endpoint, build_ring
from .maglev_kernel import KernelRings

VIPS = 64
REALS_PER_VIP = 64
PAIRS = VIPS * REALS_PER_VIP
PORT = 80
NIC = bytes.fromhex("02005e000001")
"""To this address `nfcore.bench.traffic` sends its frames."""
GATEWAY = "02:00:5e:00:00:fe"
FLOW_MARKS = 1 << 20
"""More than there are flows, so each has its own mark. A power of two, so that no packet needs a division."""
FLOOD = (200_000,)
"""SYNs in a timed run, each of a new flow."""
DEFAULT_LRU_SIZE: int = KatranTable.model_fields["lru_size"].default
LONG_REPORTED = (0x8000, 15)
"""`left` and `reports` of a flow that was reported long ago and got no rule: the next report is 32,768 packets away."""
NOTES = (
    "skb-mark is not measured: a test run has no socket buffer that could carry the mark",
    "slow is the program of dest-id with packets that carry no mark",
    "marks of flow-id have 21 bits here, more than today's NICs transport",
)
RING_REALS = 100
FEW, MANY = 100, 1_000_000
"""Numbers of flows that have targets."""
DEST_ID_TARGET, DEST_ID_GROWTH = 16.0, 4.0
"""Net nanoseconds with few flows; how many more with many."""
FLOW_ID_TARGET = 0.5
"""Net time as a share of the slow path's."""
SLOW_TARGETS = {FEW: 1.8, MANY: 1.5}
"""Flows → gross time as a multiple of bare-lru's."""
RING_TARGET = 3.0
"""Milliseconds."""
PUBLISHED = {
    (FEW, 1): 40.0,
    (FEW, 12): 46.0,
    (10_000, 1): 0.0,
    (10_000, 2): 12.0,
    (10_000, 7): 22.0,
    (10_000, 12): 50.0,
}
"""(flows, queues) → percent more packets with marks of flow-id: what the talk measured, with a NIC."""
_REAL_ADDRESSES = 2000
"""Different reals of a family in :meth:`KatranWorkload.toml`: both families together have fewer than Katran's limit."""

_FIRST_VIP: dict[Family, str] = {4: "198.18.0.1", 6: "2001:db8:10::1"}
_FIRST_REAL: dict[Family, str] = {4: "198.18.64.1", 6: "2001:db8:20::1"}


def make_table(
    family: Family,
    lru_size: int,
    cpus: Sequence[int],
    *,
    protocol: str = "tcp",
    flags: Sequence[str] = (),
    keys: Mapping[str, object] = MappingProxyType({}),
) -> KatranTable:
    """Return the configuration of the balancer; `keys`: more of them, as in the TOML.

    The last real of each VIP is the first one of the next VIP: 4,096 reals would be one more than the limit.
    """
    vip, real = (ipaddress.ip_address(first[family]) for first in (_FIRST_VIP, _FIRST_REAL))
    vips = [
        {
            "address": str(vip + number),
            "port": PORT,
            "protocol": protocol,
            "flags": list(flags),
            "reals": [{"address": str(real + number * (REALS_PER_VIP - 1) + place)} for place in range(REALS_PER_VIP)],
        }
        for number in range(VIPS)
    ]
    return KatranTable.model_validate(
        {"gateway_mac": GATEWAY, "forwarding_cpus": list(cpus), "lru_size": lru_size, "vips": vips, **keys}
    )


def first_real(family: Family) -> str:
    """Return the first real of :func:`make_table`."""
    return _FIRST_REAL[family]


@contextmanager
def open_balancer(table: KatranTable, meaning: MarkMeaning, most_flows: int) -> Iterator[Balancer]:
    """Load the balancer as the daemon does, but attach it to nothing."""
    strategy = "flow-id" if meaning is MarkMeaning.FLOW else "dest-id"
    width = max(16, most_flows.bit_length())
    config = Config(
        source="benchmark",
        nf=NfTable(plugins=[NAME]),
        interfaces=[],
        marking=MarkingTable(strategy=strategy, width=width),
        offload=OffloadTable(max_rules=max(OffloadTable().max_rules, most_flows)),
        sections={NAME: table},
    )
    # With the check of the address that a deployed program makes.
    balancer = Balancer(config, table, meaning, own_mac=NIC)
    try:
        balancer.open(Context(config, [], StrategyInfo(strategy, meaning, ""), MarkAllocator(width, 0.0), tracing=True))
        yield balancer
    finally:
        balancer.close()


@cache
def rings(family: Family) -> NDArray[np.uint8]:
    """Return the ring of each VIP with its reals numbered from 0, shape (VIPS, RING_SLOTS)."""
    table = make_table(family, DEFAULT_LRU_SIZE, [0])
    return np.stack(
        [
            build_ring(
                [Endpoint(number, real.address, real.weight) for number, real in enumerate(vip.reals, 1)],
                version=table.maglev,
            ).astype(np.uint8)
            - np.uint8(1)
            for vip in table.vips
        ]
    )


class ExpectedReals:
    """The real that ring and hash choose for each flow, computed without the balancer's program.

    `flows` are 0 … `count` - 1 of one family; `count` may be 0. VIPs and reals have the numbers that `balancer` gave
    them; it was made from `table`.
    """

    def __init__(self, family: Family, table: KatranTable, balancer: Balancer, count: int) -> None:
        self.family: Family = family
        self.services = make_services((vip.address.network_address, vip.port) for vip in table.vips)
        self.flows = np.arange(count, dtype=np.uint32)
        targets = balancer.targets().rows["target"]
        pairs = (targets >> np.uint64(32)).astype(np.int64), (targets & np.uint64(0xFFFF_FFFF)).astype(np.int64)
        self._vip_numbers = pairs[0].reshape(VIPS, REALS_PER_VIP)[:, 0]
        self._addresses = np.zeros((lay.MAX_REALS, 16), dtype=np.uint8)
        self._addresses[pairs[1]] = [pack_address(real.address) for vip in table.vips for real in vip.reals]
        self._real_numbers = pairs[1].reshape(VIPS, REALS_PER_VIP)
        self._rings = rings(family)

    @cached_property
    def keys(self) -> NDArray[np.void]:
        """FLOW_KEY of each of `flows`."""
        return flow_keys(self.flows, self.services, self.family)

    @cached_property
    def real_numbers(self) -> NDArray[np.int64]:
        """Number of the real of each of `flows`."""
        return self.route(self.flows)

    def vips(self, flows: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return the number of the VIP of any flows."""
        numbers: NDArray[np.int64] = self._vip_numbers[flows % VIPS]
        return numbers

    def route(self, flows: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return the number of the real of any flows."""
        slots = flow_hash(flow_keys(flows, self.services, self.family), self.family) % lay.RING_SLOTS
        reals: NDArray[np.int64] = self._real_numbers[flows % VIPS, self._rings[flows % VIPS, slots]]
        return reals

    def addresses(self, flows: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Return the address of the real of any flows, shape (n, 16)."""
        addresses: NDArray[np.uint8] = self._addresses[self.route(flows)]
        return addresses

    def marked_addresses(self, flows: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Return the address of the real that the mark of dest-id stands for, shape (n, 16).

        It need not be the ring's choice: XDP accepts a mark for any real of the packet's VIP. This one can be computed
        without a table of flows.
        """
        addresses: NDArray[np.uint8] = self._addresses[self._real_numbers.T.ravel()[flows % PAIRS]]
        return addresses


def publish_pairs(balancer: Balancer) -> None:
    """Publish a mark for every (VIP, real) pair: the pairs of the first VIP have marks 1, 1 + VIPS, 1 + 2 × VIPS, …

    NfcoreError when the balancer refuses one.
    """
    marks = 1 + np.arange(PAIRS, dtype=np.uint32).reshape(REALS_PER_VIP, VIPS).T.ravel()
    if not balancer.publish(balancer.targets(), marks).all():
        raise NfcoreError("benchmark: the balancer refuses marks of (VIP, real) pairs")


def publish_flows(balancer: Balancer, expected: ExpectedReals) -> None:
    """Write the entry of each flow as XDP writes it, and publish it; flow n has mark n + 1.

    NfcoreError when the balancer does not accept an entry as live.
    """
    flows, keys, reals = expected.flows, expected.keys, expected.real_numbers
    count, vips = len(flows), expected.vips(flows)
    entries = np.zeros(count, dtype=lay.HW_ACCEL_FLOW)
    entries["vip_num"], entries["real_key"], entries["flow"] = vips, reals, keys
    entries["vip_generation"] = balancer.maps["vip_map_by_id"].read_array()["generation"][vips]
    entries["real_generation"] = balancer.maps["hw_accel_reals"].read_array()[reals]
    entries["family"] = expected.family
    balancer.maps["hw_accel_mapping"].mmap()[1 : count + 1] = entries
    batch = FlowBatch.empty(count)
    batch.rows["key"], batch.rows["family"], batch.rows["nf"] = keys, expected.family, balancer.number
    batch.rows["target"] = vips.astype(np.uint64) << np.uint64(32) | reals.astype(np.uint64)
    if not balancer.publish(batch, flows + np.uint32(1)).all():
        raise NfcoreError("benchmark: the balancer does not accept entries of flow-id as live")


def fill_connection_table(balancer: Balancer, expected: ExpectedReals, cpu: int) -> None:
    """Write the flows into the connection table of a CPU, as flows that were reported long ago."""
    values = np.zeros(len(expected.flows), dtype=lay.REAL_POS_LRU)
    values["pos"] = expected.real_numbers
    values["left"], values["reports"] = LONG_REPORTED
    result = balancer.maps.lrus[cpu].update_batch(expected.keys, values)
    if result.errno:
        raise NfcoreError(f"benchmark: the connection table refuses flow {result.done}: error {result.errno}")


def read_counters(balancer: Balancer) -> PacketCounters:
    """Read the balancer's counters, summed over the CPUs."""
    stats = balancer.maps["stats"].read_slice(lay.MAX_VIPS, lay.MAX_VIPS)
    v1, v2 = (stats[name].sum(axis=1) for name in ("v1", "v2"))
    accel = balancer.maps["hw_accel_stats"].read_array().sum(axis=1)
    slot = lay.StatsSlot
    return PacketCounters(
        packets=int(v1[slot.XDP_TOTAL - lay.MAX_VIPS]),
        sent=int(v1[slot.XDP_TX - lay.MAX_VIPS]),
        fast=int(accel[lay.AccelCounter.FAST]),
        lookups=int(v1[slot.LRU - lay.MAX_VIPS]),
        misses=int(v2[slot.LRU - lay.MAX_VIPS]),
    )


def lru_size(flows: int) -> int:
    """Return the size of a connection table that keeps `flows` flows: the default, or twice the flows."""
    return max(DEFAULT_LRU_SIZE, 2 * flows)


@contextmanager
def subjects(request: BenchRequest) -> Iterator[list[Subject]]:
    """Open everything that is measured of one family: dest-id with `fast_flows`, the rest with `flows`.

    The caller is pinned to the first of the CPUs.
    """
    family, flows, fast_flows = request.family, request.flows, request.fast_flows
    flow_count, flood = max(flows), FLOOD[: len(flows)]
    with ExitStack() as stack:
        enter = stack.enter_context
        table = make_table(family, lru_size(flow_count), request.cpus)
        dest_id = enter(open_balancer(table, MarkMeaning.TARGET, PAIRS))
        # It has its own connection table, which the flood may fill.
        small = make_table(family, DEFAULT_LRU_SIZE, request.cpus)
        flow_id = enter(open_balancer(small, MarkMeaning.FLOW, flow_count))
        expected = ExpectedReals(family, table, dest_id, flow_count)
        publish_pairs(dest_id)
        publish_flows(flow_id, ExpectedReals(family, table, flow_id, flow_count))
        for cpu in request.cpus:
            fill_connection_table(dest_id, expected, cpu)
        bare, floors = enter(BareLru.open(family, lru_size(flow_count))), enter(Floors.open(family))
        bare.add(expected.keys, expected.addresses(expected.flows))
        unmarked, marked_by_flow, marked_by_pair, syns = (
            enter(FlowSource(expected.services, family, marks=marks, in_turn=flags == SYN, tcp_flags=flags))
            for marks, flags in ((0, ACK), (FLOW_MARKS, ACK), (PAIRS, ACK), (0, SYN))
        )
        count_dest_id, count_flow_id = partial(read_counters, dest_id), partial(read_counters, flow_id)
        slow = unmarked, dest_id.program, "head", flows, expected.addresses, count_dest_id
        by_flow = marked_by_flow, flow_id.program, "metadata", flows, expected.addresses, count_flow_id
        by_pair = marked_by_pair, dest_id.program, "metadata", fast_flows, expected.marked_addresses, count_dest_id
        yield [
            Subject("noop", SameFrame(family), floors.noop, None, (1,)),
            Subject("head", unmarked, floors.head, None, flows + flood),
            Subject("metadata", marked_by_pair, floors.metadata, None, tuple({*flows, *fast_flows})),
            Subject("bare-lru", unmarked, bare.program, "head", flows, expected.addresses),
            Subject("slow", *slow, known=True, several_cores=True),
            Subject("flow-id", *by_flow, fast=True, several_cores=True),
            Subject("dest-id", *by_pair, fast=True, several_cores=True),
            Subject("syn-flood", syns, flow_id.program, "head", flood, expected.addresses, count_flow_id),
        ]


class KatranWorkload:
    """The balancer as :class:`nfcore.bench.Workload`."""

    notes = NOTES
    reports_flows = True
    chained_with = ""

    def __init__(
        self, feature_subjects: Callable[[BenchRequest], AbstractContextManager[Sequence[Subject]]] | None = None
    ) -> None:
        self.feature_subjects = feature_subjects

    def prepare(self, families: Sequence[Family]) -> None:
        """Build the rings once, for all processes."""
        for family in families:
            rings(family)

    def setups(self, flows: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Group numbers of flows by the size of the connection table that they need."""
        sizes = sorted({lru_size(number) for number in flows})
        return [tuple(number for number in flows if lru_size(number) == size) for size in sizes]

    subjects = staticmethod(subjects)

    def toml(self, vips: int, reals: int) -> str:
        """Return `[katran_accel]` with `vips` VIPs, IPv4 and IPv6 in turn, of `reals` weighted reals each."""
        lines = [f'[{NAME}]\ngateway_mac = "{GATEWAY}"']
        for number in range(vips):
            vip, family = _vip(number)
            first = ipaddress.ip_address(_FIRST_REAL[family])
            entries = ", ".join(
                f'{{ address = "{first + (number // 2 * reals + place) % _REAL_ADDRESSES}", weight = {1 + place % 7} }}'
                for place in range(reals)
            )
            lines.append(f'[[{NAME}.vips]]\naddress = "{vip}"\nport = {PORT}\nprotocol = "tcp"\nreals = [{entries}]')
        return "\n".join(lines)

    def services(self, vips: int, family: Family) -> NDArray[np.void]:
        """Return the VIPs of :meth:`toml` in one family."""
        return make_services((vip, PORT) for vip, vip_family in map(_vip, range(vips)) if vip_family == family)

    def program(self, nf: NetworkFunction) -> Program:
        """Return the program of an open balancer."""
        assert isinstance(nf, Balancer)  # the bench passes the network function of this plugin
        return nf.program

    def own_results(self, sizes: Sizes) -> Iterator[tuple[Figure, Target | None]]:
        """Time how long a ring takes to build: in the kernel, as the balancer does it, and with numpy."""
        first = ipaddress.ip_address(_FIRST_REAL[4])
        endpoints = [Endpoint(1 + place, first + place, 1 + place % 7) for place in range(RING_REALS)]
        note = f"{lay.RING_SLOTS:,} slots, median of {sizes.repeats}"
        name = f"ring of {RING_REALS} weighted reals"
        with KernelRings() as kernel:
            value = _milliseconds(lambda: kernel.build(endpoints), sizes.repeats)
            profile_text = profile(lambda: kernel.build(endpoints)) if value > RING_TARGET else ""
        yield Figure(name, value, "ms", note), Target(name, value, RING_TARGET, "ms", profile=profile_text)
        value = _milliseconds(lambda: build_ring(endpoints), sizes.repeats)
        yield Figure(f"{name}, by numpy", value, "ms", f"{note}; used where the kernel refuses the program"), None

    def judge(self, rows: Sequence[Row]) -> list[Target]:
        """Compare the rows with their targets. Rows that were not measured have none."""
        return list(_judge({(row.row, row.family, row.flows): row for row in rows}))

    def gains(self, rows: Sequence[Row], cores: Sequence[CoreRow]) -> list[Gain]:
        """Compare the fast paths with the slow path."""
        return [*_gains(rows), *_core_gains(cores)]


def _milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of `work` in milliseconds, after one call that is not timed."""
    work()
    return round(statistics.median(timeit.repeat(work, number=1, repeat=repeats)) * 1e3, 3)


def _vip(number: int) -> tuple[Address, Family]:
    """Return address and family of VIP `number` of :meth:`KatranWorkload.toml`."""
    family: Family = 6 if number % 2 else 4
    return ipaddress.ip_address(_FIRST_VIP[family]) + number // 2, family


def _judge(rows: dict[tuple[str, int, int], Row]) -> Iterator[Target]:
    """Yield the targets; `rows` has each row by its name, family and number of flows."""
    families = sorted({family for _, family, _ in rows})
    for family in families:
        few, many = rows.get(("dest-id", family, FEW)), rows.get(("dest-id", family, MANY))
        if few:
            name = f"dest-id, IPv{family}, {FEW:,} flows, net"
            yield _with_profile(Target(name, few.net_ns, DEST_ID_TARGET, "ns"), rows, few)
        if few and many:
            name = f"dest-id, IPv{family}, {MANY:,} flows, net"
            yield _with_profile(Target(name, many.net_ns, few.net_ns + DEST_ID_GROWTH, "ns"), rows, many)
        slow, fast = rows.get(("slow", family, MANY)), rows.get(("flow-id", family, MANY))
        if slow and fast:
            name = f"flow-id, IPv{family}, {MANY:,} flows, net to the slow path's"
            yield _with_profile(Target(name, _ratio(fast.net_ns, slow.net_ns), FLOW_ID_TARGET, ""), rows, fast)
        for flows, limit in SLOW_TARGETS.items():
            slow, bare = rows.get(("slow", family, flows)), rows.get(("bare-lru", family, flows))
            if slow and bare:
                name = f"slow path, IPv{family}, {flows:,} flows, gross to bare-lru's"
                yield _with_profile(Target(name, _ratio(slow.ns, bare.ns), limit, ""), rows, slow)


def _with_profile(target: Target, rows: dict[tuple[str, int, int], Row], row: Row) -> Target:
    """Return the target; when it is not met, with a profile of the row that it is about."""
    about = row.row, row.family, row.flows
    return target if target.met else replace(target, profile=_time_by_step(rows, row), about=about)


def _time_by_step(rows: dict[tuple[str, int, int], Row], row: Row) -> str:
    """Return as text where the time of a row goes, as far as a comparison with the other rows shows it."""
    lines = [f"{'ns':>7}  of {row.row}, IPv{row.family}, {row.flows:,} flows: {row.ns:g}"]
    bare = rows.get(("bare-lru", row.family, row.flows))
    lines.append(
        f"{row.floor_ns:>7.1f}  floor: test run, wrapper, moved head" + (", metadata" if row.fast_share else "")
    )
    if row.row == "slow" and bare:
        lines.append(f"{bare.net_ns:>7.1f}  net time of bare-lru: parse, look-up of the flow, encapsulation")
        lines.append(f"{row.ns - bare.ns:>7.1f}  the rest: VIP, real, checks, counters, report state")
    else:
        series = [other for other in rows.values() if (other.row, other.family) == (row.row, row.family)]
        few = min(series, key=attrgetter("flows"))
        lines.append(f"{few.net_ns:>7.1f}  net with {few.flows:,} flows: parse, entry, checks, encapsulation, counters")
        lines.append(f"{row.net_ns - few.net_ns:>7.1f}  more with {row.flows:,}: entries that are in no fast cache")
    lines.append(f"{row.max - row.min:>7.1f}  spread of {row.rounds + row.left_out} rounds, {row.min:g} to {row.max:g}")
    return "\n".join(lines)


def _ratio(value: float, base: float) -> float:
    return round(value / base, 3) if base > 0 else 0.0


def _percent_more(slow: float, fast: float) -> float:
    return round(100 * (slow / max(fast, 1.0) - 1), 1)


def _gains(rows: Sequence[Row]) -> Iterator[Gain]:
    slow = {(row.family, row.flows): row for row in rows if row.row == "slow"}
    for row in rows:
        base = slow.get((row.family, row.flows))
        if row.fast_share and base:
            percent = _percent_more(base.ns, row.ns), _percent_more(base.net_ns, row.net_ns)
            yield Gain(row.row, "slow", row.family, row.flows, 1, *percent, PUBLISHED.get((row.flows, 1)))


def _core_gains(rows: Sequence[CoreRow]) -> Iterator[Gain]:
    slow = {(row.family, row.flows, row.cores): row for row in rows if row.row == "slow"}
    for row in rows:
        base = slow.get((row.family, row.flows, row.cores))
        if base and row.row != "slow" and row.cores > 1:
            published = PUBLISHED.get((row.flows, row.cores))
            percent = _percent_more(base.ns, row.ns)
            yield Gain(row.row, "slow", row.family, row.flows, row.cores, percent, None, published)
