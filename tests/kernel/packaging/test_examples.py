# SPDX-License-Identifier: Apache-2.0
"""The example distributions as their users have them: built, installed beside nfcore's wheel, named in a TOML."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from tests.kernel.network import ip, namespaces
from tests.paths import ROOT

from .environments import build_wheel, make_environment, run

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "examples"
NAMESPACE = f"nftest-examples-{os.getpid()}"
BALANCER = """
[katran_accel]
gateway_mac = "02:00:5e:00:00:fe"
lru_size = 1024
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.11" }, { address = "198.18.20.12" }]
"""


@dataclass(frozen=True)
class Example:
    """A folder of `examples/` with a distribution."""

    folder: str
    plugin: str
    hooks: frozenset[str]
    """Some that it must have."""
    toml: str
    """A configuration that uses it, on a veth eth1; SOCKET is where the daemon answers."""
    says: tuple[str, ...] = field(default=())
    """What `nfcore run` says with that configuration until it is ready."""
    finds: tuple[str, ...] = field(default=())
    """What `nfcore doctor` finds with it, line breaks and columns aside."""


NTUPLE = Example(
    "nfcore-nic-ntuple",
    "nic_ntuple",
    frozenset({"install_offload", "remove_offload", "dump_offload", "probe_offload", "cleanup", "diagnose"}),
    """
[nf]
plugins = ["katran_accel", "marking", "nic_ntuple"]
socket = "SOCKET"
[[interfaces]]
name = "eth1"
chain = ["katran_accel"]
offload = ["nic_ntuple", "none"]
[marking]
carrier = "rx-queue"
width = 3
[nic_ntuple]
locations = { eth1 = "0-1023" }
"""
    + BALANCER,
    (
        "eth1: rx-queue: the driver does not report how it spreads unmarked packets",
        "eth1: nic_ntuple cannot set marks here: going on without (eth1 has no rules that steer flows to queues: "
        "Operation not supported",
        "ntuple-filters is off (ethtool -K eth1 ntuple on, where the driver has it)",
        "ready: eth1: katran_accel, no offload; unaccelerated",
    ),
    (
        "eth1: nic_ntuple",
        "flows stay on the slow path",
        "eth1: rx-queue",
        "ethtool -K eth1 ntuple on",
        "8, so marks of 3 bits",
        "no rules can be read: Operation not supported",
    ),
)
TENANT = Example(
    "nfcore-strategy-tenant",
    "tenant_marks",
    frozenset({"allocate_mark", "release_mark", "marking_strategies", "collect_stats", "register_commands"}),
    """
[nf]
plugins = ["katran_accel", "tenant_marks", "tc_offload"]
socket = "SOCKET"
[[interfaces]]
name = "eth1"
chain = ["katran_accel"]
offload = ["tc_offload", "none"]
[marking]
strategy = "tenant"
[tenant_marks]
owners = [{ name = "blue", block = 1, vips = ["198.18.10.0/24"] }]
"""
    + BALANCER,
)
ALL = [NTUPLE, TENANT]


@cache
def _environments() -> dict[str, Path]:
    return {}


@pytest.fixture(params=ALL, ids=lambda example: example.folder)
def example(request: pytest.FixtureRequest) -> Example:
    return request.param


@pytest.fixture
def installed(example: Example, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of an environment with nfcore and the example, made once."""
    made = _environments()
    if example.folder not in made:
        folder = tmp_path_factory.mktemp(example.folder)
        own = build_wheel(EXAMPLES / example.folder, folder)
        made[example.folder] = make_environment(folder / "venv", wheel, own)
    return made[example.folder]


@pytest.fixture
def config(example: Example, tmp_path: Path) -> Path:
    path = tmp_path / "nf.toml"
    path.write_text(example.toml.replace("SOCKET", str(tmp_path / "nf.sock")))
    return path


@pytest.fixture
def eth1() -> Iterator[None]:
    with namespaces(NAMESPACE):
        queues = ["numrxqueues", "8", "numtxqueues", "8"]
        ip(NAMESPACE, "link", "add", "name", "eth1", *queues, "type", "veth", "peer", "name", "net0", *queues)
        ip(NAMESPACE, "link", "set", "eth1", "up")
        ip(NAMESPACE, "link", "set", "net0", "up")
        yield


def inside(*command: str | Path) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{NAMESPACE}", *map(str, command)]


def test_every_example_is_tested() -> None:
    folders = {path.parent.name for path in EXAMPLES.glob("*/pyproject.toml")}
    assert folders == {example.folder for example in ALL}


def test_nothing_of_nfcore_knows_it(example: Example) -> None:
    names = (example.plugin, example.folder, example.folder.replace("-", "_"))
    for folder in ("nfcore", "plugins", "bpf"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".c", ".h", ".toml"):
                text = path.read_text(encoding="utf-8")
                assert not [name for name in names if name in text], path


def test_it_is_listed(example: Example, installed: Path, tmp_path: Path) -> None:
    done = run(installed / "nfcore", "plugins", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = [row for row in json.loads(done.stdout)["plugins"] if row["name"] == example.plugin]
    assert row["error"] is None
    assert row["distribution"] == example.folder
    assert example.hooks <= set(row["hooks"])


def test_a_toml_that_uses_it_is_right(example: Example, installed: Path, config: Path) -> None:
    done = run(installed / "nfcore", "check", config, "--resolved", cwd=config.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert example.plugin in done.stdout


def test_its_own_tests_pass_where_it_is_installed(example: Example, installed: Path, tmp_path: Path) -> None:
    """As its author runs them, but far from the checkout: the tests see what was installed, not the sources."""
    own = tmp_path / "checkout"
    own.mkdir()
    for path in (EXAMPLES / example.folder).iterdir():
        if path.name == "tests" or path.suffix == ".toml":
            subprocess.run(["cp", "-r", path, own / path.name], check=True)
    done = run(installed / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", own, cwd=own)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    if os.environ.get("CI", "").lower() == "true":
        skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
        assert not [line for line in skipped if "not applicable" not in line]


@pytest.mark.usefixtures("eth1")
def test_the_daemon_runs_with_it(example: Example, installed: Path, config: Path) -> None:
    command = inside(installed / "nfcore", "run", config)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=config.parent) as daemon:
        assert daemon.stderr is not None
        said = []
        for line in daemon.stderr:
            said.append(line)
            if line.startswith("ready"):
                break
        daemon.send_signal(signal.SIGTERM)
        said.append(daemon.stderr.read())
        assert daemon.wait(30) == 0, "".join(said)
    for words in example.says:
        assert words in "".join(said)
    assert {path.name for path in config.parent.iterdir()} <= {"nf.toml", "nf.sock.state"}


@pytest.mark.usefixtures("eth1")
def test_the_doctor_and_cleanup_have_nothing_against_it(example: Example, installed: Path, config: Path) -> None:
    done = subprocess.run(inside(installed / "nfcore", "doctor", config), capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stdout + done.stderr
    told = " ".join(done.stdout.split())
    assert [words for words in example.finds if words not in told] == []
    done = subprocess.run(inside(installed / "nfcore", "cleanup", config), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
