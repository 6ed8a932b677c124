# SPDX-License-Identifier: Apache-2.0
"""How much is measured: flows, packets, rounds, seconds."""

from __future__ import annotations

from dataclasses import dataclass

from .traffic import Family

FLOWS = (100, 10_000, 100_000, 1_000_000)
PARTS = ("datapath", "cores", "live", "control", "rules", "features")
FEATURE_FLOWS = 10_000
"""Most flows of the part `features`, which is measured only when it is asked for."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of one run. The defaults are those of a full run."""

    name: str = "full"
    families: tuple[Family, ...] = (4, 6)
    flows: tuple[int, ...] = FLOWS
    fast_flows: tuple[int, ...] = FLOWS
    """Numbers of flows for a program that needs no table of flows."""
    rounds: int = 8
    """Timed runs of each row in a process."""
    processes: int = 3
    core_flows: tuple[int, ...] = FLOWS
    core_packets: int = 1_000_000
    """Packets of each core in a timed run."""
    core_rounds: int = 5
    live_seconds: float = 2.0
    """Of one round. There are :attr:`live_rounds` rounds without marks, and as many with."""
    live_rounds: int = 5
    live_flows: int = 100
    first_marks: int = 300
    """Flows whose time to the first marked packet is measured."""
    new_flows: int = 1_000_000
    """New flows through the engine."""
    burst: int = 100_000
    """New flows at a time: XDP remembers at most 125,000 new flows a second."""
    rules: tuple[int, ...] = (10_000, 100_000)
    start_config: tuple[int, int] = (512, 100)
    """VIPs, and reals of each, of the largest daemon whose start is timed."""
    scrape_config: tuple[int, int] = (512, 8)
    """VIPs, and reals of each, of the daemon that is scraped."""
    scrape_rules: int = 50_000
    scrape_seconds: float = 20.0
    """How long it is scraped, after the same time without scrapes."""
    profiles: int = 4
    """How many rows of the datapath are profiled, of those that miss their target."""
    repeats: int = 9
    """Of short measurements, whose median counts."""

    @classmethod
    def quick(cls) -> Sizes:
        """Less than three minutes; a million flows only where no table of flows is needed."""
        return cls(
            name="quick",
            flows=FLOWS[:-1],
            rounds=4,
            processes=2,
            core_flows=(100, 10_000),
            core_packets=500_000,
            core_rounds=3,
            live_seconds=0.5,
            live_rounds=3,
            first_marks=100,
            rules=(10_000,),
            scrape_seconds=10.0,
            profiles=1,
            repeats=5,
        )

    @classmethod
    def smoke(cls) -> Sizes:
        """The least that shows that everything works; the results mean nothing."""
        return cls(
            name="smoke",
            families=(4,),
            flows=(100,),
            fast_flows=(100,),
            rounds=1,
            processes=1,
            core_flows=(100,),
            core_packets=20_000,
            core_rounds=1,
            live_seconds=0.05,
            live_rounds=1,
            live_flows=10,
            first_marks=3,
            new_flows=2_000,
            burst=1_000,
            rules=(100,),
            profiles=0,
            start_config=(4, 3),
            scrape_config=(4, 3),
            scrape_rules=50,
            scrape_seconds=1.0,
            repeats=1,
        )
