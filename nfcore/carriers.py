# SPDX-License-Identifier: Apache-2.0
"""Carriers: how a mark travels from the NIC to XDP, and what a program must be built with to read it.

One C header each in ``bpf/carriers/``; `docs/marks.md` is the protocol.
"""

from __future__ import annotations

from enum import StrEnum

from .kernel.btf import kernel_btf


class Carrier(StrEnum):
    """The word of `[marking] carrier`."""

    METADATA = "metadata"
    """The first u32 in front of the packet."""
    SKB_MARK = "skb-mark"
    """The mark of the socket buffer behind a native-XDP veth's packet."""


def carrier_defines(carrier: Carrier | None, *, tracing: bool = False) -> dict[str, int]:
    """Give the compiler's ``-D`` flags for a program that reads marks by `carrier`; None: it reads none.

    A traced program always reads metadata: a test run has no socket buffer. UnsupportedError when the kernel does
    not tell where the mark of a socket buffer is.
    """
    if carrier is None:
        return {"CARRIER_NONE": 1}
    if carrier is Carrier.METADATA or tracing:
        return {"CARRIER_METADATA": 1}
    btf = kernel_btf("veth")
    return {
        "CARRIER_SKB_MARK": 1,
        "SKB_OF_XDP_BUFF": btf.member_offset("veth_xdp_buff", "skb"),
        "MARK_OF_SKB": btf.member_offset("sk_buff", "mark"),
    }
