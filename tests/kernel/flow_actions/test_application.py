# SPDX-License-Identifier: Apache-2.0
"""An application's side of flow_actions, with a whole daemon: many entries at once, lifetimes, users without root."""

from __future__ import annotations

import grp
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfcore.client import Flow, FlowClient
from tests.kernel.site import command_line, eventually, succeed

from .chained_site import ChainedSite, open_chained_site

MANY = 100_000
NOBODY = 65_534


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ChainedSite]:
    with open_chained_site(tmp_path) as opened:
        yield opened


def address(number: int) -> str:
    return f"198.{18 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


@pytest.mark.slow
def test_a_file_of_many_entries_is_there_after_a_kill(site: ChainedSite) -> None:
    file = site.folder / "many.jsonl"
    keys = {"dst": "198.18.10.1", "proto": "tcp", "sport": 9, "dport": 80, "action": "drop"}
    file.write_text("".join(json.dumps({"name": f"e{n}", "src": address(n), **keys}) + "\n" for n in range(MANY)))
    config = site.chain_config(nic=False, actions=f'pin_dir = "{site.pins}"')
    daemon = site.start(config)
    printed = succeed("flow", "load", str(file), "--socket", str(site.socket))
    daemon.kill()
    daemon.wait()
    assert printed == f"added {MANY:,}, deleted 0\n"
    with site.running(config), FlowClient(site.socket) as client:
        assert client.daemon["entries"] == MANY
        assert client.show(f"e{MANY - 1}").src == address(MANY - 1)
        with client.batch() as batch:
            batch.delete(*(f"e{number}" for number in range(0, MANY, 2)))
            batch.add(Flow("short", src="198.19.0.0/16", action="pass", ttl="1s"))
        assert [flow.name for flow in client.list(action="pass")] in (["short"], [])
        assert eventually(lambda: not list(client.list(action="pass")))
        assert client.clear() == MANY // 2


def test_who_is_in_the_group_for_orders_needs_no_root(site: ChainedSite) -> None:
    group = grp.getgrnam("games")
    config = site.chain_config(nic=False)
    text = config.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "nf.sock"
        lines = [line for line in text.splitlines() if not line.startswith("socket = ")]
        at = lines.index("[nf]") + 1
        lines[at:at] = [f'socket = "{path}"', f'order_group = "{group.gr_name}"']
        config.write_text("\n".join(lines))

        def nobody(*words: str) -> subprocess.CompletedProcess[str]:
            command = [*command_line(*words), "--socket", str(path)]
            return subprocess.run(
                command,
                user=NOBODY,
                group=NOBODY,
                extra_groups=[group.gr_gid],
                capture_output=True,
                text=True,
                check=False,
            )

        daemon = site.start(config)
        try:
            done = nobody("flow", "add", "mine", "--src", "198.18.9.0/24", "--action", "drop")
            assert (done.stdout, done.returncode) == ("added mine\n", 0), done.stderr
            assert "198.18.9.0/24" in nobody("flow", "list").stdout
            refused = nobody("offload", "off")
            assert refused.returncode == 1
            assert "offload changes the daemon, which only root may do" in refused.stderr
        finally:
            daemon.terminate()
            daemon.wait()
