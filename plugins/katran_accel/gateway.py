# SPDX-License-Identifier: Apache-2.0
"""Finds the MAC address of an interface's gateway, to which encapsulated packets go."""

from __future__ import annotations

import contextlib
import socket
import time

from nfcore.errors import HostError

NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
"""Neighbour states with a usable address: reachable, stale, delay, probe, noarp, permanent."""
DISCARD_PORT = 9


def gateway_mac(interface: str, ifindex: int, timeout: float = 1.0) -> str:
    """Find the MAC address of the gateway of an interface's default route; resolve it if necessary.

    Waits up to `timeout` seconds for it. HostError says what is missing and what to configure instead.
    """
    from pyroute2 import IPRoute  # noqa: PLC0415 - takes 80 ms, for gateway_mac = "auto" alone

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
            _start_resolution(family, gateway, ifindex)
        deadline = time.monotonic() + timeout
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
    raise HostError(f"the gateway {names} of interface {interface} does not answer with its MAC address; {advice}")


def _start_resolution(family: int, gateway: str, ifindex: int) -> None:
    """Send a datagram to the gateway's discard port, which makes the kernel resolve the neighbour."""
    destination = (gateway, DISCARD_PORT, 0, ifindex) if family == socket.AF_INET6 else (gateway, DISCARD_PORT)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        with contextlib.suppress(OSError):  # the neighbour table shows whether it worked
            probe.sendto(b"", destination)
