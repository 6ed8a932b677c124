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
