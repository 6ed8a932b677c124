# SPDX-License-Identifier: Apache-2.0
"""Converts rules to the driver's flow specifications, and back."""

from __future__ import annotations

import socket

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import FLOW_KEY
from nfcore.api.rules import RULE_ROW, Action

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
"""Shape → flow type of ethtool's exact match."""
_SPECS = {4: TCPIP4_SPEC, 6: TCPIP6_SPEC}
_FIELDS = {4: ("ip4src", "ip4dst"), 6: ("ip6src", "ip6dst")}
_ADDRESS_BYTES = {4: 4, 6: 16}


def encode(rules: NDArray[np.void]) -> NDArray[np.void]:
    """Encode rules (rows of `RULE_ROW`) as :data:`FLOW_SPEC` rows, location 0. KeyError: a shape has no flow type."""
    specs = np.zeros(len(rules), dtype=FLOW_SPEC)
    shapes = list(zip(rules["family"].tolist(), rules["key"]["proto"].tolist(), strict=True))
    specs["flow_type"] = [FLOW_TYPES[shape] for shape in shapes]
    drop = rules["action"] == Action.DROP
    specs["ring_cookie"] = np.where(drop, np.uint64(RX_CLS_FLOW_DISC), rules["mark"].astype(np.uint64))
    for family, spec in _SPECS.items():
        selected = rules["family"] == family
        keys = rules["key"][selected]
        values, masks = np.zeros(len(keys), dtype=spec), np.zeros(len(keys), dtype=spec)
        src, dst = _FIELDS[family]
        values[src], values[dst] = (keys[end][:, : _ADDRESS_BYTES[family]] for end in ("src", "dst"))
        values["psrc"], values["pdst"] = keys["sport"], keys["dport"]
        masks[src] = masks[dst] = 0xFF
        masks["psrc"] = masks["pdst"] = 0xFFFF
        for area, content in (("h_u", values), ("m_u", masks)):
            specs[area][selected, : spec.itemsize] = content.view(np.uint8).reshape(len(keys), spec.itemsize)
    return specs


def decode(specs: NDArray[np.void]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """Decode a driver's :data:`FLOW_SPEC` rows: rules (rows of `RULE_ROW`, cookie 0), and which of them are valid.

    The others are rules that :func:`encode` never makes. Drivers may return more than they got: flags for additional
    fields of which none is compared, and values under masks that are zero.
    """
    rules = np.zeros(len(specs), dtype=RULE_ROW)
    kinds, rings = specs["flow_type"] & ~np.uint32(FLOW_EXT | FLOW_MAC_EXT), specs["ring_cookie"]
    extended = kinds != specs["flow_type"]
    good = ~(extended & _raw(specs["m_ext"]).any(axis=1))
    known = np.zeros(len(specs), dtype=bool)
    for (family, protocol), flow_type in FLOW_TYPES.items():
        selected = kinds == flow_type
        known |= selected
        length = _ADDRESS_BYTES[family]
        good[selected] &= _is_exact(specs["m_u"][selected], 2 * length + 4)
        fields = np.ascontiguousarray(specs["h_u"][selected, : _SPECS[family].itemsize]).view(_SPECS[family])[:, 0]
        key = np.zeros(len(fields), dtype=FLOW_KEY)
        for end, field in zip(("src", "dst"), _FIELDS[family], strict=True):
            key[end][:, :length] = fields[field]
        key["sport"], key["dport"], key["proto"] = fields["psrc"], fields["pdst"], protocol
        rules["key"][selected], rules["family"][selected] = key, family
    drop = rings == np.uint64(RX_CLS_FLOW_DISC)
    marked = (rings > 0) & (rings <= np.uint64(0xFFFF_FFFF))  # above that: queues of virtual functions
    rules["action"] = np.where(drop, Action.DROP, Action.SET_MARK)
    rules["mark"] = np.where(marked, rings, 0)
    return rules, good & known & (drop | marked)


def _is_exact(masks: NDArray[np.uint8], used: int) -> NDArray[np.bool_]:
    """Whether the whole 5-tuple, the first `used` bytes, is compared, but not the type of service behind it."""
    exact: NDArray[np.bool_] = (masks[:, :used] == 0xFF).all(axis=1) & (masks[:, used] == 0)
    return exact


def same_rules(one: NDArray[np.void], other: NDArray[np.void]) -> NDArray[np.bool_]:
    """Whether rules have the same match and action, row by row; cookies may differ."""
    same: NDArray[np.bool_] = (_raw(one)[:, :_COOKIE_OFFSET] == _raw(other)[:, :_COOKIE_OFFSET]).all(axis=1)
    return same


def match_of(rule: np.void) -> bytes:
    """The bytes of a rule's match: key, family and VLAN tags, of which there are none."""
    return rule.tobytes()[:_MATCH_BYTES]


def _raw(rows: NDArray[np.void]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), rows.dtype.itemsize)


def _offset(field: str) -> int:
    assert RULE_ROW.fields is not None  # it is structured
    return int(RULE_ROW.fields[field][1])


_COOKIE_OFFSET, _MATCH_BYTES = _offset("cookie"), _offset("action")
