# SPDX-License-Identifier: Apache-2.0
"""Frames by chance: what they are, and that the model has an answer to each of them."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest

from tests.katran_model.balancer import Balancer
from tests.katran_model.checksum import pseudo_header, words
from tests.katran_model.counters import Stat
from tests.katran_model.decap import Decap
from tests.katran_model.features import KATRAN, Features, Quirks
from tests.katran_model.generator import FrameSource, Population
from tests.katran_model.healthcheck import Healthcheck
from tests.katran_model.maps import MAX_REALS, Maps, padded
from tests.katran_model.mutations import fuzzed, truncations
from tests.katran_model.packet import UDP, Verdict, read_header, read_ip
from tests.katran_model.source_match import match_source
from tests.katran_model.suites import maps_of, published, real

FRAMES = 1500
"""Of each suite and set of mistakes."""
ALL_FEATURES: dict[str, Any] = {field.name: True for field in fields(Features) if field.type == "bool"}
BALANCERS = [name for name, suite in published().suites.items() if suite.program == "balancer"]


def fuzzed_balancer(name: str, quirks: Quirks) -> tuple[Balancer, FrameSource]:
    """A balancer in the state of a suite with every feature, and frames for it."""
    suite = published().suites[name]
    features = replace(suite.features, **ALL_FEATURES | {"hashed_server_ids": quirks == KATRAN}, quirks=quirks)
    maps = maps_of(suite.state, published().settings)
    add_rare_cases(maps, random.Random(name))
    return Balancer(features, maps), FrameSource(Population.of(maps, features), seed=len(name))


def add_rare_cases(maps: Maps, source: random.Random) -> None:
    """Flags of all kinds, tunnels to IPv4, and numbers of reals that are not there."""
    maps.introspection = True
    maps.vips = {key: vip._replace(flags=vip.flags | some_flags(source)) for key, vip in maps.vips.items()}
    maps.decap_addresses |= {(padded("10.0.13.37"), 4): source.choice([0, 2]), (padded("198.18.200.1"), 4): 0}
    maps.server_ids |= {77: MAX_REALS, 0x01000000: 1, 0x81000000: 2}
    maps.reals[1] = maps.reals[1]._replace(local=True)
    for key in maps.vips:
        maps.down_reals[key] = {source.randrange(4)}
    maps.rings[0] = array("H", maps.rings[0][:65_000]) + array("H", [0, MAX_REALS, 4095] * 179)


def some_flags(source: random.Random) -> int:
    """One or two flags in half of the cases."""
    return source.choice([0, 0, 1 << source.randrange(10), 1 << source.randrange(10) | 1 << source.randrange(10)])


@pytest.mark.parametrize("quirks", [KATRAN, Quirks()], ids=["as Katran", "right"])
@pytest.mark.parametrize("name", BALANCERS)
def test_every_frame_has_a_verdict_and_is_counted_once(name: str, quirks: Quirks) -> None:
    balancer, source = fuzzed_balancer(name, quirks)
    verdicts: Counter[Verdict] = Counter()
    for now in range(FRAMES):
        verdicts[balancer.step(fuzzed(source), now % 2, now * 10**6).verdict] += 1
    assert verdicts.total() == FRAMES
    assert min(verdicts[verdict] for verdict in (Verdict.DROP, Verdict.PASS, Verdict.TX)) > FRAMES / 10
    counted = {slot: balancer.total.pairs[("stats", slot)][0] for slot in (Stat.TX, Stat.DROP, Stat.PASS)}
    assert list(counted.values()) == [verdicts[Verdict.TX], verdicts[Verdict.DROP], verdicts[Verdict.PASS]]


@pytest.mark.parametrize("name", ["ipip", "gue", "source-routing", "udp-stable-routing", "egress-decap"])
def test_whole_packets_are_sent_with_right_outer_checksums(name: str) -> None:
    balancer, source = fuzzed_balancer(name, Quirks())
    sent = 0
    for now in range(FRAMES):
        step = balancer.step(source.frame(), 0, now)
        packet = read_ip(step.frame, balancer.features)
        if step.verdict is Verdict.TX and not isinstance(packet, Verdict):
            sent += 1
            if packet.family == 4:
                assert words(step.frame[packet.ip : packet.l4]) == 0xFFFF
            if packet.protocol == UDP and read_header(packet) and packet.dport == balancer.features.gue_port:
                datagram = step.frame[packet.l4 :]
                pseudo = pseudo_header(*packet.addresses, len(datagram), UDP)
                assert datagram[6:8] == b"\0\0" or (words(datagram) + pseudo) % 0xFFFF == 0
    assert sent > FRAMES / 10


def test_a_frame_may_be_cut_at_any_byte() -> None:
    balancer, source = fuzzed_balancer("egress-decap", Quirks())
    for _ in range(60):
        for frame in truncations(source.frame()[:400]):
            assert balancer.step(frame).verdict in (Verdict.DROP, Verdict.PASS, Verdict.TX)


def test_the_programs_beside_the_balancer_have_an_answer_to_each_frame() -> None:
    balancer, source = fuzzed_balancer("egress-decap", KATRAN)
    decap = Decap(balancer.features, balancer.maps, own_id=1022)
    healthcheck = Healthcheck(balancer.features, {1: real("10.0.0.1"), 2: real("fc00::1")}, balancer.maps.sources)
    seen = set()
    for _ in range(5 * FRAMES):
        frame = fuzzed(source)
        seen.add(decap.step(frame)[0])
        seen.add(healthcheck.step(frame, source.random.randrange(4))[0])
        seen.add(match_source(balancer.features, frame)[0])
    assert seen == set(Verdict) - {Verdict.TX}


def test_the_same_seed_gives_the_same_frames() -> None:
    maps = maps_of(published().suites["ipip"].state, published().settings)
    population = Population.of(maps, Features())
    first, second, other = (FrameSource(population, seed) for seed in (1, 1, 2))
    frames = [fuzzed(first) for _ in range(200)]
    assert frames == [fuzzed(second) for _ in range(200)] != [fuzzed(other) for _ in range(200)]


def test_frames_of_every_kind_are_made() -> None:
    """Each counter that a frame can raise is raised, but those for which these maps and mistakes leave no case."""
    total = Balancer(Features(), Maps()).total
    for name in BALANCERS:
        balancer, source = fuzzed_balancer(name, KATRAN)
        for now in range(FRAMES):
            balancer.step(fuzzed(source), 0, now)
        total.merge(balancer.total)
    slots = {slot for map_name, slot in total.pairs if map_name == "stats" and slot >= Stat.LRU}
    assert set(Stat) - slots == {Stat.ENCAP_FAIL}
    ids = Counter(name.partition(".")[0] for name in total.fields)
    assert ids == {"quic_stats_map": 11, "stable_rt_stats": 5, "tpr_stats_map": 4}
