# SPDX-License-Identifier: Apache-2.0
"""The real program does with each frame what the model of tests/katran_model says: verdict, bytes and counters."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nfcore.plugins.katran_accel.layouts import AccelCounter
from tests.katran_model.balancer import Step
from tests.katran_model.counters import Stat
from tests.katran_model.features import Features, Quirks
from tests.katran_model.generator import FrameSource, Population
from tests.katran_model.maps import FlowKey, VipKey
from tests.katran_model.mutations import fuzzed, truncations
from tests.katran_model.packet import Verdict, read_header, read_ip
from tests.katran_model.suites import Facts, published
from tests.katran_model.unfit import is_unfit

from .twin import BALANCER, Twin, open_twin, right

FRAMES = 10_000
"""How many frames by chance. Some seconds; more find more."""
SEED = 1
BALANCERS = [name for name, suite in published().suites.items() if suite.program == "balancer"]

SERVERS = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fc00::1", "fc00::2", "fc00::3"]
SOURCE_HIDDEN, BYPASS, DPORT_ONLY, BOTH_PORTS = 1, 2, 8, 128
V4, V6 = [1, 2, 3], [4, 5, 6]
EVERY_FLAG = [
    ("10.200.1.1", 80, "udp", 0, V4),
    ("10.200.1.1", 80, "tcp", 0, V4),
    ("10.200.1.2", 0, "tcp", 0, V4),
    ("10.200.1.3", 80, "tcp", 0, V6),
    ("fc00:1::1", 80, "tcp", 0, V6),
    ("fc00:1::2", 443, "udp", 0, V6),
    ("10.200.1.4", 0, "tcp", DPORT_ONLY, V4),
    ("10.200.1.4", 0, "udp", DPORT_ONLY, V6),
    ("fc00:1::4", 80, "tcp", DPORT_ONLY, V6),
    ("10.200.1.5", 80, "udp", SOURCE_HIDDEN, V4),
    ("fc00:1::5", 0, "tcp", SOURCE_HIDDEN, V6),
    ("10.200.1.6", 80, "tcp", BYPASS, [1, 2]),
    ("fc00:1::6", 0, "udp", BYPASS, V6),
    ("10.200.1.7", 0, "udp", BOTH_PORTS, V4),
    ("fc00:1::7", 0, "tcp", BOTH_PORTS | DPORT_ONLY, [4, 5]),
    ("10.200.1.8", 0, "tcp", SOURCE_HIDDEN | DPORT_ONLY, V4),
    ("10.200.1.9", 80, "tcp", BYPASS | DPORT_ONLY, V4),
    ("10.200.1.99", 80, "tcp", 0, []),
    ("fc00:1::99", 80, "udp", 0, []),
    ("fc00:9::/32", 0, "tcp", 0, V6),
    ("fc00:9:1::/48", 443, "tcp", 0, [4, 6]),
    ("fc00:9:2::/48", 80, "udp", DPORT_ONLY, [4, 6]),
    ("2001:db8::/32", 80, "tcp", 0, [4, 5]),
    ("10.201.0.0/16", 80, "udp", 0, V4),
    ("10.201.7.0/24", 0, "tcp", SOURCE_HIDDEN, [1, 3]),
]
"""VIPs of every kind and flag that the balancer knows: address, port, protocol, flags and numbers of reals."""


def every_flag() -> Facts:
    """The VIPs with their reals."""
    names = ("address", "port", "protocol", "flags", "reals")
    return Facts.of({"reals": SERVERS, "vips": [dict(zip(names, vip, strict=True)) for vip in EVERY_FLAG]})


@pytest.mark.parametrize("name", BALANCERS)
def test_published_packets_count_as_published(tmp_path: Path, name: str) -> None:
    suite = published().suites[name]
    first = published().suites[suite.after] if suite.after else suite
    with open_twin(tmp_path, first.state, features=right(suite.features), cpus="[]") as twin:
        if suite.after:
            for case in first.cases:
                twin.send(case.frame)
            twin.reload(suite.state)
        before = twin.counters()
        for case in suite.cases:
            step = twin.send(case.frame)
            after = twin.counters()
            gained = {key: gain(count, before.get(key, 0)) for key, count in after.items()}
            gained = {key: count for key, count in gained.items() if np.any(count)}
            assert (case.name, step.verdict, gained) == (case.name, case.verdict, case.counters)
            assert step.verdict is Verdict.DROP or step.frame == case.output
            before = after


def gain(after: list[int] | int, before: list[int] | int) -> list[int] | int:
    """What a pair, or a number, gained."""
    if isinstance(after, int):
        assert isinstance(before, int)
        return after - before
    return [now - then for now, then in zip(after, before or [0, 0], strict=True)]  # type: ignore[arg-type]


@pytest.mark.parametrize("cpus", ['"all"', "[]"])
@pytest.mark.parametrize("name", ["ipip", "prefix-vips", "udp-migration", "udp-stable-routing"])
def test_published_frames_of_all_suites(tmp_path: Path, name: str, cpus: str) -> None:
    with open_twin(tmp_path, published().suites[name].state, cpus=cpus) as twin:
        for suite in BALANCERS:
            for case in published().suites[suite].cases:
                twin.send(case.frame)
            assert twin.counters() == twin.model.total.published()


def test_frames_by_chance(tmp_path: Path) -> None:
    verdicts: Counter[Verdict] = Counter()
    with open_twin(tmp_path, every_flag()) as twin:
        source = FrameSource(Population.of(twin.model.maps, BALANCER), SEED)
        for number in range(FRAMES):
            verdicts[twin.send(fuzzed(source)).verdict] += 1
            if number % 1000 == 999:
                assert twin.counters() == twin.model.total.published()
    assert min(verdicts[verdict] for verdict in (Verdict.TX, Verdict.DROP, Verdict.PASS)) > FRAMES / 10


class TargetMarks:
    """Marks of (VIP, real), of those VIPs whose flows are offloaded."""

    def __init__(self, twin: Twin) -> None:
        offloaded = {
            number
            for number, (address, _, _, flags, reals) in enumerate([*EVERY_FLAG, *BY_ID_AND_ROUTE])
            if reals and "/" not in address and not flags & (BYPASS | DPORT_ONLY)
        }
        self._marks = {
            (int(row["vip_num"]), int(row["real_key"])): mark
            for mark, row in enumerate(twin.world.balancer.maps["hw_accel_targets"].read_array())
            if row["vip_generation"] and int(row["vip_num"]) in offloaded
        }

    def of(self, step: Step, frame: bytes) -> tuple[int, list[int]]:
        """The mark of a frame, 0 for none, and the marks of others."""
        vips = [number for name, number in step.counters.pairs if name == "stats" and number < Stat.LRU]
        reals = [number for name, number in step.counters.pairs if name == "reals_stats"]
        others = [mark for (vip, _), mark in self._marks.items() if vip not in vips]
        if "tpr_stats_map.sid_routed" in step.counters.fields:  # by an id: no mark is to decide
            others = [mark for (vip, real), mark in self._marks.items() if vip in vips and real not in reals] or others
        return self._marks.get((vips[0], reals[0]), 0) if vips else 0, others


class FlowMarks:
    """Marks of flows, as far as these are installed."""

    def __init__(self, twin: Twin) -> None:
        twin.world.engine.poll()
        table = twin.world.engine.table
        rows = np.flatnonzero(table.mark)
        self._marks = {table.flow["key"][row].tobytes()[:37]: int(table.mark[row]) for row in rows}

    def of(self, step: Step, frame: bytes) -> tuple[int, list[int]]:
        """The mark of a frame, 0 for none, and the marks of others."""
        packet, own = read_ip(frame, BALANCER), 0
        if not isinstance(packet, Verdict) and read_header(packet):
            ports = struct.pack(">HHB", packet.sport, packet.dport, packet.protocol)
            own = self._marks.get(packet.src + packet.dst + ports, 0)
        return own, [mark for mark in self._marks.values() if mark != own] or [0]


FEATURE_SETS = {
    "nothing": Features(),
    "gue": Features(encapsulation="gue"),
    "gue-katran-checksum": Features(encapsulation="gue", quirks=Quirks(gue_checksum=True)),
    "ids": Features(udp_stable_routing=True, tcp_server_ids=True),
    "hashed-ids": Features(encapsulation="gue", udp_stable_routing=True, tcp_server_ids=True, hashed_server_ids=True),
    "decap": Features(inline_decap_ipip=True, inline_decap_gue=True),
    "strict-decap": Features(encapsulation="gue", inline_decap_ipip=True, inline_decap_gue=True, strict_decap=True),
    "routing": Features(source_routing=True, local_delivery=True, global_lru=True),
    "too-big": Features(too_big=True, max_frame=1314, too_big_mtu=1300),
    "vlan": Features(vlan=True, fragments=True),
    "vlan-everything": Features(
        encapsulation="gue",
        too_big=True,
        source_routing=True,
        tcp_server_ids=True,
        udp_stable_routing=True,
        global_lru=True,
        local_delivery=True,
        inline_decap_ipip=True,
        inline_decap_gue=True,
        vlan=True,
        fragments=True,
    ),
}
QUIC, SOURCE_ROUTED, LOCAL, GLOBAL, STABLE, MIGRATED = 4, 16, 32, 64, 256, 512
BY_ID_AND_ROUTE = [
    ("10.200.2.1", 443, "udp", QUIC, V4),
    ("fc00:2::1", 443, "udp", QUIC | BYPASS, V6),
    ("10.200.2.2", 80, "udp", STABLE, [1, 2, 3]),
    ("10.200.2.3", 0, "udp", STABLE | QUIC, V6),
    ("10.200.2.4", 80, "tcp", SOURCE_ROUTED, V4),
    ("fc00:2::4", 0, "udp", SOURCE_ROUTED, V6),
    ("10.200.2.5", 80, "tcp", LOCAL, [1, 3]),
    ("fc00:2::5", 80, "udp", LOCAL | SOURCE_ROUTED, V6),
    ("10.200.2.6", 80, "udp", GLOBAL, V4),
    ("fc00:2::6", 0, "tcp", GLOBAL | BYPASS, V6),
    ("10.200.2.7", 80, "udp", MIGRATED, [1, 2]),
    ("fc00:2::7", 0, "udp", MIGRATED | GLOBAL, [4, 5]),
]


def everything() -> Facts:
    """VIPs of all flags, ids, source routes and tunnels' ends."""
    names = ("address", "port", "protocol", "flags", "reals")
    return Facts.of(
        {
            "reals": SERVERS,
            "local_reals": [3, 5],
            "vips": [dict(zip(names, vip, strict=True)) for vip in [*EVERY_FLAG, *BY_ID_AND_ROUTE]],
            "server_ids": {str(number): number % 6 + 1 for number in (1, 2, 7, 300, 1022, 1023, 1024, 65_535, 197_630)},
            "source_routes": {"192.168.0.0/17": 1, "192.168.1.0/24": 4, "fc00:2307::/32": 5, "fc00:2::/64": 6},
            "decap_addresses": {"10.200.9.1": 0, "10.200.9.2": 2, "fc00:1404::1": 0, "fc00:1405::1": 2},
            "down_reals": [
                {"address": "10.200.2.7", "port": 80, "protocol": "udp", "reals": [3]},
                {"address": "fc00:2::7", "port": 0, "protocol": "udp", "reals": [6]},
            ],
        }
    )


@pytest.mark.parametrize("name", FEATURE_SETS)
def test_frames_by_chance_with_features(tmp_path: Path, name: str) -> None:
    features = replace(FEATURE_SETS[name], prefix_vips_v4=True)
    verdicts: Counter[Verdict] = Counter()
    with open_twin(tmp_path, everything(), features=features) as twin:
        source = FrameSource(Population.of(twin.model.maps, features), SEED)
        for number in range(FRAMES):
            verdicts[twin.send(fuzzed(source)).verdict] += 1
            if number % 1000 == 999:
                assert twin.counters() == twin.model.total.published()
    assert min(verdicts[verdict] for verdict in (Verdict.TX, Verdict.DROP, Verdict.PASS)) > FRAMES / 50


def flows_of_others(twin: Twin, source: FrameSource) -> dict[FlowKey, int]:
    """Flows to VIPs that look into the tables of other hosts, each with a real that the ring may not have for it."""
    flows = {}
    while len(flows) < 20:
        packet = read_ip(source.frame(), twin.features)
        if isinstance(packet, Verdict) or is_unfit(packet) or not read_header(packet):
            continue
        vip = twin.model.maps.vips.get(VipKey(packet.dst, packet.dport, packet.flow_protocol))
        if vip and vip.flags & GLOBAL:
            key = FlowKey(packet.src, packet.dst, packet.sport, packet.dport, packet.flow_protocol)
            flows[key] = len(flows) % 3 + 1
    return flows


def with_more_down(facts: Facts) -> Facts:
    """One real more of each VIP whose flows migrate is down, and so in no ring."""
    down = {vip[:3]: {vip[3][0] - 1, *vip[3]} for vip in facts.down_reals}
    vips = [
        replace(vip, reals=tuple(set(vip.reals) - down.get((vip.address, vip.port, vip.protocol), set())))
        for vip in facts.vips
    ]
    rows = tuple((*vip, tuple(sorted(reals))) for vip, reals in down.items())
    return replace(facts, vips=tuple(vips), down_reals=rows)


def test_frames_by_chance_with_flows_of_others_and_reals_that_go_down(tmp_path: Path) -> None:
    features, facts = replace(FEATURE_SETS["vlan-everything"], prefix_vips_v4=True), everything()
    later = with_more_down(facts)
    with open_twin(tmp_path, facts, features=features) as twin:
        source = FrameSource(Population.of(twin.model.maps, features), SEED + 2)
        twin.remember(flows_of_others(twin, source))
        for now in (facts, later, facts):
            twin.reload(now)
            for _ in range(FRAMES // 3):
                twin.send(fuzzed(source))
            assert twin.counters() == twin.model.total.published()
        assert twin.model.total.pairs["stats", Stat.GLOBAL_LRU][1] > 0
        assert twin.model.total.pairs["stats", Stat.MIGRATED][0] > 0


@pytest.mark.parametrize("name", ["nothing", "ids", "vlan-everything"])
@pytest.mark.parametrize(("strategy", "marks_of"), [("dest-id", TargetMarks), ("flow-id", FlowMarks)])
def test_a_mark_changes_nothing_of_a_frame(
    tmp_path: Path, name: str, strategy: str, marks_of: type[TargetMarks] | type[FlowMarks]
) -> None:
    """Marks of the packet's own flow, of others, and of nobody."""
    features = replace(FEATURE_SETS[name], prefix_vips_v4=True)
    with open_twin(tmp_path, everything(), features=features, strategy=strategy, min_packets=1) as twin:
        source = FrameSource(Population.of(twin.model.maps, features), SEED + 1)
        for _ in range(20):
            marks = marks_of(twin)
            for _ in range(FRAMES // 20):
                frame = fuzzed(source)

                def mark_of(step: Step, frame: bytes = frame, marks: TargetMarks | FlowMarks = marks) -> int:
                    own, others = marks.of(step, frame)
                    return source.random.choice([own, own, source.random.choice(others), source.random.getrandbits(32)])

                step = twin.send(frame, mark_of)
                if "tpr_stats_map.dst_mismatch_in_lru" in step.counters.fields:
                    marks = marks_of(twin)  # an id has moved the flow, and its rule ends
        assert twin.world.count(AccelCounter.FAST) > FRAMES / 100
        slots = [
            f"stats[{slot}]"
            for slot in [*range(len(EVERY_FLAG) + len(BY_ID_AND_ROUTE)), *range(Stat.TOTAL, Stat.PASS + 1)]
        ]
        slots += [f"reals_stats[{number}]" for number in range(1, len(SERVERS) + 1)]
        came, wanted = twin.counters(), twin.model.total.published()
        assert [(slot, came.get(slot)) for slot in slots] == [(slot, wanted.get(slot)) for slot in slots]


@pytest.mark.parametrize("name", ["nothing", "vlan-everything"])
def test_published_frames_cut_at_every_byte(tmp_path: Path, name: str) -> None:
    features = replace(FEATURE_SETS[name], prefix_vips_v4=True)
    frames = {case.frame for suite in BALANCERS for case in published().suites[suite].cases}
    with open_twin(tmp_path, published().suites["source-routing"].state, features=features) as twin:
        for frame in sorted(frames, key=lambda frame: (len(frame), frame)):
            for cut in truncations(frame[:400]):
                twin.send(cut)
        assert twin.counters() == twin.model.total.published()
