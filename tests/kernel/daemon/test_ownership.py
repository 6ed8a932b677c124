# SPDX-License-Identifier: Apache-2.0
"""Whose a program is: the kernel says it, whatever becomes of files, names and indexes."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfcore.api.locks import FOLDER as LOCKS
from nfcore.kernel import attached_xdp, owner_of
from tests.kernel.site import Site, eventually, ip, nfcore, succeed
from tests.kernel.traffic import Rounds, flow_frames

ELSEWHERE = "ownership"
"""A network namespace to which interfaces are moved."""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    ip("netns", "add", ELSEWHERE)
    yield ELSEWHERE
    ip("netns", "del", ELSEWHERE)


def unaccelerated(text: str) -> str:
    """A TOML without its NIC."""
    text = text.replace('"softnic", ', "").replace('offload = ["softnic"]', 'offload = ["none"]')
    return "\n".join(line for line in text.splitlines() if not line.startswith(("[softnic]", "pins")))


def lose_notes(site: Site) -> None:
    """Remove what a lost /run takes along: sockets, notes and locks."""
    for pattern in ("*.sock", "*.state"):
        for path in site.folder.glob(pattern):
            path.unlink()
    shutil.rmtree(LOCKS, ignore_errors=True)


def kill(site: Site, config: Path) -> int:
    """Start a daemon and kill it; the id of the program that it leaves."""
    daemon = site.start(config)
    daemon.kill()
    daemon.wait()
    left = site.program()
    assert left is not None
    return left


def move_away_and_back(elsewhere: str) -> None:
    """Move eth1 to another namespace and back, where its index is somebody else's meanwhile."""
    index = socket.if_nametoindex("eth1")
    ip("link", "set", "eth1", "netns", elsewhere)
    ip("link", "add", "name", "squatter", "index", str(index), "type", "veth", "peer", "name", "squatter1")
    ip("-n", elsewhere, "link", "set", "eth1", "netns", str(os.getpid()))
    ip("link", "set", "eth1", "up")
    ip("address", "add", "198.18.2.2/24", "dev", "eth1")
    ip("neighbour", "replace", "198.18.2.1", "lladdr", "02:00:5e:00:00:fe", "dev", "eth1")
    ip("route", "replace", "default", "via", "198.18.2.1")
    assert socket.if_nametoindex("eth1") != index


def test_a_program_says_whose_it_is_and_whether_its_daemon_lives(site: Site) -> None:
    daemon = site.start(site.config())
    program = site.program()
    assert program is not None
    owner = owner_of(program)
    assert owner is not None
    assert (owner.kind, owner.place, owner.process) == ("daemon", str(site.socket), daemon.pid)
    assert owner.lives
    daemon.kill()
    daemon.wait()
    owner = owner_of(program)
    assert owner is not None and not owner.lives


def test_nobody_is_told_to_remove_a_living_daemons_program(site: Site) -> None:
    with site.running(site.config()):
        made = nfcore("softnic", "create", "--wire", "eth1", "--port", "eth1", "--pin", "/run/nfcore/bpf/another")
        assert made.returncode == 1
        assert "in use by another nfcore, process" in made.stderr and "xdp off" not in made.stderr


def test_an_interface_that_moves_away_is_said_to_have_the_program(site: Site, elsewhere: str) -> None:
    config = site.config()
    with site.running(config):
        ip("link", "set", "eth1", "netns", elsewhere)
        assert eventually(lambda: f"nsenter --net=/run/netns/{elsewhere} nfcore cleanup" in site.daemons.logged())
    ip("-n", elsewhere, "link", "set", "eth1", "netns", str(os.getpid()))
    succeed("cleanup", str(config))
    assert site.program() is None


def test_without_any_note_the_next_run_takes_the_program_over(site: Site) -> None:
    config = site.config()
    left = kill(site, config)
    lose_notes(site)
    with site.running(config):
        assert site.program() not in (None, left)
    assert site.program() is None


def test_without_any_note_cleanup_removes_the_program(site: Site) -> None:
    config = site.config()
    left = kill(site, config)
    lose_notes(site)
    assert f"detached program {left} from eth1" in succeed("cleanup", str(config))
    assert site.program() is None
    assert succeed("cleanup", str(config)) == "nothing was left\n"


def test_another_socket_takes_over_what_a_dead_daemon_left(site: Site) -> None:
    config = site.config()
    kill(site, config)
    config.write_text(config.read_text().replace("nf.sock", "renamed.sock"))
    assert "detached program" in succeed("cleanup", str(config))
    assert site.program() is None


def test_a_living_daemon_without_notes_is_not_robbed(site: Site) -> None:
    config = site.config()
    other = site.folder / "other.toml"
    other.write_text(config.read_text().replace("nf.sock", "other.sock"))
    with site.running(config) as daemon:
        program = site.program()
        lose_notes(site)
        for command in ("run", "cleanup"):
            for toml in (config, other):
                refused = nfcore(command, str(toml))
                assert refused.returncode == 1
                assert f"process {daemon.pid} with the socket {site.socket}" in refused.stderr
        assert site.program() == program
        assert daemon.poll() is None


def test_a_daemon_with_another_interface_keeps_its_notes(site: Site) -> None:
    """Its socket file is gone, and the TOML names another interface now: that is no reason to take its notes."""
    config = site.config()
    changed = site.folder / "changed.toml"
    changed.write_text(config.read_text().replace("eth1", "net0"))
    with site.running(config):
        notes = {path.name for path in site.folder.glob("*.state")}
        site.socket.unlink()
        for command in ("run", "cleanup"):
            refused = nfcore(command, str(changed))
            assert refused.returncode == 1
            assert f"socket {site.socket} is in use by another nfcore" in refused.stderr
        assert {path.name for path in site.folder.glob("*.state")} == notes


def test_the_nic_of_another_daemon_is_left_alone(site: Site) -> None:
    config = site.config(katran='gateway_mac = "02:00:5e:00:00:fe"')
    other = site.folder / "other.toml"
    other.write_text(config.read_text().replace("nf.sock", "other.sock").replace("eth1", "net0"))
    with Rounds(flow_frames(3)) as rounds, site.running(config):
        rounds.offload(site)
        for command in ("run", "cleanup"):
            refused = nfcore(command, str(other))
            assert refused.returncode == 1
            assert f"folder {site.nic} is in use by another nfcore" in refused.stderr
        assert site.rules() == 3


@pytest.mark.parametrize("notes", ["kept", "lost"])
def test_an_interface_that_was_away_is_taken_over(site: Site, elsewhere: str, notes: str) -> None:
    config = site.config()
    left = kill(site, config)
    move_away_and_back(elsewhere)
    try:
        assert site.program() == left
        if notes == "lost":
            lose_notes(site)
        with site.running(config):
            assert site.program() not in (None, left)
        assert site.program() is None
        left = kill(site, config)
        assert f"detached program {left} from eth1" in succeed("cleanup", str(config))
        assert site.program() is None
    finally:
        ip("link", "del", "squatter")


def test_a_daemon_whose_interface_was_away_detaches_its_program(site: Site, elsewhere: str) -> None:
    with site.running(site.config()):
        move_away_and_back(elsewhere)
        assert site.program() is not None
    try:
        assert site.program() is None
    finally:
        ip("link", "del", "squatter")


def test_an_interface_that_was_renamed_is_found(site: Site) -> None:
    config = site.config()
    left = kill(site, config)
    ip("link", "set", "eth1", "down")
    ip("link", "set", "eth1", "name", "eth9")
    lose_notes(site)
    assert f"detached program {left} from eth9" in succeed("cleanup", str(config))
    assert attached_xdp(socket.if_nametoindex("eth9")) is None


@pytest.mark.parametrize(("first", "second"), [("lb.1", "lb.2"), ("lb.sock", "lb.new"), ("lb", "lb.sock")])
def test_sockets_with_names_alike_have_notes_of_their_own(site: Site, first: str, second: str) -> None:
    config = site.config()
    text = config.read_text()
    config.write_text(text.replace("nf.sock", first))
    other = site.folder / "other.toml"
    other.write_text(unaccelerated(text.replace("nf.sock", second).replace("eth1", "net0")))
    site.daemons.socket = site.folder / first
    with Rounds(flow_frames(3)) as rounds:
        daemon = site.start(config)
        rounds.offload(site)
        assert site.daemons.socket.is_socket()
        before = {path.name: path.read_bytes() for path in site.folder.glob("lb*.state")}
        # A killed daemon's socket: it answers no more.
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(site.folder / second))
        assert succeed("cleanup", str(other)) == f"nfcore: removed {site.folder / second}\n"
        assert {path.name: path.read_bytes() for path in site.folder.glob("lb*.state")} == before != {}
        daemon.kill()
        daemon.wait()
    with site.running(config):
        assert eventually(lambda: site.metric("nfcore_flows", state="installed") == 3)
        assert site.metric("nfcore_stale_removed_total") == 0


def test_a_nic_without_its_pins_is_found_by_its_folder(site: Site) -> None:
    for pin in site.nic.iterdir():
        if "." not in pin.name:
            pin.unlink()
    again = nfcore("softnic", "create", "--wire", "wire0", "--port", "port0", "--pin", str(site.nic))
    assert again.returncode == 1
    assert f"nfcore softnic remove --pin {site.nic}" in again.stderr
    removed = succeed("softnic", "remove", "--pin", str(site.nic))
    assert removed.count("removed program") == 2
    assert attached_xdp(socket.if_nametoindex("wire0")) is None
    site.make_nic()
