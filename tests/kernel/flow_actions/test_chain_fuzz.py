# SPDX-License-Identifier: Apache-2.0
"""Frames of all kinds, with marks of all kinds, through a whole chain: none is aborted, and no verdict is missing."""

from __future__ import annotations

import random
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nfcore.kernel import remove_bpffs
from nfcore.plugins.flow_actions.entries import parse_orders
from nfcore.plugins.flow_actions.maps import remove_pins
from tests.isolation import on_one_cpu
from tests.kernel.softnic.pins import Pins

from .frames import fuzzed, ipv4, ipv6
from .in_process import CONFIG, Daemon

FRAMES = 1_000_000
ORDERS = [
    {"name": "drop", "src": "198.18.1.2", "dport": 81, "proto": "tcp", "action": "drop"},
    {"name": "voice", "src": "198.18.1.0/24", "action": "set_dscp", "dscp": 46},
    {
        "name": "slow",
        "src": "2001:db8:1::/48",
        "proto": "udp",
        "action": "police",
        "bytes_per_second": 16,
        "burst": 500,
    },
    {"name": "seen", "src": "2001:db8:1::2", "action": "count"},
    {"name": "mine", "dst": "198.18.10.1", "proto": 1, "action": "pass", "priority": 1},
    {"name": "other", "family": 6, "proto": 132, "action": "cpu", "cpu": 0},
]


@contextmanager
def running(folder: Path, strategy: str) -> Iterator[Daemon]:
    """A chain with entries of its own, whose balancer has marks for some flows."""
    with ExitStack() as stack:
        stack.enter_context(on_one_cpu())
        pins = Pins(folder / "nic")
        stack.callback(remove_bpffs, folder / "nic")
        pins.make(64)
        stack.callback(pins.remove)
        (folder / "nf.toml").write_text(CONFIG.format(folder=folder, strategy=strategy, flows=""))
        daemon = Daemon(folder, time.time)
        stack.callback(lambda: list(remove_pins(folder / "pins")))
        daemon.start()
        stack.enter_context(daemon.stack)
        stack.callback(daemon.engine.remove_all)
        daemon.orders.change(parse_orders(ORDERS))
        for frame in (ipv4(src="198.18.9.2"), ipv6(src="2001:db8:9::2")):
            for _ in range(4):
                daemon.program.test_run(frame)
        daemon.turn()
        yield daemon


@pytest.mark.slow
@pytest.mark.parametrize("frames", [FRAMES // 2])
def test_none_of_a_million_frames_is_aborted(tmp_path: Path, strategy: str, frames: int) -> None:
    generator = random.Random(20_19)
    with running(tmp_path, strategy) as daemon:
        owned = sorted(set(daemon.engine.table.mark[daemon.engine.table.slots_in(2)].tolist()) - {0})
        assert len(owned) >= 3
        metadata = [b"", b"", *(struct.pack("=I", mark) for mark in (*owned, 0, 200, 255, 256, 1 << 31))]
        run, verdicts = daemon.program.test_run, Counter[str]()
        for _ in range(frames):
            frame = fuzzed(generator)
            verdicts[run(frame, metadata=generator.choice(metadata)).verdict.name] += 1
        assert verdicts["XDP_ABORTED"] == 0
        assert min(verdicts[name] for name in ("XDP_DROP", "XDP_PASS", "XDP_TX", "XDP_REDIRECT")) > frames // 10_000
