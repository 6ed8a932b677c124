# SPDX-License-Identifier: Apache-2.0
"""`nfcore bench`: measures what a packet, a flow, a rule and a daemon start cost on this machine, without a NIC.

::

    traffic ──► FlowSource ──tail call──► the program as deployed ──► XDP_TX
                    ▲                                                   │
                    └──────────────── test run, repeated ◄──────────────┘

The package knows no network function. A plugin gives the programs to measure, and what must become of their packets
(:class:`.workload.Workload`, :class:`.datapath.Subject`). Tests use :class:`.packet_source.FlowSource` for bursts of
new flows.
"""

from .baselines import BareLru, Floors
from .datapath import BenchError, PacketCounters, Row, Series, Subject, measure, rows_of
from .packet_source import FlowSource, SameFrame
from .processes import in_processes
from .profile import profile
from .results import CoreRow, Figure, Gain, Results, Target
from .sizes import Sizes
from .traffic import SERVICE, Family, flow_keys, make_services
from .workload import BenchRequest, Workload

__all__ = [
    "SERVICE",
    "BareLru",
    "BenchError",
    "BenchRequest",
    "CoreRow",
    "Family",
    "Figure",
    "Floors",
    "FlowSource",
    "Gain",
    "PacketCounters",
    "Results",
    "Row",
    "SameFrame",
    "Series",
    "Sizes",
    "Subject",
    "Target",
    "Workload",
    "flow_keys",
    "in_processes",
    "make_services",
    "measure",
    "profile",
    "rows_of",
]
