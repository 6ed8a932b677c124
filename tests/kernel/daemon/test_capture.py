# SPDX-License-Identifier: Apache-2.0
"""`nfcore capture` before a real daemon: lines, pcap-ng in files and pipes, bounds, mistakes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.l2 import Ether

from tests.kernel.katran_accel.world import tcp
from tests.kernel.network import send_frame
from tests.kernel.site import PATIENCE, VIP, Site, eventually, nfcore, open_site, succeed

from .captures import capturing, finish, packets_of, runs

pytestmark = pytest.mark.usefixtures("_one_cpu")
FRAME, NO_VIP = tcp("198.18.1.2", VIP), tcp("198.18.1.2", VIP, dport=81)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(tmp_path_factory.mktemp("site")) as site, site.running(site.config(katran="capture = true")):
        yield site


def test_a_file_for_wireshark(shared: Site, tmp_path: Path) -> None:
    path, new = tmp_path / "lb.pcapng", tcp("198.18.1.2", VIP, sport=41_000)
    with capturing(shared, "-w", str(path), "--count", "2", "--verdict", "tx") as running:
        send_frame(shared.network, NO_VIP)
        sent = [shared.exchange(new) for _ in range(2)]
        out, error = finish(running)
    assert (out, error) == (b"", "captured 2 packets, 2 fitted, 0 lost for want of room\n")
    found = packets_of(path)
    assert [frame for frame, _ in found] == [frame[:128] for frame in sent]
    real = Ether(sent[0]).payload.dst
    for (_, meta), reason in zip(found, ("new", "known"), strict=True):
        assert (meta.ifname, meta.linktype, meta.tsresol, meta.wirelen) == (b"eth1", 1, 10**9, len(sent[0]))
        (comment,) = meta.comments
        assert comment.decode().startswith(f"tx: {reason}, ") and f"VIP {VIP}:80/tcp; real {real};" in comment.decode()
        assert comment.decode().endswith(f"; {len(new)} bytes on arrival")
    assert not runs(shared)


def test_each_packet_is_there_at_once_and_a_signal_ends_it_well(shared: Site, tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        path = tmp_path / "live.pcapng"
        with capturing(shared, "-w", str(path)) as running:
            shared.exchange(FRAME)
            assert eventually(lambda path=path: len(packets_of(path)) == 1)
            running.send_signal(number)
            assert finish(running) == (b"", "captured 1 packet, 1 fitted, 0 lost for want of room\n")
        assert not runs(shared)


def test_a_pipe_that_is_closed(shared: Site) -> None:
    with capturing(shared, "-w", "-") as running:
        assert running.stdout is not None
        assert running.stdout.read(4) == b"\n\r\r\n"
        running.stdout.close()
        assert running.stderr is not None and running.stderr.read() == b""
        running.wait(PATIENCE)
    assert not runs(shared)


def test_lines_and_objects(shared: Site) -> None:
    with capturing(shared, "--verdict", "pass", "--count", "1") as running:
        send_frame(shared.network, NO_VIP)
        out, _ = finish(running)
    line = b" eth1 198.18.1.2:40000 > 198.18.10.1:81/tcp pass: not_a_vip, to no VIP; CPU "
    assert line in out and out.count(b"\n") == 1
    with capturing(shared, "--json", "--reason", "not_addressed", "--count", "1") as running:
        send_frame(shared.network, b"\2\0\0\0\0\7" + FRAME[6:])
        packet = json.loads(finish(running)[0])
    assert (packet["verdict"], packet["reason"], packet["vip"]) == ("pass", "not_addressed", None)
    assert packet["flow"] == f"198.18.1.2:40000 > {VIP}:80/tcp"
    assert packet["length"] == packet["arrived_length"] == len(FRAME)


def test_bounds_of_time_and_bytes(shared: Site, tmp_path: Path) -> None:
    path = tmp_path / "small.pcapng"
    with capturing(shared, "-w", str(path), "--bytes", "600", "--reason", "not_a_vip") as running:
        for _ in range(9):
            send_frame(shared.network, NO_VIP)
        _, error = finish(running)
    written = len(packets_of(path))
    assert 0 < written < 9 and path.stat().st_size <= 600 + 100
    assert error.startswith(f"captured {written} packet")
    done = succeed("capture", "--socket", str(shared.socket), "--seconds", "0.1", "--reason", "too_big")
    assert done == ""


def test_a_reader_that_is_killed(shared: Site) -> None:
    with capturing(shared) as running:
        running.kill()
        assert eventually(lambda: not runs(shared))


def test_mistakes_are_named(shared: Site, tmp_path: Path) -> None:
    socket = ("--socket", str(shared.socket))
    for options, status, message in (
        (["--vip", "198.18.10.9"], 2, f"vip: is '198.18.10.9'; the VIPs are: {VIP}:80/tcp, [2001:db8:10::1]:53/udp"),
        (["--real", "198.18.20.99"], 2, "real: is '198.18.20.99'; the reals are: 198.18.20.11, "),
        (["--reason", "tired"], 2, "reasons: is 'tired'; should be one of unknown, by_mark, "),
        (["--verdict", "TX"], 2, "verdicts: is 'TX'; should be one of drop, pass, tx"),
        (["-w", "x", "--json"], 2, "--json: does not go with -w"),
        (["-w", str(tmp_path / "no" / "where")], 1, "-w: cannot write"),
        (["-w", "/dev/full"], 1, "-w: cannot write"),
    ):
        done = nfcore("capture", *socket, *options)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert message in done.stderr and "Traceback" not in done.stderr
    assert not runs(shared)


def test_a_terminal_is_not_written_to(shared: Site) -> None:
    script = f"{sys.executable} -m nfcore.cli capture --socket {shared.socket} -w - 2>&1"
    done = subprocess.run(
        ["script", "-qec", script, "/dev/null"], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 2 and "-w: is -, and standard output is a terminal" in done.stdout
