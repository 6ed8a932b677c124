# SPDX-License-Identifier: Apache-2.0
"""The balancer's part of `nfcore doctor`: does the program load, is there a gateway, does the MTU suffice."""

from __future__ import annotations

from collections.abc import Iterator

from nfcore.api.context import Context
from nfcore.api.findings import Finding, Status
from nfcore.errors import NfcoreError
from nfcore.kernel.ethtool import link_facts

from .balancer import Balancer
from .config import NAME, KatranTable
from .gateway import gateway_mac

IPV4_OUTER, IPV6_OUTER = 20, 40
"""Bytes of the outer header."""


def diagnose(context: Context, table: KatranTable) -> Iterator[Finding]:
    """Check what a packet needs on its way to a real: the program, the MTU of each device, the gateway."""
    yield _program(context, table)
    devices = context.devices_of(NAME)
    for device in devices:
        yield _mtu(table, device.name, device.ifindex)
    if table.gateway_mac != "auto":
        yield Finding(f"{NAME}: gateway", Status.OK, f"{table.gateway_mac}, as configured")
    elif devices:
        yield _gateway(devices[0].name, devices[0].ifindex)


def _program(context: Context, table: KatranTable) -> Finding:
    meaning = context.strategy.meaning if context.strategy else None
    balancer = Balancer(context.config, table, meaning)
    try:
        balancer.open(context)
        return Finding(f"{NAME}: program", Status.OK, f"loads, {balancer.program.jited_size:,} bytes")
    except NfcoreError as error:
        return Finding(f"{NAME}: program", Status.FAULT, str(error))
    finally:
        balancer.close()


def _gateway(name: str, ifindex: int) -> Finding:
    try:
        mac = gateway_mac(name, ifindex)
        return Finding(f"{NAME}: gateway", Status.OK, f"{mac}, by the default route of {name}")
    except NfcoreError as error:
        return Finding(f"{NAME}: gateway", Status.FAULT, str(error))


def _mtu(table: KatranTable, name: str, ifindex: int) -> Finding:
    """Whether a packet of 1,500 bytes still fits with the outer header."""
    outer = IPV6_OUTER if any(r.address.version == 6 for vip in table.vips for r in vip.reals) else IPV4_OUTER
    mtu, wanted = link_facts(ifindex, name).mtu, 1500 + outer
    if mtu >= wanted:
        return Finding(f"{name}: room for encapsulation", Status.OK, f"MTU {mtu}")
    found = f"MTU {mtu}: packets of more than {mtu - outer} bytes do not fit with {outer} bytes of outer header"
    advice = f"an MTU of {wanted} from here to the reals, or clients' MSS clamped to {mtu - outer - 40}"
    return Finding(f"{name}: room for encapsulation", Status.WARNING, found, advice)
