# SPDX-License-Identifier: Apache-2.0
"""Three network functions on one interface: a third party's before and behind the balancer, real packets."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from nfcore.kernel import Map, MapSpec, MapType
from nfcore.scaffold import Kind, Skeleton, write_skeleton
from tests.kernel.katran_accel.world import CLIENT, NIC, tcp, udp
from tests.kernel.network import send_frame
from tests.kernel.site import Site, command_line, eventually, nfcore, succeed
from tests.kernel.traffic import Rounds, flow_frames

from .test_crash import start_unwatched

pytestmark = pytest.mark.usefixtures("_one_cpu")
CHAIN = ["first", "katran_accel", "last"]
OTHERS = [name for name in CHAIN if name != "katran_accel"]
HOST = "198.18.2.2"
TO_VIP = udp("2001:db8:1::2", "2001:db8:10::1")
"""Of a VIP, and of no port of the others."""
COUNTED = tcp("198.18.1.2", "198.18.10.1")
"""Of a VIP, and of a port of `first`: it passes two functions."""
PROGRAMS = MapSpec("chain_programs", MapType.PROG_ARRAY, np.dtype("<u4"), np.dtype("<u4"), len(CHAIN))


def to_host(port: int) -> bytes:
    """A frame to the host itself: the balancer lets it pass."""
    frame = Ether(src=CLIENT, dst=NIC) / IP(src="198.18.1.2", dst=HOST) / UDP(sport=40_000, dport=port) / b"x"
    return bytes(frame)


@pytest.fixture
def chained(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The TOML of a daemon with the chain; the other two functions are skeletons as authors get them."""
    plugins = site.folder / "plugins"
    for name in OTHERS:
        skeleton = Skeleton(name, Kind.NF)
        write_skeleton(skeleton, make(plugins / skeleton.distribution))
        about = make(plugins / f"{skeleton.module}-0.1.dist-info")
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {skeleton.distribution}\nVersion: 0.1\n")
        plugin = f"{skeleton.module}:{name.capitalize()}Plugin"
        (about / "entry_points.txt").write_text(f"[nfcore.plugins]\n{name} = {plugin}\n")
    sources = [str(plugins / Skeleton(name, Kind.NF).distribution / "src") for name in OTHERS]
    monkeypatch.setenv("PYTHONPATH", ":".join([str(plugins), *sources]))
    path = site.config()
    text = path.read_text().replace('chain = ["katran_accel"]', f"chain = {json.dumps(CHAIN)}")
    text = text.replace("plugins = [", f"plugins = {json.dumps(OTHERS)[:-1]}, ")
    path.write_text(f"{text}\n[first]\nports = [80]\n[last]\nports = [8080]\n")
    yield path
    if (folder := pins(site)).is_mount():
        nfcore("cleanup", str(path))
        assert not folder.exists()


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def pins(site: Site) -> Path:
    return site.socket.with_name("nf.sock.chain")


def left(site: Site) -> list[str]:
    """What stands in the site's folder beside what the test itself has put there."""
    return sorted(path.name for path in site.folder.iterdir() if path.name not in ("nf.toml", "nic", "plugins"))


def counted(site: Site, name: str, path: str) -> float:
    return site.metric(f"nfcore_{name}_packets_total", path=path)


def test_a_packet_without_a_mark_passes_from_one_to_the_next(site: Site, chained: Path) -> None:
    with site.running(chained):
        answer = site.exchange(COUNTED)
        assert len(answer) > len(COUNTED)
        assert (counted(site, "first", "slow"), site.metric("nfcore_packets_total", path="slow")) == (1, 1)
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with receiver:
            receiver.bind((HOST, 8080))
            receiver.settimeout(30)
            send_frame(site.network, to_host(8080))
            assert receiver.recv(100) == b"x"
        assert (counted(site, "first", "slow"), counted(site, "last", "slow")) == (1, 1)


def test_a_packet_with_a_mark_goes_straight_to_the_marks_owner(site: Site, chained: Path) -> None:
    with site.running(chained) as daemon:
        for _ in range(3):
            site.exchange(TO_VIP)
            send_frame(site.network, to_host(8080))
        assert site.installed(2)
        # Without the first function nothing but a mark leads to the others.
        empty_slot(site, 0)
        assert site.exchange(TO_VIP)
        send_frame(site.network, to_host(8080))
        assert eventually(lambda: counted(site, "last", "fast") == 1)
        assert site.metric("nfcore_packets_total", path="fast") == 1
        # A packet without a mark reaches the stack.
        send_frame(site.network, COUNTED)
        send_frame(site.network, to_host(8080))
        assert eventually(lambda: counted(site, "last", "fast") == 2)
        assert counted(site, "first", "slow") == 0
        assert eventually(lambda: "the chain has lost first" in site.daemons.logged())
        assert site.request("health")["troubles"] == ["eth1: the chain has lost first"]
        told = json.loads(nfcore("doctor", str(chained), "--json").stdout)["findings"]
        (finding,) = [each for each in told if each["what"] == "eth1: chain"]
        assert (finding["status"], "first" in finding["found"]) == ("fault", True)
        assert daemon.poll() is None


def test_a_function_that_lacks_a_part_of_the_protocol_is_refused_by_its_name(site: Site, chained: Path) -> None:
    (source,) = (site.folder / "plugins").glob("nfcore-first/src/*/meter.py")
    source.write_text(source.read_text().replace("class Meter(NetworkFunction)", "class Meter"))
    for command, options in {"run": (), "trace": ("--hex", COUNTED.hex())}.items():
        done = subprocess.run(
            command_line(command, str(chained), *options), capture_output=True, text=True, check=False
        )
        told = "plugin first: its network function has no "
        assert done.returncode == 1 and told in done.stderr, done.stderr
        for member in ("let_go", "have_moved", "orders", "rules_ended", "resolve"):
            assert member in done.stderr.partition(told)[2]
        assert "NetworkFunction as its base" in done.stderr


def test_each_row_of_a_trace_has_a_why_of_functions_that_say_none(site: Site, chained: Path) -> None:
    frames = [option for frame in (TO_VIP, COUNTED, to_host(8080), to_host(9)) for option in ("--hex", frame.hex())]
    packets = json.loads(nfcore("trace", str(chained), "--json", *frames, "--hex", f"{COUNTED.hex()} mark=9").stdout)
    rows = [step for packet in packets["packets"] for step in (packet, *packet["steps"])]
    assert {row["function"] for row in rows} == set(CHAIN)
    assert all(row["why"] for row in rows)


def empty_slot(site: Site, slot: int) -> None:
    (pin,) = pins(site).glob("chain_programs_*")
    with Map.open_pinned(pin, PROGRAMS) as programs:
        assert programs.delete(slot)


def test_a_flow_that_an_earlier_function_must_see_gets_its_mark(site: Site, chained: Path) -> None:
    with site.running(chained):
        for _ in range(3):
            site.exchange(COUNTED)
        assert site.installed(1)
        (row,) = site.flows("--state", "installed")
        assert row["nf"] == "first"
        (refused,) = site.flows("--state", "refused")
        assert (refused["nf"], refused["reason"]) == ("katran_accel", "earlier")
        before = site.metric("nfcore_packets_total", path="slow")
        assert site.exchange(COUNTED)
        assert (counted(site, "first", "fast"), counted(site, "first", "slow")) == (1, 3)
        assert site.metric("nfcore_packets_total", path="slow") == before + 1


def test_the_chain_of_a_killed_daemon_goes_on_and_is_replaced(site: Site, chained: Path) -> None:
    with Rounds(flow_frames(8)) as rounds:
        daemon = site.start(chained)
        for _ in range(3):
            site.exchange(TO_VIP)
        assert eventually(lambda: site.rules() >= 1)
        rounds.several(5)
        daemon.kill()
        daemon.wait()
        assert site.exchange(TO_VIP)
        rounds.several(5)
        killed, pinned = site.program(), list(pins(site).glob("chain_programs_*"))
        assert (killed is None, len(pinned)) == (False, 1)
        again, log = start_unwatched(chained)
        site.daemons.started.append(again)
        assert eventually(lambda: rounds.run() and "ready" in log.read_text()), log.read_text()
        assert site.program() != killed
        replaced = list(pins(site).glob("chain_programs_*"))
        assert len(replaced) == 1 and replaced != pinned
        rounds.several(5)
        assert rounds.steady()
        assert site.metric("nfcore_adopted_total") >= 1
        again.terminate()
        assert again.wait(60) == 0
    assert (site.program(), site.rules(), left(site)) == (None, 0, [])


def test_cleanup_leaves_nothing(site: Site, chained: Path) -> None:
    daemon = site.start(chained)
    daemon.kill()
    daemon.wait()
    told = succeed("cleanup", str(chained))
    assert "nfcore: detached program" in told
    assert f"nfcore: removed pin {pins(site)}/chain_programs_" in told
    assert (site.program(), left(site)) == (None, [])
    assert nfcore("cleanup", str(chained)).stdout == "nothing was left\n"


def test_a_chain_may_shrink_to_one_after_a_kill(site: Site, chained: Path) -> None:
    daemon = site.start(chained)
    daemon.kill()
    daemon.wait()
    chained.write_text(chained.read_text().replace(json.dumps(CHAIN), '["katran_accel"]'))
    with site.running(chained):
        assert not pins(site).exists()
        assert site.exchange(COUNTED)
        assert counted(site, "first", "slow") == 0
    assert (site.program(), left(site)) == (None, [])


def test_trace_walks_the_chain(site: Site, chained: Path) -> None:
    marked = ["--hex", f"{COUNTED.hex()}", "--hex", f"{COUNTED.hex()} mark=1", "--hex", f"{TO_VIP.hex()} mark=6"]
    packets = json.loads(succeed("trace", str(chained), *marked, "--hex", to_host(8080).hex(), "--json"))["packets"]
    steps = [[step["function"] for step in packet["steps"]] for packet in packets]
    assert steps == [CHAIN[:2], CHAIN[:2], CHAIN[1:2], CHAIN]
    assert [packet["function"] for packet in packets] == ["katran_accel", "katran_accel", "katran_accel", "last"]
    assert [packet["verdict"] for packet in packets] == ["XDP_TX", "XDP_TX", "XDP_TX", "XDP_PASS"]
    assert [packet["path"] for packet in packets] == ["slow", "slow", "fast", "slow"]
    assert packets[1]["steps"][0]["path"] == "fast"
    shown = succeed("trace", str(chained), *marked)
    assert "passed on" in shown and "first" in shown
    assert "port 80" in shown and "198.18.10.1:80/tcp → 198.18.20." in shown
    assert packets[0]["steps"][0]["target"] == packets[1]["steps"][0]["target"] == {"port": "80"}
    assert (packets[2]["target"].keys(), packets[3]["target"]) == ({"vip", "real"}, {"port": "8080"})
    assert [[step["why"] for step in packet["steps"]] for packet in packets] == [
        ["it has no mark", "it has no mark"],
        ["mark 1 is of first and fits the packet", "the mark has no entry"],
        ["mark 6 is of katran_accel and fits the packet"],
        ["no port of [first]", "it is no traffic of katran_accel", "it has no mark"],
    ]


def test_each_function_is_shown_with_its_own_words(site: Site, chained: Path) -> None:
    with site.running(chained):
        for _ in range(3):
            site.exchange(TO_VIP)
            send_frame(site.network, to_host(8080))
        assert site.installed(2)
        socket_option = ("--socket", str(site.socket))
        (mine,) = site.flows("--match", "last")
        assert (mine["nf"], mine["target"], mine["port"]) == ("last", {"port": "8080"}, "8080")
        both = succeed("flows", *socket_option)
        for words in ("function", "target", "port 8080", "[2001:db8:10::1]:53/udp → 2001:db8:20::1"):
            assert words in both
        alone = succeed("flows", "--match", "last", *socket_option).splitlines()
        assert alone[1].split("┃")[4].strip() == "port" and alone[3].split("│")[4].strip() == "8080"
        assert "VIP" in succeed("flows", "--match", "katran_accel", *socket_option)
        assert "last: port 8080" in succeed("explain", mine["flow"], *socket_option)
        assert "(port 8080)" in succeed("events", "--match", "8080", *socket_option)
        assert f"{mine['flow']}  port 8080" in succeed("top", "--once", "--interval", "0.1", *socket_option)
