# SPDX-License-Identifier: Apache-2.0
"""Reasons why a flow has no rule: numbers, as `on_new_flow` gives them, with a word and a sentence for each."""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """0 admits; 1 to 63 are the core's, 64 to 255 are for plugins."""

    ADMIT = 0
    TABLE_FULL = 1
    """`[offload] max_rules` flows have a rule."""
    NO_MARK = 2
    """The strategy had no free mark, or XDP's pool was empty."""
    NOT_PUBLISHED = 3
    """The NF did not write the entry of the mark: VIP or real have changed."""
    QUEUE_FULL = 4
    """The queue of the device's worker is full."""
    NO_BACKEND = 5
    """The device has no backend that takes rules."""
    NIC_FULL = 6
    UNSUPPORTED = 7
    FAILED = 8
    HOOK_FAILED = 9
    """A policy or the NF raised, or did not give a result for each flow."""
    TOO_SLOW = 10
    """Its rate is below `[offload] min_rate`, or not known yet."""
    EXCLUDED = 11
    """One of its addresses is in `[offload] exclude`."""
    SHARE = 12
    """Its group (VIP) already has its `[offload] max_share` of the rules."""
    SWITCHED_OFF = 13
    """`nfcore offload off`."""
    BUDGET = 14
    """`[offload] inserts_per_second` is used up."""
    SHED = 15
    """More flows waited than `[offload] waiting`, and this one was among the coldest."""
    IDLE = 16
    """It had a rule, whose counter did not change."""
    REPLACED = 17
    """It had a rule, which was removed for a hotter flow."""
    TARGET_GONE = 18
    """The target of its mark no longer exists."""
    MOVED = 19
    """It had a rule, but the slow path now sends it elsewhere: a new connection with the addresses of the old one."""
    VANISHED = 20
    """Its rule disappeared from the NIC; nfcore did not remove it."""
    ENDED = 21
    """It had a rule, and its connection was closed."""
    WITHDRAWN = 22
    """An application ordered its rule, and has taken the order back."""
    EARLIER = 23
    """A function that comes earlier in the chain must see its packets."""
    FORGOTTEN = 24
    """Its network function has forgotten it, as an operator wanted: its next packet is decided anew."""

    @property
    def word(self) -> str:
        """The reason in metrics and events."""
        return self.name.lower()

    @property
    def sentence(self) -> str:
        """The reason for people."""
        return _SENTENCES[self]


_SENTENCES = {
    Reason.ADMIT: "it may have a rule",
    Reason.TABLE_FULL: "all [offload] max_rules rules are in use by flows that are at least as hot",
    Reason.NO_MARK: "no mark was free for it",
    Reason.NOT_PUBLISHED: "the entry of its mark could not be written: its target has changed",
    Reason.QUEUE_FULL: "the queue of the device's worker is full",
    Reason.NO_BACKEND: "its interface has no offload backend that takes rules",
    Reason.NIC_FULL: "the NIC's table is full of flows that are at least as hot",
    Reason.UNSUPPORTED: "the NIC does not support such rules: family, protocol, masks or drop",
    Reason.FAILED: "the backend failed to install its rule",
    Reason.HOOK_FAILED: "a plugin failed to judge it",
    Reason.TOO_SLOW: "it has not reached [offload] min_rate packets a second",
    Reason.EXCLUDED: "one of its addresses is in [offload] exclude",
    Reason.SHARE: "its VIP already has its [offload] max_share of the rules",
    Reason.SWITCHED_OFF: "offloading is switched off: nfcore offload on",
    Reason.BUDGET: "[offload] inserts_per_second is used up; it waits",
    Reason.SHED: "too many flows waited for a rule, and it was among the coldest",
    Reason.IDLE: "its rule was removed because its counter did not change",
    Reason.REPLACED: "its rule was removed to make room for a hotter flow",
    Reason.TARGET_GONE: "the target of its mark was removed from the configuration",
    Reason.MOVED: "its rule was removed because a new connection with its addresses goes elsewhere",
    Reason.ENDED: "its rule was removed because its connection was closed",
    Reason.WITHDRAWN: "its rule was removed because its order was withdrawn",
    Reason.EARLIER: "an earlier function of the interface's chain must see its packets",
    Reason.FORGOTTEN: "its rule was removed because its connection was deleted by an operator",
    Reason.VANISHED: "its rule disappeared from the NIC and is being installed again",
}


def reason_word(number: int) -> str:
    """Give the word of a reason; for a plugin's own, ``plugin_N``."""
    try:
        return Reason(number).word
    except ValueError:
        return f"plugin_{number}"


def reason_sentence(number: int) -> str:
    """Give the sentence of a reason, also of a plugin's own."""
    try:
        return Reason(number).sentence
    except ValueError:
        return f"a plugin's policy refused it with its reason {number}"
