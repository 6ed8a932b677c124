# SPDX-License-Identifier: Apache-2.0
"""What a daemon leaves on disk can be used by those it is for, whatever the umask; its cache is where one wants it."""

from __future__ import annotations

import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.site import Site, nfcore

RUN = Path("/run/nfcore-modes")
ASK = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
"""Begins a command of user nobody, who is in the group nogroup alone."""
ASKING = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print('connected')"


@pytest.fixture
def _run() -> Iterator[None]:
    mode = stat.S_IMODE(RUN.parent.stat().st_mode)
    RUN.parent.chmod(0o755)  # as on a machine: the tests' own is closed
    yield
    RUN.parent.chmod(mode)
    shutil.rmtree(RUN, ignore_errors=True)


def with_group(site: Site) -> Path:
    """A TOML whose socket is in a folder that the daemon makes, for the group nogroup."""
    config = site.config()
    text = config.read_text().replace(f'"{site.socket}"', f'"{RUN}/lb/nf.sock"\nsocket_group = "nogroup"')
    config.write_text(text)
    site.daemons.socket = RUN / "lb" / "nf.sock"
    return config


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}


def connects(site: Site) -> subprocess.CompletedProcess[str]:
    python = ["/usr/bin/python3", "-c", ASKING, str(site.daemons.socket)]
    return subprocess.run([*ASK, *python], capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("_run")
@pytest.mark.parametrize("umask", ["000", "027", "077"])
def test_the_group_reaches_the_socket_with_any_umask(site: Site, umask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = site.folder / "cache" / "nfcore"
    monkeypatch.setenv("NFCORE_CACHE_DIR", str(cache))
    site.daemons.enter = ("sh", "-c", f'umask {umask}; exec "$@"', "sh")
    with site.running(with_group(site)):
        assert connects(site).stdout == "connected\n", connects(site).stderr
        found = modes(RUN)
        assert found.pop("lb/nf.sock") == 0o660
        assert found.pop("lb") == 0o755
        assert set(found.values()) <= {0o600}
        assert "cannot reach" not in site.daemons.logged()
    kept = modes(cache)
    trees = {mode for name, mode in kept.items() if name.startswith("headers-") and not (cache / name).is_symlink()}
    assert trees == {0o755, 0o644}


@pytest.mark.usefixtures("_run")
def test_a_folder_that_is_closed_to_the_group_is_named_with_what_to_do(site: Site) -> None:
    config = with_group(site)
    RUN.mkdir()
    RUN.chmod(0o700)
    with site.running(config):
        assert connects(site).returncode
        (line,) = [line for line in site.daemons.logged().splitlines() if "cannot reach" in line]
        assert f"because {RUN} is closed to it" in line
        advice = line.partition(": chmod")[2].partition(",")[0]
        subprocess.run(["sh", "-c", f"chmod {advice}"], check=True)
        assert connects(site).stdout == "connected\n"


@pytest.mark.parametrize("variable", ["NFCORE_CACHE_DIR", "CACHE_DIRECTORY"])
def test_a_cache_that_cannot_be_written_can_be_moved(
    site: Site, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only file system is where it should be."""
    (site.folder / "file").write_text("")
    monkeypatch.setenv(variable, str(site.folder / "file" / "cache"))
    refused = nfcore("trace", str(site.config()), "--hex", "00" * 64)
    assert refused.returncode == 1
    assert "NFCORE_CACHE_DIR" in refused.stderr and str(site.folder / "file") in refused.stderr
    monkeypatch.setenv(variable, str(site.folder / "moved"))
    assert nfcore("trace", str(site.config()), "--hex", "00" * 64).returncode == 0
    assert list((site.folder / "moved").glob("headers-*"))
