# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-subclassing-any=False
"""TC actions as pyroute2 attributes: what all kinds have in common (`pkt_cls.h`, `gen_stats.h`).

pyroute2's own `common_act` has neither the cookie of an action nor its hardware statistics. These classes have both;
the kinds come from the same table, `pyroute2.netlink.rtnl.tcmsg.common_act.plugins`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyroute2.netlink import nla
from pyroute2.netlink.rtnl.tcmsg.common import TCA_ACT_MAX_PRIO
from pyroute2.netlink.rtnl.tcmsg.common_act import plugins as kinds

COOKIE_BYTES = 16
"""Longest cookie of an action, TC_COOKIE_MAX_SIZE."""


class ActionTimes(nla):
    """`struct tcf_t`: ages in 1/100 s (USER_HZ); firstuse is 0 until software uses the action."""

    fields = (("install", "Q"), ("lastuse", "Q"), ("expires", "Q"), ("firstuse", "Q"))


class GenericParms(nla):
    """`tc_gen`, the beginning of every action's parameters; `action` is what happens to the packet next."""

    fields = (("index", "I"), ("capab", "I"), ("action", "i"), ("refcnt", "i"), ("bindcnt", "i"))


class Bitfield32(nla):
    """`struct nla_bitfield32`: only the bits of `value` that are set in `selector` count."""

    fields = (("value", "I"), ("selector", "I"))


class Statistics(nla):
    """`TCA_ACT_STATS`. basic counts hardware and software, basic_hw hardware alone; pkt64 is there beyond 2³²."""

    nla_map = (
        ("TCA_STATS_UNSPEC", "none"),
        ("TCA_STATS_BASIC", "basic"),
        ("TCA_STATS_RATE_EST", "rate_est"),
        ("TCA_STATS_QUEUE", "queue"),
        ("TCA_STATS_APP", "hex"),
        ("TCA_STATS_RATE_EST64", "rate_est64"),
        ("TCA_STATS_PAD", "none"),
        ("TCA_STATS_BASIC_HW", "basic"),
        ("TCA_STATS_PKT64", "uint64"),
    )

    class basic(nla):  # noqa: N801
        """`struct gnet_stats_basic`."""

        fields = (("bytes", "Q"), ("packets", "I"))

    class rate_est(nla):  # noqa: N801
        """`struct gnet_stats_rate_est`."""

        fields = (("bps", "I"), ("pps", "I"))

    class rate_est64(nla):  # noqa: N801
        """`struct gnet_stats_rate_est64`."""

        fields = (("bps", "Q"), ("pps", "Q"))

    class queue(nla):  # noqa: N801
        """`struct gnet_stats_queue`."""

        fields = (("qlen", "I"), ("backlog", "I"), ("drops", "I"), ("requeues", "I"), ("overlimits", "I"))


class ActionChain(nla):
    """The actions of a filter by position, from 1."""

    nla_map = tuple((f"TCA_ACT_PRIO_{number}", "act") for number in range(TCA_ACT_MAX_PRIO + 1))

    class act(nla):  # noqa: N801
        """One action."""

        nla_map = (
            ("TCA_ACT_UNSPEC", "none"),
            ("TCA_ACT_KIND", "asciiz"),
            ("TCA_ACT_OPTIONS", "get_act_options"),
            ("TCA_ACT_INDEX", "uint32"),
            ("TCA_ACT_STATS", "stats"),
            ("TCA_ACT_PAD", "none"),
            ("TCA_ACT_COOKIE", "cdata"),
            ("TCA_ACT_FLAGS", "bitfield"),
            ("TCA_ACT_HW_STATS", "bitfield"),
            ("TCA_ACT_USED_HW_STATS", "bitfield"),
            ("TCA_ACT_IN_HW_COUNT", "uint32"),
        )
        stats = Statistics
        bitfield = Bitfield32

        @staticmethod
        def get_act_options(self: nla, *_: Any, **__: Any) -> Any:  # noqa: PLW0211 - pyroute2 passes the attribute
            """Return the class of this kind's options; those of an unknown kind stay a hex dump."""
            kind = self.get_attr("TCA_ACT_KIND")
            return kinds[kind].options if kind in kinds else self.hex


def encode_actions(actions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the attributes of a chain of actions.

    Each action is a mapping with its `kind`, the keys of that kind and, optionally, a `cookie` of up to
    :data:`COOKIE_BYTES` bytes. ValueError names an unknown kind; the kernel's refusal would not.
    """
    chain = []
    for order, action in enumerate(actions, start=1):
        kind = action.get("kind")
        if kind not in kinds:
            raise ValueError(f"action {order} has kind {kind!r}; known are {', '.join(sorted(kinds))}")
        attrs: list[list[Any]] = [["TCA_ACT_KIND", kind], ["TCA_ACT_OPTIONS", kinds[kind].get_parameters(dict(action))]]
        if "cookie" in action:
            cookie = bytes(action["cookie"])
            if not 0 < len(cookie) <= COOKIE_BYTES:
                raise ValueError(f"the cookie of action {order} has {len(cookie)} bytes; should be 1 to {COOKIE_BYTES}")
            attrs.append(["TCA_ACT_COOKIE", cookie])
        chain.append([f"TCA_ACT_PRIO_{order}", {"attrs": attrs}])
    return {"attrs": chain}
