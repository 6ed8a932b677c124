# SPDX-License-Identifier: Apache-2.0
"""Addresses that one host can have."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

from nfcore.api.config import Network
from nfcore.api.flows import Address

from .layouts import MAX_REALS

_NO_HOSTS = {
    ip_network(text): what
    for text, what in {
        "0.0.0.0/8": "an unspecified address",
        "127.0.0.0/8": "a loopback address",
        "169.254.0.0/16": "a link-local address",
        "224.0.0.0/4": "a multicast address",
        "255.255.255.255": "the broadcast address",
        "::": "the unspecified address",
        "::1": "the loopback address",
        "::/96": "an IPv4 address within IPv6",
        "::ffff:0:0/96": "an IPv4 address within IPv6",
        "fe80::/10": "a link-local address",
        "ff00::/8": "a multicast address",
    }.items()
}
"""Addresses to which no router sends a packet for one host."""


def no_host(network: Network) -> str:
    """Say what addresses are that no host can have; empty when hosts can have them."""
    for each, what in _NO_HOSTS.items():
        if each.version == network.version and network.subnet_of(each):  # type: ignore[arg-type]
            mapped = getattr(network.network_address, "ipv4_mapped", None)
            return f"{what}: '{mapped}'" if mapped else what
    return ""


# A real's address is parsed several times for each VIP that it serves: for the model and by the checks.
@lru_cache(2 * MAX_REALS)
def _parse_server(text: str) -> Address:
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError("should be an IPv4 or IPv6 address such as '198.18.20.11'") from None
    if what := no_host(ip_network(address)):
        raise ValueError(f"should be the address of one server, not {what}")
    return address


def server_address(value: object) -> Address:
    """Read the address of one server; ValueError explains the form."""
    # A zone ("fe80::1%eth0") means something on one link only, and a packet cannot carry it.
    return _parse_server(value if isinstance(value, str) and "%" not in value else "")


def try_to(parse: Any, value: object) -> Any:
    """Parse a value; None when it is not of that form, which its model tells."""
    try:
        return parse(value)
    except ValueError:
        return None
