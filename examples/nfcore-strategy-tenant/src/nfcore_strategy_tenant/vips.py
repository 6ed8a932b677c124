# SPDX-License-Identifier: Apache-2.0
"""VIPs as people write them, and which of them are part of others."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from nfcore.api.config import Network

_TEXT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<plain>[^\[\]]+?))(?P<end>:(?P<port>[0-9]{1,5})/(?P<protocol>tcp|udp))?")
HINT = "should be an address, a prefix or one VIP: '198.18.10.1', '2001:db8::/48', '198.18.10.1:80/tcp'"


@dataclass(frozen=True)
class Vip:
    """Addresses with a port and a protocol, or with all of them."""

    network: Network
    port: int = 0
    """0 is every port."""
    protocol: str | None = None
    """``tcp`` or ``udp``; None is both."""

    @classmethod
    def parse(cls, value: object) -> Vip:
        """Read what ``str`` wrote, as network functions and the TOML name VIPs; ValueError says how to write one."""
        found = _TEXT.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise ValueError(HINT)
        address = found["v6"] or found["plain"]
        try:
            network = ipaddress.ip_network(address)
        except ValueError as error:
            raise ValueError(f"{HINT} ({error})") from None
        port = int(found["port"] or 0)
        # Without brackets it would not be clear where an IPv6 address ends.
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
        """Whether all of `other` is part of this."""
        same = self.network.version == other.network.version
        inside = same and other.network.subnet_of(self.network)  # type: ignore[arg-type]  # of one version
        return inside and self.port in (0, other.port) and self.protocol in (None, other.protocol)

    def overlaps(self, other: Vip) -> bool:
        """Whether some packet could belong to both."""
        ports = 0 in (self.port, other.port) or self.port == other.port
        protocols = None in (self.protocol, other.protocol) or self.protocol == other.protocol
        same = self.network.version == other.network.version
        return ports and protocols and same and self.network.overlaps(other.network)
