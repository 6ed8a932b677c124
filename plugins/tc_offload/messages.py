# SPDX-License-Identifier: Apache-2.0
"""Encodes messages for many rules: pyroute2 encodes one as a template, numpy copies it and fills in columns.

pyroute2's encoder takes hundreds of microseconds per message; numpy well under one per row. The offsets of the columns
come from the encoded template, so this module knows attributes by name only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import VLAN_ID, Anything
from nfcore.api.rules import Action

from .netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_ECHO,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    RTM_DELTFILTER,
    RTM_GETTFILTER,
    RTM_NEWTFILTER,
)
from .shapes import IP_ETHERTYPES, Kind, Place, Shape, action_cookie
from .tcmsg.cls_flower import FilterMessage, get_parameters, register

register()

HANDLE, INFO = 24, 32
"""Offsets of tcm_handle and tcm_info in a message."""
_ATTRIBUTE_HEADER = 4
_TERSE = 1
_PLACEHOLDERS = {4: ("0.0.0.1", "0.0.0.2"), 6: ("::1", "::2")}
_TAG_KEYS = ("vlan", "cvlan")
"""Outer and inner tag, as `get_parameters` and flower's keys name them."""


def tc_message(kind: int, flags: int, place: Place, **fields: Any) -> FilterMessage:
    """Return an encoded `struct tcmsg` message; `fields` are handle, info, parent and attrs. `.data` has the bytes."""
    message = FilterMessage()
    message["header"] = {"type": kind, "flags": flags | NLM_F_REQUEST, "sequence_number": 0, "pid": 0}
    message["index"], message["parent"] = place.ifindex, place.parent
    message.update(fields)
    message.encode()
    return message


def encode_rule(place: Place, shape: Shape, rule: Mapping[str, Any], handle: int = 0) -> FilterMessage:
    """Return the message that adds one rule; `rule` has the keys of `get_parameters` beyond those of the shape."""
    parameters = get_parameters({"protocol": shape.ethertype, "ip_proto": shape.protocol, **rule})
    return tc_message(
        RTM_NEWTFILTER,
        NLM_F_CREATE | NLM_F_EXCL,
        place,
        handle=handle,
        info=place.info(shape),
        attrs=[["TCA_KIND", "flower"], ["TCA_OPTIONS", parameters]],
    )


def encode_dump(place: Place, info: int, *, terse: bool) -> bytes:
    """Return the message that requests all filters at `place`, or those of the prio and protocol in `info`."""
    attrs = [["TCA_DUMP_FLAGS", {"value": _TERSE, "selector": _TERSE}]] if terse else []
    return bytes(tc_message(RTM_GETTFILTER, NLM_F_DUMP, place, info=info, attrs=attrs).data)


def payloads(message: Any) -> dict[str, tuple[int, int]]:
    """Return attribute → offset and length of its payload, of a message that pyroute2 has encoded or decoded."""
    found: dict[str, tuple[int, int]] = {}
    for name, offset, length in attributes(message):
        found.setdefault(name, (offset + _ATTRIBUTE_HEADER, length - _ATTRIBUTE_HEADER))
    return found


def attributes(message: Any) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and length (both with the header) of every attribute, nested ones after their parent."""
    for slot in message.get("attrs", ()):
        nla = slot.nla
        yield slot.name, nla.offset, nla.length
        if not isinstance(nla.getvalue(), (bytes, str)):
            yield from attributes(nla)


class Template:
    """Makes the messages that add rules of one kind."""

    def __init__(self, place: Place, kind: Kind, *, skip_sw: bool) -> None:
        act: dict[str, Any] = {"kind": "gact", "action": "drop"}
        if kind.action is Action.SET_MARK:
            act = {"kind": "skbedit", "mark": 1}
        rule = {**_placeholders(kind), "skip_sw": skip_sw, "action": {**act, "cookie": action_cookie(0)}}
        message = encode_rule(place, kind.shape, rule)
        self._bytes = np.frombuffer(bytes(message.data), dtype=np.uint8)
        self._columns = {name: offset for name, (offset, _) in payloads(message).items()}
        self._kind = kind

    def fill(self, rows: NDArray[np.void], handles: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Return the messages, shape (rules, length), for rows of `nfcore.api.rules.RULE_ROW` of this kind."""
        out: NDArray[np.uint8] = np.empty((len(rows), len(self._bytes)), dtype=np.uint8)
        out[:] = self._bytes
        family, ports = self._kind.family, self._kind.port_keys
        width = self._kind.address_bits // 8
        _put(out, HANDLE, handles.astype("<u4"))
        for field, end in (("src", "SRC"), ("dst", "DST")):
            at = self._columns.get(f"TCA_FLOWER_KEY_IPV{family}_{end}")
            if at is not None:
                out[:, at : at + width] = rows["key"][field][:, :width]
        for field, end in (("sport", "SRC"), ("dport", "DST")):
            at = self._columns.get(f"TCA_FLOWER_KEY_{ports}_{end}")
            if at is not None:
                _put(out, at, rows["key"][field])
        for column, name in enumerate(_TAG_KEYS):
            at = self._columns.get(f"TCA_FLOWER_KEY_{name.upper()}_ID")
            if at is not None:
                _put(out, at, rows["vlans"][:, column] & VLAN_ID)
        _put(out, self._columns["TCA_ACT_COOKIE"] + 8, rows["cookie"])
        if self._kind.action is Action.SET_MARK:
            _put(out, self._columns["TCA_SKBEDIT_MARK"], rows["mark"])
        return out


def _placeholders(kind: Kind) -> dict[str, Any]:
    """Return what rules of a kind match, as `get_parameters` takes it; what is open is left out."""
    rule: dict[str, Any] = {"ip_proto": kind.protocol, **match_tags(kind.tags, (1, 1), kind.family)}
    bits = kind.address_bits
    src, dst = _PLACEHOLDERS[kind.family]
    for key, address, open_bits in (("src_ip", src, kind.wild.src), ("dst_ip", dst, kind.wild.dst)):
        if open_bits < bits:
            rule[key] = f"{address}/{bits - open_bits}"
    for key, port, flag in (("src_port", 1, Anything.SPORT), ("dst_port", 2, Anything.DPORT)):
        if not kind.wild.anything & flag:
            rule[key] = port
    return rule


def match_tags(tpids: tuple[int, int], ids: tuple[int, int], family: int) -> dict[str, int]:
    """Return what rules with VLAN tags match, as `get_parameters` takes it. tpids: as in :class:`Kind`."""
    rule: dict[str, int] = {}
    for name, tpid, number, inner in zip(_TAG_KEYS, tpids, ids, (tpids[1], 0), strict=True):
        if tpid:
            rule |= {f"{name}_id": number, f"{name}_ethtype": inner or IP_ETHERTYPES[family]}
    return rule


@lru_cache(maxsize=1024)
def template(place: Place, kind: Kind, skip_sw: bool) -> Template:
    """Return the template; it is made at the first call."""
    return Template(place, kind, skip_sw=skip_sw)


def delete_messages(
    place: Place, shapes: NDArray[np.int64], handles: NDArray[np.uint32], *, echo: bool = False
) -> NDArray[np.uint8]:
    """Return the messages, shape (rules, length), that delete rules by handle.

    echo: the kernel sends each deleted rule back, with its last counters.
    """
    base = tc_message(RTM_DELTFILTER, NLM_F_ECHO if echo else 0, place, attrs=[["TCA_KIND", "flower"]])
    raw = np.frombuffer(bytes(base.data), dtype=np.uint8)
    out: NDArray[np.uint8] = np.empty((len(handles), len(raw)), dtype=np.uint8)
    out[:] = raw
    infos = np.array([place.info(shape) for shape in Shape], dtype="<u4")
    _put(out, HANDLE, handles.astype("<u4"))
    _put(out, INFO, infos[shapes])
    return out


def _put(out: NDArray[np.uint8], at: int, values: NDArray[Any]) -> None:
    """Write a column of numbers at offset `at`, in the byte order of their type."""
    raw = np.ascontiguousarray(values)
    out[:, at : at + raw.itemsize] = raw.view(np.uint8).reshape(len(raw), raw.itemsize)
