# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-subclassing-any=False
"""The action pedit (`tc_pedit.h`), which edits headers of a packet; here its extended form, for the Ethernet header.

    {"kind": "pedit", "eth": {"dst": "02:00:00:00:00:07"}}

The kernel edits a header in windows of 32 bits: each keeps the bits of its mask and takes the others from its value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.rtnl.tcmsg.common import tc_actions

from .actions import ActionTimes

HEADER_ETH = 1
COMMAND_SET = 0
FIELDS = {"dst": (0, 6), "src": (6, 6), "type": (12, 2)}
"""Field of the Ethernet header → its first byte and its length."""
_KEY = struct.Struct("=IIIIII")
_KEY_NAMES = ("mask", "val", "off", "at", "offmask", "shift")


class Options(nla):
    """`TCA_ACT_OPTIONS` of kind pedit."""

    nla_flags = NLA_F_NESTED
    nla_map = (
        ("TCA_PEDIT_UNSPEC", "none"),
        ("TCA_PEDIT_TM", "times"),
        ("TCA_PEDIT_PARMS", "hex"),
        ("TCA_PEDIT_PAD", "none"),
        ("TCA_PEDIT_PARMS_EX", "parms_ex"),
        ("TCA_PEDIT_KEYS_EX", "keys_ex"),
    )
    times = ActionTimes

    class parms_ex(nla):  # noqa: N801
        """`struct tc_pedit_sel`; `keys` are mappings, with mask and val in memory order."""

        fields: tuple[tuple[str, str], ...] = (
            ("index", "I"),
            ("capab", "I"),
            ("action", "i"),
            ("refcnt", "i"),
            ("bindcnt", "i"),
            ("nkeys", "B"),
            ("flags", "B"),
            ("raw", "s"),
        )

        def encode(self) -> None:
            """Encode the selector and, after it, the keys."""
            keys = self.get("keys", ())
            packed = b"".join(_KEY.pack(*(key.get(name, 0) for name in _KEY_NAMES)) for key in keys)
            self["nkeys"], self["raw"] = len(keys), b"\0\0" + packed
            nla.encode(self)

        def decode(self) -> None:
            """Decode the selector and the keys after it."""
            self.fields = self.fields[:-1]
            nla.decode(self)
            start = self.offset + 28
            end = min(start + self["nkeys"] * _KEY.size, self.offset + self.length)
            found = _KEY.iter_unpack(bytes(self.data[start:end]))
            self["keys"] = [dict(zip(_KEY_NAMES, values, strict=True)) for values in found]

    class keys_ex(nla):  # noqa: N801
        """The header that each key edits, in the order of the keys."""

        nla_flags = NLA_F_NESTED
        nla_map = ((6, "TCA_PEDIT_KEY_EX", "key_ex", 0),)

        class key_ex(nla):  # noqa: N801
            """Header and command of one key."""

            nla_flags = NLA_F_NESTED
            nla_map = (
                ("TCA_PEDIT_KEY_EX_UNSPEC", "none"),
                ("TCA_PEDIT_KEY_EX_HTYPE", "uint16"),
                ("TCA_PEDIT_KEY_EX_CMD", "uint16"),
            )


options = Options


def ethernet_keys(field: str, value: bytes) -> Iterator[dict[str, int]]:
    """Yield the 32-bit windows that set `field` of the Ethernet header to `value`, bytes in network order."""
    start, length = FIELDS[field]
    if len(value) != length:
        raise ValueError(f"eth {field} has {len(value)} bytes; should be {length}")
    for window in range(start & ~3, start + length, 4):
        mask, val = bytearray(b"\xff" * 4), bytearray(4)
        for number in range(4):
            at = window + number - start
            if 0 <= at < length:
                mask[number], val[number] = 0, value[at]
        yield {"mask": struct.unpack("=I", mask)[0], "val": struct.unpack("=I", val)[0], "off": window}


def get_parameters(kwarg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes for `eth`: field → new value, MAC addresses as text, `type` as a number."""
    keys: list[dict[str, int]] = []
    for field, value in kwarg["eth"].items():
        raw = value.to_bytes(2, "big") if isinstance(value, int) else bytes.fromhex(value.replace(":", ""))
        keys += ethernet_keys(field, raw)
    ex = {"attrs": [["TCA_PEDIT_KEY_EX_HTYPE", HEADER_ETH], ["TCA_PEDIT_KEY_EX_CMD", COMMAND_SET]]}
    parms = {"action": tc_actions[kwarg.get("action", "pipe")], "keys": keys}
    return {
        "attrs": [
            ["TCA_PEDIT_PARMS_EX", parms],
            ["TCA_PEDIT_KEYS_EX", {"attrs": [["TCA_PEDIT_KEY_EX", ex] for _ in keys]}],
        ]
    }
