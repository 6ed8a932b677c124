# SPDX-License-Identifier: Apache-2.0
"""`nfcore bench`: what a packet, a flow, a rule and a start cost, on this machine, without a NIC.

::

    traffic ──► FlowSource ──tail call──► the program as deployed ──► XDP_TX
                    ▲                                                   │
                    └──────────────── test run, repeated ◄──────────────┘

Knows no network function: a plugin says which programs there are and what their packets must come to
(:class:`.workload.Workload`, :class:`.datapath.Subject`). Tests use :class:`.source.FlowSource` for bursts of new
flows.
"""

from .baselines import Floors
from .datapath import BenchError, Row, Series, Subject, Tally, measure, rows_of
from .packet_source import FlowSource, SameFrame
from .processes import in_processes
from .profile import profile
from .results import CoreRow, Figure, Gain, Results, Target
from .sizes import Sizes
from .traffic import SERVICE, Family, flow_keys, make_services
from .workload import BenchRequest, Workload

__all__ = [
    "SERVICE",
    "BenchError",
    "BenchRequest",
    "CoreRow",
    "Family",
    "Figure",
    "Floors",
    "FlowSource",
    "Gain",
    "Results",
    "Row",
    "SameFrame",
    "Series",
    "Sizes",
    "Subject",
    "Tally",
    "Target",
    "Workload",
    "flow_keys",
    "in_processes",
    "make_services",
    "measure",
    "profile",
    "rows_of",
]
