# SPDX-License-Identifier: Apache-2.0
"""What an interface and its driver do to packets before and behind XDP, for `nfcore doctor`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..api.findings import Finding, Status
from ..api.rules import Device
from ..kernel.ethtool import LinkFacts, link_counters, link_facts
from ..kernel.netlink import accepts_redirects

OK, WARNING, FAULT = Status.OK, Status.WARNING, Status.FAULT
SMALLEST_MTU, LARGEST_MTU = 1500, 1600
"""Bytes; another MTU draws a warning. An outer header makes packets of 1,500 bytes larger by up to 48."""
_LOSSES = re.compile(r"xdp.*(err|full|abort|fail)|(err|full|abort|fail).*xdp")
"""Driver's counters of frames that XDP sent or redirected and that were lost. xdp_drop is what a program wanted."""
_MERGES = {"rx-lro": ("LRO", "lro", FAULT), "rx-gro-hw": ("rx-gro-hw", "rx-gro-hw", WARNING)}
"""Feature by which the NIC merges packets → what it is called, its name for `ethtool -K`, and how bad it is: most
drivers stop the second one themselves while a program is attached."""


def examine_link(device: Device) -> Iterator[Finding]:
    """Check the state of a link, and what it does to packets. HostError, OSError: it cannot be read."""
    name = device.name
    facts = link_facts(device.ifindex, name)
    found = f"{'up' if facts.up else 'down'}, driver {facts.driver or 'unknown'}, MTU {facts.mtu}"
    yield Finding(f"{name}: link", OK if facts.up else FAULT, found, "" if facts.up else f"ip link set {name} up")
    yield from _examine_mtu(name, facts.mtu)
    yield from examine_merging(name, facts)
    yield from _examine_peer(device, facts)
    yield from _examine_losses(name)
    gro = facts.features.get("rx-gro")
    if gro is not None:
        yield Finding(f"{name}: GRO", OK, "on" if gro else "off")
    offload = facts.features.get("hw-tc-offload")
    if offload is not None:
        can = "hw-tc-offload" not in facts.fixed
        found = "on" if offload else f"off{'' if can else ' and fixed'}: TC filters stay in software"
        advice = f"ethtool -K {name} hw-tc-offload on" if can and not offload else ""
        yield Finding(f"{name}: hw-tc-offload", OK, found, advice)


def _examine_mtu(name: str, mtu: int) -> Iterator[Finding]:
    if mtu < SMALLEST_MTU:
        advice = f"ip link set {name} mtu {SMALLEST_MTU}"
        yield Finding(f"{name}: MTU", WARNING, f"{mtu}: full-sized packets do not arrive", advice)
    elif mtu > LARGEST_MTU:
        found = f"{mtu}: more than most links take, and than many drivers hand to XDP"
        yield Finding(f"{name}: MTU", WARNING, found, f"ip link set {name} mtu {LARGEST_MTU}, if the path has less")


def examine_merging(name: str, facts: LinkFacts) -> Iterator[Finding]:
    """Check that the NIC merges no packets: a program would see the first header of several."""
    for feature, (word, option, status) in _MERGES.items():
        on = facts.features.get(feature)
        if on and feature in facts.fixed:
            found = "on, and fixed: merges packets before XDP sees them unless the driver stops that for a program"
            yield Finding(f"{name}: {word}", WARNING, found)
        elif on:
            found = "on: packets are merged before XDP sees them"
            yield Finding(f"{name}: {word}", status, found, f"ethtool -K {name} {option} off")
        elif on is not None:
            yield Finding(f"{name}: {word}", OK, "off")


def _examine_peer(device: Device, facts: LinkFacts) -> Iterator[Finding]:
    """Check the other end of a veth: whether it takes what XDP sends, and whether it computes checksums."""
    name, peer = device.name, facts.peer
    if facts.driver != "veth":
        return
    where = "its peer" if peer is None else f"its peer {peer.name}"
    where += f" in namespace {peer.namespace}" if peer is not None and peer.namespace else ""
    if accepts_redirects(device.ifindex) is False or (peer is not None and not peer.has_program):
        # With GRO alone the peer takes what is redirected to it, but is never told of what XDP sends back.
        found = f"{where} has no XDP program: it loses what XDP sends back out of {name}"
        yield Finding(
            f"{name}: peer", WARNING, found, "attach a program to the peer, such as one that passes everything"
        )
    # A peer with a program forwards frames of others, as an emulated NIC does.
    if peer is not None and peer.features.get("tx-checksum-ip-generic") and not peer.has_program:
        found = f"{where} leaves checksums of its own packets to the NIC (tx-checksumming on), and there is none: "
        found += "what XDP sends on has wrong ones, and receivers drop it"
        yield Finding(f"{name}: checksums", WARNING, found, peer.command("tx off"))


def _examine_losses(name: str) -> Iterator[Finding]:
    lost = {counter: value for counter, value in link_counters(name).items() if value and _LOSSES.search(counter)}
    if lost:
        found = ", ".join(f"{counter} {value:,}" for counter, value in lost.items())
        advice = f"watch whether they grow: ethtool -S {name}; then see to queues, MTU and peer of the interface"
        yield Finding(f"{name}: losses", WARNING, f"frames that XDP sent were lost: {found}", advice)


def advise_mtu(device: Device) -> str:
    """Say how to make packets fit into what a native program gets: most drivers give it one page."""
    peer = link_facts(device.ifindex, device.name).peer
    ends = [f"ip link set {device.name} mtu {LARGEST_MTU}"]
    if peer is not None:
        enter = f"ip -n {peer.namespace}" if peer.namespace else "ip"
        ends.insert(0, f"{enter} link set {peer.name} mtu {LARGEST_MTU}")
    return "; ".join(ends)
