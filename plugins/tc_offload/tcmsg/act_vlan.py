# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-subclassing-any=False
"""The action vlan (`tc_vlan.h`), which pushes, pops and changes VLAN tags and Ethernet headers, with times.

{"kind": "vlan", "v_action": "push", "id": 5, "priority": 2, "protocol": "802.1Q"}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.rtnl.tcmsg.common import tc_actions

from .actions import ActionTimes

VLAN_ACTIONS = {"pop": 1, "push": 2, "modify": 3, "pop_eth": 4, "push_eth": 5}
PROTOCOLS = {"802.1Q": 0x8100, "802.1ad": 0x88A8}


class Options(nla):
    """`TCA_ACT_OPTIONS` of kind vlan."""

    nla_flags = NLA_F_NESTED
    nla_map = (
        ("TCA_VLAN_UNSPEC", "none"),
        ("TCA_VLAN_TM", "times"),
        ("TCA_VLAN_PARMS", "parms"),
        ("TCA_VLAN_PUSH_VLAN_ID", "uint16"),
        ("TCA_VLAN_PUSH_VLAN_PROTOCOL", "be16"),
        ("TCA_VLAN_PAD", "none"),
        ("TCA_VLAN_PUSH_VLAN_PRIORITY", "uint8"),
        ("TCA_VLAN_PUSH_ETH_DST", "l2addr"),
        ("TCA_VLAN_PUSH_ETH_SRC", "l2addr"),
    )
    times = ActionTimes

    class parms(nla):  # noqa: N801
        """`struct tc_vlan`."""

        fields = (("index", "I"), ("capab", "I"), ("action", "i"), ("refcnt", "i"), ("bindcnt", "i"), ("v_action", "i"))


options = Options


def get_parameters(kwarg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes for `v_action` and, where it needs them, id, priority, protocol, eth_dst and eth_src."""
    v_action = kwarg["v_action"]
    parms = {"v_action": VLAN_ACTIONS[v_action], "action": tc_actions[kwarg.get("action", "pipe")]}
    attrs: list[list[Any]] = [["TCA_VLAN_PARMS", parms]]
    if v_action in ("push", "modify"):
        attrs.append(["TCA_VLAN_PUSH_VLAN_ID", kwarg["id"]])
        attrs.append(["TCA_VLAN_PUSH_VLAN_PROTOCOL", PROTOCOLS[kwarg.get("protocol", "802.1Q")]])
        if kwarg.get("priority") is not None:
            attrs.append(["TCA_VLAN_PUSH_VLAN_PRIORITY", kwarg["priority"]])
    if v_action == "push_eth":
        attrs.append(["TCA_VLAN_PUSH_ETH_DST", kwarg["eth_dst"]])
        attrs.append(["TCA_VLAN_PUSH_ETH_SRC", kwarg["eth_src"]])
    return {"attrs": attrs}
