# SPDX-License-Identifier: Apache-2.0
"""softnic keeps every promise of a backend: its plugin over its table, frames through its program by test runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nfcore.api.rules import Capabilities, Device, Rule, RuleBatch, SetMark
from nfcore.kernel import remove_bpffs
from nfcore.plugins.softnic import SoftnicPlugin
from nfcore.plugins.softnic.backend import SoftnicBackend
from nfcore.testing import BackendConformance, NicUnderTest, context_for, sample_flow

from .pins import Pins, wire_of

DEVICE = Device("eth1", 4, ("softnic",))
"""Its ifindex is only a number here: the NIC is found by its pins."""
FOREIGN = Rule(sample_flow(50_000), SetMark(9), 0x1234)


class TestSoftnic(BackendConformance):
    @pytest.fixture
    def nic(self, tmp_path: Path) -> Iterator[NicUnderTest]:
        pins = Pins(tmp_path / "nic")
        pins.make(64)
        with ExitStack() as leaving:
            leaving.callback(remove_bpffs, pins.folder)
            leaving.callback(pins.remove)
            # Another program, as far as the plugin knows.
            other = SoftnicBackend.open(pins.folder, "test")
            leaving.callback(other.close)

            def set_up() -> SoftnicPlugin:
                plugin = SoftnicPlugin()
                leaving.callback(plugin.teardown)
                table = {"pins": {"eth1": str(pins.folder)}}
                plugin.setup(context_for(plugin, "softnic", [DEVICE], table, folder=tmp_path))
                return plugin

            def foreign() -> Callable[[], bool]:
                other.install(RuleBatch.of([FOREIGN]))
                return lambda: FOREIGN in list(RuleBatch(other.dump()["rule"].copy()))

            yield NicUnderTest(
                set_up(),
                DEVICE,
                Capabilities(mark_width=32, masks=True, vlans=True),
                send=leaving.enter_context(wire_of(pins)),
                restart=set_up,
                foreign=foreign,
                leftovers=lambda: [f"rule {rule}" for rule in RuleBatch(other.dump()["rule"].copy())],
            )
