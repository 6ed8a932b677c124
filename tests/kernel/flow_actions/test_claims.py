# SPDX-License-Identifier: Apache-2.0
"""Which flows of a later function the entries claim, after few and after many changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nfcore.api.flows import FlowBatch, FlowMatch
from nfcore.api.rules import Device
from nfcore.config.loader import load_config
from nfcore.daemon.bootstrap import make_context, set_up
from nfcore.hooks.manager import PluginManager
from nfcore.plugins.flow_actions.entries import parse_orders
from nfcore.plugins.flow_actions.function import FEW_ENTRIES, FlowActions

CONFIG = """
[nf]
plugins = ["flow_actions"]
[[interfaces]]
name = "lo"
chain = ["flow_actions"]
"""


def sources(first: int, count: int) -> list[dict[str, str]]:
    """Entries by source, numbered."""
    numbers = range(first, first + count)
    return [{"name": f"{each}", "src": f"198.18.{each >> 8}.{each & 255}", "action": "drop"} for each in numbers]


def flows(*numbers: int) -> FlowBatch:
    """A flow from each of these sources."""
    batch = FlowBatch.empty(len(numbers))
    for row, each in zip(batch.rows, numbers, strict=True):
        row["key"] = FlowMatch.parse(f"198.18.{each >> 8}.{each & 255}:7 > 198.18.10.1:80/tcp").to_key()
    batch.rows["family"] = 4
    return batch


def test_only_newer_entries_need_to_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "nf.toml"
    path.write_text(CONFIG)
    plugins = PluginManager()
    context = make_context(load_config(path, plugins), plugins, [Device("lo", 1, ())], tracing=True)
    with set_up(context, plugins):
        (function,) = context.nfs
        assert isinstance(function, FlowActions)
        change = context.services.methods["flow.hello"].__self__._orders.change  # type: ignore[attr-defined]
        asked, many = flows(1, 2, 3000), FEW_ENTRIES + 1
        since = [function.claim_changes]
        for entries in (sources(1, 1), sources(2, many), sources(3000, 1)):
            change(parse_orders(entries))
            since.append(function.claim_changes)
        claimed = [function.claims(asked, each).tolist() for each in since]
        # Of many entries all are asked for, also those that were there before.
        assert claimed == [[True] * 3, [True] * 3, [False, False, True], [False] * 3]
        assert np.array_equal(function.claims(asked), [True] * 3)
        change(parse_orders([]), [f"{each}" for each in range(2, 2 + many)])
        assert function.claims(asked).tolist() == [True, False, True]


MASKED = {
    "198.18.0.1:7 > 198.18.10.1:80/tcp": True,
    "198.18.0.1:* > 198.18.10.1:*/*": True,
    "198.18.0.0/16:* > 198.18.10.1:80/tcp": True,
    "198.19.0.0/16:* > 198.18.10.1:80/tcp": False,
    "198.18.0.1:* > 0.0.0.0/0:*/udp": True,
    "0.0.0.0/0:* > 0.0.0.0/0:443/udp": True,
    "0.0.0.0/0:* > 0.0.0.0/0:443/tcp": True,
    "198.19.0.0/16:* > 0.0.0.0/0:*/17": True,
    "198.19.0.0/16:* > 0.0.0.0/0:444/17": False,
    "[::/0]:* > [::/0]:*/*": False,
}
"""Flow of a later function → whether an entry has packets of it."""


def test_masked_flows_are_claimed_when_an_entry_has_some_of_their_packets(tmp_path: Path) -> None:
    path = tmp_path / "nf.toml"
    path.write_text(CONFIG)
    plugins = PluginManager()
    context = make_context(load_config(path, plugins), plugins, [Device("lo", 1, ())], tracing=True)
    asked = FlowBatch.empty(len(MASKED))
    for row, text in zip(asked.rows, MASKED, strict=True):
        match = FlowMatch.parse(text)
        row["key"], row["family"] = match.to_key(), match.family
    with set_up(context, plugins):
        (function,) = context.nfs
        change = context.services.methods["flow.hello"].__self__._orders.change  # type: ignore[attr-defined]
        quic = {"name": "quic", "family": 4, "proto": "udp", "dport": 443, "action": "drop"}
        change(parse_orders([*sources(1, 1), quic]))
        for since in (None, function.claim_changes - 1):
            assert dict(zip(MASKED, function.claims(asked, since).tolist(), strict=True)) == MASKED
