# SPDX-License-Identifier: Apache-2.0
"""What the texts of a request mean: a VIP, a real, clients, a flow. What they do not mean is refused by name."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from nfcore.api.config import Network
from nfcore.api.flows import EXACT, Address, FlowMatch
from nfcore.errors import ConfigError, Problem

from ..config import VipTable
from ..inventory import Inventory

MOST_NAMED = 8
"""VIPs or reals that a refusal lists."""
_VIP = re.compile(r"(?:\[([^][]+)\](?::([0-9]{1,5}))?|([^][:]+):([0-9]{1,5})|([^][]+?))(?:/(tcp|udp))?")
"""``198.18.10.1:80/tcp``, ``[2001:db8::1]:80``, ``2001:db8::/32``, …"""


def find_vip(method: str, inventory: Inventory, text: object) -> int:
    """Give the number of the VIP that a text means: its name, or less where only one VIP fits. ConfigError."""
    read = _VIP.fullmatch(text) if isinstance(text, str) else None
    network = _network(next(part for part in read.group(1, 3, 5) if part)) if read else None
    if read is None or network is None:
        raise _wrong(method, "vip", text, "should be a VIP such as '198.18.10.1:80/tcp'", _vip_names(inventory))
    port, protocol = read.group(2) or read.group(4), read.group(6)

    def fits(vip: VipTable) -> bool:
        return (
            vip.address == network
            and (port is None or vip.port == int(port))
            and (protocol is None or vip.protocol == protocol)
        )

    found = [number for number, vip in inventory.vips.items() if fits(vip)]
    if len(found) > 1:
        several = ", ".join(inventory.vips[number].name for number in found[:MOST_NAMED])
        raise ConfigError(method, [Problem("vip", f"is {text!r:.80}, which may be {several}: name one of them")])
    if not found:
        raise _wrong(method, "vip", text, "there is no such VIP", _vip_names(inventory))
    return found[0]


def find_real(method: str, inventory: Inventory, text: object, vip: int | None = None) -> int:
    """Give the number of a real by its address; with `vip`, of one of this VIP's reals. ConfigError."""
    try:
        address = ipaddress.ip_address(text) if isinstance(text, str) else None
    except ValueError:
        address = None
    known = inventory.reals if vip is None else _reals_of(inventory, vip)
    if address is None:
        raise _wrong(method, "real", text, "should be the address of a real such as '198.18.20.11'", known)
    if address not in known:
        whose = "there is no such real" if vip is None else f"is no real of {inventory.vips[vip].name}"
        raise _wrong(method, "real", text, whose, known)
    return known[address]


def find_clients(method: str, text: object) -> Network:
    """Read an address or a prefix. ConfigError."""
    network = _network(text) if isinstance(text, str) else None
    if network is None:
        wanted = "should be an address or a prefix of clients such as '198.18.1.0/24'"
        raise ConfigError(method, [Problem("client", f"is {text!r:.80}; {wanted}")])
    if network.network_address != ipaddress.ip_interface(str(text)).ip:
        raise ConfigError(method, [Problem("client", f"is {text!r:.80}, which has host bits; should be '{network}'")])
    return network


def find_flow(method: str, text: object) -> FlowMatch:
    """Read one flow. ConfigError."""
    try:
        flow = FlowMatch.parse(text if isinstance(text, str) else repr(text))
    except ValueError as error:
        raise ConfigError(method, [Problem("flow", str(error))]) from None
    if flow.wild != EXACT:
        wanted = "should be one flow; connections.list finds many, by VIP, real and client"
        raise ConfigError(method, [Problem("flow", f"is {text!r:.120}; {wanted}")])
    return flow


def refuse_stray(method: str, inventory: Inventory, flow: FlowMatch) -> ConfigError:
    """Make the refusal of a flow that goes to no VIP."""
    return _wrong(method, "flow", str(flow), "goes to no VIP", _vip_names(inventory))


def _reals_of(inventory: Inventory, vip: int) -> dict[Address, int]:
    return {real.address: inventory.reals[real.address] for real in inventory.vips[vip].reals}


def _vip_names(inventory: Inventory) -> list[str]:
    return [vip.name for vip in inventory.vips.values()]


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _wrong(method: str, key: str, value: object, why: str, known: Iterable[object]) -> ConfigError:
    names = [str(name) for name in known]
    more = f", and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    there = ", ".join(names[:MOST_NAMED]) or "none"
    return ConfigError(method, [Problem(key, f"is {value!r:.120}; {why}; there are: {there}{more}")])
