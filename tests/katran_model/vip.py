# SPDX-License-Identifier: Apache-2.0
"""From a destination to its VIP."""

from __future__ import annotations

from .maps import Vip, VipFlag, VipKey
from .packet import Packet
from .run import Run

_PORT_COUNTS = VipFlag.HASH_DPORT_ONLY | VipFlag.HASH_SRC_DST_PORT


def find_vip(run: Run, packet: Packet) -> tuple[Vip, VipKey] | None:
    """The VIP, and the key that stands for it. Sets the ports that the hash is made of."""
    packet.hash_sport, packet.hash_dport = packet.sport, packet.dport
    key = VipKey(packet.dst, packet.dport, packet.flow_protocol)
    port_counts = True
    vip = exact_vip(run, packet, key)
    if not vip:
        port_counts = run.quirks.exact_prefix_port
        vip = _by_prefix(run, packet, key)
    if not vip:
        port_counts = False
        key = key._replace(port=0)
        vip = exact_vip(run, packet, key) or _by_prefix(run, packet, key)
    if not vip:
        return None
    if not (port_counts or vip.flags & _PORT_COUNTS):
        packet.hash_dport = 0
    if vip.flags & VipFlag.HASH_NO_SRC_PORT:
        packet.hash_sport = 0
    return vip, key


def exact_vip(run: Run, packet: Packet, key: VipKey) -> Vip | None:
    """The VIP of just this address, port and protocol, and of the packet's family."""
    vip = run.maps.vips.get(key)
    return vip if vip and (run.quirks.families_share_keys or vip.family == packet.family) else None


def _by_prefix(run: Run, packet: Packet, key: VipKey) -> Vip | None:
    """The VIP of the longest prefix with just this port and protocol."""
    if not (run.features.prefix_vips_v4 if packet.family == 4 else run.features.prefix_vips):
        return None
    fitting = [
        (prefix.bits, vip)
        for (prefix, port, protocol), vip in run.maps.prefix_vips.items()
        if prefix.family == packet.family and (port, protocol) == (key.port, key.protocol) and prefix.has(key.address)
    ]
    return max(fitting)[1] if fitting else None


def vip_of_address(run: Run, packet: Packet, protocol: int) -> Vip | None:
    """A VIP of the destination address, whatever its port: the narrowest one, of several the last."""
    fitting = [
        (128, vip.number, vip)
        for key, vip in run.maps.vips.items()
        if (key.address, key.protocol, vip.family) == (packet.dst, protocol, packet.family)
    ]
    fitting += [
        (prefix.bits, vip.number, vip)
        for (prefix, _, of_protocol), vip in run.maps.prefix_vips.items()
        if (prefix.family, of_protocol) == (packet.family, protocol) and prefix.has(packet.dst)
    ]
    return max(fitting)[2] if fitting else None
