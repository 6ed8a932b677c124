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
"""


def test_a_redirect_to_an_interface_that_is_not_here(tmp_path: Path) -> None:
    config = tmp_path / "nf.toml"
    config.write_text(CONFIG.format(src=SRC[4]))
    traced = json.loads(succeed("trace", str(config), "--json", "--hex", frame(4).hex(), "--hex", frame(6).hex()))
    away, other = traced["packets"]
    assert (away["verdict"], away["path"], other["verdict"], other["path"]) == ("XDP_DROP", "slow", "XDP_PASS", "none")
    # The mark that the entry got is not one of the packet's flow.
    assert away["mark_allocated"] is other["mark_allocated"] is None
    shown = succeed("trace", str(config), "--hex", frame(4).hex())
    assert "away" in shown
