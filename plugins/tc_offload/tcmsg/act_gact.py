# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-subclassing-any=False
"""The generic action gact (`tc_gact.h`): pass, drop and similar, with times and probability.

{"kind": "gact", "action": "drop"}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.rtnl.tcmsg.common import tc_actions

from .actions import ActionTimes, GenericParms


class Options(nla):
    """`TCA_ACT_OPTIONS` of kind gact."""

    nla_flags = NLA_F_NESTED
    nla_map = (
        ("TCA_GACT_UNSPEC", "none"),
        ("TCA_GACT_TM", "times"),
        ("TCA_GACT_PARMS", "parms"),
        ("TCA_GACT_PROB", "probability"),
        ("TCA_GACT_PAD", "none"),
    )
    times = ActionTimes
    parms = GenericParms

    class probability(nla):  # noqa: N801
        """`struct tc_gact_p`: another action for one packet in `pval`."""

        fields = (("ptype", "H"), ("pval", "H"), ("paction", "i"))


options = Options


def get_parameters(kwarg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes for `action`, a key of pyroute2's `tc_actions`."""
    return {"attrs": [["TCA_GACT_PARMS", {"action": tc_actions[kwarg.get("action", "drop")]}]]}
