# SPDX-License-Identifier: Apache-2.0
"""The structs of bpf/softnic.c as numpy dtypes, and the maps made of them."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from nfcore.api.flows import FLOW_KEY
from nfcore.kernel import MapSpec, MapType

MATCH = np.dtype([("flow", FLOW_KEY), ("family", "<u4"), ("vlans", "<u2", (2,))])
RULE = np.dtype(
    [("action", "<u4"), ("mark", "<u4"), ("cookie", "<u8"), ("packets", "<u8"), ("bytes", "<u8"), ("last_used", "<u8")]
)
SHAPES = 64
"""How many shapes of masked rules the NIC can have: each is a look-up for every frame without an exact rule."""
SHAPE = np.dtype([("mask", FLOW_KEY), ("family", "<u4")])
"""Rules that leave the same open: a mask of the bits that count, with the `wild` of their keys. family 0: unused."""
SHAPE_TABLE = np.dtype([("count", "<u4"), ("shapes", SHAPE, (SHAPES,))])


class NicCounter(IntEnum):
    """Slots of `softnic_stats`."""

    RECEIVED = 0
    MARKED = 1
    DROPPED = 2
    NO_ROOM = 3
    SENT = 4


class Link(IntEnum):
    """Slots of `softnic_links`."""

    TO_PORT = 0
    TO_WIRE = 1


def rules_spec(size: int) -> MapSpec:
    """Specify a table of `size` rules."""
    return MapSpec("softnic_rules", MapType.HASH, MATCH, RULE, size)


SHAPES_SPEC = MapSpec("softnic_shapes", MapType.ARRAY, np.dtype("<u4"), SHAPE_TABLE, 1)
STATS_SPEC = MapSpec("softnic_stats", MapType.PERCPU_ARRAY, np.dtype("<u4"), np.dtype("<u8"), len(NicCounter))
LINKS_SPEC = MapSpec("softnic_links", MapType.DEVMAP, np.dtype("<u4"), np.dtype("<u4"), len(Link))
