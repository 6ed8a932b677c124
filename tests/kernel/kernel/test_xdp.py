# SPDX-License-Identifier: Apache-2.0
"""Programs on interfaces of a network namespace that lives as long as one thread."""

import ctypes
import json
import logging
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pytest

from nfcore.errors import HostError
from nfcore.kernel import (
    AttachedXdp,
    Map,
    MapSpec,
    MapType,
    Program,
    XdpAction,
    XdpMode,
    attach_xdp,
    attached_xdp,
    compile_program,
    detach_xdp,
    interface_index,
    interface_name,
)
from tests.descriptors import open_files
from tests.paths import PROGRAMS

CLONE_NEWNET = 0x40000000
T = TypeVar("T")
Inside = Callable[[Callable[[], T]], T]


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def enter_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    ip("link", "add", "nf0", "type", "veth", "peer", "name", "wire0")
    for name in ("nf0", "wire0"):
        # No router solicitations among the counted packets.
        ip("link", "set", name, "addrgenmode", "none")
        ip("link", "set", name, "up")


@pytest.fixture
def inside() -> Iterator[Inside]:
    """Runs a function in the namespace."""
    with ThreadPoolExecutor(1, initializer=enter_namespace) as namespace:
        yield lambda function: namespace.submit(function).result()


@pytest.fixture(scope="module")
def counts() -> Iterator[Map]:
    spec = MapSpec("counts", MapType.ARRAY, np.dtype(np.uint32), np.dtype(np.uint64), 4)
    with Map.create(spec) as made:
        yield made


@pytest.fixture(scope="module")
def programs(counts: Map) -> Iterator[list[Program]]:
    """Three programs that drop every packet and count it under their own number."""
    made = [
        compile_program(
            PROGRAMS / "verdict.c",
            "verdict_prog_with_a_long_name",
            defines={"VERDICT": XdpAction.DROP.name, "COUNT_AS": number},
            maps={"counts": counts},
        )
        for number in range(3)
    ]
    yield made
    for program in made:
        program.close()


@pytest.fixture
def nf0(inside: Inside) -> int:
    return inside(lambda: interface_index("nf0"))


def send(channel: socket.socket, count: int) -> None:
    for number in range(count):
        channel.send(bytes(12) + b"\x88\xb5" + number.to_bytes(4) + bytes(46))


def wire_socket() -> socket.socket:
    channel = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    channel.bind(("wire0", 0))
    return channel


@pytest.mark.parametrize("mode", [XdpMode.NATIVE, XdpMode.GENERIC])
def test_attached_program_gets_the_packets(
    inside: Inside, nf0: int, counts: Map, programs: list[Program], mode: XdpMode
) -> None:
    counts.write_array(0, np.zeros(4, np.uint64))

    def scenario() -> None:
        assert attached_xdp(nf0) is None
        assert attach_xdp(nf0, programs[1], mode=mode) is mode
        assert attached_xdp(nf0) == AttachedXdp(programs[1].id, mode)
        with wire_socket() as channel:
            send(channel, 50)
        assert detach_xdp(nf0, expected=programs[1].id)
        assert attached_xdp(nf0) is None

    inside(scenario)
    assert counts.read_array().tolist() == [0, 50, 0, 0]


def test_auto_is_native_where_that_works(inside: Inside, nf0: int, programs: list[Program]) -> None:
    assert inside(lambda: attach_xdp(nf0, programs[0], mode=XdpMode.AUTO)) is XdpMode.NATIVE
    assert inside(lambda: attached_xdp(nf0)) == AttachedXdp(programs[0].id, XdpMode.NATIVE)


def test_auto_falls_back_and_keeps_the_reason(
    inside: Inside, programs: list[Program], caplog: pytest.LogCaptureFixture
) -> None:
    loopback = inside(lambda: interface_index("lo"))
    with caplog.at_level(logging.WARNING):
        assert inside(lambda: attach_xdp(loopback, programs[0], mode=XdpMode.AUTO)) is XdpMode.GENERIC
    assert "cannot attach verdict_prog_with_a_long_name to interface lo in native mode: " in caplog.text
    assert "it runs in generic mode" in caplog.text
    with pytest.raises(HostError, match=r"interface lo runs program .* in generic mode, which cannot become native"):
        inside(lambda: attach_xdp(loopback, programs[1], mode=XdpMode.NATIVE, replace=programs[0].id))


def test_refused_mode_has_the_kernels_words(inside: Inside, programs: list[Program]) -> None:
    words = r"cannot attach verdict_prog_with\w+ to interface lo in native mode: .*native mode.*Operation not supported"
    with pytest.raises(HostError, match=words):
        inside(lambda: attach_xdp(interface_index("lo"), programs[0], mode=XdpMode.NATIVE))


def test_another_program_is_not_displaced(inside: Inside, nf0: int, programs: list[Program]) -> None:
    def scenario() -> None:
        attach_xdp(nf0, programs[0], mode=XdpMode.NATIVE)
        there = rf"interface nf0 already has the XDP program {programs[0].id} \(verdict_prog_wi\) in native"
        for mode in (XdpMode.NATIVE, XdpMode.AUTO, XdpMode.GENERIC):
            with pytest.raises(HostError, match=there):
                attach_xdp(nf0, programs[1], mode=mode)
        with pytest.raises(HostError, match="remove it with: ip link set dev nf0 xdp off"):
            attach_xdp(nf0, programs[1], mode=XdpMode.NATIVE, replace=programs[2].id)
        assert attached_xdp(nf0) == AttachedXdp(programs[0].id, XdpMode.NATIVE)

    inside(scenario)


@pytest.mark.parametrize("mode", [XdpMode.NATIVE, XdpMode.GENERIC])
def test_replaced_program_keeps_the_mode(inside: Inside, nf0: int, programs: list[Program], mode: XdpMode) -> None:
    def scenario() -> None:
        attach_xdp(nf0, programs[0], mode=mode)
        assert attach_xdp(nf0, programs[1], mode=XdpMode.AUTO, replace=programs[0].id) is mode
        assert attached_xdp(nf0) == AttachedXdp(programs[1].id, mode)
        assert attach_xdp(nf0, programs[2], mode=mode, replace=programs[1].id) is mode
        assert attached_xdp(nf0) == AttachedXdp(programs[2].id, mode)

    inside(scenario)


def test_nothing_to_replace_is_fine(inside: Inside, nf0: int, programs: list[Program]) -> None:
    def scenario() -> None:
        attach_xdp(nf0, programs[0], mode=XdpMode.NATIVE, replace=programs[1].id)
        assert attached_xdp(nf0) == AttachedXdp(programs[0].id, XdpMode.NATIVE)

    inside(scenario)


def test_replacement_loses_no_packet(inside: Inside, nf0: int, counts: Map, programs: list[Program]) -> None:
    counts.write_array(0, np.zeros(4, np.uint64))
    inside(lambda: attach_xdp(nf0, programs[0], mode=XdpMode.NATIVE))
    with inside(wire_socket) as channel, ThreadPoolExecutor(1) as sender:
        sending = sender.submit(send, channel, 30_000)
        swaps = 0
        while not sending.done():
            old, new = programs[swaps % 3], programs[(swaps + 1) % 3]
            inside(lambda old=old, new=new: attach_xdp(nf0, new, mode=XdpMode.NATIVE, replace=old.id))
            swaps += 1
        sending.result()
    statistics = json.loads(inside(lambda: ip("-s", "-j", "link", "show", "wire0")))[0]["stats64"]
    seen = counts.read_array()
    assert swaps >= 2
    # A frame that found the receive ring full says nothing about programs.
    assert int(seen.sum()) + statistics["tx"]["dropped"] == 30_000
    assert np.count_nonzero(seen) >= 2


def test_only_the_expected_program_is_detached(inside: Inside, nf0: int, programs: list[Program]) -> None:
    def scenario() -> None:
        assert not detach_xdp(nf0, expected=None)
        attach_xdp(nf0, programs[0], mode=XdpMode.NATIVE)
        assert not detach_xdp(nf0, expected=programs[1].id)
        assert attached_xdp(nf0) == AttachedXdp(programs[0].id, XdpMode.NATIVE)
        assert detach_xdp(nf0, expected=None)
        assert attached_xdp(nf0) is None

    inside(scenario)


def test_program_outlives_its_object(inside: Inside, nf0: int, counts: Map) -> None:
    def scenario() -> None:
        with compile_program(
            PROGRAMS / "verdict.c",
            "verdict_prog_with_a_long_name",
            defines={"VERDICT": "XDP_PASS", "COUNT_AS": 3},
            maps={"counts": counts},
        ) as program:
            attach_xdp(nf0, program, mode=XdpMode.NATIVE)
        there = attached_xdp(nf0)
        assert there == AttachedXdp(program.id, XdpMode.NATIVE)
        with Program.from_id(there.id) as again:
            assert again.tag == program.tag

    inside(scenario)


def test_interfaces_are_those_of_the_namespace(inside: Inside) -> None:
    assert inside(lambda: interface_name(interface_index("wire0"))) == "wire0"
    with pytest.raises(
        HostError, match=r"^no interface named nf1 in this network namespace \(there are: lo, wire0, nf0\)$"
    ):
        inside(lambda: interface_index("nf1"))
    with pytest.raises(HostError, match="cannot query interface #4321: No such device"):
        inside(lambda: attached_xdp(4321))


def test_no_descriptor_is_left_open(inside: Inside, nf0: int, programs: list[Program]) -> None:
    def cycle() -> None:
        attach_xdp(nf0, programs[0], mode=XdpMode.NATIVE)
        attach_xdp(nf0, programs[1], mode=XdpMode.NATIVE, replace=programs[0].id)
        with pytest.raises(HostError):
            attach_xdp(nf0, programs[2], mode=XdpMode.NATIVE)
        detach_xdp(nf0, expected=programs[1].id)

    inside(cycle)
    before = open_files()
    for _ in range(5):
        inside(cycle)
    assert open_files() <= before
