# SPDX-License-Identifier: Apache-2.0
"""Skeletons as authors have them: written by an installed nfcore, installed beside it, tested, named in a TOML."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from nfcore.scaffold import LONGEST_NAME, Kind, Skeleton, write_skeleton
from nfcore.testing import sample_flow, sample_frame
from tests.kernel.network import send_frame
from tests.kernel.site import Site, eventually

from .environments import make_environment, run

pytestmark = pytest.mark.slow
KINDS = list(Kind)
HOOKS = {
    Kind.BACKEND: {"install_offload", "remove_offload", "dump_offload", "probe_offload"},
    Kind.STRATEGY: {"marking_strategies", "allocate_mark", "release_mark"},
    Kind.NF: {"publish_marks", "retire_marks", "restore_flows", "trace_packet"},
}


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of an environment with nfcore, whose setuptools is this one's: there is no network to get it from."""
    folder = tmp_path_factory.mktemp("author") / "venv"
    made = make_environment(folder, wheel)
    run(made / "pip", "uninstall", "--yes", "setuptools", cwd=folder)
    return made


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(scope="module")
def skeleton(kind: Kind, environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fresh skeleton, installed as the guide says."""
    home = tmp_path_factory.mktemp(f"home-{kind}")
    done = run(environment / "nfcore", "new-plugin", f"acme_{kind}", "--kind", kind, cwd=home)
    assert done.returncode == 0, done.stderr
    folder = home / f"nfcore-acme-{kind}"
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--editable"]
    done = run(environment / "pip", "install", *options, folder, cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_its_own_tests_pass_at_once(kind: Kind, skeleton: Path, environment: Path) -> None:
    done = run(environment / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=skeleton)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 10
    assert re.search(rf"acme_{kind} \(.*\): \d+ promises kept", done.stdout), done.stdout[-2000:]
    assert "broken" not in done.stdout
    if os.environ.get("CI", "").lower() == "true":
        assert "SKIPPED" not in done.stdout.replace("not applicable", ""), done.stdout[-5000:]


def test_it_is_listed(kind: Kind, skeleton: Path, environment: Path) -> None:
    done = run(environment / "nfcore", "plugins", "--json", cwd=skeleton)
    assert done.returncode == 0, done.stderr
    (row,) = [row for row in json.loads(done.stdout)["plugins"] if row["name"] == f"acme_{kind}"]
    assert (row["error"], row["distribution"]) == (None, f"nfcore-acme-{kind}")
    assert HOOKS[kind] <= set(row["hooks"])


def test_a_toml_that_names_it_is_right(kind: Kind, skeleton: Path, environment: Path) -> None:
    done = run(environment / "nfcore", "check", "example.toml", "--resolved", cwd=skeleton)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"[acme_{kind}]" in done.stdout


def test_its_name_is_taken_now(kind: Kind, skeleton: Path, environment: Path) -> None:
    again = ["new-plugin", f"acme_{kind}", "--kind", kind, "--into", skeleton]
    done = run(environment / "nfcore", *again, cwd=skeleton)
    assert done.returncode == 2
    assert f"is an installed plugin, of nfcore-acme-{kind}" in done.stderr
    before = (skeleton / "example.toml").read_text()
    (skeleton / "example.toml").write_text("")
    done = run(environment / "nfcore", *again, "--force", cwd=skeleton)
    assert done.returncode == 0, done.stderr
    assert (skeleton / "example.toml").read_text() == before


def test_it_is_typed(skeleton: Path, environment: Path) -> None:
    """Against the nfcore that is installed, as it is."""
    options = ["--python-executable", environment / "python", "--cache-dir", os.devnull]
    done = run(sys.executable, "-m", "mypy", *options, cwd=skeleton, MYPYPATH="src")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", [Kind.NF], indirect=True)
def test_the_network_function_sees_real_packets(skeleton: Path, environment: Path, site: Site) -> None:
    """Behind an emulated NIC: slow path, rule, fast path; a killed run's rule is taken over, its program removed."""
    site.daemons.python = environment / "python"
    config = site.folder / "nf.toml"
    text = (skeleton / "example.toml").read_text().replace("/run/nfcore/bpf/softnic-eth1", str(site.nic))
    config.write_text(text.replace("[[interfaces]]", f'socket = "{site.socket}"\n\n[[interfaces]]'))
    daemon = site.start(config)
    send(site, 8)
    assert eventually(lambda: site.rules() == 1)
    send(site, 5)
    assert eventually(lambda: site.metric("nfcore_acme_nf_packets_total", port="80", path="fast") == 5)
    assert site.metric("nfcore_acme_nf_packets_total", port="80", path="slow") == 8
    daemon.kill()
    daemon.wait()
    assert site.program() is not None
    with site.running(config):
        assert site.metric("nfcore_adopted_total") == 1
        send(site, 5)
        assert eventually(lambda: site.metric("nfcore_acme_nf_packets_total", port="80", path="fast") == 5)
    assert (site.program(), site.rules()) == (None, 0)
    daemon = site.start(config)
    daemon.kill()
    daemon.wait()
    done = run(environment / "nfcore", "cleanup", str(config), cwd=site.folder)
    assert (done.returncode, "nfcore: detached program" in done.stdout) == (0, True), done.stderr
    assert site.program() is None


def send(site: Site, count: int) -> None:
    for _ in range(count):
        send_frame(site.network, sample_frame(sample_flow(1, 4, "udp")))


@pytest.mark.parametrize("name", ["a", "acme_x", "z" * LONGEST_NAME])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_in_style_whatever_its_name(tmp_path: Path, kind: Kind, name: str) -> None:
    write_skeleton(Skeleton(name, kind), tmp_path / "here")
    for command in (["check"], ["format", "--diff"]):
        done = run(sys.executable, "-m", "ruff", *command, "--no-cache", ".", cwd=tmp_path / "here")
        assert done.returncode == 0, done.stdout + done.stderr
