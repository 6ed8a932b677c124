# SPDX-License-Identifier: Apache-2.0
"""From a destination to its VIP."""

from __future__ import annotations

from .maps import Vip, VipFlag, VipKey
from .packet import Packet
from .run import Run

_PORT_COUNTS = VipFlag.HASH_DPORT_ONLY | VipFlag.HASH_SRC_DST_PORT


def find_vip(run: Run, packet: Packet) -> tuple[Vip, VipKey] | None:
    """The VIP, and the key that stands for it. The packet's destination port becomes 0 where it is not to count."""
    key = VipKey(packet.dst, packet.dport, packet.flow_protocol)
    vip = run.maps.vips.get(key)
    if vip:
        return vip, key
    port_counts = run.quirks.exact_prefix_port
    vip = _by_prefix(run, packet, key)
    if not vip:
        port_counts = False
        key = key._replace(port=0)
        vip = run.maps.vips.get(key) or _by_prefix(run, packet, key)
    if not vip:
        return None
    if not (port_counts or vip.flags & _PORT_COUNTS):
        packet.dport = 0
    return vip, key


def _by_prefix(run: Run, packet: Packet, key: VipKey) -> Vip | None:
    """The VIP of the longest prefix with just this port and protocol."""
    features = run.features
    if not (features.prefix_vips_v4 if packet.family == 4 else features.prefix_vips):
        return None
    families = {4, 6} if run.quirks.families_share_prefixes else {packet.family}
    fitting = [
        (prefix.bits, vip)
        for (prefix, port, protocol), vip in run.maps.prefix_vips.items()
        if prefix.family in families and (port, protocol) == (key.port, key.protocol) and prefix.has(key.address)
    ]
    return max(fitting)[1] if fitting else None
