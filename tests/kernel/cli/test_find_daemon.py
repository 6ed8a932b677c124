# SPDX-License-Identifier: Apache-2.0
"""Without CONFIG and --socket a command finds the daemon that runs, wherever its socket is."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfcore.bench.testbed import Daemons
from nfcore.cli.options import DEFAULT_SOCKET
from tests.kernel.site import Site, ip, nfcore, succeed

OTHER = """
[nf]
plugins = ["flow_actions"]
socket = "{}"
[[interfaces]]
name = "other0"
chain = ["flow_actions"]
offload = ["none"]
"""


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The TOML of a second daemon, on an interface of its own."""
    ip("link", "add", "other0", "type", "veth", "peer", "name", "other1")
    path = tmp_path / "other.toml"
    path.write_text(OTHER.format(tmp_path / "other.sock"))
    return path


@pytest.mark.slow
@pytest.mark.skipif(Path(DEFAULT_SOCKET).exists(), reason="a daemon of this machine has the default socket")
def test_the_only_daemon_is_found(site: Site, other: Path, tmp_path: Path) -> None:
    try:
        with site.running(site.config()):
            assert '"functions"' in succeed("top", "--once", "--json", "--interval", "0.1")
            for command in (["flows"], ["stats"], ["events"], ["reload"], ["offload", "on"]):
                succeed(*command)
            with Daemons(tmp_path / "other.sock").running(other):
                refused = nfcore("flows")
                assert refused.returncode == 1
                for words in ("2 daemons run here", "CONFIG or --socket", str(site.socket), "other.sock"):
                    assert words in refused.stderr
                assert "2 daemons run here" in nfcore("top", "--once").stderr
                assert "refused" in succeed("flows", str(site.folder / "nf.toml"))
                assert "entries" in succeed("flow", "list", str(other))
    finally:
        ip("link", "del", "other0")
