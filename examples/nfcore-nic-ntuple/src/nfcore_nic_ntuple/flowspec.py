# SPDX-License-Identifier: Apache-2.0
"""Rules as the driver's flow specifications, and back."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.rules import RULE_ROW, Action

from .layouts import (
    FLOW_EXT,
    FLOW_MAC_EXT,
    FLOW_SPEC,
    RX_CLS_FLOW_DISC,
    TCP_V4_FLOW,
    TCP_V6_FLOW,
    TCPIP4_SPEC,
    TCPIP6_SPEC,
    UDP_V4_FLOW,
    UDP_V6_FLOW,
)

Shape = tuple[int, int]
"""Family (4 or 6) and IP protocol."""

FLOW_TYPES: dict[Shape, int] = {
    (4, socket.IPPROTO_TCP): TCP_V4_FLOW,
    (4, socket.IPPROTO_UDP): UDP_V4_FLOW,
    (6, socket.IPPROTO_TCP): TCP_V6_FLOW,
    (6, socket.IPPROTO_UDP): UDP_V6_FLOW,
}
"""Shapes for which ethtool has an exact match."""
_SHAPES = {flow_type: shape for shape, flow_type in FLOW_TYPES.items()}
_SPECS = {4: TCPIP4_SPEC, 6: TCPIP6_SPEC}
_FIELDS = {4: ("ip4src", "ip4dst"), 6: ("ip6src", "ip6dst")}
_ADDRESS_BYTES = {4: 4, 6: 16}


def encode(rules: NDArray[np.void]) -> NDArray[np.void]:
    """Give a :data:`FLOW_SPEC` per rule (rows of `RULE_ROW`), its location 0; KeyError for a shape that has none."""
    specs = np.zeros(len(rules), dtype=FLOW_SPEC)
    shapes = list(zip(rules["family"].tolist(), rules["key"]["proto"].tolist(), strict=True))
    specs["flow_type"] = [FLOW_TYPES[shape] for shape in shapes]
    drop = rules["action"] == Action.DROP
    specs["ring_cookie"] = np.where(drop, np.uint64(RX_CLS_FLOW_DISC), rules["mark"].astype(np.uint64))
    for family, spec in _SPECS.items():
        mine = rules["family"] == family
        keys = rules["key"][mine]
        values, masks = np.zeros(len(keys), dtype=spec), np.zeros(len(keys), dtype=spec)
        src, dst = _FIELDS[family]
        values[src], values[dst] = (keys[end][:, : _ADDRESS_BYTES[family]] for end in ("src", "dst"))
        values["psrc"], values["pdst"] = keys["sport"], keys["dport"]
        masks[src] = masks[dst] = 0xFF
        masks["psrc"] = masks["pdst"] = 0xFFFF
        for area, content in (("h_u", values), ("m_u", masks)):
            specs[area][mine, : spec.itemsize] = content.view(np.uint8).reshape(len(keys), spec.itemsize)
    return specs


def decode(spec: np.void, cookie: int = 0) -> np.void | None:
    """Give the rule (`RULE_ROW`) that a driver's :data:`FLOW_SPEC` is; None for one that :func:`encode` never makes.

    Drivers may give more back than they got: flags for additional fields of which none is compared, values under
    masks that are zero.
    """
    flow_type = int(spec["flow_type"])
    if flow_type & (FLOW_EXT | FLOW_MAC_EXT) and spec["m_ext"].tobytes().strip(b"\0"):
        return None
    shape = _SHAPES.get(flow_type & ~(FLOW_EXT | FLOW_MAC_EXT))
    if shape is None:
        return None
    family, protocol = shape
    kind = _SPECS[family]
    value, mask = (spec[area].tobytes()[: kind.itemsize] for area in ("h_u", "m_u"))
    fields, masked = np.frombuffer(value, kind)[0], np.frombuffer(mask, kind)[0]
    src, dst = _FIELDS[family]
    if not _is_exact(masked, src, dst):
        return None
    rule = np.zeros(1, dtype=RULE_ROW)
    key, length = rule["key"], _ADDRESS_BYTES[family]
    key["src"][0, :length], key["dst"][0, :length] = fields[src], fields[dst]
    key["sport"], key["dport"], key["proto"] = fields["psrc"], fields["pdst"], protocol
    rule["family"], rule["cookie"] = family, cookie
    ring = int(spec["ring_cookie"])
    if ring == RX_CLS_FLOW_DISC:
        rule["action"] = Action.DROP
    elif 0 < ring <= 0xFFFF_FFFF:  # above that: queues of virtual functions
        rule["action"], rule["mark"] = Action.SET_MARK, ring
    else:
        return None
    row: np.void = rule[0]
    return row


def _is_exact(mask: Any, src: str, dst: str) -> bool:
    addresses = bool((mask[src] == 0xFF).all() and (mask[dst] == 0xFF).all())
    last = int(mask["tos" if src == "ip4src" else "tclass"])
    return addresses and int(mask["psrc"]) == int(mask["pdst"]) == 0xFFFF and last == 0


def same_rule(one: np.void, other: np.void) -> bool:
    """Whether two rules match and do the same, whatever their cookies."""
    return one.tobytes()[:_COOKIE_AT] == other.tobytes()[:_COOKIE_AT]


def match_of(rule: np.void) -> bytes:
    """Give what tells a rule's match from others: the key and the family."""
    return rule.tobytes()[:_MATCH_BYTES]


def _offset(field: str) -> int:
    assert RULE_ROW.fields is not None  # it is structured
    return int(RULE_ROW.fields[field][1])


_COOKIE_AT, _MATCH_BYTES = _offset("cookie"), _offset("action")
