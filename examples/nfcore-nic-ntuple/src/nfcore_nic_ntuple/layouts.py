# SPDX-License-Identifier: Apache-2.0
"""Structs of <linux/ethtool.h> as dtypes, and its constants.

Native byte order, except addresses and ports, which are in network byte order. A test compares all of them with the
header, by the C compiler.
"""

from __future__ import annotations

import numpy as np

TCPIP4_SPEC = np.dtype(
    {
        "names": ["ip4src", "ip4dst", "psrc", "pdst", "tos"],
        "formats": [("u1", 4), ("u1", 4), ">u2", ">u2", "u1"],
        "offsets": [0, 4, 8, 10, 12],
        "itemsize": 16,
    }
)
"""`struct ethtool_tcpip4_spec`."""

TCPIP6_SPEC = np.dtype(
    {
        "names": ["ip6src", "ip6dst", "psrc", "pdst", "tclass"],
        "formats": [("u1", 16), ("u1", 16), ">u2", ">u2", "u1"],
        "offsets": [0, 16, 32, 34, 36],
        "itemsize": 40,
    }
)
"""`struct ethtool_tcpip6_spec`."""

UNION_BYTES = 52
"""`union ethtool_flow_union`: one of the two above, then zeros."""

FLOW_EXT_AREA = np.dtype(
    [("padding", "u1", 2), ("h_dest", "u1", 6), ("vlan_etype", ">u2"), ("vlan_tci", ">u2"), ("data", ">u4", 2)]
)
"""`struct ethtool_flow_ext`."""

FLOW_SPEC = np.dtype(
    {
        "names": ["flow_type", "h_u", "h_ext", "m_u", "m_ext", "ring_cookie", "location"],
        "formats": ["=u4", ("u1", UNION_BYTES), FLOW_EXT_AREA, ("u1", UNION_BYTES), FLOW_EXT_AREA, "=u8", "=u4"],
        "offsets": [0, 4, 56, 76, 128, 152, 160],
        "itemsize": 168,
    }
)
"""`struct ethtool_rx_flow_spec`: packets are compared with h_u, h_ext where m_u, m_ext have ones."""

RXNFC = np.dtype(
    {
        "names": ["cmd", "flow_type", "data", "fs", "rule_cnt"],
        "formats": ["=u4", "=u4", "=u8", FLOW_SPEC, "=u4"],
        "offsets": [0, 4, 8, 16, 184],
        "itemsize": 192,
    }
)
"""`struct ethtool_rxnfc`, without the array at its end."""
RULE_LOCS_AT = 188
"""Offset of that array, `rule_locs`."""

CHANNELS = np.dtype(
    [
        (name, "=u4")
        for name in (
            *("cmd", "max_rx", "max_tx", "max_other", "max_combined"),
            *("rx_count", "tx_count", "other_count", "combined_count"),
        )
    ]
)
"""`struct ethtool_channels`."""

VALUE = np.dtype([("cmd", "=u4"), ("data", "=u4")])
"""`struct ethtool_value`."""

RXFH_INDIR = np.dtype([("cmd", "=u4"), ("size", "=u4")])
"""`struct ethtool_rxfh_indir`, without the array of u4 behind it."""

ETHTOOL_GFLAGS = 0x25
ETHTOOL_GRXRINGS = 0x2D
ETHTOOL_GRXCLSRLCNT = 0x2E
ETHTOOL_GRXCLSRULE = 0x2F
ETHTOOL_GRXCLSRLALL = 0x30
ETHTOOL_SRXCLSRLDEL = 0x31
ETHTOOL_SRXCLSRLINS = 0x32
ETHTOOL_GRXFHINDIR = 0x38
ETHTOOL_GCHANNELS = 0x3C

ETH_FLAG_NTUPLE = 1 << 27

TCP_V4_FLOW, UDP_V4_FLOW, TCP_V6_FLOW, UDP_V6_FLOW = 0x01, 0x02, 0x05, 0x06
FLOW_EXT, FLOW_MAC_EXT, FLOW_RSS = 0x8000_0000, 0x4000_0000, 0x2000_0000

RX_CLS_FLOW_DISC = 0xFFFF_FFFF_FFFF_FFFF
"""In place of a queue: drop."""
RX_CLS_LOC_SPECIAL = 0x8000_0000
RX_CLS_LOC_ANY = 0xFFFF_FFFF
"""In place of a location: the driver chooses."""

SIOCETHTOOL = 0x8946
SIOCGIFNAME = 0x8910

CONSTANTS = {name: value for name, value in list(globals().items()) if name.isupper() and isinstance(value, int)}
"""All constants of this module by name, for the comparison with the header."""
