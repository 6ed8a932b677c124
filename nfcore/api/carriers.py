# SPDX-License-Identifier: Apache-2.0
"""Carriers: how a mark travels from the NIC to XDP, and what a program must be built with to read it.

One C header each in ``bpf/lib/carriers/``; `docs/marks.md` is the protocol.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from enum import StrEnum

from ..errors import HostError
from ..kernel.btf import kernel_btf
from ..kernel.ethtool import queue_facts
from .findings import Finding, Status
from .rules import Device

log = logging.getLogger(__name__)


class Carrier(StrEnum):
    """The word of `[marking] carrier`."""

    METADATA = "metadata"
    """The first u32 in front of the packet."""
    SKB_MARK = "skb-mark"
    """The mark of the socket buffer behind a native-XDP veth's packet."""
    RX_QUEUE = "rx-queue"
    """The number of the receive queue; queue 0 is that of unmarked packets."""


def carrier_defines(carrier: Carrier | None, *, tracing: bool = False) -> dict[str, int]:
    """Give the compiler's ``-D`` flags for a program that reads marks by `carrier`; None: it reads none.

    A traced program always reads metadata: a test run has no socket buffer, and the queues of no NIC.
    UnsupportedError when the kernel does not tell where the mark of a socket buffer is.
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
    """See whether an interface leaves the carrier to rules; None where there is nothing to look at.

    A receive queue is a mark only while nothing but rules puts packets on the queues from 1 on: a NIC that spreads
    packets over them (RSS) would mark each of them, and connections would end up at other reals than they began with.
    """
    if carrier is not Carrier.RX_QUEUE:
        return None
    facts = queue_facts(device.name)
    what, confine = f"{device.name}: rx-queue", f"ethtool -X {device.name} equal 1"
    if facts.rss and max(facts.rss) > 0:
        others = len(facts.rss - {0})
        queues = "another queue, whose number" if others == 1 else f"{others} other queues, whose numbers"
        found = f"RSS puts packets on {queues} would be taken for a mark; marks need all unmarked packets on queue 0"
        return Finding(what, Status.FAULT, found, confine)
    if not facts.rss and facts.receive_queues != 1:
        found = "the driver does not tell how it spreads packets without a mark; all of them must arrive on queue 0"
        return Finding(what, Status.WARNING, found)
    return Finding(what, Status.OK, "unmarked packets arrive on queue 0")


def require_carrier(carrier: Carrier, devices: Iterable[Device]) -> None:
    """Log what could not be seen of the devices; HostError when one of them would mark packets without a rule.

    All of them read marks when one of them has a backend: they run the same program.
    """
    devices = list(devices)
    for device in devices if any(each.backends for each in devices) else ():
        finding = examine_carrier(carrier, device)
        if finding is None or finding.status is Status.OK:
            continue
        if finding.status is Status.FAULT:
            advice = f"{finding.advice}, or another [marking] carrier"
            raise HostError(f"{finding.what}: {finding.found}: {advice}")
        log.warning("%s: %s", finding.what, finding.found)
