# SPDX-License-Identifier: Apache-2.0
"""`nfcore trace` with entries of the TOML, on a machine that it is not for."""

from __future__ import annotations

import json
from pathlib import Path

from tests.kernel.site import succeed

from .frames import SRC, frame

CONFIG = """
[nf]
plugins = ["flow_actions", "marking", "softnic"]
[[interfaces]]
name = "elsewhere0"
chain = ["flow_actions"]
offload = ["softnic", "none"]
[[flow_actions.flows]]
name = "away"
src = "{src}"
action = "redirect"
interface = "elsewhere1"
[[flow_actions.flows]]
name = "moved"
src = "{src6}"
action = "cpu"
cpu = 65535
"""


def test_entries_that_name_what_is_not_here(tmp_path: Path) -> None:
    config = tmp_path / "nf.toml"
    config.write_text(CONFIG.format(src=SRC[4], src6=SRC[6]))
    traced = json.loads(succeed("trace", str(config), "--json", "--hex", frame(4).hex(), "--hex", frame(6).hex()))
    assert [(each["verdict"], each["path"]) for each in traced["packets"]] == [
        ("XDP_DROP", "slow"),
        ("XDP_PASS", "slow"),
    ]
    # The marks that the entries got are not those of the packets' flows.
    assert [each["mark_allocated"] for each in traced["packets"]] == [None, None]
