# SPDX-License-Identifier: Apache-2.0
"""The program that gives TCP in GUE the outer source address: as published, and as the model says."""

from __future__ import annotations

import random

from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from nfcore.plugins.katran_accel.decap.source_match import SourceMatch
from tests.katran_model.mutations import truncations
from tests.katran_model.source_match import match_source
from tests.katran_model.suites import published

SUITE = published().suites["source-match"]
LEAST = 54
"""Bytes that the kernel wants of an IPv6 packet for a test run."""
PORT = SUITE.features.source_match_port


def test_every_packet_comes_out_as_published() -> None:
    with SourceMatch(PORT) as match:
        for case in SUITE.cases:
            before = match.counts()
            run = match.program.test_run(case.frame)
            new = {f"tc_srcmatch_map.packets_{n}": c - before[n] for n, c in match.counts().items() if c != before[n]}
            assert (case.name, f"TC_ACT_{run.verdict.name}", run.output) == (
                case.name,
                case.verdict.value,
                case.output,
            )
            assert (case.name, new) == (case.name, case.counters)


def test_whatever_comes_is_as_the_model_says() -> None:
    link = Ether(src="02:00:5e:00:00:01", dst="02:00:5e:00:00:02")
    inner = IPv6(src="2001:db8::99", dst="2001:db8::3") / TCP() / Raw(b"x")
    whole = bytes(link / IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=1, dport=PORT) / inner)
    choice = random.Random(1)
    frames = [frame for frame in truncations(whole) if len(frame) >= LEAST]
    for _ in range(500):
        changed = bytearray(whole)
        changed[choice.randrange(12, len(whole))] = choice.randrange(256)
        frames.append(bytes(changed))
    acted = 0
    with SourceMatch(PORT) as match:
        for frame in frames:
            _, wanted, counters = match_source(SUITE.features, frame)
            acted += counters.fields["tc_srcmatch_map.packets_acted"]
            assert match.program.test_run(frame).output == wanted, frame.hex()
        assert 0 < acted == match.counts()["acted"]
