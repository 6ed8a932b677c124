# SPDX-License-Identifier: Apache-2.0
"""VIPs as text, and which of them contain others."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from nfcore.api.config import Network

_TEXT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<plain>[^\[\]]+?))(?P<end>:(?P<port>[0-9]{1,5})/(?P<protocol>tcp|udp))?")
HINT = "should be an address, a prefix or one VIP: '198.18.10.1', '2001:db8::/48', '198.18.10.1:80/tcp'"


@dataclass(frozen=True)
class Vip:
    """Addresses with one port and protocol, or with all."""

    network: Network
    port: int = 0
    """0: every port."""
    protocol: str | None = None
    """``tcp`` or ``udp``; None: both."""

    @classmethod
    def parse(cls, value: object) -> Vip:
        """Parse a VIP as ``str()``, network functions and the TOML write it. ValueError shows the notation."""
        found = _TEXT.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise ValueError(HINT)
        address = found["v6"] or found["plain"]
        try:
            network = ipaddress.ip_network(address)
        except ValueError as error:
            raise ValueError(f"{HINT} ({error})") from None
        port = int(found["port"] or 0)
        # Without brackets the end of an IPv6 address is ambiguous.
        bracketed = found["v6"] is not None
        if port > 0xFFFF or (found["end"] and bracketed != (network.version == 6)):
            raise ValueError(HINT)
        return cls(network, port, found["protocol"])

    def __str__(self) -> str:
        single = self.network.prefixlen == self.network.max_prefixlen
        address = str(self.network.network_address) if single else str(self.network)
        if self.protocol is None:
            return address
        return f"{f'[{address}]' if self.network.version == 6 else address}:{self.port}/{self.protocol}"

    def covers(self, other: Vip) -> bool:
        """Whether every packet of `other` belongs to this VIP, too."""
        same = self.network.version == other.network.version
        inside = same and other.network.subnet_of(self.network)  # type: ignore[arg-type]  # of one version
        return inside and self.port in (0, other.port) and self.protocol in (None, other.protocol)

    def overlaps(self, other: Vip) -> bool:
        """Whether a packet can belong to both."""
        ports = 0 in (self.port, other.port) or self.port == other.port
        protocols = None in (self.protocol, other.protocol) or self.protocol == other.protocol
        same = self.network.version == other.network.version
        return ports and protocols and same and self.network.overlaps(other.network)
