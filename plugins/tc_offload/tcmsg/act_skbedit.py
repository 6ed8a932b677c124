# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-subclassing-any=False
"""The action skbedit (`tc_skbedit.h`), which edits metadata of a packet: mark, queue, priority, packet type.

{"kind": "skbedit", "mark": 7, "queue": 3, "action": "pipe"}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.rtnl.tcmsg.act_skbedit import convert_ptype
from pyroute2.netlink.rtnl.tcmsg.common import tc_actions

from .actions import ActionTimes, GenericParms


class Options(nla):
    """`TCA_ACT_OPTIONS` of kind skbedit."""

    nla_flags = NLA_F_NESTED
    nla_map = (
        ("TCA_SKBEDIT_UNSPEC", "none"),
        ("TCA_SKBEDIT_TM", "times"),
        ("TCA_SKBEDIT_PARMS", "parms"),
        ("TCA_SKBEDIT_PRIORITY", "uint32"),
        ("TCA_SKBEDIT_QUEUE_MAPPING", "uint16"),
        ("TCA_SKBEDIT_MARK", "uint32"),
        ("TCA_SKBEDIT_PAD", "none"),
        ("TCA_SKBEDIT_PTYPE", "uint16"),
        ("TCA_SKBEDIT_MASK", "uint32"),
        ("TCA_SKBEDIT_FLAGS", "uint64"),
        ("TCA_SKBEDIT_QUEUE_MAPPING_MAX", "uint16"),
    )
    times = ActionTimes
    parms = GenericParms


options = Options

_ATTRIBUTES = {
    "priority": "TCA_SKBEDIT_PRIORITY",
    "queue": "TCA_SKBEDIT_QUEUE_MAPPING",
    "queue_max": "TCA_SKBEDIT_QUEUE_MAPPING_MAX",
    "mark": "TCA_SKBEDIT_MARK",
    "mask": "TCA_SKBEDIT_MASK",
}


def get_parameters(kwarg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes for mark, mask, queue, queue_max, priority (numbers) and ptype (a name).

    `action` is what happens next: `pipe`, the next action, by default.
    """
    attrs: list[list[Any]] = [["TCA_SKBEDIT_PARMS", {"action": tc_actions[kwarg.get("action", "pipe")]}]]
    attrs += [[name, kwarg[key]] for key, name in _ATTRIBUTES.items() if kwarg.get(key) is not None]
    if kwarg.get("ptype") is not None:
        attrs.append(["TCA_SKBEDIT_PTYPE", convert_ptype(kwarg["ptype"])])
    return {"attrs": attrs}
