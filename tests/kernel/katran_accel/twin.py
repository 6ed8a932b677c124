# SPDX-License-Identifier: Apache-2.0
"""The real program beside the model of tests/katran_model: the same VIPs, the same frames."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from nfcore.api.flows import FLOW_KEY
from nfcore.plugins.katran_accel.config import KatranTable
from nfcore.plugins.katran_accel.layouts import StatsSlot, VipFlag
from tests.katran_model.balancer import Balancer, Step
from tests.katran_model.counters import CounterValues
from tests.katran_model.features import Features, Quirks
from tests.katran_model.maps import FlowKey, Maps
from tests.katran_model.packet import Verdict
from tests.katran_model.suites import Facts, maps_of, published

from .world import World, open_world

SETTINGS = published().settings
BALANCER = Features(prefix_vips_v4=True)
"""What every program can do, and nothing that has to be asked for."""
FLAG_OF_FEATURE = {
    "source_routing": VipFlag.SRC_ROUTING,
    "udp_stable_routing": VipFlag.UDP_STABLE_ROUTING,
    "global_lru": VipFlag.GLOBAL_LRU,
    "local_delivery": VipFlag.LOCAL,
}
"""What a Katran without the feature does not look at: here a VIP's flag asks for it."""
SAMPLE = "cid_invalid_server_id_sample"
"""No count."""
UNCOMPARED = {StatsSlot.NEW_FLOWS, StatsSlot.RING}
"""Slots of `stats` with the time, or of nfcore alone."""


def right(features: Features) -> Features:
    """The features of a published suite, without Katran's mistakes, and with what our program always does.

    One mistake the published packets demand: the checksum of an ICMP error in GUE.
    """
    quirks = Quirks(gue_checksum=features.encapsulation == "gue")
    return replace(features, prefix_vips=True, prefix_vips_v4=True, quirks=quirks)


def known_flags(features: Features) -> int:
    """The flags that a program of these features looks at."""
    unknown = [flag for feature, flag in FLAG_OF_FEATURE.items() if not getattr(features, feature)]
    return sum(flag for flag in VipFlag if flag not in unknown)


def features_toml(features: Features, facts: Facts) -> str:
    """Keys of `[katran_accel]`, before its sub-tables."""
    gue = features.encapsulation == "gue"
    keys = {
        "encapsulation": f'"{features.encapsulation}"',
        "gue_port": features.gue_port,
        "source_v4": f'"{SETTINGS.source_v4}"' if gue else '""',
        "source_v6": f'"{SETTINGS.source_v6}"' if gue else '""',
        "gue_checksum": '"katran"' if features.quirks.gue_checksum else '"right"',
        "icmp": str(features.icmp).lower(),
        "too_big": '"answer"' if features.too_big else '"drop"',
        "mtu": features.max_frame - 14,
        "fragments": '"hash-addresses"' if features.fragments else '"drop"',
        "vlan": str(features.vlan).lower(),
        "tcp_server_ids": str(features.tcp_server_ids).lower(),
        "server_id_map": '"hash"' if features.hashed_server_ids else '"array"',
        "server_ids": _inline([(id_, facts.reals[real]) for id_, real in facts.server_ids.items()], "id"),
        "source_routes": _inline([(f'"{p}"', facts.reals[real]) for p, real in facts.source_routes.items()], "prefix"),
        "decap.ipip": str(features.inline_decap_ipip).lower(),
        "decap.gue": str(features.inline_decap_gue).lower(),
        "decap.strict": str(features.strict_decap).lower(),
    }
    ends = [f'{{ address = "{a}", egress = {str(bool(f & 2)).lower()} }}' for a, f in facts.decap_addresses.items()]
    keys["decap.addresses"] = f"[{', '.join(ends)}]"
    return "\n".join(f"{key} = {value}" for key, value in keys.items())


def _inline(pairs: Iterable[tuple[object, str]], name: str) -> str:
    """Ids or prefixes, each with its real."""
    tables = [f'{{ {name} = {value}, real = "{real}" }}' for value, real in pairs]
    return f"[{', '.join(tables)}]"


def vips_toml(facts: Facts, features: Features = BALANCER) -> str:
    """The VIPs as TOML. A real that is down is in no ring of Katran's either."""
    tables = []
    down = {(address, port, protocol): set(reals) for address, port, protocol, reals in facts.down_reals}
    for vip in facts.vips:
        bits = vip.flags & known_flags(features)
        flags = [flag.name.lower() for flag in VipFlag if flag & bits and flag.name]
        gone = down.get((vip.address, vip.port, vip.protocol), set()) if bits & VipFlag.UDP_FLOW_MIGRATION else set()
        reals = [_real_toml(facts, number, down=False) for number in vip.reals if number not in gone]
        reals += [_real_toml(facts, number, down=True) for number in sorted(gone)]
        tables.append(
            f'[[katran_accel.vips]]\naddress = "{vip.address}"\nport = {vip.port}\nprotocol = "{vip.protocol}"\n'
            f"flags = {flags}\nreals = [{', '.join(reals)}]\n"
        )
    return "".join(tables)


def _real_toml(facts: Facts, number: int, *, down: bool) -> str:
    local = str(number in facts.local_reals).lower()
    return f'{{ address = "{facts.reals[number]}", local = {local}, down = {str(down).lower()} }}'


@dataclass
class Twin:
    """Both, with the same maps."""

    world: World
    model: Balancer
    features: Features
    numbers: dict[int, int] = field(default_factory=dict)
    """Number of a real in the program → in the model."""

    def take(self, facts: Facts) -> None:
        """Let the model have what the TOML of the facts says to the program."""
        ours, theirs = self.world.balancer.inventory.reals, {address: n for n, address in facts.reals.items()}
        self.numbers = {number: theirs[str(address)] for address, number in ours.items()}
        maps, known = maps_of(facts, SETTINGS), known_flags(self.features)
        maps.vips = {key: vip._replace(flags=vip.flags & known) for key, vip in maps.vips.items()}
        maps.reals = {number: each for number, each in maps.reals.items() if number in self.numbers.values()}
        maps.lru_cpus = self.model.maps.lru_cpus
        maps.fallback_global_lru = self.model.maps.fallback_global_lru
        self.model.maps = maps

    def remember(self, flows: Mapping[FlowKey, int]) -> None:
        """Write flows of other hosts, with the model's numbers of their reals, into both tables of them."""
        ours = {theirs: number for number, theirs in self.numbers.items()}
        keys = np.zeros(len(flows), FLOW_KEY)
        for row, flow in zip(keys, flows, strict=True):
            row["src"], row["dst"] = list(flow.src), list(flow.dst)
            row["sport"], row["dport"], row["proto"] = flow.sport, flow.dport, flow.protocol
        numbers = np.array([ours[number] for number in flows.values()], "<u4")
        self.world.balancer.maps["fallback_glru"].update_batch(keys, numbers)
        self.model.maps.fallback_global_lru.update(flows)

    def reload(self, facts: Facts) -> None:
        """Give both other VIPs."""
        balancer = self.world.balancer
        text = f"{features_toml(self.features, facts)}\n{vips_toml(facts, self.features)}"
        table = tomllib.loads(text.replace("[[katran_accel.vips]]", "[[vips]]"))
        kept = balancer.table.model_dump(mode="json", exclude={*table})
        balancer.reconfigure(balancer.config, KatranTable.model_validate({**kept, **table}))
        self.take(facts)

    def send(self, frame: bytes, mark_of: Callable[[Step], int] = lambda step: 0) -> Step:
        """Run a frame on both; what the model says, after the program was seen to do the same.

        `mark_of`: the mark that the frame has for the program, by what the model says.
        """
        step = self.model.step(frame, self.world.cpu, time.monotonic_ns())
        mark = mark_of(step)
        run = self.world.send(frame, mark)
        came = run.verdict.name, run.output.hex() if step.verdict is not Verdict.DROP else ""
        wanted = step.verdict.value, step.frame.hex() if step.verdict is not Verdict.DROP else ""
        assert came == wanted, f"{frame.hex()} with mark {mark}: {came} {wanted} {step}"
        return step

    def counters(self) -> CounterValues:
        """The program's counters that the model has, too."""
        found: CounterValues = {}
        maps = self.world.balancer.maps.maps
        for name in ("stats", "reals_stats", "server_id_stats", "decap_vip_stats"):
            if name not in maps:
                continue
            rows = maps[name].read_array()
            sums = np.stack([rows[side].sum(axis=1) for side in ("v1", "v2")], axis=1)
            for slot in np.flatnonzero(sums.any(axis=1)).tolist():
                if name != "stats" or slot not in UNCOMPARED:
                    number = self.numbers[slot] if name == "reals_stats" else slot
                    found[f"{name}[{number}]"] = sums[slot].tolist()
        for name in ("quic_stats_map", "stable_rt_stats", "tpr_stats_map"):
            (row,) = maps[name].read_array() if name in maps else [None]
            for part in row.dtype.names if row is not None else ():
                if part != SAMPLE and (count := int(row[part].sum())):
                    found[f"{name}.{part}"] = count
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
        vips=vips_toml(facts, features),
        strategy=strategy,
        katran=f"forwarding_cpus = {cpus}\n{features_toml(features, facts)}",
        offload=f"min_packets = {min_packets}",
        lru_size=262_144,
        gateway=SETTINGS.gateway_mac,
    ) as world:
        own = Maps(lru_cpus=frozenset({world.cpu} if cpus == '"all"' else ()))
        twin = Twin(world, Balancer(features, own), features)
        twin.take(facts)
        yield twin
