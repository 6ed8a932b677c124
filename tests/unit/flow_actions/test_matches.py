# SPDX-License-Identifier: Apache-2.0
"""Finding entries by match and by packet, against the plain meaning of prefixes and ports."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nfcore.api.flows import FLOW_KEY, FlowMatch
from nfcore.plugins.flow_actions.entries import parse_orders
from nfcore.plugins.flow_actions.matches import Matches, covered_by

ENDS = ("198.18.1.1", "198.18.1.2", "198.18.3.1")
FLOWS = [
    FlowMatch.parse(f"{src}:{sport} > {dst}:80/{proto}")
    for src in ENDS
    for dst in ENDS
    for sport in (1, 2)
    for proto in ("tcp", "udp")
] + [FlowMatch.parse("[2001:db8::1]:1 > [2001:db8::2]:80/tcp"), FlowMatch.parse("[c612:101::]:1 > [c612:301::]:80/tcp")]
PREFIXES = st.sampled_from([None, *ENDS, "198.18.0.0/16", "198.18.1.0/24", "198.18.1.0/31"])


@st.composite
def entries(draw: st.DrawFn) -> dict[str, Any]:
    keys = {"src": draw(PREFIXES), "dst": draw(PREFIXES), "proto": draw(st.sampled_from([None, "tcp"]))}
    if keys["proto"]:
        keys |= {"sport": draw(st.sampled_from([None, 1])), "dport": draw(st.sampled_from([None, 80, 81]))}
    given = {key: value for key, value in keys.items() if value is not None}
    return given if given.keys() & {"src", "dst"} else given | {"family": draw(st.sampled_from([4, 6]))}


def has(entry: dict[str, Any], flow: FlowMatch) -> bool:
    family = entry.get("family", 4)
    inside = all(getattr(flow, end) in ip_network(entry[end]) for end in ("src", "dst") if end in entry)
    ports = all(getattr(flow, port) == entry[port] for port in ("sport", "dport") if port in entry)
    return bool(flow.family == family and inside and ports and ("proto" not in entry or flow.proto == 6))


@given(st.lists(entries(), max_size=12, unique_by=lambda entry: str(sorted(entry.items()))))
def test_what_covers_a_flow(raw: list[dict[str, Any]]) -> None:
    rows = parse_orders([{"name": str(number), "action": "drop", **each} for number, each in enumerate(raw)]).rows
    rows["slot"] = np.arange(len(rows))
    matches = Matches(rows)
    matches.add(rows)
    keys = np.array([flow.to_key() for flow in FLOWS], dtype=FLOW_KEY)
    families = np.array([flow.family for flow in FLOWS], dtype=np.uint32)
    wanted = [any(has(each, flow) for each in raw) for flow in FLOWS]
    assert matches.covered(keys, families).tolist() == wanted
    one_by_one = [matches.covered(keys[at : at + 1], families[at : at + 1])[0] for at in range(len(keys))]
    assert one_by_one == wanted
    assert covered_by(rows, keys, families).tolist() == wanted
    for flow, is_covered in zip(FLOWS, wanted, strict=True):
        slot = matches.winner(flow.to_key(), flow.family)
        assert (slot is not None) == is_covered
        if slot is not None:
            best = max(int(row["precedence"]) for row, each in zip(rows, raw, strict=True) if has(each, flow))
            assert has(raw[slot], flow) and (int(rows["precedence"][slot]) == best)
    assert matches.find(rows["key"], rows["family"]).tolist() == list(range(len(rows)))
    matches.remove(rows)
    assert not matches.covered(keys, families).any()
