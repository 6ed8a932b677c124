# SPDX-License-Identifier: Apache-2.0
"""What `nfcore bench` measures of the balancer: 64 VIPs, 4,096 (VIP, real) pairs, up to a million flows."""

from __future__ import annotations

import ipaddress
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, cached_property, partial

import numpy as np
from numpy.typing import NDArray

from nfcore.api.config import Config, MarkingTable, NfTable, OffloadTable
from nfcore.api.context import Context
from nfcore.api.flows import Address, FlowBatch, pack_address
from nfcore.api.marks import MarkAllocator, MarkMeaning, StrategyInfo
from nfcore.api.network_function import NetworkFunction
from nfcore.bench import (
    BenchRequest,
    CoreRow,
    Family,
    Figure,
    Floors,
    FlowSource,
    Gain,
    Row,
    SameFrame,
    Sizes,
    Subject,
    Tally,
    Target,
    flow_keys,
    make_services,
    profile,
)
from nfcore.bench.baselines import BareLru
from nfcore.bench.traffic import ACK, SYN
from nfcore.errors import NfcoreError
from nfcore.kernel import Program

from . import layouts as lay
from .attachment import NAME
from .balancer import Balancer
from .config import KatranTable
from .hashing import flow_hash
from .maglev import Endpoint, build_ring
from .maglev_kernel import KernelRings

VIPS = 64
REALS_PER_VIP = 64
PAIRS = VIPS * REALS_PER_VIP
PORT = 80
GATEWAY = "02:00:5e:00:00:fe"
FLOW_MARKS = 1 << 20
"""More than there are flows: each has a mark of its own. A power of two, for which no packet needs a division."""
FLOOD = (200_000,)
"""SYNs in a timed run, each of another flow."""
DEFAULT_LRU_SIZE: int = KatranTable.model_fields["lru_size"].default
LONG_REPORTED = (0x8000, 15)
"""`left` and `reports` of a flow whose reports came to nothing long ago: the next is 32,768 packets away."""
NOTES = (
    "skb-mark is not measured: a test run has no socket buffer behind the packet to read the mark of",
    "slow is the program of dest-id with packets that carry no mark",
    "marks of flow-id have 21 bits here, more than the NICs of today transport",
)
RING_REALS = 100
FEW, MANY = 100, 1_000_000
"""Flows of the bars."""
DEST_WANTED, DEST_GROWTH, FLOW_SHARE, RING_WANTED = 16.0, 4.0, 0.5, 3.0
SLOW_WANTED = {FEW: 1.8, MANY: 1.5}
PUBLISHED = {
    (FEW, 1): 40.0,
    (FEW, 12): 46.0,
    (10_000, 1): 0.0,
    (10_000, 2): 12.0,
    (10_000, 7): 22.0,
    (10_000, 12): 50.0,
}
"""(flows, queues) → percent more packets by marks of flow-id: the talk's own measurement, with a NIC."""
_POOL = 2000
"""Different reals of a family in :meth:`KatranWorkload.toml`: both families' are fewer than there are numbers."""

_FIRST_VIP: dict[Family, str] = {4: "198.18.0.1", 6: "2001:db8:10::1"}
_FIRST_REAL: dict[Family, str] = {4: "198.18.64.1", 6: "2001:db8:20::1"}


def make_table(family: Family, lru_size: int, cpus: Sequence[int]) -> KatranTable:
    """Give the configuration of the balancer.

    Each VIP's last real is the next one's first: 4,096 reals are one more than there are numbers.
    """
    vip, real = (ipaddress.ip_address(first[family]) for first in (_FIRST_VIP, _FIRST_REAL))
    vips = [
        {
            "address": str(vip + number),
            "port": PORT,
            "protocol": "tcp",
            "reals": [{"address": str(real + number * (REALS_PER_VIP - 1) + each)} for each in range(REALS_PER_VIP)],
        }
        for number in range(VIPS)
    ]
    return KatranTable.model_validate(
        {"gateway_mac": GATEWAY, "forwarding_cpus": list(cpus), "lru_size": lru_size, "vips": vips}
    )


@contextmanager
def open_balancer(table: KatranTable, meaning: MarkMeaning, most_flows: int) -> Iterator[Balancer]:
    """Load the balancer as the daemon would, attached to nothing."""
    strategy = "flow-id" if meaning is MarkMeaning.FLOW else "dest-id"
    width = max(16, most_flows.bit_length())
    config = Config(
        source="benchmark",
        nf=NfTable(plugins=[NAME]),
        interfaces=[],
        marking=MarkingTable(strategy=strategy, width=width),
        offload=OffloadTable(),
        sections={NAME: table},
    )
    balancer = Balancer(config, table, meaning)
    try:
        balancer.open(Context(config, [], StrategyInfo(strategy, meaning, ""), MarkAllocator(width, 0.0), tracing=True))
        yield balancer
    finally:
        balancer.close()


@cache
def rings(family: Family) -> NDArray[np.uint8]:
    """Give the ring of each VIP, its reals numbered from 0; shape (VIPS, RING_SLOTS)."""
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


class World:
    """Flows 0 … `count` - 1 of one family and the real that ring and hash give to each.

    Numbers of VIPs and reals are those of `balancer`, which was made from `table`; `count` may be 0.
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
        """FLOW_KEY of each flow."""
        return flow_keys(self.flows, self.services, self.family)

    @cached_property
    def real_numbers(self) -> NDArray[np.int64]:
        """Number of each flow's real."""
        return self.route(self.flows)

    def vips(self, flows: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Give the VIP's number of any flows."""
        numbers: NDArray[np.int64] = self._vip_numbers[flows % VIPS]
        return numbers

    def route(self, flows: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Give the real's number of any flows."""
        slots = flow_hash(flow_keys(flows, self.services, self.family), self.family) % lay.RING_SLOTS
        reals: NDArray[np.int64] = self._real_numbers[flows % VIPS, self._rings[flows % VIPS, slots]]
        return reals

    def addresses(self, flows: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Give the real's address of any flows, shape (n, 16)."""
        found: NDArray[np.uint8] = self._addresses[self.route(flows)]
        return found

    def marked_addresses(self, flows: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Give the address of the real to which dest-id's mark leads, shape (n, 16).

        It need not be the ring's: to XDP a mark may say any real of the packet's VIP, and this one is known without
        a table of flows.
        """
        found: NDArray[np.uint8] = self._addresses[self._real_numbers.T.ravel()[flows % PAIRS]]
        return found


def publish_pairs(balancer: Balancer) -> None:
    """Give every (VIP, real) its mark: the first VIP's pairs have marks 1, 1 + VIPS, 1 + 2 × VIPS, …

    NfcoreError when the balancer refuses one.
    """
    marks = 1 + np.arange(PAIRS, dtype=np.uint32).reshape(REALS_PER_VIP, VIPS).T.ravel()
    if not balancer.publish(balancer.targets(), marks).all():
        raise NfcoreError("benchmark: marks of (VIP, real) pairs were published that the balancer does not take")


def publish_flows(balancer: Balancer, world: World) -> None:
    """Write the entry of each flow as XDP would have; flow n has mark n + 1. NfcoreError when one is not live."""
    count, vips = len(world.flows), world.vips(world.flows)
    entries = np.zeros(count, dtype=lay.HW_ACCEL_FLOW)
    entries["vip_num"], entries["real_key"], entries["flow"] = vips, world.real_numbers, world.keys
    entries["vip_generation"] = balancer.maps["vip_map_by_id"].read_array()["generation"][vips]
    entries["real_generation"] = balancer.maps["hw_accel_reals"].read_array()[world.real_numbers]
    entries["family"] = world.family
    balancer.maps["hw_accel_mapping"].mmap()[1 : count + 1] = entries
    batch = FlowBatch.empty(count)
    batch.rows["key"], batch.rows["family"], batch.rows["nf"] = world.keys, world.family, balancer.number
    batch.rows["target"] = vips.astype(np.uint64) << np.uint64(32) | world.real_numbers.astype(np.uint64)
    if not balancer.publish(batch, world.flows + np.uint32(1)).all():
        raise NfcoreError("benchmark: entries of flow-id were written that the balancer does not take for live")


def remember_flows(balancer: Balancer, world: World, cpu: int) -> None:
    """Put the flows into a CPU's connection table, all of them reported long ago."""
    values = np.zeros(len(world.flows), dtype=lay.REAL_POS_LRU)
    values["pos"] = world.real_numbers
    values["left"], values["reports"] = LONG_REPORTED
    result = balancer.maps.lrus[cpu].update_batch(world.keys, values)
    if result.errno:
        raise NfcoreError(f"benchmark: flow {result.done} does not go into the connection table: {result.errno}")


def tally(balancer: Balancer) -> Tally:
    """Read the balancer's counters, summed over the CPUs."""
    stats = balancer.maps["stats"].read_slice(lay.MAX_VIPS, lay.MAX_VIPS)
    v1, v2 = (stats[name].sum(axis=1) for name in ("v1", "v2"))
    accel = balancer.maps["hw_accel_stats"].read_array().sum(axis=1)
    slot = lay.StatsSlot
    return Tally(
        packets=int(v1[slot.XDP_TOTAL - lay.MAX_VIPS]),
        sent=int(v1[slot.XDP_TX - lay.MAX_VIPS]),
        fast=int(accel[lay.AccelCounter.FAST]),
        lookups=int(v1[slot.LRU - lay.MAX_VIPS]),
        misses=int(v2[slot.LRU - lay.MAX_VIPS]),
    )


def lru_size(flows: int) -> int:
    """Give the entries of a connection table that keeps so many flows: the default's, or twice the flows."""
    return max(DEFAULT_LRU_SIZE, 2 * flows)


@contextmanager
def subjects(request: BenchRequest) -> Iterator[list[Subject]]:
    """Open all that is measured of one family: dest-id with `fast_flows`, the rest with `flows`.

    The caller stays on the first of the CPUs.
    """
    family, flows, fast_flows = request.family, request.flows, request.fast_flows
    known = max(flows)
    with ExitStack() as opened:
        enter = opened.enter_context
        table = make_table(family, lru_size(known), request.cpus)
        by_target = enter(open_balancer(table, MarkMeaning.TARGET, PAIRS))
        # A connection table of its own, which the flood may fill.
        by_flow = enter(open_balancer(make_table(family, DEFAULT_LRU_SIZE, request.cpus), MarkMeaning.FLOW, known))
        world = World(family, table, by_target, known)
        publish_pairs(by_target)
        publish_flows(by_flow, World(family, table, by_flow, known))
        for cpu in request.cpus:
            remember_flows(by_target, world, cpu)
        bare, floors = enter(BareLru(family, lru_size(known))), enter(Floors(family))
        bare.remember(world.keys, world.addresses(world.flows))
        plain, numbered, paired, syns = (
            enter(FlowSource(world.services, family, marks=marks, in_turn=flags == SYN, tcp_flags=flags))
            for marks, flags in ((0, ACK), (FLOW_MARKS, ACK), (PAIRS, ACK), (0, SYN))
        )
        in_slow = plain, by_target.program, "head", flows, world.addresses, partial(tally, by_target)
        in_flood = syns, by_flow.program, "head", FLOOD[: len(flows)], world.addresses, partial(tally, by_flow)
        by_number = numbered, by_flow.program, "metadata", flows, world.addresses, partial(tally, by_flow)
        by_pair = paired, by_target.program, "metadata", fast_flows, world.marked_addresses
        yield [
            Subject("noop", SameFrame(family), floors.noop, None, (1,)),
            Subject("head", plain, floors.head, None, flows + FLOOD[: len(flows)]),
            Subject("metadata", paired, floors.metadata, None, tuple({*flows, *fast_flows})),
            Subject("bare-lru", plain, bare.program, "head", flows, world.addresses),
            Subject("slow", *in_slow, known=True, spread=True),
            Subject("flow-id", *by_number, fast=True, spread=True),
            Subject("dest-id", *by_pair, partial(tally, by_target), fast=True, spread=True),
            Subject("syn-flood", *in_flood),
        ]


class KatranWorkload:
    """The balancer as :class:`nfcore.bench.Workload`."""

    notes = NOTES

    def prepare(self, families: Sequence[Family]) -> None:
        """Build the rings once, for all processes."""
        for family in families:
            rings(family)

    def worlds(self, flows: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Give numbers of flows by the connection table that they need."""
        sizes = sorted({lru_size(number) for number in flows})
        return [tuple(number for number in flows if lru_size(number) == size) for size in sizes]

    subjects = staticmethod(subjects)

    def toml(self, vips: int, reals: int) -> str:
        """Write `[katran_accel]` with so many VIPs, IPv4 and IPv6 in turn, of so many weighted reals each."""
        lines = [f'[{NAME}]\ngateway_mac = "{GATEWAY}"']
        for number in range(vips):
            vip, family = _vip(number)
            first = ipaddress.ip_address(_FIRST_REAL[family])
            listed = ", ".join(
                f'{{ address = "{first + (number // 2 * reals + each) % _POOL}", weight = {1 + each % 7} }}'
                for each in range(reals)
            )
            lines.append(f'[[{NAME}.vips]]\naddress = "{vip}"\nport = {PORT}\nprotocol = "tcp"\nreals = [{listed}]')
        return "\n".join(lines)

    def services(self, vips: int, family: Family) -> NDArray[np.void]:
        """Give the VIPs of :meth:`toml` in one family."""
        return make_services((vip, PORT) for vip, each in map(_vip, range(vips)) if each == family)

    def program(self, nf: NetworkFunction) -> Program:
        """Give the program of a balancer that is open."""
        assert isinstance(nf, Balancer)  # the workload is asked about its own network function
        return nf.program

    def figures(self, sizes: Sizes) -> Iterator[tuple[Figure, Target | None]]:
        """Time the building of a ring, in the kernel as the balancer has it built, and by numpy."""
        first = ipaddress.ip_address(_FIRST_REAL[4])
        endpoints = [Endpoint(1 + each, first + each, 1 + each % 7) for each in range(RING_REALS)]
        note = f"{lay.RING_SLOTS:,} slots, median of {sizes.repeats}"
        name = f"ring of {RING_REALS} weighted reals"
        with KernelRings() as kernel:
            value = _milliseconds(lambda: kernel.build(endpoints), sizes.repeats)
            words = profile(lambda: kernel.build(endpoints)) if value > RING_WANTED else ""
        yield Figure(name, value, "ms", note), Target(name, value, RING_WANTED, "ms", profile=words)
        value = _milliseconds(lambda: build_ring(endpoints), sizes.repeats)
        yield Figure(f"{name}, by numpy", value, "ms", f"{note}; where the kernel does not take the program"), None

    def judge(self, rows: Sequence[Row]) -> list[Target]:
        """Compare with what the design promises; rows that were not measured are not judged."""
        return list(_judge({(row.row, row.family, row.flows): row for row in rows}))

    def gains(self, rows: Sequence[Row], cores: Sequence[CoreRow]) -> list[Gain]:
        """Compare the fast paths with the slow one."""
        return [*_gains(rows), *_core_gains(cores)]


def _milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median time of some work, after it was done once."""
    work()
    took = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        took.append((time.perf_counter() - begin) * 1e3)
    return round(statistics.median(took), 3)


def _vip(number: int) -> tuple[Address, Family]:
    family: Family = 6 if number % 2 else 4
    return ipaddress.ip_address(_FIRST_VIP[family]) + number // 2, family


def _judge(by: dict[tuple[str, int, int], Row]) -> Iterator[Target]:
    families = sorted({family for _, family, _ in by})
    for family in families:
        few, many = by.get(("dest-id", family, FEW)), by.get(("dest-id", family, MANY))
        if few:
            name = f"dest-id, IPv{family}, {FEW:,} flows, net"
            yield _explained(Target(name, few.net_ns, DEST_WANTED, "ns"), by, few)
        if few and many:
            name = f"dest-id, IPv{family}, {MANY:,} flows, net"
            yield _explained(Target(name, many.net_ns, few.net_ns + DEST_GROWTH, "ns"), by, many)
        slow, fast = by.get(("slow", family, MANY)), by.get(("flow-id", family, MANY))
        if slow and fast:
            name = f"flow-id, IPv{family}, {MANY:,} flows, net to the slow path's"
            yield _explained(Target(name, _ratio(fast.net_ns, slow.net_ns), FLOW_SHARE, ""), by, fast)
        for flows, wanted in SLOW_WANTED.items():
            slow, bare = by.get(("slow", family, flows)), by.get(("bare-lru", family, flows))
            if slow and bare:
                name = f"slow path, IPv{family}, {flows:,} flows, gross to bare-lru's"
                yield _explained(Target(name, _ratio(slow.ns, bare.ns), wanted, ""), by, slow)


def _explained(bar: Target, by: dict[tuple[str, int, int], Row], row: Row) -> Target:
    about = row.row, row.family, row.flows
    return bar if bar.met else replace(bar, profile=_steps(by, row), about=about)


def _steps(by: dict[tuple[str, int, int], Row], row: Row) -> str:
    """Where a row's time goes, as far as the programs beside it tell."""
    lines = [f"{'ns':>7}  of {row.row}, IPv{row.family}, {row.flows:,} flows: {row.ns:g}"]
    place = row.family, row.flows
    bare = by.get(("bare-lru", *place))
    lines.append(
        f"{row.floor_ns:>7.1f}  floor: test run, wrapper, moved head" + (", metadata" if row.fast_share else "")
    )
    if row.row == "slow" and bare:
        lines.append(f"{bare.net_ns:>7.1f}  what bare-lru has above it: parse, look-up of the flow, encapsulation")
        lines.append(f"{row.ns - bare.ns:>7.1f}  the rest: VIP, real, checks, counters, report state")
    else:
        few = min((each for each in by.values() if (each.row, each.family) == (row.row, row.family)), key=_flows)
        lines.append(f"{few.net_ns:>7.1f}  net with {few.flows:,} flows: parse, entry, checks, encapsulation, counters")
        lines.append(f"{row.net_ns - few.net_ns:>7.1f}  more with {row.flows:,}: entries that are in no near cache")
    lines.append(f"{row.max - row.min:>7.1f}  spread of {row.rounds + row.left_out} rounds, {row.min:g} to {row.max:g}")
    return "\n".join(lines)


def _flows(row: Row) -> int:
    return row.flows


def _ratio(one: float, other: float) -> float:
    return round(one / other, 3) if other > 0 else 0.0


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
