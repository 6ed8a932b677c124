# SPDX-License-Identifier: Apache-2.0
"""TC programs at the egress of an interface, by both ways that the kernel has."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from nfcore.errors import HostError
from nfcore.kernel import (
    Map,
    MapSpec,
    MapType,
    Ownership,
    Program,
    TcProgram,
    attach_egress,
    cls_bpf,
    compile_as,
    detach_egress,
    egress_programs,
    interface_index,
    owner_of,
    tcx,
)
from tests.kernel.network import enter, ip, namespaces
from tests.paths import PROGRAMS

NAMESPACE, PRIO = "nftc", 2307
COUNTS = MapSpec("counts", MapType.ARRAY, np.dtype("<u4"), np.dtype("<u8"), 1)


@dataclass(frozen=True)
class Way:
    programs: Callable[[int], list[int]]
    attach: Callable[..., None]
    detach: Callable[[int, int], bool]


WAYS = {
    "tcx": Way(tcx.tcx_programs, tcx.attach_tcx, tcx.detach_tcx),
    "filter": Way(
        lambda ifindex: [found for found in [cls_bpf.filter_program(ifindex, PRIO)] if found],
        lambda ifindex, program, **options: cls_bpf.attach_filter(ifindex, program, PRIO, **options),
        lambda ifindex, number: cls_bpf.detach_filter(ifindex, number, PRIO),
    ),
    "the better one": Way(
        lambda ifindex: egress_programs(ifindex, PRIO),
        lambda ifindex, program, **options: attach_egress(ifindex, program, PRIO, **options),
        lambda ifindex, number: detach_egress(ifindex, number, PRIO),
    ),
}


@pytest.fixture
def ifindex() -> Iterator[int]:
    """tc0, whose peer is tc1, in a namespace that this thread is in."""
    with namespaces(NAMESPACE), enter(NAMESPACE):
        ip(NAMESPACE, "link", "add", "tc0", "type", "veth", "peer", "name", "tc1")
        for name in ("tc0", "tc1"):
            ip(NAMESPACE, "link", "set", name, "addrgenmode", "none")
            ip(NAMESPACE, "link", "set", name, "up")
        yield interface_index("tc0")


@pytest.fixture
def counts() -> Iterator[Map]:
    with Map.create(COUNTS) as made:
        yield made


def load(counts: Map, verdict: str = "TC_ACT_UNSPEC") -> TcProgram:
    return compile_as(TcProgram, PROGRAMS / "egress.c", "egress", defines={"VERDICT": verdict}, maps={"counts": counts})


def send() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("tc0", 0))
        sender.send(bytes(12) + b"\x88\xb5" + bytes(50))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_attach_replace_and_detach(ifindex: int, counts: Map, way: Way) -> None:
    assert way.programs(ifindex) == []
    with load(counts) as first, load(counts, "TC_ACT_OK") as second:
        way.attach(ifindex, first)
        assert way.programs(ifindex) == [first.id]
        send()
        assert counts.lookup(0) == 1
        way.attach(ifindex, second, replace=first.id)
        assert way.programs(ifindex) == [second.id]
        send()
        assert counts.lookup(0) == 2
        assert not way.detach(ifindex, first.id)
        number = second.id
    # It outlives those who loaded it.
    send()
    assert counts.lookup(0) == 3
    assert way.detach(ifindex, number)
    assert (way.programs(ifindex), way.detach(ifindex, number)) == ([], False)
    send()
    assert counts.lookup(0) == 3


def test_a_filter_takes_no_place_of_others(ifindex: int, counts: Map) -> None:
    way = WAYS["filter"]
    with load(counts) as foreign, load(counts) as own:
        way.attach(ifindex, foreign)
        with pytest.raises(HostError, match=rf"egress of tc0 has program {foreign.id} with priority 2307 already"):
            way.attach(ifindex, own)
        assert not way.detach(ifindex, own.id)
        assert way.programs(ifindex) == [foreign.id]
        cls_bpf.attach_filter(ifindex, own, 7)
        assert cls_bpf.detach_filter(ifindex, own.id, 7)
        assert way.programs(ifindex) == [foreign.id]
        shown = subprocess.check_output(["tc", "filter", "show", "dev", "tc0", "egress"], text=True)
        assert "pref 2307 bpf" in shown and "egress direct-action" in shown


def test_interfaces_that_are_not_there_and_programs_of_another_kind(ifindex: int, counts: Map) -> None:
    with load(counts) as program:
        for way in WAYS.values():
            with pytest.raises(HostError, match=r"cannot .* #99999"):
                way.attach(99_999, program)
        with pytest.raises(HostError, match=f"{program.id} is a BPF program of type 3, not an XDP program"):
            Program.from_id(program.id)
        with TcProgram.from_id(program.id) as again:
            assert again.tag == program.tag


def test_a_program_says_whose_it_is(counts: Map) -> None:
    with load(counts) as program:
        assert owner_of(program.id, TcProgram) is None
        with Ownership("test", "/run/here") as ownership:
            ownership.claim(program)
            owner = owner_of(program.id, TcProgram)
            assert owner is not None and (owner.kind, owner.place, owner.lives) == ("test", "/run/here", True)
        owner = owner_of(program.id, TcProgram)
        assert owner is not None and not owner.lives
        with pytest.raises(HostError, match="type 3, not an XDP program"):
            owner_of(program.id)


def test_a_test_run_has_the_mark_and_tells_it(counts: Map) -> None:
    with load(counts, "TC_ACT_SHOT") as program:
        frame = bytes(12) + b"\x88\xb5" + bytes(50)
        run = program.test_run(frame, mark=77)
        assert (run.verdict.name, run.output, run.mark, counts.lookup(0)) == ("SHOT", frame, 77, 1)


def test_a_program_that_does_not_compile_or_load_is_an_error_of_its_kind(counts: Map) -> None:
    with pytest.raises(HostError, match="undeclared identifier 'NONSENSE'"):
        load(counts, "NONSENSE")
