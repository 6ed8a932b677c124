# SPDX-License-Identifier: Apache-2.0
"""How much of everything is measured."""

from __future__ import annotations

from dataclasses import dataclass

from .traffic import Family

FLOWS = (100, 10_000, 100_000, 1_000_000)
PARTS = ("datapath", "cores", "live", "control", "rules")


@dataclass(frozen=True)
class Sizes:
    """Sizes of one run; those of the full one are the defaults."""

    name: str = "full"
    families: tuple[Family, ...] = (4, 6)
    flows: tuple[int, ...] = FLOWS
    fast_flows: tuple[int, ...] = FLOWS
    """Of a program that needs no table of flows."""
    rounds: int = 8
    """Timed runs of each row in a process."""
    processes: int = 3
    core_flows: tuple[int, ...] = FLOWS
    core_packets: int = 1_000_000
    """Of each core in a timed run."""
    core_rounds: int = 5
    live_seconds: float = 2.0
    """Of a round, of which there are :attr:`live_rounds` without marks and with."""
    live_rounds: int = 5
    live_flows: int = 100
    first_marks: int = 300
    """Flows whose time to the first marked packet is taken."""
    events: int = 1_000_000
    """New flows through the engine."""
    burst: int = 100_000
    """Of them at a time: the datapath remembers no more than 125,000 new flows a second."""
    rules: tuple[int, ...] = (10_000, 100_000)
    config: tuple[int, int] = (512, 100)
    """VIPs, and reals of each."""
    collect: tuple[int, int] = (512, 8)
    """VIPs, and reals of each, of the daemon that is scraped."""
    collect_rules: int = 50_000
    collect_seconds: float = 20.0
    """For which it is scraped, after as many without."""
    profiles: int = 4
    """Rows of the datapath, of those that are not as they should be, that a profiler looks at."""
    repeats: int = 9
    """Of short single things, whose median counts."""

    @classmethod
    def quick(cls) -> Sizes:
        """Everything below three minutes; a million flows only where no table of flows is needed."""
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
            collect_seconds=10.0,
            profiles=1,
            repeats=5,
        )

    @classmethod
    def smoke(cls) -> Sizes:
        """The least that shows that everything works; the figures mean nothing."""
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
            events=2_000,
            burst=1_000,
            rules=(100,),
            profiles=0,
            config=(4, 3),
            collect=(4, 3),
            collect_rules=50,
            collect_seconds=1.0,
            repeats=1,
        )
