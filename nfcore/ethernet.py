# SPDX-License-Identifier: Apache-2.0
"""Facts about a link that decide whether packets get through: state, MTU, driver, features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyroute2 import Ethtool, IPRoute
from pyroute2.netlink.exceptions import NetlinkError

IFF_UP = 1


@dataclass(frozen=True)
class LinkFacts:
    """One link."""

    up: bool
    mtu: int
    driver: str
    """Kind of a virtual link (veth, …) or the driver's name; empty when neither is told."""
    features: Mapping[str, bool]
    """Names as the kernel has them (`rx-gro`, `hw-tc-offload`, …) → on or off; those that it tells."""
    fixed: frozenset[str]
    """Features that cannot be changed."""


def link_facts(ifindex: int, name: str) -> LinkFacts:
    """Ask the kernel about a link of this network namespace."""
    with IPRoute() as netlink:
        (link,) = netlink.get_links(ifindex)
    info = link.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else None
    features = _features(name)
    return LinkFacts(
        up=bool(link["flags"] & IFF_UP),
        mtu=int(link.get_attr("IFLA_MTU")),
        driver=str(kind or ""),
        features={feature: on for feature, (on, _) in features.items()},
        fixed=frozenset(feature for feature, (_, changeable) in features.items() if not changeable),
    )


def _features(name: str) -> dict[str, tuple[bool, bool]]:
    """Feature → (on, changeable)."""
    try:
        with Ethtool() as ethtool:
            told = ethtool.get_features(name)
    except (OSError, NetlinkError, KeyError, TypeError):
        return {}
    return {feature: (bool(state.enable), bool(state.available)) for feature, state in told.features.items()}
