# SPDX-License-Identifier: Apache-2.0
"""`nfcore events` before a real daemon: what is told, how it is followed, and how that ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nfcore.control.client import Client
from tests.kernel.site import PATIENCE, VIPS, Site, command_line, eventually, nfcore, succeed, vip_toml
from tests.kernel.traffic import Rounds, flow_frames, flow_text

pytestmark = pytest.mark.usefixtures("_one_cpu")
EXCLUDED = "198.18.1.3"


def events(site: Site, *options: str) -> list[dict[str, Any]]:
    told = succeed("events", "--socket", str(site.socket), "--json", *options)
    return [json.loads(line) for line in told.splitlines()]


@contextmanager
def following(site: Site, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = command_line("events", "-f", "--socket", str(site.socket), *options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                running.kill()


def next_line(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline()


@pytest.mark.slow
def test_what_happens_is_told_and_why(site: Site) -> None:
    config = site.config(offload=f'exclude = ["{EXCLUDED}"]')
    with site.running(config), Rounds(flow_frames(4)) as rounds, Rounds(flow_frames(2, client=EXCLUDED)) as refused:
        rounds.offload(site)
        refused.several(3)
        installed = events(site, "--kind", "installed")
        assert sorted(event["flow"] for event in installed) == [flow_text(number) for number in range(4)]
        marks = {flow: mark for flow, (mark, _) in site.in_hardware().items()}
        assert {event["flow"]: event["mark"] for event in installed} == marks
        assert all(event["backend"] == "softnic" and event["interface"] == "eth1" for event in installed)
        (one,) = events(site, "--match", f"{EXCLUDED}:40000")
        assert (one["kind"], one["reason"]) == ("refused", "excluded")
        assert [event["flow"] for event in events(site, "--last", "1", "--reason", "excluded")] != []
        with site.backend() as nic:
            rules = nic.dump()["rule"]
            from nfcore.api.rules import RuleBatch

            nic.remove(RuleBatch(rules))
        assert eventually(lambda: len(events(site, "--kind", "put-back")) == 4)
        assert len(events(site, "--kind", "vanished", "--since", "5m")) == 4
        succeed("offload", "off", "--socket", str(site.socket))
        assert eventually(lambda: len(events(site, "--kind", "ended", "--reason", "switched_off")) == 4)
        ends = events(site, "--kind", "ended", "--kind", "switch")
        assert ends[0]["message"].startswith("offloading is switched off: 4 flows")
        (ready, *_) = events(site)
        assert (ready["kind"], ready["message"]) == ("daemon", "ready")
        words = succeed("events", "--socket", str(site.socket), "--kind", "ended", "--last", "1")
        assert "offloading is switched off" in words and "→ 198.18.20." in words and "mark" in words
        assert events(site, "--since", "2100-01-01") == []


@pytest.mark.slow
def test_a_reload_and_a_restart(site: Site) -> None:
    config = site.config(katran=f'pin_dir = "{site.pins}"')
    daemon = site.start(config)
    with Rounds(flow_frames(3)) as rounds:
        rounds.offload(site)
        site.config(katran=f'pin_dir = "{site.pins}"', vips=VIPS + vip_toml("198.18.20.11", address="198.18.10.9"))
        succeed("reload", "--socket", str(site.socket))
        site.config(strategy="flow-id")
        assert nfcore("reload", "--socket", str(site.socket)).returncode == 2
        changed, refused = events(site, "--kind", "reload")
        assert changed["message"].startswith("changed: katran_accel")
        assert refused["message"].startswith("refused, everything stays as it was") and "marking" in refused["message"]
    site.config(katran=f'pin_dir = "{site.pins}"')
    succeed("reload", "--socket", str(site.socket))
    daemon.kill()
    daemon.wait()
    with site.running(config):
        told = events(site, "--kind", "adopted", "--kind", "nic")
        assert told and (len(told) == 3 or "of an earlier run" in told[0]["message"])


@pytest.mark.slow
def test_following(site: Site) -> None:
    with site.running(site.config()), Rounds(flow_frames(3)) as rounds, Rounds(flow_frames(5)) as more:
        rounds.offload(site)
        with following(site, "--json", "--kind", "installed") as running:
            seen = [json.loads(next_line(running))["flow"] for _ in range(3)]
            assert sorted(seen) == [flow_text(number) for number in range(3)]
            more.offload(site)
            seen = [json.loads(next_line(running))["flow"] for _ in range(2)]
            assert sorted(seen) == [flow_text(3), flow_text(4)]
            running.send_signal(signal.SIGINT)
            assert running.wait(PATIENCE) == 130
            assert running.stderr is not None and running.stderr.read() == ""
        with following(site, "--last", "0") as running:
            time.sleep(1.0)
            succeed("offload", "off", "--socket", str(site.socket))
            assert "offloading is switched off: 5 flows" in next_line(running)


def test_following_ends_with_the_daemon(site: Site) -> None:
    daemon = site.start(site.config())
    with following(site) as running:
        assert "ready" in next_line(running)
        daemon.terminate()
        assert running.wait(PATIENCE) == 1
        assert running.stderr is not None
        assert running.stderr.read() == f"error: the daemon at {site.socket} has ended\n"
    assert daemon.wait(PATIENCE) == 0


def test_a_pipe_that_is_closed(site: Site) -> None:
    with site.running(site.config()):
        command = f"{sys.executable} -m nfcore.cli events -f --socket {site.socket} | head -1"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert "ready" in done.stdout and done.stderr == ""


def test_a_flood_is_followed_at_the_followers_pace(site: Site, tmp_path: Path) -> None:
    """Followers that do not read, and one that is slow, hold nobody up, and the slow one is told what it missed."""
    config = site.config(offload='exclude = ["198.18.1.0/24"]\nremembered = 20000')
    config.write_text(config.read_text().replace("[[interfaces]]", "events_kept = 1000\n[[interfaces]]", 1))
    with site.running(config), Client(site.socket) as slow, Client(site.socket) as deaf:
        first = slow.request("events")
        deaf._socket.sendall(b'{"method": "events", "params": {"since": 0, "wait": 1}}\n' * 50)
        with Rounds(flow_frames(2000)) as rounds:
            rounds.several(4)
        assert eventually(lambda: site.metric("nfcore_not_offloaded_total") >= 2000)
        answer = slow.request("events", since=first["next"])
        assert answer["lost"] >= 1000 and len(answer["events"]) == 500
        told = nfcore("events", "--socket", str(site.socket), "--json")
        assert len(told.stdout.splitlines()) >= 1000


@pytest.mark.slow
def test_mistakes_are_named(site: Site) -> None:
    with site.running(site.config()):
        for options, words in (
            (["--reason", "tired"], "reasons: is 'tired'; should be one of"),
            (["--interface", "eth9"], "interfaces: is 'eth9'; the daemon's interfaces are: eth1"),
            (["--since", "yesterday"], "since: is 'yesterday'; should be a duration such as '5m', or a time"),
        ):
            done = nfcore("events", "--socket", str(site.socket), *options)
            assert (done.returncode, done.stdout) == (2, "") and words in done.stderr
        assert "ready" in succeed("events", "--socket", str(site.socket), "--since", "99999999999999h")
    done = nfcore("events", "--socket", str(site.socket))
    assert done.returncode == 1 and "start one: nfcore run CONFIG" in done.stderr


def test_operators_of_a_group_may_look_and_not_order(site: Site) -> None:
    config = site.config()
    config.write_text(config.read_text().replace("[[interfaces]]", 'socket_group = "nogroup"\n[[interfaces]]', 1))

    def as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
        script = (
            "import os, sys; from nfcore.control.client import request; from pathlib import Path;"
            "fd = os.open(sys.argv[1], os.O_PATH); os.setgroups([]); os.setresgid(*[65534] * 3);"
            "os.setresuid(*[65534] * 3); print(request(Path(f'/proc/self/fd/{fd}'), *sys.argv[2:]))"
        )
        command = [sys.executable, "-c", script, str(site.socket), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    with site.running(config):
        assert os.stat(site.socket).st_mode & 0o777 == 0o660  # noqa: PTH116 - stat of a socket
        assert "events" in as_nobody("events").stdout
        done = as_nobody("offload")
        assert "offload changes the daemon, which only root may do: use sudo" in done.stderr
        assert "metrics" in as_nobody("stats").stdout


def test_a_daemon_that_logs_json(site: Site) -> None:
    command = command_line("--log-format", "json", "run", str(site.config()))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        told = []
        for line in running.stderr:
            told.append(json.loads(line))
            if told[-1]["message"].startswith("ready"):
                break
        for _ in range(2):
            succeed("offload", "off", "--socket", str(site.socket))
            succeed("offload", "on", "--socket", str(site.socket))
        running.send_signal(signal.SIGTERM)
        told += [json.loads(line) for line in running.stderr]
        assert running.wait(PATIENCE) == 0
    orders = [(entry["level"], entry["message"].split(":")[0]) for entry in told if entry["logger"] == "nfcore.audit"]
    assert orders == [("warning", f"offloading is switched {how}") for how in ("off", "on") * 2]
    assert {"level", "logger", "message", "time"} <= told[0].keys()
