# SPDX-License-Identifier: Apache-2.0
"""Actions for flows as a user runs them, the parts that its proof rests on, and the example application."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from demo.flood import segment
from demo.flows import APPLICATION, CONFIG
from demo.lab import CLIENT4, CLIENT6, VIP4, VIP6, Lab
from demo.proof import Prediction
from demo.stage import CONFIG as BALANCER
from demo.wire import Wire, head
from tests.paths import ROOT

from .running import DEMO, run_story, stop_at
from .test_demo import leftovers
from .test_lab import ask, serve

STORY = ["flood", "guard", "dscp", "second_wave"]
PREFIX = "nfflow-"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root (network namespaces, XDP)")


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["dest-id", "flow-id"])
def test_a_flood_is_dropped_and_nobody_else_loses_a_request(strategy: str) -> None:
    summary, _ = run_story("--flows", strategy, STORY, requests=2000, timeout=300)
    assert {event["claim"] for event in summary["events"]} < {check["claim"] for check in summary["checks"]}
    assert leftovers() == set()


@needs_root
@pytest.mark.slow
def test_stopped_amid_the_flood_it_leaves_nothing() -> None:
    stop_at(f"{APPLICATION.name} is started", ["--flows"])
    assert leftovers() == set()


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("others", [["--chaos"], ["--picture", "top.svg"]])
def test_options_that_do_not_go_together(others: list[str]) -> None:
    done = subprocess.run([*DEMO, "--flows", *others], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"demo: {others[0]} and --flows do not go together: use one of them\n"


@pytest.fixture
def lab() -> Any:
    with Lab(PREFIX, nic=False) as built:
        yield built


@needs_root
def test_clients_have_addresses_of_their_own_which_the_wire_shows(lab: Lab) -> None:
    real, more = lab.reals[0], ["198.18.1.3", "2001:db8:1::3"]
    serve(lab, real)
    lab.route_directly(real)
    lab.add_clients(more)
    clients = [CLIENT4, *more]
    with Wire(lab) as wire:
        options = [word for address in clients for word in ("--source", address)]
        records = ask(lab, "short", "close", options=("--short", "12", *options))
        assert [record["answered"] for record in records] == [1] * 12
        assert {record["address"] for record in records} == set(clients)
        assert {source for source, dscp in wire.counts() if dscp == 0} >= set(clients)
        flood = [sys.executable, "-m", "demo.flood", VIP4, VIP6, "--source", CLIENT6, "--packets", "101"]
        lab.run("client", ["sh", "-c", f"cd {ROOT} && {' '.join(flood)} --ports 3"])
        for _ in range(500):
            if wire.sources()[CLIENT6] == 101:
                break
            time.sleep(0.01)
        assert wire.counts()[CLIENT6, 0] == 101


@given(st.ip_addresses(), st.integers(0, 63), st.integers(0, 3))
def test_the_wire_reads_source_and_dscp(source: Any, dscp: int, ecn: int) -> None:
    header = IP if source.version == 4 else IPv6
    kinds = {"tos" if source.version == 4 else "tc": dscp << 2 | ecn}
    packet = bytes(header(src=str(source), dst=VIP4 if source.version == 4 else VIP6, **kinds) / TCP())
    assert head(packet[:40]) == (source.packed, dscp)


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_segments_of_the_flood_have_the_right_checksum(sport: int, dport: int) -> None:
    for header, source, vip in ((IP, CLIENT4, VIP4), (IPv6, CLIENT6, VIP6)):
        made = segment(source, vip, sport, dport)
        right = header(
            bytes(header(src=source, dst=vip) / TCP(sport=sport, dport=dport, seq=1, ack=1, flags="A", window=512))
        )
        assert made == bytes(right[TCP])


def test_its_balancer_is_that_of_the_demo() -> None:
    """Another ring would make its predictions worthless for a reader who compares the two."""
    reals = Lab(PREFIX).reals
    mine, other = Prediction(CONFIG, reals), Prediction(BALANCER, reals)
    for port in range(40000, 40050):
        assert mine.real(VIP4, CLIENT4, port) == other.real(VIP4, CLIENT4, port)


def test_the_application_says_that_there_is_no_daemon(tmp_path: Path) -> None:
    argv = [sys.executable, str(APPLICATION), "--socket", str(tmp_path / "none.sock")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("flood_guard: ") and "Traceback" not in done.stderr
