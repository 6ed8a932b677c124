# SPDX-License-Identifier: Apache-2.0
"""What each action does to a frame, and what comes after it: one program, or a chain of two."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.errors import HostError
from nfcore.kernel import Map, MapSpec, MapType, online_cpus, possible_cpus
from nfcore.plugins.flow_actions.data_plane import DataPlane
from nfcore.plugins.flow_actions.layouts import Action, Path, police_rate
from tests.waiting import eventually

from .frames import checksum, frame, ipv4, ipv6
from .model import Match, rows
from .plane import COUNT, DROP, PASS, actions, open_plane, others, packets, send, set_target

EVERYTHING = [Match(4, slot=4), Match(6, slot=6)]
UNDER_TEST = 9
MONOTONIC_COARSE = 6
"""Its resolution is a timer tick."""
LOOPBACK = 1
"""Index of the loopback interface in any network namespace."""


def all_to(plane: DataPlane, target: int) -> None:
    plane.add(rows(replace(match, target=target) for match in EVERYTHING))


@pytest.fixture
def plane() -> Iterator[DataPlane]:
    """One whose packets all go to UNDER_TEST."""
    with open_plane() as opened:
        all_to(opened, UNDER_TEST)
        yield opened


@pytest.fixture(scope="module")
def shared() -> Iterator[DataPlane]:
    """The same for all examples of a test: the kernel takes a tenth of a second to load a program."""
    with open_plane() as opened:
        all_to(opened, UNDER_TEST)
        yield opened


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("target", "verdict"), [(DROP, "XDP_DROP"), (PASS, "XDP_PASS"), (COUNT, "XDP_PASS")])
def test_drop_pass_count(plane: DataPlane, family: int, target: int, verdict: str) -> None:
    all_to(plane, target)
    raw = frame(family)
    run = send(plane, raw, repeat=3)
    assert (run.verdict.name, run.output) == (verdict, raw)
    row = plane.counts(np.array([family]))[0]
    assert (row["packets"], row["bytes"]) == (3, 3 * len(raw))
    assert row["last_seen"] > 0
    assert actions(plane, Path.LOOK_UP) == {Action(target).name: 3}
    plane.reset(np.array([family]))
    assert plane.counts(np.array([family]))[0].tolist() == (0, 0, 0)


def test_last_seen_is_the_time_of_the_last_packet(plane: DataPlane) -> None:
    tick = round(time.clock_getres(MONOTONIC_COARSE) * 1e9)
    before = time.monotonic_ns()
    send(plane, frame(4))
    seen = int(plane.counts(np.array([4]))["last_seen"][0])
    assert before - 2 * tick <= seen <= time.monotonic_ns() + tick
    assert eventually(lambda: time.monotonic_ns() > seen + 5 * tick, 10)
    again = int(plane.counts(np.array([4]))["last_seen"][0])
    assert abs(again - seen) <= 2 * tick


def test_a_target_that_is_not_set_lets_packets_go_on(plane: DataPlane) -> None:
    assert send(plane, frame(4)).verdict.name == "XDP_PASS"
    assert packets(plane, 4) == 1


@given(tos=st.integers(0, 255), dscp=st.integers(0, 63), options=st.sampled_from([0, 4, 40]))
def test_set_dscp_keeps_everything_else(shared: DataPlane, tos: int, dscp: int, options: int) -> None:
    set_target(shared, UNDER_TEST, Action.SET_DSCP, argument=dscp)
    wanted = dscp << 2 | tos & 3
    raw = ipv4(tos=tos, options=bytes(options))
    run = send(shared, raw)
    assert run.verdict.name == "XDP_PASS"
    assert run.output[15] == wanted
    assert checksum(run.output[14 : 34 + options]) == 0
    assert (run.output[:15], run.output[16:24], run.output[26:]) == (raw[:15], raw[16:24], raw[26:])
    run = send(shared, ipv6(tos=tos))
    assert run.output == ipv6(tos=wanted)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("missing", ["XDP_DROP", "XDP_PASS"])
def test_redirect_and_an_interface_that_is_not_there(family: int, missing: str) -> None:
    with open_plane(MISSING_INTERFACE=missing) as plane:
        all_to(plane, UNDER_TEST)
        set_target(plane, UNDER_TEST, Action.REDIRECT, argument=3)
        assert send(plane, frame(family)).verdict.name == missing
        assert others(plane) == {"INTERFACE_MISSING": 1}
        plane.set_link(3, LOOPBACK)
        assert send(plane, frame(family)).verdict.name == "XDP_REDIRECT"
        plane.set_link(3, None)
        assert send(plane, frame(family)).verdict.name == missing
        assert others(plane) == {"INTERFACE_MISSING": 2}
        assert actions(plane, Path.LOOK_UP) == {"REDIRECT": 3}


def test_an_interface_that_does_not_exist_is_refused(plane: DataPlane) -> None:
    with pytest.raises(HostError, match="cannot be redirected to interface 4711"):
        plane.set_link(3, 4711)


def test_cpu(plane: DataPlane) -> None:
    cpu = online_cpus()[0]
    set_target(plane, UNDER_TEST, Action.CPU, argument=cpu)
    assert send(plane, frame(4)).verdict.name == "XDP_PASS"
    assert others(plane) == {"CPU_MISSING": 1}
    plane.set_cpu(cpu)
    assert send(plane, frame(4)).verdict.name == "XDP_REDIRECT"
    with pytest.raises(HostError, match=f"cannot be handed to CPU {possible_cpus()}"):
        plane.set_cpu(possible_cpus())


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("by_bytes", [False, True])
def test_a_burst_passes_and_what_exceeds_the_rate_is_dropped(plane: DataPlane, family: int, by_bytes: bool) -> None:
    raw = frame(family)
    unit = len(raw) if by_bytes else 1
    # So slow that none of the packets is earned while the test runs, and so fast that all of them are.
    for rate, burst, dropped in ((16, 10, 990), (10**12, 10**6, 0)):
        cost, length = police_rate(rate, burst * unit, by_bytes=by_bytes)
        set_target(plane, UNDER_TEST, Action.POLICE, argument=int(by_bytes), cost=cost, burst=length)
        before = others(plane).get("POLICED", 0)
        send(plane, raw, repeat=1000)
        assert others(plane).get("POLICED", 0) - before == dropped
    assert packets(plane, family) == 2000


def test_a_rate_limit_lets_pass_again_after_a_pause(plane: DataPlane) -> None:
    cost, length = police_rate(100, 1, by_bytes=False)
    set_target(plane, UNDER_TEST, Action.POLICE, cost=cost, burst=length)
    assert send(plane, frame(4)).verdict.name == "XDP_PASS"
    assert eventually(lambda: send(plane, frame(4)).verdict.name == "XDP_PASS", 10)


def test_a_frame_larger_than_the_burst_never_passes(plane: DataPlane) -> None:
    cost, length = police_rate(10**9, 40, by_bytes=True)
    set_target(plane, UNDER_TEST, Action.POLICE, argument=1, cost=cost, burst=length)
    assert {send(plane, frame(4)).verdict.name for _ in range(20)} == {"XDP_DROP"}


def test_what_goes_on_reaches_the_next_function() -> None:
    programs = Map.create(MapSpec("chain_programs", MapType.PROG_ARRAY, np.dtype("<u4"), np.dtype("<u4"), 4))
    with (
        programs,
        open_plane(chain_maps={"chain_programs": programs}, CHAIN_NEXT=2) as first,
        open_plane() as second,
    ):
        programs.update(2, second.program)
        all_to(second, DROP)
        cost, length = police_rate(10**12, 10**6, by_bytes=False)
        set_target(first, 10, Action.SET_DSCP, argument=46)
        set_target(first, 11, Action.POLICE, cost=cost, burst=length)
        set_target(first, 12, Action.POLICE, cost=1 << 20, burst=0)
        arp = frame(4)[:12] + b"\x08\x06" + bytes(28)
        assert send(first, arp).verdict.name == "XDP_PASS"
        assert others(second) == {"NOT_IP": 1}
        assert send(first, frame(4)).verdict.name == "XDP_DROP"
        assert packets(second, 4) == 1
        for target, seen in ((COUNT, 2), (10, 3), (11, 4), (DROP, 4), (PASS, 4), (12, 4)):
            all_to(first, target)
            run = send(first, frame(4))
            assert packets(second, 4) == seen, target
            assert run.verdict.name == ("XDP_PASS" if target == PASS else "XDP_DROP")
            assert run.output[15] == (46 << 2 if target == 10 else 0)
