# SPDX-License-Identifier: Apache-2.0
"""How probes leave the machine: interfaces, MAC addresses, and the sources of their outer headers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address

from nfcore.api.context import Context
from nfcore.api.flows import Address
from nfcore.api.rules import Device
from nfcore.errors import ConfigError, HostError, Problem
from nfcore.kernel.links import read_link

from ..config import NAME, HealthcheckTable, KatranTable
from ..next_hops import Sending, look, look_patiently, require_next_hops, send_by

TABLE = f"{NAME}.healthcheck"
ADVICE = f"add the route or neighbour, or set {TABLE}.gateway_mac"
_DISCARD_PORT = 9
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
    sending: Sending
    """The MAC addresses of that interface, and of what is behind it."""
    sources: Mapping[int, Address]
    """IP version → source of the outer header, of the versions that the reals need."""

    @property
    def source_mac(self) -> bytes:
        """Of frames with probes."""
        return self.sending.devices[0].mac

    @property
    def destination_mac(self) -> bytes:
        """Of frames with probes, as published one for all reals: that of the gateway."""
        return bytes(self.sending.rows[0]["mac"])


def find_path(context: Context, table: KatranTable, wanted: HealthcheckTable) -> ProbePath:
    """Resolve what the TOML leaves open. ConfigError and HostError name the key and what would be right."""
    source, devices = context.config.source, context.devices_of(NAME)
    default = wanted.interface or (devices[0].name if devices else "")
    names = {"interface": default, "out_interface": wanted.out_interface or default}
    present = {name: index for index, name in socket.if_nameindex()}
    problems = [
        Problem(f"{TABLE}.{key}", f"there is no interface {name!r} (there are: {', '.join(sorted(present))})")
        for key, name in names.items()
        if name not in present
    ]
    if problems:
        raise ConfigError(source, problems)
    out = names["out_interface"]
    if (link := read_link(present[out])) is None or not any(link.mac):
        raise HostError(f"{TABLE}: interface {out} has no Ethernet address; probes can leave by Ethernet only")
    device = Device(out, present[out])
    fixed, reals = _configured_mac(context, table, wanted, out), _reals_of(table)
    facts = require_next_hops(look_patiently(lambda: look([device], [fixed], reals)), ADVICE)
    path = ProbePath(
        *(default, present[default], out, present[out]),
        send_by(Sending(), facts),
        _sources(context, table, wanted, out),
    )
    _require_one_hop(path)
    return path


def look_again(path: ProbePath, context: Context, table: KatranTable, wanted: HealthcheckTable) -> ProbePath:
    """Ask the kernel anew for the MAC addresses of a path."""
    fixed = _configured_mac(context, table, wanted, path.out_interface)
    facts = look([Device(path.out_interface, path.out_ifindex)], [fixed], _reals_of(table))
    return replace(path, sending=send_by(path.sending, facts))


def follow_table(path: ProbePath, context: Context, table: KatranTable, wanted: HealthcheckTable) -> ProbePath:
    """Give the path under another table: with its gateway, and sources for its reals.

    ConfigError: there is no source for some. HostError: they have no common next hop.
    """
    sources = _sources(context, table, wanted, path.out_interface)
    now = replace(look_again(path, context, table, wanted), sources=sources)
    _require_one_hop(now)
    return now


def _require_one_hop(path: ProbePath) -> None:
    """HostError: probes have one destination, and the reals are several stations on the link without a gateway."""
    hops = {hop for hops in path.sending.hops.values() for hop in hops if hop is not None}
    if len(hops) > 1 and not any(hop.gateway for hop in hops):
        some = ", ".join(map(str, list(hops)[:2]))
        raise HostError(
            f"{TABLE}: health checks have one Ethernet destination for all reals, and those behind "
            f"{path.out_interface} have no gateway in common ({some}); set {TABLE}.gateway_mac to a router's"
        )


def _reals_of(table: KatranTable) -> list[Address]:
    return list(dict.fromkeys(real.address for vip in table.vips for real in vip.reals))


def _sources(context: Context, table: KatranTable, wanted: HealthcheckTable, interface: str) -> dict[int, Address]:
    """Find a source for each IP version that the reals have. ConfigError: there is none for some."""
    reals: dict[int, list[Address]] = {}
    for vip in table.vips:
        for real in vip.reals:
            reals.setdefault(real.address.version, []).append(real.address)
    found: dict[int, Address] = {}
    problems = []
    for version, addresses in sorted(reals.items()):
        configured = wanted.source_v4 if version == 4 else wanted.source_v6
        source = _source_towards(interface, addresses) if configured == "auto" else ip_address(configured)
        if source is None:
            text = f"is 'auto', but {interface} has no IPv{version} address towards {addresses[0]}; set one"
            problems.append(Problem(f"{TABLE}.source_v{version}", text))
        else:
            found[version] = source
    if problems:
        raise ConfigError(context.config.source, problems)
    return found


def _source_towards(interface: str, reals: Iterable[Address]) -> Address | None:
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


def _configured_mac(context: Context, table: KatranTable, wanted: HealthcheckTable, interface: str) -> bytes | None:
    """Give the Ethernet destination as configured, or as the balancer's on the same interface is; None: "auto"."""
    if wanted.gateway_mac != "auto":
        return bytes.fromhex(wanted.gateway_mac.replace(":", ""))
    same = interface in {device.name for device in context.devices_of(NAME)}
    return table.fixed_mac(interface) if same else None
