# SPDX-License-Identifier: Apache-2.0
"""The balancer changes its VIPs, reals and weights while it runs: what is gone stops steering at once.

The balancer is driven as the engine drives it, without one: each test says when marks are given.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scapy.layers.l2 import Ether

from nfcore.api.config import Config
from nfcore.api.context import Context
from nfcore.api.flows import ANY_CPU, FlowBatch, FlowMatch
from nfcore.api.marks import MarkAllocator, MarkMeaning
from nfcore.api.state_file import StateFile
from nfcore.config.loader import load_config
from nfcore.errors import ConfigError
from nfcore.hooks.manager import PluginManager
from nfcore.kernel import TestRun, possible_cpus
from nfcore.plugins.katran_accel import layouts as lay
from nfcore.plugins.katran_accel.balancer import Balancer
from nfcore.plugins.katran_accel.config import NAME, KatranTable
from nfcore.plugins.katran_accel.connection_table import VipFinder, entry_keys
from nfcore.plugins.katran_accel.hashing import ring_slot
from nfcore.plugins.katran_accel.layouts import AccelCounter, make_target
from nfcore.plugins.katran_accel.maglev import Endpoint, build_ring
from nfcore.plugins.katran_accel.maps import remove_pins
from nfcore.plugins.katran_accel.metrics import BalancerMetrics, accel_counters
from tests.isolation import on_one_cpu

from .world import GATEWAY, balancer_toml, sent_to, tcp, udp

STRATEGIES = {"dest-id": MarkMeaning.TARGET, "flow-id": MarkMeaning.FLOW}
A, B, C, D = (f"198.18.20.{number}" for number in (11, 12, 13, 14))
WEB, DNS = "198.18.10.1", "198.18.10.2"
BOTH = {(WEB, 80, "tcp"): [A, B, C], (DNS, 53, "udp"): [A, D]}
Vips = dict[tuple[str, int, str], list[str]]


def toml(vips: Vips, flags: str = "[]") -> str:
    """VIPs as TOML; a real with a weight is written ``address*weight``."""
    text = ""
    for (address, port, protocol), reals in vips.items():
        pairs = [(*real.split("*"), "1")[:2] for real in reals]
        written = ", ".join(f'{{ address = "{real}", weight = {weight} }}' for real, weight in pairs)
        text += f'[[katran_accel.vips]]\naddress = "{address}"\nport = {port}\nprotocol = "{protocol}"\n'
        text += f"flags = {flags}\nreals = [{written}]\n"
    return text


@dataclass
class Bench:
    """A balancer on the bench."""

    balancer: Balancer
    folder: Path
    cpu: int
    katran: str
    marks: dict[int, int] = field(default_factory=dict)
    """Target → mark (dest-id)."""
    allocator: MarkAllocator = field(default_factory=lambda: MarkAllocator(16, 0.0))

    def send(self, frame: bytes, mark: int = 0) -> TestRun:
        return self.balancer.program.test_run(frame, metadata=struct.pack("=I", mark) if mark else b"")

    def to(self, frame: bytes, mark: int = 0) -> str:
        return sent_to(self.send(frame, mark))

    def mark(self, frame: bytes) -> int:
        """Send a frame that is reported, and give the mark that its flow gets; 0 when it is refused."""
        self.send(frame)
        batch = self.balancer.read_events(100)[-1:]
        if self.balancer.meaning is MarkMeaning.FLOW:
            marks = batch.rows["mark"].copy()
        else:
            target = int(batch.rows["target"][0])
            marks = np.array([self.marks.setdefault(target, len(self.marks) + 1)], dtype=np.uint32)
        return int(marks[0]) if self.balancer.publish(batch, marks)[0] else 0

    def marked(self, real: str) -> tuple[bytes, int]:
        """Give a frame of a flow to `real`, and the flow's mark; connections before it are forgotten."""
        frame = next(frame for frame in flows(60) if self.to(frame) == real)
        self.forget()
        self.balancer.read_events(100)
        return frame, self.mark(frame)

    def reload(self, vips: Vips, katran: str | None = None, flags: str = "[]") -> set[int]:
        """Reconfigure; the targets that are gone."""
        config = read(self.folder, vips, self.strategy, self.katran if katran is None else katran, flags)
        table = config.sections[NAME]
        assert isinstance(table, KatranTable)
        return set(self.balancer.reconfigure(config, table).tolist())

    @property
    def strategy(self) -> str:
        return next(name for name, meaning in STRATEGIES.items() if meaning is self.balancer.meaning)

    def number(self, real: str) -> int:
        return self.balancer.inventory.reals[ip_address(real)]

    def vip(self, address: str) -> int:
        return next(n for n, vip in self.balancer.inventory.vips.items() if vip.name.startswith(f"{address}:"))

    def target(self, vip: str, real: str) -> int:
        return make_target(self.vip(vip), self.number(real))

    def count(self, which: AccelCounter) -> int:
        return int(accel_counters(self.balancer)[which])

    def known(self) -> dict[bytes, int]:
        """The connection table of this CPU."""
        keys, values = self.balancer.maps.lrus[self.cpu].lookup_all()
        return {key.tobytes(): int(value["pos"]) for key, value in zip(keys, values, strict=True)}

    def forget(self) -> None:
        """Lose all connections, as if other flows had pushed them out."""
        self.balancer.connections.clear()


def read(folder: Path, vips: Vips, strategy: str, katran: str = "", flags: str = "[]") -> Config:
    path = folder / "bench.toml"
    marking = f'strategy = "{strategy}"\nquarantine = "1us"'
    offload = 'min_packets = 1\ngrace = "1us"'
    path.write_text(balancer_toml(path.parent, toml(vips, flags), marking, offload, katran))
    return load_config(path, PluginManager())


@contextmanager
def bench(
    folder: Path,
    vips: Vips,
    strategy: str,
    katran: str = "",
    flags: str = "[]",
    *,
    pinned: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Bench]:
    config = read(folder, vips, strategy, katran, flags)
    table = config.sections[NAME]
    assert isinstance(table, KatranTable)
    balancer = Balancer(config, table, STRATEGIES[strategy], clock)
    marks, state = MarkAllocator(16, 0.0), StateFile(folder / "notes.state" if pinned else None)
    context = Context(config, [], None, marks, tracing=not pinned, state_file=state)
    with on_one_cpu() as cpu, closing(balancer), context.locks:
        balancer.open(context)
        balancer._unpin_on_close = None  # as after the first attach(): what is pinned stays
        if balancer.pools is not None:
            balancer.pools.lease(marks, 512)
        made = Bench(balancer, folder, cpu, katran, allocator=marks)
        if strategy == "dest-id":
            targets = balancer.targets()
            made.marks = {int(target): n for n, target in enumerate(targets.rows["target"], 1)}
            balancer.publish(targets, np.arange(1, len(targets) + 1, dtype=np.uint32))
        yield made


def flows(count: int, vip: str = WEB) -> list[bytes]:
    make = udp if vip == DNS else tcp
    return [make("198.18.1.2", vip, sport=30_000 + number) for number in range(count)]


def figure(bench: Bench | BalancerMetrics, name: str, **labels: str) -> float:
    figures = bench if isinstance(bench, BalancerMetrics) else BalancerMetrics(bench.balancer)
    (family,) = [family for family in figures.families() if family.name == name]
    return sum(s.value for s in family.everything() if labels.items() <= s.labels.items())


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("marked", [False, True])
def test_nothing_goes_to_a_removed_real_and_the_others_flows_stay(tmp_path: Path, strategy: str, marked: bool) -> None:
    with bench(tmp_path, BOTH, strategy) as b:
        web, dns = flows(60), flows(30, DNS)
        marks = {frame: b.mark(frame) for frame in [*web, *dns]}
        before = {frame: b.to(frame) for frame in marks}
        assert set(before.values()) == {A, B, C, D}
        gone = {b.target(WEB, A), b.target(DNS, A)}
        entries = b.known()
        assert b.reload({(WEB, 80, "tcp"): [B, C], (DNS, 53, "udp"): [D]}) == gone
        after = b.known()
        assert after == {key: real for key, real in entries.items() if real != 1}
        fast = b.count(AccelCounter.FAST)
        for frame, real in before.items():
            now = b.to(frame, marks[frame] if marked else 0)
            assert now == real if real != A else now != A
        steered = sum(real != A for real in before.values())
        assert b.count(AccelCounter.FAST) - fast == (steered if marked else 0)
        # A real's last packets find no mark and no connection, and the connections of the others were not touched.
        assert b.count(AccelCounter.REAL_GONE) == 0


def test_no_route_leads_to_what_is_removed(tmp_path: Path, strategy: str) -> None:
    """Flows with rules find their reals without the connection table: those of a removed one get a new one."""
    with bench(tmp_path, BOTH, strategy) as b:
        marks = {frame: b.mark(frame) for frame in [*flows(60), *flows(30, DNS)]}
        before = {frame: b.to(frame) for frame in marks}
        b.reload({(WEB, 80, "tcp"): [B, C], (DNS, 53, "udp"): [A, D]})
        left = {frame for frame in flows(60) if before[frame] == A}
        assert left and len(b.balancer.maps["hw_accel_routes"].lookup_all()[0]) == len(marks) - len(left)
        for vip, reals in (((WEB, 80, "tcp"), [f"{B}*0", f"{C}*0", D]), ((DNS, 53, "udp"), [f"{A}*0", f"{D}*0", B])):
            b.reload({(WEB, 80, "tcp"): [B, C], (DNS, 53, "udp"): [A, D]} | {vip: reals})
            b.forget()
            for frame in flows(60 if vip[0] == WEB else 30, vip[0]):
                assert b.to(frame) == (reals[2] if frame in left else before[frame])


def test_routes_are_read_in_a_step_and_those_written_meanwhile_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hundreds of thousands of them the event loop would stand still for long."""
    with bench(tmp_path, BOTH, "dest-id") as b:
        for frame in flows(8):
            b.mark(frame)
        routes = b.balancer.routes
        assert routes is not None
        keys, values = routes._map.lookup_all()
        read = type(routes._map).lookup_all
        monkeypatch.setattr(type(routes._map), "lookup_all", killed)
        kept = values[:1]["vip_num"].astype(np.uint64) << np.uint64(32) | values[:1]["real_key"]
        steps = routes.purge(kept, b.balancer.finder)
        find = next(steps)
        monkeypatch.setattr(type(routes._map), "lookup_all", read)
        to_go = find()
        assert 0 < len(to_go) < len(keys)
        routes._map.update_batch(to_go[:1], values[:1])  # its flow has a rule with a present target by now
        with pytest.raises(StopIteration):
            steps.send(to_go)
        left = routes._map.lookup_all()[0]
        assert len(left) == len(keys) - len(to_go) + 1 and to_go[0].tobytes() in [key.tobytes() for key in left]


def test_more_rules_than_routes_need_a_restart(tmp_path: Path) -> None:
    with bench(tmp_path, BOTH, "dest-id") as b:
        path = tmp_path / "bench.toml"
        for most, fits in ((100_000, True), (200_000, False)):
            config = load_config(path, PluginManager(), [f"offload.max_rules={most}"])
            table = config.sections[NAME]
            assert isinstance(table, KatranTable)
            if fits:
                b.balancer.reconfigure(config, table)
                continue
            with pytest.raises(ConfigError, match="216384 together; at most 131072 fit") as refused:
                b.balancer.reconfigure(config, table)
            assert [problem.path for problem in refused.value.problems] == ["offload.max_rules"]


def test_the_others_are_not_disturbed_while_it_happens(tmp_path: Path, strategy: str) -> None:
    """Packets of flows that stay run through the program while reals and VIPs come and go."""
    away = BOTH | {(WEB, 80, "tcp"): [B, C], ("198.18.12.1", 80, "tcp"): [A]}
    with bench(tmp_path, BOTH, strategy) as b:
        marks = {frame: b.mark(frame) for frame in flows(60)}
        before = {frame: b.to(frame) for frame in marks}
        stay = {frame: real for frame, real in before.items() if real != A}
        wrong: list[tuple[str, str]] = []
        rounds, over = 0, threading.Event()

        def traffic() -> None:
            nonlocal rounds
            os.sched_setaffinity(0, {b.cpu})
            while not over.is_set():
                for frame, real in stay.items():
                    for mark in (0, marks[frame]):
                        run = b.send(frame, mark)
                        if run.verdict.name != "XDP_TX" or sent_to(run) != real:
                            wrong.append((run.verdict.name, real))
                rounds += 1

        sender = threading.Thread(target=traffic)
        sender.start()
        try:
            for number in range(12):
                b.reload(BOTH if number % 2 else away)
        finally:
            over.set()
            sender.join()
        assert rounds > 0
        assert wrong == []


def test_one_write_stops_everything(tmp_path: Path, strategy: str) -> None:
    """What counts between the write and the purge: no other map is changed here."""
    with bench(tmp_path, BOTH, strategy) as b:
        frame = next(frame for frame in flows(60) if b.to(frame) == A)
        mark = b.mark(frame)
        b.balancer.read_events(100)
        ring = b.balancer.maps["ch_rings"]
        ring.write_array(0, np.full(65_537, b.number(B), dtype="<u4"))
        assert (b.to(frame), b.to(frame, mark)) == (A, A)
        reals = b.balancer.maps["reals"]
        definition = reals.lookup(1)
        definition["flags"] |= np.uint8(1 << 7)
        reals.update(1, definition)
        stale = b.count(AccelCounter.STALE)
        assert b.to(frame, mark) == B
        assert (b.count(AccelCounter.STALE) - stale, b.count(AccelCounter.REAL_GONE)) == (1, 1)
        assert figure(b, "nfcore_real_gone_total") == 1
        # The connection was written anew: the ring may change now.
        ring.write_array(0, np.full(65_537, b.number(C), dtype="<u4"))
        assert b.to(frame) == B
        assert b.count(AccelCounter.REAL_GONE) == 1
        # It is reported as the new flow that it is.
        assert b.balancer.read_events(100).rows["target"][-1] == b.target(WEB, B)
        # A ring that leads there is not followed.
        ring.write_array(0, np.full(65_537, 1, dtype="<u4"))
        drops = figure(b, "nfcore_drops_total", reason="no_real")
        size = len(b.known())
        assert b.send(tcp("198.18.1.9", WEB)).verdict.name == "XDP_DROP"
        assert figure(b, "nfcore_drops_total", reason="no_real") == drops + 1
        assert len(b.known()) == size


def test_a_drained_real_keeps_its_flows_and_gets_no_new_ones(tmp_path: Path, strategy: str) -> None:
    with bench(tmp_path, BOTH, strategy) as b:
        marks = {frame: b.mark(frame) for frame in flows(60)}
        before = {frame: b.to(frame) for frame in marks}
        entries = b.known()
        assert b.reload(BOTH | {(WEB, 80, "tcp"): [f"{A}*0", B, C]}) == set()
        assert b.known() == entries
        for frame, real in before.items():
            assert b.to(frame) == b.to(frame, marks[frame]) == real
        new = [tcp("198.18.1.3", WEB, sport=30_000 + number) for number in range(60)]
        assert {b.to(frame) for frame in new} == {B, C}


def test_a_vip_without_reals_drops_and_counts_until_it_has_one(tmp_path: Path, strategy: str) -> None:
    nobody: Vips = BOTH | {(WEB, 80, "tcp"): []}
    with bench(tmp_path, BOTH, strategy) as b:
        marks = {frame: b.mark(frame) for frame in [*flows(30), *flows(30, DNS)]}
        before = {frame: b.to(frame) for frame in marks}
        assert b.reload(nobody) == {make_target(b.vip(WEB), number) for number in (1, 2, 3)}
        assert all(key[16:20] == ip_address(DNS).packed for key in b.known())
        drops, sent = (figure(b, f"nfcore_{name}_total") for name in ("drops", "vip_packets"))
        for frame in flows(30):
            assert b.send(frame, marks[frame]).verdict.name == b.send(frame).verdict.name == "XDP_DROP"
        assert figure(b, "nfcore_drops_total", reason="no_real") == drops + 60
        assert figure(b, "nfcore_vip_packets_total") == sent
        for frame in flows(30, DNS):
            assert b.to(frame, marks[frame]) == b.to(frame) == before[frame]
        b.reload(BOTH | {(WEB, 80, "tcp"): [B]})
        assert {real for frame in flows(30) for real in (b.to(frame, marks[frame]), b.to(frame))} == {B}
    with bench(tmp_path, nobody | {("2001:db8:10::1", 80, "tcp"): []}, strategy) as b:
        for frame in (flows(1)[0], tcp("2001:db8::1", "2001:db8:10::1")):
            assert b.send(frame).verdict.name == "XDP_DROP"
        assert figure(b, "nfcore_drops_total", reason="no_real") == 2


def test_when_all_weights_are_0_flows_stay_and_new_ones_are_dropped(tmp_path: Path, strategy: str) -> None:
    with bench(tmp_path, BOTH, strategy) as b:
        marks = {frame: b.mark(frame) for frame in flows(30)}
        before = {frame: b.to(frame) for frame in marks}
        assert b.reload(BOTH | {(WEB, 80, "tcp"): [f"{A}*0", f"{B}*0", f"{C}*0"]}) == set()
        for frame, real in before.items():
            assert b.to(frame, marks[frame]) == b.to(frame) == real
        drops = figure(b, "nfcore_drops_total", reason="no_real")
        assert b.send(tcp("198.18.1.3", WEB)).verdict.name == "XDP_DROP"
        assert figure(b, "nfcore_drops_total", reason="no_real") == drops + 1


def test_a_removed_vip_is_passed_to_the_stack(tmp_path: Path, strategy: str) -> None:
    with bench(tmp_path, BOTH, strategy) as b:
        frame, other = flows(1)[0], flows(1, DNS)[0]
        mark, other_mark = b.mark(frame), b.mark(other)
        real, number = b.to(other), b.vip(WEB)
        assert b.send(frame[:36]).verdict.name == "XDP_DROP"
        gone = {b.target(WEB, real) for real in (A, B, C)}
        assert b.reload({(DNS, 53, "udp"): [A, D]}) == gone
        assert b.send(frame).verdict.name == b.send(frame, mark).verdict.name == "XDP_PASS"
        # Also what a VIP would have dropped: its address has an entry of its own.
        assert b.send(frame[:36]).verdict.name == "XDP_PASS"
        assert b.to(other) == b.to(other, other_mark) == real
        assert all(key[16:20] == ip_address(DNS).packed for key in b.known())
        assert int(b.balancer.maps["vip_map_by_id"].mmap()["generation"][number]) == 0
        assert b.balancer.describe(next(iter(gone)))["vip"] == f"{WEB}:80/tcp"
        assert b.balancer.groups(np.array(sorted(gone), dtype=np.uint64)).tolist() == [number] * 3


def test_a_real_that_leaves_one_vip_serves_the_other_on(tmp_path: Path, strategy: str) -> None:
    with bench(tmp_path, BOTH, strategy) as b:
        marks = {frame: b.mark(frame) for frame in [*flows(60), *flows(30, DNS)]}
        before = {frame: b.to(frame) for frame in marks}
        assert b.reload(BOTH | {(WEB, 80, "tcp"): [B, C]}) == {make_target(b.vip(WEB), b.number(A))}
        unknown = b.count(AccelCounter.UNKNOWN_MARK)
        left = set(flows(60)) & {frame for frame, real in before.items() if real == A}
        assert left
        for frame, real in before.items():
            if frame in left:
                assert {b.to(frame, marks[frame]), b.to(frame)} <= {B, C}
            else:
                assert b.to(frame, marks[frame]) == b.to(frame) == real
        assert b.count(AccelCounter.UNKNOWN_MARK) - unknown == len(left)
        assert b.count(AccelCounter.REAL_GONE) == 0


def test_a_mark_that_is_published_too_late_is_refused(tmp_path: Path, strategy: str) -> None:
    with bench(tmp_path, BOTH, strategy) as b:
        frame = next(frame for frame in flows(60) if b.to(frame) == A)
        b.balancer.read_events(100)
        b.forget()
        b.send(frame)
        batch = b.balancer.read_events(100)
        marks = batch.rows["mark"] if strategy == "flow-id" else np.array([1], dtype=np.uint32)
        b.reload(BOTH | {(WEB, 80, "tcp"): [B, C]})
        assert b.balancer.publish(batch, marks.copy()).tolist() == [False]
        assert b.to(frame, int(marks[0])) != A


def test_a_new_vip_serves_and_can_be_marked(tmp_path: Path, strategy: str) -> None:
    with bench(tmp_path, BOTH, strategy) as b:
        targets = set(b.balancer.targets().rows["target"].tolist())
        more = BOTH | {("2001:db8:10::1", 80, "tcp"): ["2001:db8:20::11"], ("198.18.11.0/24", 0, "tcp"): [D]}
        assert b.reload(more) == set()
        assert set(b.balancer.targets().rows["target"].tolist()) - targets == {make_target(2, 5), make_target(3, 4)}
        for frame, real in (
            (tcp("2001:db8:1::2", "2001:db8:10::1"), "2001:db8:20::11"),
            (tcp("198.18.1.2", "198.18.11.9"), D),
        ):
            mark = b.mark(frame)
            fast = b.count(AccelCounter.FAST)
            assert b.to(frame) == b.to(frame, mark) == real
            assert b.count(AccelCounter.FAST) - fast == 1


def test_changed_weights_make_the_ring_that_a_start_would_build(tmp_path: Path, strategy: str) -> None:
    with bench(tmp_path, BOTH, strategy) as b:
        frames = flows(100)
        before = {frame: b.to(frame) for frame in frames}
        dns = b.balancer.maps["ch_rings"].read_slice(65_537, 65_537)
        assert b.reload(BOTH | {(WEB, 80, "tcp"): [f"{A}*50", B, f"{C}*7"]}) == set()
        assert {frame: b.to(frame) for frame in frames} == before
        wanted = build_ring([Endpoint(n, ip_address(r), w) for n, r, w in ((1, A, 50), (2, B, 1), (3, C, 7))])
        assert (b.balancer.maps["ch_rings"].read_slice(0, 65_537) == wanted).all()
        assert (b.balancer.maps["ch_rings"].read_slice(65_537, 65_537) == dns).all()
        b.forget()
        assert [b.to(frame) for frame in frames] == [
            str(
                next(
                    a
                    for a, n in b.balancer.inventory.reals.items()
                    if n == wanted[ring_slot(ip_address("198.18.1.2"), 30_000 + i, 80)]
                )
            )
            for i in range(100)
        ]


def test_numbers_rest_and_a_comeback_revives_no_old_mark(tmp_path: Path, strategy: str) -> None:
    now = [100.0]
    with bench(tmp_path, BOTH, strategy, clock=lambda: now[0]) as b:
        frame, mark = b.marked(A)
        entries = b.balancer.maps["hw_accel_mapping" if strategy == "flow-id" else "hw_accel_targets"].mmap()
        old = entries[mark].copy()
        assert (old["real_key"], old["vip_num"]) == (1, 0)
        only_dns = {(DNS, 53, "udp"): [D]}
        b.reload(only_dns)
        b.reload(BOTH)
        # Still resting: VIP and reals have other numbers than before.
        assert (b.vip(WEB), b.vip(DNS)) == (2, 1)
        assert [b.number(real) for real in (A, B, C, D)] == [5, 6, 7, 4]
        b.reload(only_dns)
        now[0] += 10
        b.reload(BOTH)
        assert (b.vip(WEB), [b.number(real) for real in (A, B, C, D)]) == (0, [1, 2, 3, 4])
        # As if a packet's program had written it in the very last moment.
        entries[mark] = old
        stale = b.count(AccelCounter.STALE)
        assert b.to(frame, mark) == b.to(frame)
        assert b.count(AccelCounter.STALE) - stale == 1
        assert int(b.balancer.maps["vip_map_by_id"].mmap()["generation"][0]) > old["vip_generation"]
        assert int(b.balancer.maps["hw_accel_reals"].mmap()[1]) > old["real_generation"]


def test_what_comes_back_begins_its_figures_anew(tmp_path: Path, strategy: str) -> None:
    """Also when nobody has asked for figures meanwhile, and more has come since than had before."""
    now = [100.0]
    with bench(tmp_path, BOTH, strategy, clock=lambda: now[0]) as b:
        frame, mark = b.marked(A)
        figures = BalancerMetrics(b.balancer)
        for _ in range(3):
            b.send(frame, mark)
        assert figure(figures, "nfcore_vip_path_packets_total", path="fast") == 3
        total = figure(figures, "nfcore_packets_total")
        for vips in ({(DNS, 53, "udp"): [D]}, BOTH):
            b.reload(vips)
            figures.follow()
            now[0] += 10
        for _ in range(200):
            b.send(frame)
        for kind in ("vip", "real"):
            assert figure(figures, f"nfcore_{kind}_path_packets_total", path="fast") == 0
            assert figure(figures, f"nfcore_{kind}_path_packets_total", path="slow") == 200
        assert figure(figures, "nfcore_packets_total") == total + 200


def test_counters_of_features_begin_anew_with_their_vip(tmp_path: Path, strategy: str) -> None:
    now = [100.0]
    keys = 'tcp_server_ids = true\nserver_id_map = "hash"\ndecap.gue = true'
    with bench(tmp_path, BOTH, strategy, keys, clock=lambda: now[0]) as b:
        figures = BalancerMetrics(b.balancer)
        names = ("nfcore_vip_server_id_new_total", "nfcore_vip_server_id_moved_total", "nfcore_vip_decap_passed_total")
        for name in ("server_id_stats", "decap_vip_stats"):
            rows = b.balancer.maps[name].read_slice(0, 2)
            rows["v1"], rows["v2"] = 5, 5
            b.balancer.maps[name].write_array(0, rows)
        before = [figure(figures, name, vip=f"{WEB}:80/tcp") for name in names]
        assert before == [5 * possible_cpus()] * 3
        for vips in ({(DNS, 53, "udp"): [D]}, BOTH):
            b.reload(vips)
            figures.follow()
            now[0] += 10
        assert [figure(figures, name, vip=f"{WEB}:80/tcp") for name in names] == [0, 0, 0]
        assert figure(figures, "nfcore_vip_decap_passed_total", vip=f"{DNS}:53/udp") == 5 * possible_cpus()


def snapshot(b: Bench) -> dict[str, bytes]:
    names = [
        "vip_map",
        "vip_lpm_map",
        "vip_addresses",
        "ch_rings",
        "reals",
        "ctl_array",
        "vip_map_by_id",
        "hw_accel_reals",
    ]
    held = {name: b"".join(part.tobytes() for part in b.balancer.maps[name].lookup_all()) for name in names}
    return held | {"known": repr(sorted(b.known().items())).encode(), "print": b.balancer.fingerprint()}


def test_what_needs_a_restart_is_named_and_changes_nothing(tmp_path: Path, strategy: str) -> None:
    with bench(tmp_path, BOTH, strategy) as b:
        frames = flows(20)
        before = {frame: b.to(frame) for frame in frames}
        held, targets = snapshot(b), b.balancer.targets().rows.tobytes()
        many: Vips = {(f"198.18.12.{number}", 80, "tcp"): [D] for number in range(17)}
        changed = 'maglev = 1\nforwarding_cpus = [0]\nvlan = true\npin_dir = "/run/nfcore/none"'
        with pytest.raises(ConfigError) as refused:
            b.reload(many, changed)
        problems = {problem.path: problem.message for problem in refused.value.problems}
        keys = ("vips", "maglev", "forwarding_cpus", "vlan", "pin_dir")
        assert problems.keys() == {f"katran_accel.{key}" for key in keys}
        assert all("restart" in message for message in problems.values())
        assert (snapshot(b), b.balancer.targets().rows.tobytes()) == (held, targets)
        assert {frame: b.to(frame) for frame in frames} == before
        del many["198.18.12.0", 80, "tcp"]
        # As many as there are rings, but for two numbers that have not rested.
        with pytest.raises(ConfigError, match=r"katran_accel\.vips: does not fit yet"):
            b.reload(many)
        assert snapshot(b) == held


def test_another_gateway_is_taken_over(tmp_path: Path) -> None:
    with bench(tmp_path, BOTH, "dest-id") as b:
        config = read(tmp_path, BOTH, "dest-id")
        table = config.sections[NAME]
        assert isinstance(table, KatranTable)
        b.balancer.reconfigure(config, table.model_copy(update={"gateway_mac": "02:00:5e:00:00:77"}))
        assert Ether(b.send(flows(1)[0]).output).dst == "02:00:5e:00:00:77"


def test_what_another_program_writes_about_next_hops_is_put_right_and_said(tmp_path: Path) -> None:
    with bench(tmp_path, BOTH, "dest-id") as b:
        b.balancer.maps["ctl_array"].write_array(0, np.array([([2, 0, 0, 0, 0, 9], (0, 0))], lay.CTL_VALUE))
        assert Ether(b.send(flows(1)[0]).output).dst == "02:00:00:00:00:09"
        assert "another program has changed" in b.balancer.resolve()()[0]
        assert Ether(b.send(flows(1)[0]).output).dst == GATEWAY
        assert list(b.balancer.resolve()()) == []


def test_a_vip_that_another_one_overtakes(tmp_path: Path, strategy: str) -> None:
    """Under dest-id its marks must go: they cannot tell the other VIP's packets from its own."""
    wide: Vips = {("198.18.10.0/24", 80, "tcp"): [A, B]}
    with bench(tmp_path, wide, strategy) as b:
        ours, lost = tcp("198.18.1.2", "198.18.10.9"), tcp("198.18.1.2", WEB)
        our_mark, lost_mark = b.mark(ours), b.mark(lost)
        reported = FlowBatch.empty(1)
        reported.rows["key"]["src"][0, :4] = list(ip_address("198.18.1.2").packed)
        reported.rows["key"]["dst"][0, :4] = list(ip_address(WEB).packed)
        reported.rows["key"]["sport"], reported.rows["key"]["dport"], reported.rows["key"]["proto"] = 40_000, 80, 6
        reported.rows["family"], reported.rows["cpu"], reported.rows["target"] = 4, b.cpu, b.target("198.18.10.0/24", A)
        pairs = {b.target("198.18.10.0/24", real) for real in (A, B)}
        real = b.to(ours)
        assert b.reload(wide | {(WEB, 80, "tcp"): [C]}) == pairs
        b.forget()
        b.balancer.restore(reported)
        assert b.known() == {}
        assert b.to(lost) == b.to(lost, lost_mark) == C
        assert b.to(ours) == b.to(ours, our_mark) == real
        assert (b.mark(tcp("198.18.1.3", "198.18.10.9")) == 0) == (strategy == "dest-id")
        assert b.reload(wide) == {make_target(1, 3)}
        assert set(b.balancer.targets().rows["target"].tolist()) == pairs
        assert b.to(lost) in (A, B)
        assert b.mark(tcp("198.18.1.4", "198.18.10.9")) != 0


def test_other_flags_make_another_vip_under_the_same_address(tmp_path: Path, strategy: str) -> None:
    with bench(tmp_path, {(WEB, 80, "tcp"): [A, B, C]}, strategy) as b:
        frame = flows(1)[0]
        mark = b.mark(frame)
        gone = {b.target(WEB, real) for real in (A, B, C)}
        assert b.reload({(WEB, 80, "tcp"): [A, B, C]}, flags='["hash_no_src_port"]') == gone
        assert b.vip(WEB) == 1
        assert len({b.to(frame) for frame in flows(30)}) == 1
        assert b.to(frame, mark) == b.to(frame)


def test_flows_off_the_ring_are_restored_on_every_cpu(tmp_path: Path, strategy: str) -> None:
    with bench(tmp_path, BOTH, strategy, "forwarding_cpus = [0, 1]") as b:
        frames = flows(80)
        for frame in frames:
            b.send(frame)
        batch = b.balancer.read_events(100)
        assert len(batch) == 80
        b.reload(BOTH | {(WEB, 80, "tcp"): [f"{A}*0", f"{B}*3", C]})
        b.forget()
        b.balancer.restore(batch)
        ring = b.balancer.inventory.ring(0)
        slots = [ring_slot(ip_address("198.18.1.2"), int(sport), 80) for sport in batch.rows["key"]["sport"]]
        reals = (batch.rows["target"] & np.uint64(0xFFFF_FFFF)).astype(np.uint32)
        off = ring[slots] != reals
        assert 0 < np.count_nonzero(off) < 80
        for cpu, lru in b.balancer.maps.lrus.items():
            keys, values = lru.lookup_all()
            there = dict(zip((int(port) for port in keys["sport"]), values["pos"].tolist(), strict=True))
            wanted = np.ones(80, dtype=bool) if cpu == b.cpu else off
            assert there == dict(zip(batch.rows["key"]["sport"][wanted].tolist(), reals[wanted].tolist(), strict=True))


def test_what_is_gone_is_not_restored(tmp_path: Path, strategy: str) -> None:
    with bench(tmp_path, BOTH, strategy) as b:
        for frame in [*flows(40), *flows(20, DNS)]:
            b.send(frame)
        batch = b.balancer.read_events(100)
        gone = b.reload({("198.18.10.2", 53, "udp"): [D]})
        b.forget()
        batch.rows["cpu"] = ANY_CPU
        b.balancer.restore(batch)
        kept = ~np.isin(batch.rows["target"], np.array(sorted(gone), dtype=np.uint64))
        for lru in b.balancer.maps.lrus.values():
            assert len(lru.lookup_all()[0]) == np.count_nonzero(kept) > 0


def test_restoring_does_not_change_the_batch(tmp_path: Path) -> None:
    with bench(tmp_path, {(WEB, 0, "tcp"): [A, B]}, "dest-id", flags='["hash_no_src_port"]') as b:
        b.send(flows(1)[0])
        batch = b.balancer.read_events(1)
        before = batch.rows.tobytes()
        b.balancer.restore(batch)
        assert batch.rows.tobytes() == before


FLAGS = ["[]", '["hash_no_src_port"]', '["hash_dport_only"]', '["hash_src_dst_port"]']


@pytest.mark.parametrize("flags", FLAGS)
def test_vip_and_slot_of_a_flow_are_those_that_the_program_finds(tmp_path: Path, flags: str) -> None:
    vips: Vips = {
        ("198.18.10.0/24", 80, "tcp"): [A, B, C, D],
        (WEB, 0, "tcp"): [A, B, C, D],
        ("198.18.0.0/16", 0, "tcp"): [B, C],
        ("2001:db8:10::/64", 0, "tcp"): ["2001:db8:20::1", "2001:db8:20::2"],
        ("2001:db8:10::1", 80, "tcp"): ["2001:db8:20::1", "2001:db8:20::2", "2001:db8:20::3"],
    }
    random = np.random.default_rng(1)
    sources = {4: "198.19.{}.{}", 6: "2001:db8:1::{:x}:{:x}"}
    there = {4: [WEB, "198.18.10.7", "198.18.77.1"], 6: ["2001:db8:10::1", "2001:db8:10::5"]}
    frames, batch = [], FlowBatch.empty(200)
    for row in batch.rows:
        family = int(random.choice([4, 6]))
        src = sources[family].format(*random.integers(1, 250, 2))
        dst = str(random.choice(there[family]))
        sport, dport = int(random.integers(1024, 65_536)), int(random.choice([80, 443, 8080]))
        frames.append(tcp(src, dst, sport=sport, dport=dport))
        key = row["key"]
        for name, address in (("src", src), ("dst", dst)):
            key[name] = np.frombuffer(ip_address(address).packed.ljust(16, b"\0"), dtype=np.uint8)
        key["sport"], key["dport"], key["proto"] = sport, dport, 6
        row["family"] = family
    with bench(tmp_path, vips, "dest-id", flags=flags) as b:
        finder = VipFinder(b.balancer.inventory)
        keys, families = batch.rows["key"], batch.rows["family"]
        owners, entries = finder.owners(keys, families), entry_keys(keys, families)
        slots = finder.slots(keys, owners, families)
        assert (finder.owners_of_entries(entries) == owners).all()
        packets = b.balancer.maps["stats"].read_slice(0, 5)["v1"].sum(axis=1)
        for frame, owner, slot in zip(frames, owners.tolist(), slots.tolist(), strict=True):
            b.forget()
            number = int(b.balancer.maps["ch_rings"].lookup(owner * 65_537 + slot))
            assert b.to(frame) == b.balancer.inventory.real_name(number)
        moved = b.balancer.maps["stats"].read_slice(0, 5)["v1"].sum(axis=1) - packets
        assert moved.tolist() == np.bincount(owners, minlength=5).tolist()
        assert (moved > 0).all()
        # The keys are those under which the program remembers them.
        b.forget()
        for frame in frames:
            b.send(frame)
        assert set(b.known()) == {key.tobytes() for key in entries}


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "pins"
    yield f'pin_dir = "{folder}"'
    list(remove_pins(folder))


@pytest.mark.parametrize("rules", ["all", "none"])
def test_a_restart_with_pins_knows_where_flows_with_rules_go(
    tmp_path: Path, strategy: str, pins: str, rules: str
) -> None:
    """The next run takes over the rules, or finds that they have vanished; the connection table has lost the flows."""
    frames, dns = flows(60), flows(20, DNS)
    drained = {(WEB, 80, "tcp"): [f"{A}*0", f"{B}*0", C], (DNS, 53, "udp"): [f"{A}*0", D]}
    with bench(tmp_path, BOTH, strategy, pins, pinned=True) as b:
        marks = {frame: b.mark(frame) for frame in [*frames, *dns]}
        before = {frame: b.to(frame) for frame in marks}
        keys = b.balancer.maps["hw_accel_routes"].lookup_all()[0]
        b.forget()
    with bench(tmp_path, drained, strategy, pins, pinned=True) as b:
        batch = FlowBatch.empty(len(keys) if rules == "all" else 0)
        batch.rows["key"], batch.rows["family"], batch.rows["cpu"] = keys[: len(batch)], 4, ANY_CPU
        if rules == "all":
            given = np.array([marks[frame_of(key)] for key in keys], dtype=np.uint32)
            assert b.balancer.recognise(batch, given).all()
        b.balancer.keep_only(batch)
        assert len(b.balancer.maps["hw_accel_routes"].lookup_all()[0]) == len(batch)
        assert {frame: b.to(frame) for frame in marks} == before


def test_flows_of_an_earlier_run_keep_their_routes_until_they_are_restored(
    tmp_path: Path, strategy: str, pins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packet of each comes before: it must not make a connection of the ring's choice."""
    frames = flows(30)
    drained = {(WEB, 80, "tcp"): [f"{A}*0", f"{B}*0", C], (DNS, 53, "udp"): [A, D]}
    with bench(tmp_path, BOTH, strategy, pins, pinned=True) as b:
        for frame in frames:
            b.mark(frame)
        before = {frame: b.to(frame) for frame in frames}
        b.forget()
    with bench(tmp_path, drained, strategy, pins, pinned=True) as b:
        restore = b.balancer.connections.restore

        def send_and_restore(*arguments: Any) -> None:
            for frame in frames:
                b.to(frame)
            restore(*arguments)

        monkeypatch.setattr(b.balancer.connections, "restore", send_and_restore)
        b.balancer.keep_only(FlowBatch.empty())
        assert len(b.balancer.maps["hw_accel_routes"].lookup_all()[0]) == 0
        assert {frame: b.to(frame) for frame in frames} == before


def frame_of(key: np.void) -> bytes:
    match = FlowMatch.from_key(key, 4)
    return (tcp if match.proto == 6 else udp)(str(match.src), str(match.dst), sport=match.sport)


def test_a_restart_with_pins_and_many_rules_makes_room_for_their_routes(
    tmp_path: Path, strategy: str, pins: str
) -> None:
    with bench(tmp_path, BOTH, strategy, pins, pinned=True) as b:
        frame, _ = flows(1)[0], b.mark(flows(1)[0])
        real = b.to(frame)
    more = read(tmp_path, BOTH, strategy, pins)
    more = replace(more, offload=more.offload.model_copy(update={"max_rules": 200_000}))
    for config, room in ((more, 1 << 18), (read(tmp_path, BOTH, strategy, pins), 1 << 18)):
        table = config.sections[NAME]
        assert isinstance(table, KatranTable)
        balancer = Balancer(config, table, STRATEGIES[strategy])
        context = Context(config, [], None, MarkAllocator(16, 0.0), state_file=StateFile(tmp_path / "notes.state"))
        with on_one_cpu(), closing(balancer), context.locks:
            balancer.open(context)
            balancer._unpin_on_close = None
            assert balancer.routes is not None and balancer.routes.room == room
            balancer.connections.clear()
            balancer.maps["ch_rings"].write_array(0, np.zeros(65_537, dtype="<u4"))
            assert sent_to(balancer.program.test_run(frame, metadata=b"")) == real


def test_a_restart_with_pins_keeps_the_connections_of_what_stays(tmp_path: Path, strategy: str, pins: str) -> None:
    frames, dns = flows(60), flows(20, DNS)
    with bench(tmp_path, BOTH, strategy, pins, pinned=True) as b:
        marks = {frame: b.mark(frame) for frame in frames}
        before = {frame: b.to(frame) for frame in [*frames, *dns]}
        numbers = {real: b.number(real) for real in (B, C, D)}
        ring = b.balancer.maps["ch_rings"].read_slice(0, 65_537)
        reports = b.count(AccelCounter.REPORTED)
    # The first VIP and the first real are others: in a new numbering everything would mean something else.
    changed: Vips = {("198.18.12.1", 80, "tcp"): ["198.18.20.99"], (DNS, 53, "udp"): [D], (WEB, 80, "tcp"): [C, B]}
    with bench(tmp_path, changed, strategy, pins, pinned=True) as b:
        assert {real: b.number(real) for real in (B, C, D)} == numbers
        assert (b.vip(WEB), b.vip(DNS), b.vip("198.18.12.1"), b.number("198.18.20.99")) == (0, 1, 2, 5)
        assert b.known() and 1 not in b.known().values()
        assert (b.balancer.maps["ch_rings"].read_slice(0, 65_537) != ring).any()
        for frame, real in before.items():
            assert b.to(frame) == real if real != A else b.to(frame) != A
        if strategy == "flow-id":
            fast = b.count(AccelCounter.FAST)
            kept = [frame for frame in frames if before[frame] != A]
            assert [b.to(frame, marks[frame]) for frame in kept] == [before[frame] for frame in kept]
            assert b.count(AccelCounter.FAST) - fast == len(kept)
        assert b.count(AccelCounter.REPORTED) >= reports
    # Its note is lost: nothing that holds a number is believed.
    (tmp_path / "notes.state").unlink()
    with bench(tmp_path, BOTH, strategy, f"{pins}\nforwarding_cpus = []", pinned=True) as b:
        assert not list((tmp_path / "pins").glob("lru_[0-9]*"))
    with bench(tmp_path, BOTH, strategy, pins, pinned=True) as b:
        assert b.known() == {}
        assert [b.number(real) for real in (A, B, C, D)] == [1, 2, 3, 4]
        assert {b.to(frame) for frame in frames} == {A, B, C}


def test_a_real_that_comes_back_after_restarts_has_a_new_generation(tmp_path: Path, strategy: str, pins: str) -> None:
    generations = []
    for vips in (BOTH, {(DNS, 53, "udp"): [D]}, BOTH):
        with bench(tmp_path, vips, strategy, pins, pinned=True) as b:
            if (WEB, 80, "tcp") in vips:
                generations.append(int(b.balancer.maps["hw_accel_reals"].mmap()[b.number(A)]))
    assert generations[1] > generations[0]


def test_the_fingerprint_tells_runs_apart_whose_marks_differ(tmp_path: Path, strategy: str, pins: str) -> None:
    with bench(tmp_path, BOTH, strategy, pins, pinned=True) as b:
        first = b.balancer.fingerprint()
        b.reload(BOTH | {(WEB, 80, "tcp"): [A, f"{B}*9", C]})
        assert b.balancer.fingerprint() == first
    with bench(tmp_path, BOTH, strategy, pins, pinned=True) as b:
        assert b.balancer.fingerprint() == first
        b.reload(BOTH | {(WEB, 80, "tcp"): [B, C]})
        b.reload(BOTH)
        # flow-id: each entry in the pinned map tells by itself. dest-id: the marks were given in another order.
        assert (b.balancer.fingerprint() == first) == (strategy == "flow-id")


def killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["_writer.add", "_writer.remove", "_erase_other_marks"])
def test_what_a_run_killed_in_the_middle_leaves_is_put_right(
    tmp_path: Path, strategy: str, pins: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: Vips = {(WEB, 80, "tcp"): [B, C, "198.18.20.50"]}
    holder, _, name = step.rpartition(".")
    with bench(tmp_path, BOTH, strategy, pins, pinned=True) as b:
        before = {frame: b.to(frame) for frame in flows(40)}
        monkeypatch.setattr(attrgetter(holder)(b.balancer) if holder else b.balancer, name, killed)
        with pytest.raises(KeyboardInterrupt):
            b.reload(changed)
    with bench(tmp_path, changed, strategy, pins, pinned=True) as b:
        assert b.number("198.18.20.50") == 5
        for frame, real in before.items():
            assert b.to(frame) == real if real != A else b.to(frame) != A
        new = {b.to(tcp("198.18.1.7", WEB, sport=port)) for port in range(1024, 1124)}
        assert new == {B, C, "198.18.20.50"}


@pytest.mark.parametrize("sizes", [(20, 3), (2, 20)])
def test_pinned_rings_do_not_limit_the_number_of_vips(tmp_path: Path, sizes: tuple[int, int], pins: str) -> None:
    frame = tcp("198.18.1.2", "198.18.12.1")
    sent = []
    for size in sizes:
        vips: Vips = {(f"198.18.12.{number}", 80, "tcp"): [A, B, C] for number in range(size)}
        with bench(tmp_path, vips, "dest-id", pins, pinned=True) as b:
            assert b.balancer.maps.rings == 32 if size == 20 or sizes[0] == 20 else b.balancer.maps.rings == 16
            sent.append(b.to(frame))
            assert len(b.known()) == 1
    assert len(set(sent)) == 1


def test_numbers_of_a_killed_change_are_not_given_to_others(
    tmp_path: Path, strategy: str, pins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = [tcp("198.18.1.8", WEB, sport=port) for port in range(1024, 1084)]
    with bench(tmp_path, BOTH, strategy, pins, pinned=True) as b:
        monkeypatch.setattr(b.balancer._writer, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            b.reload({(WEB, 80, "tcp"): [B, C, "198.18.20.50"]})
        # Its program forwards on, by the new ring already.
        assert "198.18.20.50" in {b.to(frame) for frame in new}
        assert 5 in b.known().values()
    with bench(tmp_path, {(WEB, 80, "tcp"): [B, C, "198.18.20.60"]}, strategy, pins, pinned=True) as b:
        assert b.number("198.18.20.60") == 6
        assert b.known() and 5 not in b.known().values()
