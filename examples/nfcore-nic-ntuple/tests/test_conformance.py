# SPDX-License-Identifier: Apache-2.0
"""nfcore's conformance suite with the simulated driver: the backend chooses locations, or the driver does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from conftest import DEVICE, context_of
from driver import Driver, foreign_entry

from nfcore.api.rules import Capabilities
from nfcore.testing import BackendConformance, NicUnderTest, Seen
from nfcore_nic_ntuple import NicNtuplePlugin


class TestOwnLocations(BackendConformance):
    """The user chooses locations, as with Intel's and Mellanox's NICs."""

    chooses = False

    @pytest.fixture
    def nic(self, tmp_path: Path) -> Iterator[NicUnderTest]:
        driver = Driver(queues=256, size=2048, chooses=self.chooses)
        running: list[NicNtuplePlugin] = []

        def start() -> NicNtuplePlugin:
            plugin = NicNtuplePlugin(lambda _: driver)
            plugin.setup(context_of(tmp_path))
            running.append(plugin)
            return plugin

        def send(frame: bytes, count: int) -> Seen:
            return Seen(*driver.send(frame, count))

        def foreign() -> Callable[[], bool]:
            driver.put(2047, foreign_entry())
            return lambda: driver.rules.get(2047) == foreign_entry()

        def leftovers() -> Sequence[str]:
            files = [str(path) for path in tmp_path.iterdir()]
            return files + [f"a rule at {location}" for location in driver.rules if location != 2047]

        yield NicUnderTest(
            plugin=start(),
            device=DEVICE,
            capabilities=Capabilities(mark_width=8, counters=False),
            send=send,
            restart=start,
            table_size=2048,
            foreign=foreign,
            leftovers=leftovers,
        )
        for plugin in running:
            plugin.teardown()


class TestLocationsOfTheDriver(TestOwnLocations):
    """The driver chooses locations, as Broadcom's does."""

    chooses = True
