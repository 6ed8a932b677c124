# SPDX-License-Identifier: Apache-2.0
"""Carriers: how a mark gets from the NIC to XDP, and the compiler flags of a program that reads it.

Each carrier has a C header in ``bpf/lib/carriers/``; `docs/marks.md` describes the protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum

from ..kernel.btf import kernel_btf
from ..kernel.ethtool import queue_facts
from .findings import Finding, Status
from .rules import Device


class Carrier(StrEnum):
    """The values of `[marking] carrier`."""

    METADATA = "metadata"
    """The first u32 in front of the packet."""
    SKB_MARK = "skb-mark"
    """The mark of the socket buffer that belongs to the packet, on a veth with native XDP."""
    RX_QUEUE = "rx-queue"
    """The number of the receive queue; unmarked packets arrive on queue 0."""


def carrier_defines(carrier: Carrier | None, *, tracing: bool = False) -> dict[str, int]:
    """Give the compiler's ``-D`` flags for a program that reads marks by `carrier`; None: it reads no marks.

    A traced program always reads metadata, because a test run has neither a socket buffer nor receive queues.
    UnsupportedError when the kernel's type information lacks the position of the mark in a socket buffer.
    """
    if carrier is None:
        return {"CARRIER_NONE": 1}
    if carrier is Carrier.METADATA or tracing:
        return {"CARRIER_METADATA": 1}
    if carrier is Carrier.RX_QUEUE:
        return {"CARRIER_RX_QUEUE": 1}
    btf = kernel_btf("veth")
    return {
        "CARRIER_SKB_MARK": 1,
        "SKB_OF_XDP_BUFF": btf.member_offset("veth_xdp_buff", "skb"),
        "MARK_OF_SKB": btf.member_offset("sk_buff", "mark"),
    }


def examine_carrier(carrier: Carrier, device: Device) -> Finding | None:
    """Check that on an interface only rules set the carrier; None where there is nothing to check.

    The number of a receive queue is a mark only while rules alone put packets on queues other than 0. A NIC that
    spreads packets over the queues (RSS) would mark all of them, and connections would move to other reals.
    """
    if carrier is not Carrier.RX_QUEUE:
        return None
    facts = queue_facts(device.name)
    what, advice = f"{device.name}: rx-queue", f"ethtool -X {device.name} equal 1, or another [marking] carrier"
    if facts.rss and max(facts.rss) > 0:
        others = len(facts.rss - {0})
        queues = "another queue, whose number" if others == 1 else f"{others} other queues, whose numbers"
        found = f"RSS puts packets on {queues} would count as a mark; unmarked packets must all arrive on queue 0"
        return Finding(what, Status.FAULT, found, advice)
    if not facts.rss and facts.receive_queues != 1:
        found = "the driver does not report how it spreads unmarked packets; all of them must arrive on queue 0"
        return Finding(what, Status.WARNING, found)
    return Finding(what, Status.OK, "unmarked packets arrive on queue 0")


def examine_carriers(carrier: Carrier, devices: Sequence[Device]) -> Iterator[Finding]:
    """Check the carrier on all devices. All read marks when one has a backend, because they run the same program."""
    for device in devices if any(device.backends for device in devices) else ():
        finding = examine_carrier(carrier, device)
        if finding is not None:
            yield finding
