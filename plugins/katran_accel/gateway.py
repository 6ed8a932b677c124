# SPDX-License-Identifier: Apache-2.0
"""Where encapsulated packets go next: the MAC address of an interface's gateway."""

from __future__ import annotations

import socket
import time

from pyroute2 import IPRoute

from nfcore.errors import HostError

NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
"""Neighbour states with an address that can be used: reachable, stale, delay, probe, noarp, permanent."""
DISCARD_PORT = 9


def gateway_mac(interface: str, ifindex: int, patience: float = 1.0) -> str:
    """Find the MAC address behind the default route of an interface, resolving it if need be.

    Waits up to `patience` seconds for an answer. HostError says what is missing and how to go without.
    """
    advice = 'add the route or neighbour, or set katran_accel.gateway_mac to the MAC address instead of "auto"'
    with IPRoute() as netlink:
        gateways = [
            (family, gateway)
            for family in (socket.AF_INET, socket.AF_INET6)
            for route in netlink.get_routes(family=family, oif=ifindex)
            if route["dst_len"] == 0 and (gateway := route.get_attr("RTA_GATEWAY"))
        ]
        if not gateways:
            raise HostError(f"interface {interface} has no default route with a gateway; {advice}")
        for family, gateway in gateways:
            _provoke_resolution(family, gateway, ifindex)
        deadline = time.monotonic() + patience
        while True:
            for family, gateway in gateways:
                for neighbour in netlink.get_neighbours(family=family, ifindex=ifindex, dst=gateway):
                    mac = neighbour.get_attr("NDA_LLADDR")
                    if mac and neighbour["state"] & NUD_USABLE:
                        return str(mac)
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
    names = ", ".join(gateway for _, gateway in gateways)
    raise HostError(f"the gateway {names} of interface {interface} does not answer for its MAC address; {advice}")


def _provoke_resolution(family: int, gateway: str, ifindex: int) -> None:
    """Send a datagram to the gateway's discard port: the kernel has to resolve the neighbour for it."""
    scope = (gateway, DISCARD_PORT, 0, ifindex) if family == socket.AF_INET6 else (gateway, DISCARD_PORT)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        try:
            probe.sendto(b"", scope)
        except OSError:
            return  # the neighbour table has the last word
