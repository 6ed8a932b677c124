# SPDX-License-Identifier: Apache-2.0
"""What metrics and `nfcore trace` tell of real packets: those of the published suites."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from nfcore.plugins.katran_accel.tracing import trace
from tests.katran_model.suites import Suite, published

from .test_feature_metrics import COUNTED, values
from .twin import vips_toml
from .world import World, open_world

SUITES = {name: suite for name, suite in published().suites.items() if suite.program == "balancer" and not suite.after}
"""Those that begin with empty connection tables."""
ANSWERED = "an echo request to a VIP: answered"
QUOTED = "goes to the real of the flow that it quotes"
UNFIT = "to a VIP, but truncated, a fragment or with IP options"
NO_ID = "among its TCP options is no server id of a real"
TCP_ID = "its TCP server id names the real"
CORRECTED = "the connection table had another real and was corrected"
STRANGE = "whose address is none of decap.addresses: passed to the stack; although it is for a VIP"
TOLD = {
    ("ipip", "tcp v4"): "",
    ("ipip", "echo v4"): ANSWERED,
    ("ipip", "echo v6"): ANSWERED,
    ("ipip", "ICMP error v4: fragmentation needed"): f"an ICMP error that tells an MTU below 1280: {QUOTED}",
    ("ipip", "ICMP error v6: packet too big"): f"an ICMP error that tells an MTU: {QUOTED}",
    ("ipip", "IPv4 options"): UNFIT,
    ("ipip", "IPv6 fragment"): UNFIT,
    ("ipip", "no VIP, v4"): "",
    ("ipip", "quic initial, new flow"): "the first packet of a QUIC flow has no server id yet",
    ("ipip", "quic retry, id v1 of a v6 real"): "its QUIC connection id of version 1 names the real",
    ("ipip", "quic short header, id v1"): f"its QUIC connection id of version 1 names the real; {CORRECTED}",
    ("ipip", "quic short header, id v2"): "its QUIC connection id of version 2 names the real",
    (
        "ipip",
        "quic short header, id v1 of nobody, known flow",
    ): "its QUIC connection id has the server id 1092, which is none of server_ids",
    ("ipip", "quic short header, id 0, known flow"): "its QUIC header has no server id",
    ("ipip", "one byte too long"): "of 1501 bytes, longer than the MTU of 1500: dropped",
    ("gue", "VIP without reals"): "the VIP has no real for new flows: dropped",
    ("gue-decap", "IPv6 in GUE in IPv6 for a VIP"): f"taken out of a tunnel over IPv6, {STRANGE}",
    (
        "egress-decap",
        "IPv4 in GUE in IPv6",
    ): "taken out of a tunnel over IPv6, and the IPv4 packet sent back to where the frame came from",
    ("egress-decap", "IPv4 in GUE in IPv6, TTL 1"): "taken out of a tunnel over IPv6, and its TTL is over: dropped",
    (
        "cross-pop-decap",
        "IPv4 in GUE in IPv6, udp VIP",
    ): "taken out of a tunnel over IPv6 that ends here, and the IPv4 packet looked at anew",
    ("too-big", "v4"): "of 1528 bytes, longer than the MTU: its sender is told",
    ("too-big", "v6"): "of 1560 bytes, longer than the MTU: its sender is told",
    ("source-routing", "v4, prefix of 17 bits"): "a source route names the real",
    ("source-routing", "v6, no prefix"): "no source route fits the client: the ring chose",
    ("tcp-server-ids", "v4 SYN with an id"): "a SYN has no server id yet",
    ("tcp-server-ids", "v6, id"): TCP_ID,
    ("tcp-server-ids", "v6, id of nobody, new flow"): NO_ID,
    ("udp-stable-routing", "id"): "its stable-routing id names the real",
    ("udp-stable-routing", "id 0, new flow"): "its stable-routing id is 0",
}
"""Suite and case → what trace says."""


def keys_of(suite: Suite) -> str:
    """What a suite is built with, as keys of the TOML."""
    features, settings, ends = suite.features, published().settings, suite.state.decap_addresses
    addresses = [f'{{ address = "{end}", egress = {str(bool(flags & 2)).lower()} }}' for end, flags in ends.items()]
    decap = features.inline_decap_ipip or features.inline_decap_gue
    lines = {
        f'encapsulation = "{features.encapsulation}"': True,
        f'source_v4 = "{settings.source_v4}"': True,
        f'source_v6 = "{settings.source_v6}"': True,
        f"gue_port = {features.gue_port}": True,
        'server_id_map = "hash"': True,
        'too_big = "answer"': features.too_big,
        "tcp_server_ids = true": features.tcp_server_ids,
        "decap.ipip = true": features.inline_decap_ipip,
        "decap.gue = true": features.inline_decap_gue,
        "decap.strict = true": features.strict_decap and decap,
        f"decap.addresses = [{', '.join(addresses)}]": bool(ends),
    }
    return "\n".join(line for line, wanted in lines.items() if wanted)


def tables_of(suite: Suite) -> str:
    """VIPs, server ids and source routes of a suite, as tables of the TOML."""
    reals = suite.state.reals
    tables = [vips_toml(suite.state, suite.features)]
    for server, number in suite.state.server_ids.items():
        tables.append(f'[[katran_accel.server_ids]]\nid = {server}\nreal = "{reals[number]}"\n')
    for prefix, number in suite.state.source_routes.items():
        tables.append(f'[[katran_accel.source_routes]]\nprefix = "{prefix}"\nreal = "{reals[number]}"\n')
    return "".join(tables)


def published_counts(suite: Suite) -> Counter[tuple[str, int, str]]:
    """Map, row and field → what all cases of a suite add."""
    counts: Counter[tuple[str, int, str]] = Counter()
    for case in suite.cases:
        for name, added in case.counters.items():
            if isinstance(added, int):
                table, _, field = name.partition(".")
                counts[table, 0, field] += added
            else:
                table, _, row = name.rstrip("]").partition("[")
                for field, count in zip(("v1", "v2"), added, strict=True):
                    counts[table, int(row), field] += count
    return counts


@pytest.fixture(params=SUITES)
def suite(request: pytest.FixtureRequest) -> Suite:
    return SUITES[request.param]


def test_published_packets_are_told(tmp_path: Path, suite: Suite) -> None:
    tables, keys = tables_of(suite), keys_of(suite)
    with open_world(tmp_path, vips=tables, katran=keys, offload="min_packets = 32767") as world:
        check(world, suite)


def check(world: World, suite: Suite) -> None:
    """Trace all cases; then the metrics are what the suite publishes."""
    before = values(world)
    for case in suite.cases:
        traced = trace(world.balancer, case.frame, 0)
        assert traced.verdict == case.verdict.value, case.name
        if (wanted := TOLD.get((suite.name, case.name))) is not None:
            assert traced.why == wanted, case.name
    after, counts = values(world), published_counts(suite)
    for counter, names in COUNTED.items():
        for name in names:
            # Of VIPs and drops more than one counter is in a metric, or the number of the VIP another one.
            if name in after and "{vip=" not in name and "drops" not in name:
                assert (name, after[name] - before[name]) == (name, counts[counter])


def test_the_cases_are_there() -> None:
    assert {(suite.name, case.name) for suite in SUITES.values() for case in suite.cases} >= TOLD.keys()
