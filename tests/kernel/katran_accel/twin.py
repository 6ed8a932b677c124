# SPDX-License-Identifier: Apache-2.0
"""The real program beside the model of tests/katran_model: the same VIPs, the same frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nfcore.plugins.katran_accel.layouts import StatsSlot, VipFlag
from tests.katran_model.balancer import Balancer, Step
from tests.katran_model.counters import CounterValues
from tests.katran_model.features import Features, Quirks
from tests.katran_model.packet import Verdict
from tests.katran_model.suites import Facts, Settings, mac, maps_of

from .world import GATEWAY, World, open_world

SETTINGS = Settings(GATEWAY, local_mac="02:00:5e:00:00:01", source_v4="198.18.30.1", source_v6="2001:db8:30::1")
BALANCER = Features(
    icmp=False,
    prefix_vips_v4=True,
    quirks=Quirks(
        exact_prefix_port=True,
        outer_sport_unhidden=True,
        too_big_counts=True,
        misses_before_ring=True,
    ),
)
"""What the program can do so far, and where it differs from what the model holds for right."""
FLAGS = sum(flag.value for flag in VipFlag)
"""Those that the program knows."""
UNCOMPARED = {StatsSlot.NEW_FLOWS, StatsSlot.RING}
"""Slots of `stats` with the time, or of nfcore alone."""


def vips_toml(facts: Facts) -> str:
    """The VIPs as TOML. Flags that the program does not know are left out."""
    tables = []
    for vip in facts.vips:
        flags = [flag.name.lower() for flag in VipFlag if flag & vip.flags and flag.name]
        reals = [f'{{ address = "{facts.reals[number]}" }}' for number in vip.reals]
        tables.append(
            f'[[katran_accel.vips]]\naddress = "{vip.address}"\nport = {vip.port}\nprotocol = "{vip.protocol}"\n'
            f"flags = {flags}\nreals = [{', '.join(reals)}]\n"
        )
    return "".join(tables)


@dataclass
class Twin:
    """Both, with the same maps."""

    world: World
    model: Balancer

    def send(self, frame: bytes, mark_of: Callable[[Step], int] = lambda step: 0) -> Step:
        """Run a frame on both; what the model says, after the program was seen to do the same.

        `mark_of`: the mark that the frame has for the program, by what the model says.
        """
        step = self.model.step(frame, self.world.cpu, time.monotonic_ns())
        mark = mark_of(step)
        run = self.world.send(frame, mark)
        came = run.verdict.name, run.output.hex() if step.verdict is not Verdict.DROP else ""
        wanted = step.verdict.value, step.frame.hex() if step.verdict is not Verdict.DROP else ""
        assert came == wanted, f"{frame.hex()} with mark {mark}"
        return step

    def counters(self) -> CounterValues:
        """The program's counters that the model has, too."""
        found: CounterValues = {}
        for name in ("stats", "reals_stats"):
            rows = self.world.balancer.maps[name].read_array()
            sums = np.stack([rows[field].sum(axis=1) for field in ("v1", "v2")], axis=1)
            for slot in np.flatnonzero(sums.any(axis=1)).tolist():
                if name != "stats" or slot not in UNCOMPARED:
                    found[f"{name}[{slot}]"] = sums[slot].tolist()
        return found


@contextmanager
def open_twin(
    folder: Path,
    facts: Facts,
    *,
    features: Features = BALANCER,
    cpus: str = '"all"',
    strategy: str = "dest-id",
    min_packets: int = 32_767,
) -> Iterator[Twin]:
    """Open both. `cpus`: `forwarding_cpus` of the TOML. `min_packets`: so many until a flow is reported."""
    with open_world(
        folder,
        vips=vips_toml(facts),
        strategy=strategy,
        katran=f"forwarding_cpus = {cpus}",
        offload=f"min_packets = {min_packets}",
        lru_size=262_144,
    ) as world:
        numbers = {number: str(address) for address, number in world.balancer.inventory.reals.items()}
        assert numbers.items() <= facts.reals.items(), "reals are numbered as their VIPs name them"
        maps = maps_of(facts, SETTINGS)
        assert maps.gateway_mac == mac(GATEWAY)
        maps.vips = {key: vip._replace(flags=vip.flags & FLAGS) for key, vip in maps.vips.items()}
        maps.lru_cpus = frozenset({world.cpu} if cpus == '"all"' else ())
        yield Twin(world, Balancer(features, maps))
