# SPDX-License-Identifier: Apache-2.0
"""The demo's network, servers and client without a balancer: the parts that the demo's proof rests on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.lab import VIP4, VIP6, Lab, Real
from nfcore.errors import HostError
from tests.paths import ROOT

PREFIX = "nflabt-"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root (network namespaces)")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(PREFIX, nic=False) as built:
        yield built


def serve(lab: Lab, real: Real) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "demo.web", real.name, "--listen", VIP4, "--listen", VIP6]
    process = lab.popen(real.name, argv, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ask(lab: Lab, *commands: str, options: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    argv = [sys.executable, "-m", "demo.load", VIP4, VIP6, "--rate", "100000", *options]
    text = "".join(f"{command}\n" for command in commands)
    client = lab.popen("client", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    output, _ = client.communicate(text, timeout=60)
    assert client.returncode == 0
    events = [json.loads(line) for line in output.splitlines()]
    return [event for event in events if event["event"] == "connection"]


def ends(pid: int) -> bool:
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_client_records_which_real_answered_each_connection(lab: Lab) -> None:
    for real in lab.reals:
        serve(lab, real)
    sizes = ("--short", "6", "--kept", "5", "--warm", "2", "--measured", "10")
    for real in lab.reals:
        lab.route_directly(real)
        records = ask(lab, "short", "open", "idle", "main", "close", options=sizes)
        assert [record["kind"] for record in records] == ["short"] * 6 + ["kept"] * 5
        for record in records:
            wanted = 1 if record["kind"] == "short" else 13
            assert (record["asked"], record["answered"], record["error"]) == (wanted, wanted, None)
            assert record["reals"] == {real.name: wanted}
            assert record["strange"] == 0
        assert {record["family"] for record in records} == {4, 6}


def test_churn_renews_connections_until_told_to_stop(lab: Lab) -> None:
    serve(lab, lab.reals[0])
    lab.route_directly(lab.reals[0])
    argv = [sys.executable, "-m", "demo.load", VIP4, VIP6, "--kept", "8", "--life", "5", "--rate", "2000"]
    client = lab.popen("client", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write("churn\n")
    client.stdin.flush()
    while json.loads(client.stdout.readline())["answered"] < 300:
        pass
    output, _ = client.communicate("calm\nclose\n", timeout=60)
    assert client.returncode == 0
    events = [json.loads(line) for line in output.splitlines()]
    assert [event["phase"] for event in events if event["event"] == "done"] == ["churn", "close"]
    records = [event for event in events if event["event"] == "connection"]
    assert sum(record["answered"] for record in records) == sum(record["asked"] for record in records) >= 300
    assert all(record["error"] is None and record["strange"] == 0 for record in records)
    kept = [record["asked"] for record in records if record["kind"] == "kept"]
    # The first ones begin at any age, the last ones are cut off.
    assert max(kept[8:]) == 5
    assert len(kept) > 20
    short = [record for record in records if record["kind"] == "short"]
    assert all(record["asked"] == 1 for record in short)
    assert {record["family"] for record in short} == {4, 6}
    asked = [record for record in records if record["asked"]]
    assert all(record["began"] <= record["connected"] <= record["last"] for record in asked)


def test_the_lab_tells_what_a_real_sees(lab: Lab) -> None:
    real = lab.reals[0]
    serve(lab, real)
    lab.route_directly(real)
    before = lab.received(real.name, "eth0")
    assert lab.tcp_sockets(real.name, 80) == 0
    argv = [sys.executable, "-m", "demo.load", VIP4, VIP6, "--kept", "6", "--warm", "1"]
    client = lab.popen("client", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write("open\n")
    client.stdin.flush()
    while json.loads(client.stdout.readline())["event"] != "done":
        pass
    assert lab.tcp_sockets(real.name, 80) == 6
    assert lab.received(real.name, "eth0") >= before + 6 * 3
    client.communicate("close\n", timeout=60)
    for _ in range(500):
        if lab.tcp_sockets(real.name, 80) == 0:
            break
        time.sleep(0.01)
    assert lab.tcp_sockets(real.name, 80) == 0


def test_client_never_retries(lab: Lab) -> None:
    server = serve(lab, lab.reals[0])
    lab.route_directly(lab.reals[0])
    argv = [sys.executable, "-m", "demo.load", VIP4, "--kept", "2", "--warm", "1", "--deadline", "2"]
    client = lab.popen("client", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write("open\n")
    client.stdin.flush()
    while json.loads(client.stdout.readline())["event"] != "done":
        pass
    # The server comes back at once, so that a client that opened a second connection would be served.
    lab.stop(server)
    serve(lab, lab.reals[0])
    output, _ = client.communicate("idle\nidle\nclose\n", timeout=60)
    records = [json.loads(line) for line in output.splitlines() if '"connection"' in line]
    assert [(record["asked"], record["answered"]) for record in records] == [(3, 1), (3, 1)]
    assert all(record["error"] for record in records)


def test_lost_packets_are_lost_requests(lab: Lab) -> None:
    serve(lab, lab.reals[0])
    lab.route_directly(lab.reals[1])
    lab.run(lab.reals[1].name, ["ip", "link", "set", "eth0", "down"])
    records = ask(lab, "short", "close", options=("--short", "2", "--deadline", "0.5"))
    assert [record["answered"] for record in records] == [0, 0]
    assert all(record["error"] for record in records)


def test_full_packet_fits_the_tunnel_links(lab: Lab) -> None:
    # 1500 bytes of the client's packet and 40 of an outer IPv6 header, never to be fragmented.
    probe = (
        "import socket, sys; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); "
        "s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DONTFRAG, 1); "
        "print(s.sendto(bytes(1540 - 48), (sys.argv[1], 9)))"
    )
    for real in lab.reals:
        assert lab.run("lb", [sys.executable, "-c", probe, real.v6]).stdout == f"{1540 - 48}\n"


def test_nothing_is_left(lab: Lab) -> None:
    server = serve(lab, lab.reals[0])
    assert lab.leftovers() == sorted(lab.namespace(role) for role in lab.roles)
    lab.remove()
    assert server.poll() is not None
    assert lab.leftovers() == []


def test_a_killed_lab_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    # The shell shows by its file that it runs, hence is past the set-up of its end with its parent's.
    started = tmp_path / "started"
    script = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from demo.lab import Lab\n"
        f"lab = Lab({PREFIX!r})\n"
        "lab.__enter__()\n"
        "lab.popen('gw', ['sh', '-c', 'echo $$ > $0; exec sleep 300', sys.argv[1]])\n"
        "while not (Path(sys.argv[1]).exists() and Path(sys.argv[1]).read_text()): time.sleep(0.01)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    argv = [sys.executable, "-c", script, str(started)]
    killed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert ends(int(started.read_text()))
    lab = Lab(PREFIX)
    assert lab.leftovers()
    lab.remove()
    assert lab.leftovers() == []


def test_prefix_is_checked() -> None:
    with pytest.raises(HostError, match="expected"):
        Lab("")


def test_errors_carry_the_command_s_own_words(lab: Lab) -> None:
    with pytest.raises(HostError, match=r"eth77\W does not exist"):
        lab.run("gw", ["ip", "link", "show", "dev", "eth77"])
