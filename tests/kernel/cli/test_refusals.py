# SPDX-License-Identifier: Apache-2.0
"""What the kernel refuses: fewer rights, full and read-only places. Each has its place, its cause and what helps."""

from __future__ import annotations

import grp
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfcore.bench.testbed import CACHE, run
from nfcore.kernel import egress_programs, interface_index
from nfcore.plugins.katran_accel.healthcheck.program import FILTER_PRIORITY
from tests.kernel.network import namespaces
from tests.kernel.site import command_line

from .obstacles import FRAME, LEAST, LINK, Place, call, follow, interface, mounted

LOCKS = Path("/run/nfcore")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with interface():
        place = Place(tmp_path)
        yield place
        place.daemons.kill_all()


# -- rights


def test_a_stop_needs_no_more_rights_than_a_start(place: Place) -> None:
    place.runs(LEAST)


def test_health_checks_are_detached_with_the_rights_of_a_start(place: Place) -> None:
    run("ip", "address", "add", "198.18.2.2/24", "dev", LINK)
    place.write(more="[katran_accel.healthcheck]\n")
    with place.daemons.running(place.path):
        assert egress_programs(interface_index(LINK), FILTER_PRIORITY)
    place.runs(LEAST)
    assert egress_programs(interface_index(LINK), FILTER_PRIORITY) == []


def test_a_killed_run_is_replaced_and_removed_with_the_rights_of_a_start(place: Place) -> None:
    place.kill_one()
    place.runs(LEAST)
    place.kill_one()
    done = place("cleanup", enter=LEAST)
    assert (done.returncode, place.attached()) == (0, None), done.stderr
    assert "detached program" in done.stdout


def test_pins_and_chains_take_a_mounted_file_system_and_no_more_rights(place: Place) -> None:
    pins, chain = place.folder / "pins", place.folder / "nf.sock.chain"
    place.write(
        ('chain = ["katran_accel"]', 'chain = ["flow_actions", "katran_accel"]'),
        ("lru_size = 4096", f'lru_size = 4096\npin_dir = "{pins}"'),
    )
    refused = place.start_fails(LEAST)
    assert f"cannot mount a bpf file system at {chain}" in refused or f"at {pins}" in refused
    assert "CAP_SYS_ADMIN" in refused
    with mounted(pins, kind="bpf"), mounted(chain, kind="bpf"):
        place.runs(LEAST)
        place.kill_one()
        done = place("cleanup", enter=LEAST)
        assert (done.returncode, place.attached()) == (0, None), done.stderr


@pytest.mark.parametrize("capability", ["bpf", "net_admin", "perfmon"])
def test_a_missing_capability_is_named(place: Place, capability: str) -> None:
    less = ("setpriv", "--bounding-set", f"-sys_admin,-{capability}")
    others = {"CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_ADMIN"} - {f"CAP_{capability.upper()}"}
    for command in (["run"], ["trace", "--hex", FRAME], ["cleanup"]):
        done = place(*command, enter=less)
        assert done.returncode == 1
        assert f"CAP_{capability.upper()} (" in done.stderr
        assert not [other for other in others if other in done.stderr]
    assert place.findings(less)[1]["privileges"]["status"] == "fault"
    done = call(*less, *command_line("decap", LINK))
    assert (done.returncode, f"CAP_{capability.upper()} (" in done.stderr) == (1, True), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_user_with_the_capabilities_need_not_be_root(place: Place) -> None:
    user = "65534"
    for folder in (place.folder, *place.folder.parents[:3]):
        folder.chmod(0o755)
    less = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")
    assert "needs root: use sudo" in place("run", enter=less).stderr
    caps = "+bpf,+net_admin,+perfmon"
    refused = place.start_fails((*less, "--inh-caps", caps, "--ambient-caps", caps))
    assert f"user {user} may not create files in the folder" in refused


# -- places


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("size=4k", "has no room for more data"),
        ("nr_inodes=2", "has no room for another file"),
        ("ro", "is mounted read-only"),
    ],
)
def test_a_place_for_locks_that_cannot_be_written(place: Place, options: str, words: str) -> None:
    with mounted(LOCKS, "-o", options):
        if options == "size=4k":
            (LOCKS / "much").write_bytes(bytes(4096))
        done = place("run")
        assert place.attached() is None
        for command in (done, place("cleanup")):
            assert command.returncode == 1
            assert f"{LOCKS} (tmpfs) {words}" in command.stderr
        assert [path for path in LOCKS.rglob("*") if path.is_file() and path.name != "much"] == []
        follow(done.stderr)
        place.runs()


def test_a_cache_that_cannot_be_written(place: Place) -> None:
    with mounted(CACHE, "-o", "ro"):
        refused = place.start_fails()
        assert f"{CACHE} (tmpfs) is mounted read-only" in refused
        found = place.findings()[1]["headers"]
        assert found["status"] == "fault"
        assert "linux-libc-dev" not in refused + str(found)
        assert "let NFCORE_CACHE_DIR name another folder" in refused
        elsewhere = ("env", f"NFCORE_CACHE_DIR={place.folder}/cache")
        assert place("trace", "--hex", FRAME, enter=elsewhere).returncode == 0
        follow(refused)
        place.runs()


def test_no_folder_for_temporary_files_is_needed(place: Place) -> None:
    close = "for d in /tmp /var/tmp; do mount --bind $d $d && mount -o remount,bind,ro $d || exit 9; done"
    with mounted(CACHE):
        enter = ("env", "-C", "/sys", "-u", "TMPDIR", "unshare", "-m", "sh", "-c", f'{close}; exec "$0" "$@"')
        done = place("trace", "--hex", FRAME, enter=enter)
        assert done.returncode == 0, done.stderr


def test_a_bind_mount_is_made_writable_itself(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "bound"
    folder.mkdir()
    place.write((f"{place.folder}/nf.sock", f"{folder}/nf.sock"))
    place.daemons.socket = folder / "nf.sock"
    call("mount", "--bind", str(folder), str(folder))
    call("mount", "-o", "remount,bind,ro", str(folder))
    try:
        refused = place.start_fails()
        assert f"mount -o remount,bind,rw {folder}" in refused
        follow(refused.splitlines()[-1])
        place.runs()
    finally:
        call("umount", str(folder))


def test_too_few_descriptors(place: Place) -> None:
    for files in (6, 12, 20):
        refused = place.start_fails(("prlimit", f"--nofile={files}"))
        assert f"this process may have {files} open: raise that with ulimit -n" in refused


@pytest.mark.parametrize(
    ("there", "words"),
    [("file", "is no folder: remove it"), ("circle", "leads back to itself: remove it")],
)
def test_something_else_where_the_folder_of_the_socket_should_be(place: Place, there: str, words: str) -> None:
    folder = place.folder / "sockets"
    if there == "file":
        folder.write_text("")
    else:
        folder.symlink_to(folder)
    place.write((f"{place.folder}/nf.sock", f"{folder}/nf.sock"))
    place.daemons.socket = folder / "nf.sock"
    refused = place.start_fails()
    assert f"{folder} {words}" in refused
    folder.unlink()
    place.runs()


# -- the log


def lines(text: str) -> list[dict[str, str]]:
    """The objects of a log of JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "enter", "words"),
    [
        (["run"], [], "Missing argument"),
        (["run", "--nonsense"], [], "No such option"),
        (["run", "{config}"], ["prlimit", "--nofile=9"], "raise that with ulimit -n"),
        (["run", "{config}"], ["setpriv", "--bounding-set", "-perfmon,-sys_admin"], "CAP_PERFMON"),
    ],
    ids=["usage", "option", "descriptors", "rights"],
)
def test_a_log_of_json_has_no_other_lines(place: Place, arguments: list[str], enter: list[str], words: str) -> None:
    given = [each.format(config=place.path) for each in arguments]
    done = call(*enter, *command_line("--log-format", "json", *given))
    assert done.returncode != 0
    assert any(words in line["message"] for line in lines(done.stderr)), done.stderr


FAULTS = """
import asyncio, logging, sys, threading, warnings
from nfcore.logs import Format, Level, set_up_logging
set_up_logging(Level.INFO, Format(sys.argv[1]))
def fail(): raise ValueError("of a thread\\nwith two lines")
async def task(): raise ValueError("of a task")
async def main():
    from nfcore.daemon.run import _report_unexpected
    asyncio.get_running_loop().set_exception_handler(_report_unexpected)
    lost = asyncio.ensure_future(task()); await asyncio.sleep(0); await asyncio.sleep(0); del lost
    asyncio.get_running_loop().call_soon(lambda: 1 / 0); await asyncio.sleep(0)
thread = threading.Thread(target=fail, name="worker"); thread.start(); thread.join()
asyncio.run(main())
warnings.warn("of a library")
print("printed by a plugin", file=sys.stderr)
open("/nonexistent/file")
"""


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_nobody_caught_is_a_line_of_the_log(form: str) -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS, form], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = [line["message"] for line in lines(done.stderr)] if form == "json" else done.stderr.splitlines()
    for words in ("thread worker: ValueError: of a thread", "of a task", "division by zero", "of a library"):
        assert any(words in line for line in said), (words, done.stderr)
    assert any(line == "printed by a plugin" for line in said)
    assert any("No such file or directory: there is no folder /nonexistent" in line for line in said)
    if form == "json":
        assert any("ValueError" in line.get("traceback", "") for line in lines(done.stderr))
    else:
        assert "Traceback" not in done.stderr


# -- the socket


def test_who_may_not_use_the_socket_is_told_what_keeps_it_out(place: Place) -> None:
    """A closed folder, a socket for root alone, and a group of which the user is no member are three causes."""
    group, user = "daemon", "65534"
    number = grp.getgrnam(group).gr_gid
    folder = place.folder / "sockets"
    folder.mkdir(mode=0o700)
    for parent in (place.folder, *place.folder.parents[:3]):
        parent.chmod(0o755)
    place.daemons.socket = folder / "nf.sock"
    less = ("setpriv", f"--reuid={user}", f"--regid={user}")

    def ask(*groups: str) -> subprocess.CompletedProcess[str]:
        enter = (*less, f"--groups={','.join(groups)}") if groups else (*less, "--clear-groups")
        return call(*enter, *command_line("flows", "--socket", str(folder / "nf.sock")))

    place.write((f"{place.folder}/nf.sock", f"{folder}/nf.sock"))
    with place.daemons.running(place.path):
        assert f"may not enter the folder {folder}" in ask().stderr
        follow(ask().stderr)
        assert "neither is set" in ask().stderr
    place.write(
        (f"{place.folder}/nf.sock", f"{folder}/nf.sock"),
        ("[[interfaces]]", f'socket_group = "{group}"\n[[interfaces]]'),
    )
    with place.daemons.running(place.path):
        assert f"usermod -aG {group} " in ask().stderr
        assert "socket_group" not in ask().stderr
        assert ask(str(number)).returncode == 0


def test_an_interface_in_another_namespace_is_found(place: Place) -> None:
    name = f"nftest-else-{os.getpid()}"
    with namespaces(name):
        run("ip", "link", "set", LINK, "netns", name)
        refused = place("run").stderr
        assert f"it is in {name}: run nsenter --net=/run/netns/{name} nfcore" in refused
        assert f"--net=/run/netns/{name}" in place.findings()[1]["interface"]["found"]
        assert place(
            "run", enter=("timeout", "-s", "TERM", "10", "nsenter", f"--net=/run/netns/{name}")
        ).stderr.startswith("ready")
        run("ip", "-n", name, "link", "set", LINK, "netns", str(os.getpid()))


@pytest.mark.parametrize("kind", ["another size", "another mode"])
def test_cleanup_is_the_advice_for_what_an_earlier_run_left(place: Place, kind: str) -> None:
    pins = place.folder / "pins"
    size, mode = (8192, "native") if kind == "another size" else (4096, "generic")
    pinned = ("lru_size = 4096", f'lru_size = 4096\npin_dir = "{pins}"')
    first = ("lru_size = 4096", f'lru_size = {size}\npin_dir = "{pins}"')
    place.write(first, ('offload = ["none"]', f'offload = ["none"]\nxdp_mode = "{mode}"'))
    with mounted(pins, kind="bpf"):
        place.kill_one()
        place.write(pinned)
        assert "nfcore cleanup CONFIG" in place("run").stderr
        assert place("cleanup").returncode == 0
        place.runs()


def test_a_file_that_may_not_be_read_is_told_with_its_mode(place: Place) -> None:
    for folder in (place.folder, *place.folder.parents[:3]):
        folder.chmod(0o755)
    place.path.chmod(0o600)
    less = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    refused = place("check", enter=less).stderr
    assert f"{place.path} (of user 0 and group 0, mode 0600): chmod o+r {place.path}" in refused
    follow(refused)
    assert place("check", enter=less).returncode == 0
