# SPDX-License-Identifier: Apache-2.0
"""Why a flow is not in hardware: the numbers that `on_new_flow` answers with, and the words for them."""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """0 admits; 1 to 63 belong to the core, 64 to 255 to plugins."""

    ADMIT = 0
    TABLE_FULL = 1
    """`[offload] max_rules` flows have a rule."""
    NO_MARK = 2
    """The strategy had none, or XDP's pool was empty."""
    NOT_PUBLISHED = 3
    """The NF refused to write what the mark means: VIP or real have changed."""
    QUEUE_FULL = 4
    """The device's worker is behind."""
    NO_BACKEND = 5
    """The device has no backend that takes rules."""
    NIC_FULL = 6
    UNSUPPORTED = 7
    FAILED = 8
    HOOK_FAILED = 9
    """A policy or the NF raised, or gave no answer for each flow; the flow stays on the slow path."""
    TOO_SLOW = 10
    """Fewer packets a second than `[offload] min_rate`, or not known yet."""
    EXCLUDED = 11
    """An address is in `[offload] exclude`."""
    SHARE = 12
    """Its group (VIP) has its `[offload] max_share` of the rules."""
    SWITCHED_OFF = 13
    """`nfcore offload off`."""
    BUDGET = 14
    """`[offload] inserts_per_second` is used up."""
    SHED = 15
    """More flows waited than `[offload] waiting`, and this one was among the coldest."""
    IDLE = 16
    """It had a rule, whose counter stood still."""
    REPLACED = 17
    """It had a rule, and gave its place to a hotter flow."""
    TARGET_GONE = 18
    """What its mark leads to exists no more."""
    MOVED = 19
    """It had a rule, and the slow path has sent it elsewhere since: a new connection with the old one's addresses."""
    VANISHED = 20
    """Its rule disappeared from the NIC without our doing."""

    ENDED = 21
    """It had a rule, and its connection was closed."""

    @property
    def word(self) -> str:
        """The reason as metrics and messages write it."""
        return self.name.lower()

    @property
    def sentence(self) -> str:
        """The reason for a person."""
        return _SENTENCES[self]


_SENTENCES = {
    Reason.ADMIT: "nothing speaks against a rule",
    Reason.TABLE_FULL: "all [offload] max_rules rules are taken by flows that are at least as hot",
    Reason.NO_MARK: "no mark was free for it",
    Reason.NOT_PUBLISHED: "what its mark would mean could not be written: its target has changed",
    Reason.QUEUE_FULL: "the device's worker is behind",
    Reason.NO_BACKEND: "its interface has no offload backend that takes rules",
    Reason.NIC_FULL: "the NIC's table is full of flows that are at least as hot",
    Reason.UNSUPPORTED: "the NIC takes no rules of this family and protocol",
    Reason.FAILED: "the backend failed to install its rule",
    Reason.HOOK_FAILED: "a plugin failed to judge it",
    Reason.TOO_SLOW: "it has not shown [offload] min_rate packets a second",
    Reason.EXCLUDED: "one of its addresses is in [offload] exclude",
    Reason.SHARE: "its VIP has all of its [offload] max_share of the rules",
    Reason.SWITCHED_OFF: "offloading is switched off: nfcore offload on",
    Reason.BUDGET: "[offload] inserts_per_second is used up; it waits for its turn",
    Reason.SHED: "too many flows waited for a rule, and it was among the coldest",
    Reason.IDLE: "its rule was removed because its counter stood still",
    Reason.REPLACED: "its rule was removed to make room for a hotter flow",
    Reason.TARGET_GONE: "what its mark led to was taken out of the configuration",
    Reason.MOVED: "its rule was removed because a new connection with its addresses goes elsewhere",
    Reason.ENDED: "its rule was removed because its connection was closed",
    Reason.VANISHED: "its rule disappeared from the NIC and is being put back",
}


def reason_word(number: int) -> str:
    """Name a reason, a plugin's own by its number."""
    try:
        return Reason(number).word
    except ValueError:
        return f"plugin_{number}"


def reason_sentence(number: int) -> str:
    """Explain a reason, a plugin's own by its number."""
    try:
        return Reason(number).sentence
    except ValueError:
        return f"a plugin's policy refused it with its reason {number}"
