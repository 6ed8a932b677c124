# SPDX-License-Identifier: Apache-2.0
"""The published packets of tests/data, with types: suites of cases, and the state that the maps have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any

from tests.paths import DATA

from .counters import CounterValues
from .features import KATRAN, Features
from .maglev import build_ring
from .maps import Maps, Prefix, Real, Vip, VipKey, padded
from .packet import TCP, UDP, Verdict

PROTOCOLS = {"tcp": TCP, "udp": UDP}


@dataclass(frozen=True)
class Settings:
    """What all suites have in common."""

    gateway_mac: str
    local_mac: str
    source_v4: str
    source_v6: str


@dataclass(frozen=True)
class VipFacts:
    """A VIP; its number is its place."""

    address: str
    """An address or a prefix."""
    port: int
    protocol: str
    flags: int
    reals: tuple[int, ...]


@dataclass(frozen=True)
class Facts:
    """What the control plane was told."""

    reals: Mapping[int, str]
    local_reals: frozenset[int]
    vips: tuple[VipFacts, ...]
    server_ids: Mapping[int, int]
    source_routes: Mapping[str, int]
    decap_addresses: Mapping[str, int]
    down_reals: tuple[tuple[str, int, str, tuple[int, ...]], ...]
    """Address, port and protocol of a VIP, and numbers of reals."""
    healthcheck_marks: Mapping[int, str]

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Facts:
        """Read a state of the file."""
        vips = [VipFacts(**{**vip, "reals": tuple(vip["reals"])}) for vip in raw["vips"]]
        down = [(d["address"], d["port"], d["protocol"], tuple(d["reals"])) for d in raw.get("down_reals", [])]
        return cls(
            dict(enumerate(raw["reals"], 1)),
            frozenset(raw.get("local_reals", [])),
            tuple(vips),
            {int(server): real for server, real in raw.get("server_ids", {}).items()},
            raw.get("source_routes", {}),
            raw.get("decap_addresses", {}),
            tuple(down),
            {int(mark): address for mark, address in raw.get("healthcheck_marks", {}).items()},
        )


@dataclass(frozen=True)
class Case:
    """A frame, and what has to become of it."""

    number: int
    name: str
    frame: bytes
    verdict: Verdict
    output: bytes
    counters: CounterValues
    mark: int = 0


@dataclass(frozen=True)
class Suite:
    """Cases that run one after the other."""

    name: str
    published_as: str
    program: str
    features: Features
    state: Facts
    cases: tuple[Case, ...]
    after: str | None = None
    """The suite whose cases run before."""
    server_id: int = 0
    """Own id of a real."""
    random_gue_port: bool = False


@dataclass(frozen=True)
class Flow:
    """A flow, and the real that the ring has for it; without a VIP: ""."""

    src: str
    dst: str
    protocol: str
    sport: int
    dport: int
    real: str


@dataclass(frozen=True)
class Collection:
    """All that was published."""

    settings: Settings
    suites: Mapping[str, Suite]
    flows: tuple[Flow, ...]
    """In the state of the first suite."""


@cache
def published() -> Collection:
    """Read the file."""
    raw = json.loads((DATA / "published_suites.json").read_text(encoding="utf-8"))
    states = {name: Facts.of(state) for name, state in raw["states"].items()}
    suites = {suite["name"]: _suite(suite, states) for suite in raw["suites"]}
    return Collection(Settings(**raw["settings"]), suites, tuple(Flow(**flow) for flow in raw["flows"]))


def _suite(raw: Mapping[str, Any], states: Mapping[str, Facts]) -> Suite:
    plain = {key: raw[key] for key in ("name", "published_as", "program")}
    extra = {key: raw[key] for key in ("after", "server_id", "random_gue_port") if key in raw}
    features = Features(**raw["features"], quirks=KATRAN)
    cases = tuple(_case(case) for case in raw["cases"])
    return Suite(**plain, features=features, state=states[raw["state"]], cases=cases, **extra)


def _case(raw: Mapping[str, Any]) -> Case:
    frame = bytes.fromhex(raw["in"])
    output = bytes.fromhex(raw["out"]) if "out" in raw else frame
    verdict = Verdict(raw["verdict"])
    return Case(raw["number"], raw["name"], frame, verdict, output, raw["counters"], raw.get("mark", 0))


def mac(address: str) -> bytes:
    """A MAC address as bytes."""
    return bytes.fromhex(address.replace(":", ""))


def real(address: str, local: bool = False) -> Real:
    """A real as in the maps."""
    return Real(padded(address), ":" in address, local)


def maps_of(facts: Facts, settings: Settings) -> Maps:
    """Write the maps as a control plane does."""
    maps = Maps(
        gateway_mac=mac(settings.gateway_mac),
        sources={4: padded(settings.source_v4), 6: padded(settings.source_v6)},
        reals={number: real(address, number in facts.local_reals) for number, address in facts.reals.items()},
        server_ids=dict(facts.server_ids),
        decap_addresses={
            (padded(address), ip_address(address).version): flags for address, flags in facts.decap_addresses.items()
        },
        down_reals={
            VipKey(padded(address), port, PROTOCOLS[protocol]): set(reals)
            for address, port, protocol, reals in facts.down_reals
        },
    )
    for number, vip in enumerate(facts.vips):
        _write_vip(maps, number, vip, {each: (facts.reals[each], 1) for each in vip.reals})
    for prefix, number in facts.source_routes.items():
        network = ip_network(prefix)
        maps.source_routes[network.version][Prefix.of(network)] = number
    return maps


def _write_vip(maps: Maps, number: int, vip: VipFacts, reals: Mapping[int, tuple[str, int]]) -> None:
    meta, protocol = Vip(vip.flags, number, 6 if ":" in vip.address else 4), PROTOCOLS[vip.protocol]
    if "/" in vip.address:
        maps.prefix_vips[Prefix.of(ip_network(vip.address)), vip.port, protocol] = meta
    else:
        maps.vips[VipKey(padded(vip.address), vip.port, protocol)] = meta
    if reals:
        maps.rings[number] = build_ring(reals)
