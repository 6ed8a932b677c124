# SPDX-License-Identifier: Apache-2.0
"""How probes leave the machine: interfaces, MAC addresses, and the sources of their outer headers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from nfcore.api.context import Context
from nfcore.api.flows import Address
from nfcore.errors import ConfigError, HostError, Problem
from nfcore.kernel.links import read_link

from ..config import NAME, HealthcheckTable, KatranTable
from ..routing import reals_of_table

TABLE = f"{NAME}.healthcheck"
_DISCARD_PORT = 9
Sources = Mapping[int, Address]
"""IP version → source of the outer header, of the versions that the reals need."""
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True)
class ProbePath:
    """What the maps need of the machine."""

    interface: str
    ifindex: int
    """Of the interface whose egress has the program."""
    out_interface: str
    out_ifindex: int
    """Of the interface by which encapsulated probes leave."""
    source_mac: bytes
    destination_mac: bytes | None
    """None: that of the next hop, which the kernel finds for each probe."""
    sources: Sources


def find_path(context: Context, table: KatranTable, wanted: HealthcheckTable) -> ProbePath:
    """Resolve what the TOML leaves open. ConfigError and HostError name the key and what would be right."""
    devices = context.devices_of(NAME)
    default = wanted.interface or (devices[0].name if devices else "")
    names = {"interface": default, "out_interface": wanted.out_interface or default}
    present = {name: index for index, name in socket.if_nameindex()}
    problems = [
        Problem(f"{TABLE}.{key}", f"there is no interface {name!r} (there are: {', '.join(sorted(present))})")
        for key, name in names.items()
        if name not in present
    ]
    if problems:
        raise ConfigError(context.config.source, problems)
    out = names["out_interface"]
    mac = None if wanted.gateway_mac == "auto" else bytes.fromhex(wanted.gateway_mac.replace(":", ""))
    return ProbePath(
        *(default, present[default], out, present[out]),
        *(own_mac(out, present[out]), mac),
        find_sources(context, table, wanted, out),
    )


def find_sources(context: Context, table: KatranTable, wanted: HealthcheckTable, interface: str) -> Sources:
    """Find a source for each IP version that the reals have. ConfigError: there is none for some."""
    reals: dict[int, list[Address]] = {}
    for real in reals_of_table(table):
        reals.setdefault(real.version, []).append(real)
    found: dict[int, Address] = {}
    problems = []
    for version, addresses in sorted(reals.items()):
        configured = wanted.source_v4 if version == 4 else wanted.source_v6
        source = source_towards(interface, addresses) if configured == "auto" else ip_address(configured)
        if source is None:
            text = f"is 'auto', but {interface} has no IPv{version} address towards {addresses[0]}; set one"
            problems.append(Problem(f"{TABLE}.source_v{version}", text))
        else:
            found[version] = source
    if problems:
        raise ConfigError(context.config.source, problems)
    return found


def source_towards(interface: str, reals: Iterable[Address]) -> Address | None:
    """Give the source that the kernel chooses for packets to the reals by an interface. Sends nothing."""
    for real in reals:
        with (
            contextlib.suppress(OSError),
            socket.socket(_FAMILIES[real.version], socket.SOCK_DGRAM) as any_socket,
        ):
            any_socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            any_socket.connect((str(real), _DISCARD_PORT))
            chosen = ip_address(any_socket.getsockname()[0].partition("%")[0])
            if not (chosen.is_unspecified or chosen.is_link_local or chosen.is_loopback):
                return chosen
    return None


def own_mac(interface: str, ifindex: int) -> bytes:
    """Give the MAC address of the interface by which probes leave. HostError: it has none."""
    link = read_link(ifindex)
    if link is None or not any(link.mac):
        raise HostError(f"{TABLE}: interface {interface} has no Ethernet address; probes can leave by Ethernet only")
    return link.mac
