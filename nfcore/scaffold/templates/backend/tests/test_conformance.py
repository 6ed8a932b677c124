# SPDX-License-Identifier: Apache-2.0
"""The conformance suite for every offload backend: each test is a promise, which its docstring states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nfcore.api.flows import FlowMatch
from nfcore.api.rules import Capabilities, Device, Rule, SetMark
from nfcore.testing import BackendConformance, NicUnderTest, Seen, context_for

from nfcore_my_name import MyNamePlugin
from nfcore_my_name.nic import MARK_WIDTH, PROTOCOLS, Entry, find_nic, forget_nic
from nfcore_my_name.plugin import NAME

from .wire import flow_of

DEVICE = Device("eth1", 4, (NAME,))
SIZE = 64


class TestConformance(BackendConformance):
    """Put your device in the place of the NIC in memory; give its capabilities, and `lacks` with what it cannot do."""

    @pytest.fixture
    def nic(self, tmp_path: Path) -> Iterator[NicUnderTest]:
        yield NicUnderTest(
            plugin=set_up(tmp_path),
            device=DEVICE,
            capabilities=Capabilities(MARK_WIDTH, table_size=SIZE, protocols=PROTOCOLS),
            send=send,
            restart=lambda: set_up(tmp_path),
            table_size=SIZE,
            foreign=install_foreign_rule,
            leftovers=lambda: [str(entry.rule) for entry in find_nic(DEVICE.ifindex, SIZE).own_entries()],
        )
        forget_nic(DEVICE.ifindex)


def set_up(folder: Path) -> MyNamePlugin:
    plugin = MyNamePlugin()
    plugin.setup(context_for(plugin, NAME, [DEVICE], {"rules": SIZE}, folder=folder))
    return plugin


def send(frame: bytes, count: int) -> Seen:
    arrived = [find_nic(DEVICE.ifindex, SIZE).receive(flow_of(frame), len(frame)) for _ in range(count)]
    return Seen(Counter(mark for mark in arrived if mark is not None), arrived.count(None))


def install_foreign_rule() -> Callable[[], bool]:
    entries = find_nic(DEVICE.ifindex, SIZE).entries
    rule = Rule(FlowMatch.parse("198.18.255.1:1 > 198.18.255.2:2/udp"), SetMark(9), cookie=0x1234)
    entries[rule.match] = Entry(rule)
    return lambda: rule.match in entries and entries[rule.match].rule == rule
